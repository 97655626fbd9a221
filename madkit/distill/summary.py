"""A run's `summary.md`: what it was, how it ended, in a form to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from madkit.distill.adaptation import AdaptedTeacher
from madkit.distill.config import DistillConfig
from madkit.distill.folder import RunIdentity

PAYS = "the teacher sees every image first: its tokens are the student's visual input"


def summary_text(
    identity: RunIdentity, config: DistillConfig, facts: dict[str, Any], looks: Sequence[dict[str, Any]]
) -> str:
    """Markdown: the run's names, its settings that matter, its scores on the development split."""
    optim = config.optim
    untaught = facts.get("examples_without_teacher", 0)
    rows = [
        ("task", f"{identity.task} ({identity.source}, revision {identity.data_revision})"),
        ("arm", f"{identity.arm}: {config.description}" if config.description else identity.arm),
        (
            "labels",
            f"{identity.shots}: {facts['questions_labelled']:,} questions, {facts['examples_labelled']:,} examples",
        ),
        ("student", identity.student),
        ("teacher", f"{identity.teacher} (cache {identity.cache_key})" if identity.teacher else "none"),
        *([("without teacher", f"{untaught:,} examples, absent from the cache")] if untaught else []),
        *(
            [("adapted", f"{facts['adapted']['base']}, {AdaptedTeacher(**facts['adapted']).line}")]
            if facts.get("adapted")
            else []
        ),
        *([("at inference", PAYS)] if facts.get("teacher_at_inference") else []),
        ("pre-phase", facts["pre_phase"] or "none"),
        ("seed", str(identity.seed)),
        ("steps", f"{facts['steps']:,} (weights of step {facts['kept_step']:,})"),
        ("learning rate", f"{optim.learning_rate or 0:g}, warm-up {optim.warmup:g}"),
        ("batch", f"{optim.token_budget:,} tokens" if optim.token_budget else f"{optim.batch_size} examples"),
        ("time", f"{facts['seconds']:.0f} s on {facts['device']}, {facts['processes']} process(es)"),
    ]
    lines = [f"# {identity.student}, {identity.arm}, {identity.shots}, seed {identity.seed}", ""]
    if identity.is_mini:
        lines += ["Embedded benchmark: these figures say nothing about the real one.", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]
    if looks:
        names = [name for name in looks[-1]["dev"] if name != "n"]
        lines += ["Development split:", "", f"| step | {' | '.join(names)} |", "|---:|" + "---:|" * len(names)]
        for look in looks:
            lines.append(f"| {look['step']} | " + " | ".join(f"{look['dev'][name]:.2f}" for name in names) + " |")
        lines.append("")
    return "\n".join(lines)
