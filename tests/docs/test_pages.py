"""Pictures are there and small, Python on the pages compiles, and formulas are drawn without a script."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest

from .typed import PAGES, ROOT, blocks

HOOK = ROOT / "docs" / "hooks" / "mathml.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pictures_exist_and_are_small(page: Path) -> None:
    for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / name).stat().st_size < 300_000, name
    assert "![](" not in page.read_text(encoding="utf-8"), "a picture without words for those who cannot see it"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_python_compiles(page: Path) -> None:
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language == "python":
            compile(block.body, page.name, "exec")


@pytest.fixture
def hook() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("mathml_hook", HOOK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_formulas_become_mathml(hook: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    converter = types.ModuleType("latex2mathml.converter")
    vars(converter)["convert"] = lambda latex, display: f"<math display={display}>{latex}</math>"
    monkeypatch.setitem(sys.modules, "latex2mathml", types.ModuleType("latex2mathml"))
    monkeypatch.setitem(sys.modules, "latex2mathml.converter", converter)
    page = '<p><span class="arithmatex">\\(a &lt; b\\)</span></p><div class="arithmatex">\\[\nx\n\\]</div>'
    assert hook.on_page_content(page) == (
        '<p><math display=inline>a < b</math></p><div class="formula"><math display=block>x</math></div>'
    )
    config = types.SimpleNamespace(extra_javascript=[])
    assert hook.on_config(config).extra_javascript == []


def test_without_the_converter_the_pages_load_mathjax(hook: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "latex2mathml.converter", None)
    page = '<span class="arithmatex">\\(x\\)</span>'
    assert hook.on_page_content(page) == page
    config = types.SimpleNamespace(extra_javascript=[])
    assert hook.on_config(config).extra_javascript == [hook.MATHJAX]
