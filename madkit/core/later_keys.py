"""Configuration keys that came after the first runs were made, and the defaults that mean what runs did before.

A run made before a key existed and one made since with the key's default are the same run: neither digests (run
folders) nor the grouping of runs in tables may tell them apart. So a key with its default here is left out of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What does not change the numbers of a run: part of no digest, and no setting that sets runs apart. (`adaptation`
# chooses the cache, and the cache is part of a run's identity.)
OUTSIDE: tuple[str, ...] = ("checkpoint", "description", "adaptation", "divergence", "trackers", "teacher_bank")

# Dotted key -> default. Every new key of `distill.config` and of the schemas below it goes in here; a schema that is
# used in two places (`mad` and `pre_phase.objective`) has its keys here twice.
LATER: dict[str, Any] = {
    "answers": None,
    "answer_match": "normalized",
    "choice_loss": "softmax",
    "choice_mean": False,
    "class_loss": "softmax",
    "adversarial": None,
    "teachers": {},
    "pool": None,
    "visual_input": "own",
    "confidence.teacher": "unadapted",
    "eval.patience": 0,
    "optim.ema": None,
    "optim.warmup_steps": None,
    "optim.extra_steps": 0,
    "optim.schedule": "linear",
    "optim.milestones": [],
    "optim.optimizer": "adamw",
    "optim.momentum": 0.9,
    "mad.affinity_kind": "relative",
    "mad.affinity_threshold": None,
    "pre_phase.soft_labels": None,
    "pre_phase.objective.affinity_kind": "relative",
    "pre_phase.objective.affinity_threshold": None,
}


def without_later(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration (JSON values) without those keys of `LATER` that have the default's value."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        key = prefix + name
        if key in LATER and value == LATER[key]:
            continue
        kept[name] = without_later(value, f"{key}.") if isinstance(value, Mapping) else value
    return kept
