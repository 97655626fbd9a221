"""Bringing a benchmark's own files into a workspace."""

from __future__ import annotations

from collections.abc import Callable

from madkit.core.registry import Registry
from madkit.tasks.importing.found import FoundFiles
from madkit.tasks.importing.plan import Advance, ImportOptions, ImportPlan, SplitPlan

Importer = Callable[[FoundFiles, ImportOptions], ImportPlan]

IMPORTERS: Registry[Importer] = Registry("data set to import")
for _name, _folder, _about in (
    ("vcr", "vcr", "Visual Commonsense Reasoning: *.jsonl and vcr1images"),
    ("gd-vcr", "gd-vcr", "geo-diverse VCR: test questions by region"),
    ("snli-ve", "snli-ve", "visual entailment: snli_ve_*.jsonl, or SNLI 1.0 and the lists of Flickr30k"),
    ("e-snli-ve", "e-snli-ve", "SNLI-VE with corrected labels: esnlive_*.csv"),
    ("vqa-v2", "vqa", "VQA v2: v2_*_questions.json and v2_*_annotations.json"),
    ("vqa-cp-v2", "vqa-cp-v2", "VQA-CP v2: vqacp_v2_*.json"),
    ("custom", "", "your own questions: a JSONL file, or a Hugging Face dataset saved on disk"),
):
    IMPORTERS.register(_name, f"madkit.tasks.importing.{_name.replace('-', '_')}:plan", dataset=_folder, about=_about)

__all__ = ["IMPORTERS", "Advance", "FoundFiles", "ImportOptions", "ImportPlan", "Importer", "SplitPlan"]
