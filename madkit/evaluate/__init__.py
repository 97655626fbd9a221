"""Scores, statistics and reports."""

from __future__ import annotations

from madkit.evaluate.vqa_metric import normalize_vqa_answer, vqa_accuracy

__all__ = ["normalize_vqa_answer", "vqa_accuracy"]
