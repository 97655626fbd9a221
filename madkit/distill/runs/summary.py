"""A run's `summary.md`: what it was, how it went, what to do next, in a form to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from madkit.core.console import duration
from madkit.distill.runs.folder import RunIdentity
from madkit.distill.settings.config import DistillConfig
from madkit.distill.teacher.adaptation import AdaptedTeacher

PAYS = "the teacher sees every image first: its tokens are the student's visual input"
_BARS = "▁▂▃▄▅▆▇█"
_ENDS = 10  # steps that stand for the beginning and for the end of a run


def summary_text(
    identity: RunIdentity,
    config: DistillConfig,
    facts: dict[str, Any],
    looks: Sequence[dict[str, Any]],
    steps: Sequence[Mapping[str, Any]] = (),
    commands: Sequence[tuple[str, str]] = (),
) -> str:
    """Markdown: the run's names and settings that matter, its losses, its scores on the development split.

    Args:
        identity: what was trained on what.
        config: resolved.
        facts: what the manifest says of the run's end.
        looks: the journal's lines with "dev".
        steps: the journal's lines with "loss".
        commands: what to type next, each with what it is for.
    """
    lines = [f"# {identity.student}, {identity.arm}, {identity.shots}, seed {identity.seed}", ""]
    if identity.is_mini:
        lines += ["Embedded benchmark: these figures say nothing about the real one.", ""]
    lines += _table(["", ""], _names(identity, config, facts), "ll")
    lines += _losses(steps)
    lines += _scores(looks, facts)
    if commands:
        typed = [f"{command}   # {why}" for command, why in commands]
        lines += ["## Next", "", "```", *typed, "```", ""]
    lines += ["Every setting is in `config.yaml`, every step in `metrics.jsonl`, the student in `student/`.", ""]
    return "\n".join(lines)


def _names(identity: RunIdentity, config: DistillConfig, facts: dict[str, Any]) -> list[tuple[str, str]]:
    optim = config.optim
    untaught = facts.get("examples_without_teacher", 0)
    ended = ", stopped early" if facts.get("stopped_early") else ""
    resumed = f", went on from step {facts['resumed_from']:,}" if facts.get("resumed_from") else ""
    made = facts["steps"] - facts.get("resumed_from", 0)
    rate = made / facts["seconds"] if facts["seconds"] else 0.0
    took = f"{duration(facts['seconds'])} on {facts['device']}, {rate:.3g} steps/s with all beside them"
    return [
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
        ("steps", f"{facts['steps']:,} (weights of step {facts['kept_step']:,}{ended}{resumed})"),
        ("learning rate", f"{optim.learning_rate or 0:g}, warm-up {optim.warmup:g}, {optim.schedule}"),
        *([("average of the weights", f"decay {optim.ema:g}")] if optim.ema else []),
        ("batch", f"{optim.token_budget:,} tokens" if optim.token_budget else f"{optim.batch_size} examples"),
        (
            "time",
            f"{took}, {facts['processes']} process(es), {facts.get('threads', '?')} thread(s)",
        ),
    ]


def _losses(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """The loss and its terms at the beginning and at the end."""
    if not steps:
        return []
    few = min(_ENDS, len(steps))
    names = list(dict.fromkeys(name for row in steps for name in row["terms"]))
    rows = [("loss", [row["loss"] for row in steps[:few]], [row["loss"] for row in steps[-few:]])]
    if len(names) > 1:
        for name in names:
            ends = (steps[:few], steps[-few:])
            first, last = ([row["terms"][name] for row in part if name in row["terms"]] for part in ends)
            if first and last:
                rows.append((name, first, last))
    cells = [(name, f"{fmean(first):.4g}", f"{fmean(last):.4g}") for name, first, last in rows]
    return ["## Losses", "", *_table(["", f"first {few} steps", f"last {few} steps"], cells, "lrr")]


def _scores(looks: Sequence[dict[str, Any]], facts: dict[str, Any]) -> list[str]:
    if not looks:
        return []
    names = [name for name in looks[-1]["dev"] if name != "n"]
    rows = [
        (
            f"{look['step']}{' *' if look['step'] == facts['kept_step'] and len(looks) > 1 else ''}",
            *(f"{look['dev'][name]:.2f}" for name in names),
        )
        for look in looks
    ]
    lines = ["## Development split", ""]
    if len(looks) > 2:
        lines += [f"`{spark([look['dev'][name] for look in looks])}` {name}  " for name in names] + [""]
    lines += _table(["step", *names], rows, "r" * (len(names) + 1))
    if len(looks) > 1:
        lines += ["\\* the weights that were kept.", ""]
    return lines


def spark(values: Sequence[float]) -> str:
    """A line of bars from the lowest value to the highest."""
    low, high = min(values), max(values)
    if high == low:
        return _BARS[0] * len(values)
    return "".join(_BARS[round((value - low) / (high - low) * (len(_BARS) - 1))] for value in values)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """A Markdown table; a letter for each column says on which side it stands, "l" or "r"."""
    rule = "|".join("---:" if side == "r" else "---" for side in align)
    body = ["| " + " | ".join(row) + " |" for row in rows]
    return ["| " + " | ".join(headers) + " |", f"|{rule}|", *body, ""]
