"""Write all forms of a report into one folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from madkit.core.files import write_json_atomic, write_text_atomic
from madkit.evaluate.report.gallery import GalleryItem
from madkit.evaluate.report.page import render_page
from madkit.evaluate.report.text import as_csv, markdown
from madkit.evaluate.results import Results


def write_report(
    path: Path, results: Results, *, gallery: Sequence[GalleryItem] = (), title: str | None = None
) -> Path:
    """Write `results.json`, `results.csv`, `results.md` and `index.html` into the folder `path`.

    Args:
        path: the folder; made where it is absent.
        results: what to show.
        gallery: scenes with boxes, selected tokens and answers, for the HTML page.
        title: the page's title; the protocol's name where None.

    Returns the path of the page, which is written last.
    """
    path.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path / "results.json", results.document())
    write_text_atomic(path / "results.csv", as_csv(results))
    write_text_atomic(path / "results.md", markdown(results))
    page = path / "index.html"
    write_text_atomic(page, render_page(results, gallery=gallery, title=title))
    return page
