"""Results that can be trusted: scores of every run on every suite, with intervals, paired tests and reports.

Names are imported on first use: reading a result needs neither torch nor scipy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from madkit.evaluate.report import GalleryItem as GalleryItem
    from madkit.evaluate.report import write_report as write_report
    from madkit.evaluate.results import Results as Results
    from madkit.evaluate.stage import evaluate as evaluate
    from madkit.evaluate.vqa_metric import normalize_vqa_answer as normalize_vqa_answer
    from madkit.evaluate.vqa_metric import vqa_accuracy as vqa_accuracy

__all__ = [
    "GalleryItem",
    "Results",
    "evaluate",
    "normalize_vqa_answer",
    "vqa_accuracy",
    "write_report",
]

_HOMES = {
    "GalleryItem": "madkit.evaluate.report.gallery",
    "Results": "madkit.evaluate.results",
    "evaluate": "madkit.evaluate.stage",
    "normalize_vqa_answer": "madkit.evaluate.vqa_metric",
    "vqa_accuracy": "madkit.evaluate.vqa_metric",
    "write_report": "madkit.evaluate.report.write",
}


def __getattr__(name: str) -> object:
    """Import a public name from its home module on first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'madkit.evaluate' has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names without importing them."""
    return sorted(__all__)
