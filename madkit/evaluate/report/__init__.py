"""Reports: one results document as terminal table, Markdown, CSV, JSON and one self-contained HTML page."""

from __future__ import annotations

from madkit.evaluate.report.gallery import GalleryItem as GalleryItem
from madkit.evaluate.report.page import render_page as render_page
from madkit.evaluate.report.write import write_report as write_report
