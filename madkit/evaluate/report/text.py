"""Results as Markdown and CSV, and the words and numbers that all reports share."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from madkit.core.console import counted
from madkit.evaluate.power import MOST_SEEDS
from madkit.evaluate.published import notes
from madkit.evaluate.results import Calibration, Difference, Results, Row, Source

NO_INTERVAL = "n=1, no interval"
NOT_SIGNIFICANT = "n.s."

EXPLANATION = (
    "Score: mean over seeds in percent, with the 95 % interval of Student's t over the seeds (the same test examples, "
    "another seed). One seed has no interval. Difference: arm minus {baseline} in points on the same seeds and the "
    "same questions, with the 95 % interval for new seeds and new images (two crossed sources of chance, questions "
    "about one image kept together). An asterisk marks p < 0.05 after Holm's correction over all comparisons of one "
    "table and metric; n.s. means that the corrected test shows no difference, and the number behind it how many seeds "
    "would show one of this size (power 0.8)."
)
MINI_NOTE = (
    "{names}: madkit's embedded benchmark, pictographs drawn by program. These figures show the method at work on a "
    "toy world; they are not results on {real} and must not be quoted as such."
)


def score(row: Row) -> str:
    """The mean, for a cell."""
    return f"{row.mean:.1f}"


def with_sign(value: float) -> str:
    """A difference with its sign; what rounds to nothing has none."""
    written = f"{value:+.1f}"
    return "0.0" if written in ("+0.0", "-0.0") else written


def interval(low: float | None, high: float | None, *, signed: bool = False) -> str:
    """Square brackets, or the words for a single seed."""
    if low is None or high is None:
        return NO_INTERVAL
    return f"[{with_sign(low)}, {with_sign(high)}]" if signed else f"[{low:.1f}, {high:.1f}]"


def difference(value: Difference | None) -> str:
    """`+4.0 [+1.5, +6.5] *`; n.s. and the seeds it would take, where it is not shown; nothing for the baseline."""
    if value is None:
        return ""
    if value.low is None:
        return f"{with_sign(value.mean)} ({NO_INTERVAL})"
    mark = "*" if value.significant else f"{NOT_SIGNIFICANT}{f' ({needed(value)})' if needed(value) else ''}"
    return f"{with_sign(value.mean)} {interval(value.low, value.high, signed=True)} {mark}"


def needed(value: Difference) -> str:
    """How many seeds would show a difference that is not shown; nothing where that is not known."""
    if value.hopeless:
        return f">{MOST_SEEDS:,}"
    return "" if value.seeds_needed is None else f"{value.seeds_needed:,}"


def quoted(value: float) -> str:
    """A published figure with the digits that it was published with, at least one behind the point."""
    return f"{value:g}" if value % 1 else f"{value:.1f}"


def p_value(value: float | None) -> str:
    """Three digits, or a bound."""
    if value is None:
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def source_label(source: Source, sources: Sequence[Source]) -> str:
    """The source's name, its part, and its revision where the workspace holds several that are called the same."""
    name = f"{source.name} ({source.part} part)" if source.part else source.name
    twice = sum((other.name, other.part) == (source.name, source.part) for other in sources) > 1
    return f"{name} @{source.revision[:8]}" if twice else name


def rule_words(rule: str | None) -> str:
    """The version of VQA's accuracy, for titles; nothing for other tasks."""
    return f"VQA rule {rule}" if rule else ""


def rows_of(results: Results, source: Source) -> list[Row]:
    """The rows of one table: one source and revision."""
    return [row for row in results.rows if (row.source, row.revision) == (source.name, source.revision)]


def mini_note(results: Results) -> str | None:
    """The sentence that keeps the embedded benchmark from being taken for the real one; None where none was used."""
    mini = [source for source in results.sources if source.is_mini]
    if not mini:
        return None
    names = _listed(dict.fromkeys(source.name for source in mini))
    real = _listed(dict.fromkeys(source.title for source in mini))
    return MINI_NOTE.format(names=names, real=real)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def facts(results: Results) -> list[str]:
    """What is absent or went wrong, in one sentence each."""
    lines = []
    if results.unfinished:
        verb = "run is" if results.unfinished == 1 else "runs are"
        lines.append(f"{results.unfinished} {verb} not finished and left out.")
    if results.missing:
        count = len(results.missing)
        shown = "; ".join(_cell(cell) for cell in results.missing[:3])
        more = f"; and {count - 3} more (results.json)" if count > 3 else ""
        lines.append(f"{count} {'cell' if count == 1 else 'cells'} of the grid without a run: {shown}{more}.")
    apart = _no_common_seed(results)
    if apart:
        lines.append(f"No difference to {results.settings.get('baseline')}, having no seed in common with it: {apart}.")
    lines += _other_budgets(results)
    shared = [row for row in results.rows if row.n_pre_phases is not None and row.n_pre_phases < row.n_seeds]
    if shared:
        arms = _listed(dict.fromkeys(row.label for row in shared))
        lines.append(f"The seeds of {arms} share pre-phases, whose own spread is not in the intervals.")
    untaught = {(row.source, row.shots, row.label): row for row in results.rows if row.n_untaught}
    for (source, shots, label), row in untaught.items():
        lines.append(
            f"{label} ({source}, {shots_name(shots)}) learnt {row.n_untaught:,} of "
            f"{counted(row.n_labelled, 'examples')} from "
            "their labels alone: the teacher's cache has no values for their images or texts."
        )
    return lines


def _no_common_seed(results: Results) -> str:
    """The arms that stand beside a baseline without a difference, because no seed of theirs is one of its seeds."""
    baselines: dict[tuple[str, ...], set[int]] = {}
    others: dict[tuple[str, ...], Row] = {}
    for row in results.rows:
        if row.headline and row.arm == results.settings.get("baseline"):
            baselines.setdefault(_condition(row), set()).update(row.seeds)
        elif row.headline and row.difference is None:
            others.setdefault((*_condition(row), row.label), row)
    apart = [row for row in others.values() if (seeds := baselines.get(_condition(row))) and not seeds & set(row.seeds)]
    return _listed(f"{row.label} ({row.source}, {shots_name(row.shots)})" for row in apart) if apart else ""


def _other_budgets(results: Results) -> list[str]:
    """Which arms were trained for other numbers of steps, or of examples in a step, than what they are held against."""
    told: dict[str, None] = {}
    held = {(*_condition(row), row.label): row for row in results.rows}
    for row in results.rows:
        against = held.get((*_condition(row), row.difference.baseline)) if row.difference is not None else None
        if against is None:
            continue
        where = f"({row.source}, {shots_name(row.shots)})"
        for name, mine, theirs in (
            ("steps", row.steps, against.steps),
            ("examples a step", row.batch_size, against.batch_size),
        ):
            if mine is not None and theirs is not None and mine != theirs:
                told[f"{row.label} {where} was trained for {mine:,} {name}, {against.label} for {theirs:,}."] = None
    return list(told)


def _condition(row: Row) -> tuple[str, ...]:
    return (row.source, row.revision, row.student, row.shots)


def _cell(cell: dict[str, object]) -> str:
    parts = [str(cell[key]) for key in ("source", "shots", "arm") if cell.get(key) is not None] or [str(cell["task"])]
    if cell.get("seed") is not None:
        parts.append(f"seed {cell['seed']}")
    return " ".join(parts)


def tables(results: Results) -> list[tuple[Source, str, list[Row]]]:
    """Tables in order: per source and revision, student and shots."""
    found = []
    for source in results.sources:
        for _, group in groupby(rows_of(results, source), key=lambda row: (row.student, row.shots)):
            rows = sorted(group, key=_by_suite(results))
            parts = [source_label(source, results.sources), shots_name(rows[0].shots), rows[0].student]
            rule = rule_words(rows[0].vqa_rule)
            found.append((source, ", ".join([*parts, rule] if rule else parts), rows))
    return found


def _by_suite(results: Results) -> Callable[[Row], tuple[int, int]]:
    metrics = list(dict.fromkeys(row.metric for row in results.rows))
    suites = list(dict.fromkeys(suite for source in results.sources for suite in source.suites))
    return lambda row: (suites.index(row.suite), metrics.index(row.metric))


def arrows(metric: str) -> str:
    """A metric's name as it is printed: Q→AR."""
    return metric.replace("->", "\N{RIGHTWARDS ARROW}")


def suite_name(suite: str) -> str:
    """A suite in words: "in-domain test", "unseen concepts"."""
    return "in-domain test" if suite == "test" else suite.removeprefix("test-").replace("-", " ")


def shots_name(shots: str) -> str:
    """The number of labels in words."""
    if shots == "full":
        return "all labels"
    return f"{shots.removesuffix('pct')} % of the labels" if shots.endswith("pct") else f"{shots} labelled questions"


# fmt: off
COLUMNS = [
    "protocol", "task", "source", "revision", "mini", "student", "teacher", "arm", "shots", "suite", "metric",
    "mean", "low", "high", "n_seeds", "n_examples", "n_images",
    "baseline", "difference", "difference_low", "difference_high", "p", "p_holm", "seeds", "per_seed", "vqa_rule",
    "seeds_needed", "ece", "brier",
]
# fmt: on


def calibration_key(one: Row | Calibration) -> tuple[str, ...]:
    """What a row and its calibration have in common."""
    return (one.source, one.revision, one.student, one.label, one.shots, one.suite, one.metric)


def flat_rows(results: Results) -> list[dict[str, Any]]:
    """One row per result by `COLUMNS`, with numbers as they are, and behind them one per kind of question.

    A kind stands in the metric's name, with nothing but its mean and size.
    """
    calibrations = {calibration_key(one): one for one in results.calibrations}
    found: list[dict[str, Any]] = []
    for row in results.rows:
        gap, told = row.difference, calibrations.get(calibration_key(row))
        compared = [gap.baseline, gap.mean, gap.low, gap.high, gap.p, gap.p_holm] if gap else [None] * 6
        values = [
            results.protocol, row.task, row.source, row.revision, row.is_mini, row.student, row.teacher, row.label,
            row.shots, row.suite, row.metric, row.mean, row.low, row.high, row.n_seeds, row.n_examples, row.n_images,
            *compared, list(row.seeds), list(row.per_seed), row.vqa_rule, gap.seeds_needed if gap else None,
            *([told.ece, told.brier] if told is not None else [None] * 2),
        ]  # fmt: skip
        found.append(dict(zip(COLUMNS, values, strict=True)))
    known = {(source.name, source.revision): source for source in results.sources}
    for one in results.breakdowns:
        source = known[one.source, one.revision]
        for kind, mean in one.mean.items():
            cells: dict[str, Any] = {
                "protocol": results.protocol,
                "task": one.task,
                "source": one.source,
                "revision": one.revision,
                "mini": source.is_mini,
                "student": one.student,
                "arm": one.label,
                "shots": one.shots,
                "suite": one.suite,
                "metric": f"{one.metric} ({one.by}: {kind})",
                "mean": mean,
                "n_seeds": len(one.seeds),
                "n_examples": one.n_examples[kind],
                "seeds": list(one.seeds),
                "vqa_rule": one.vqa_rule,
            }
            found.append({column: cells.get(column) for column in COLUMNS})
    return found


def as_csv(results: Results) -> str:
    """`flat_rows` as CSV; `seeds` and `per_seed` are space-separated."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in flat_rows(results):
        listed = {"seeds": " ".join(map(str, row["seeds"]))}
        if row["per_seed"] is not None:
            listed["per_seed"] = " ".join(f"{value:.4f}" for value in row["per_seed"])
        writer.writerow({**row, **listed}.values())
    return out.getvalue()


def markdown(results: Results) -> str:
    """GitHub tables, one per source, student and shots."""
    lines = [f"# Protocol {_escaped(results.protocol)}", ""]
    note = mini_note(results)
    if note:
        lines += [f"> {note}", ""]
    baseline = str(results.settings.get("baseline", "baseline"))
    for _, title, rows in tables(results):
        lines += [
            f"## {_escaped(title)}",
            "",
            (
                "| suite | metric | arm | score | 95 % interval | seeds | questions"
                f" | against {_escaped(baseline)} | p (Holm) |"
            ),
            "|---|---|---|--:|:-:|--:|--:|:--|--:|",
        ]
        for row in rows:
            gap = row.difference
            text = difference(gap).replace("*", "\\*")
            cells = [
                _escaped(row.suite),
                _escaped(row.metric),
                _escaped(row.label),
                f"**{score(row)}**" if gap is not None and gap.significant and gap.mean > 0 else score(row),
                interval(row.low, row.high),
                str(row.n_seeds),
                f"{row.n_examples:,}",
                text,
                p_value(gap.p_holm) if gap else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    lines += _published(results)
    lines += [f"- {_escaped(line)}" for line in facts(results)]
    lines += [f"- Failed: {_escaped(one['where'])}: {_escaped(one['error'])}" for one in results.problems]
    lines += ["", EXPLANATION.format(baseline=_escaped(baseline)), ""]
    return "\n".join(lines)


def _published(results: Results) -> list[str]:
    """The quoted results as tables, one per data set."""
    lines: list[str] = []
    for data in dict.fromkeys(one.data for one in results.published):
        rows = [one for one in results.published if one.data == data]
        metrics = list(dict.fromkeys(name for one in rows for name in one.metrics))
        head = ["model (quoted)", "split", *map(_escaped, metrics), "source"]
        lines += [f"## Published, quoted: {_escaped(data)}", "", f"| {' | '.join(head)} |"]
        lines.append(f"|---|---|{'--:|' * len(metrics)}---|")
        for one in rows:
            cells = [quoted(one.metrics[name]) if name in one.metrics else "" for name in metrics]
            about = f"[{_escaped(one.source)}]({one.url}); {_escaped(one.note)}"
            lines.append(f"| {' | '.join([_escaped(one.model), _escaped(one.split), *cells, about])} |")
        lines.append("")
    return lines + [part for note in notes(results) for part in (f"> {note}", "")]


def _escaped(text: object) -> str:
    out = str(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return out.replace("*", "\\*").replace("\n", " ")
