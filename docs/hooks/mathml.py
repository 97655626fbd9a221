"""Formulas as MathML while the site is built, so that they read without a script and without a network.

Arithmatex marks what is LaTeX; every browser of these years draws MathML by itself. Where latex2mathml is not installed
the pages load MathJax instead, which needs a network.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

MATHJAX = "https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-mml-chtml.js"
MARKED = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)


def _converter() -> Callable[..., str] | None:
    try:
        from latex2mathml.converter import convert
    except ImportError:
        return None
    return convert


def on_config(config: Any) -> Any:
    """Load MathJax where nothing else draws formulas."""
    if _converter() is None:
        config.extra_javascript.append(MATHJAX)
    return config


def on_page_content(content: str, **_: Any) -> str:
    """Put MathML in the place of LaTeX."""
    convert = _converter()
    if convert is None:
        return content

    def drawn(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        formula = convert(html.unescape(found[2]).strip(), display=display)
        return f'<div class="formula">{formula}</div>' if display == "block" else formula

    return MARKED.sub(drawn, content)
