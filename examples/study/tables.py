"""The tables of docs/results.md, from the committed rows alone: nothing in them is written by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mode
from typing import Any

from madkit.core.errors import DataError
from madkit.core.files import write_text_atomic
from madkit.distill.settings.arms import ORDER

Row = Mapping[str, Any]
AS_LONG = "finetune-long"
SHOTS = ("1pct", "5pct", "full")
TASKS = {"mini-snli-ve": "mini-SNLI-VE, accuracy", "mini-vqa": "mini-VQA, accuracy", "mini-vcr": "mini-VCR, Q->AR"}


def fill_page(results: Path, page: Path) -> None:
    """Put each table between its two markers, `<!-- table: NAME -->` and `<!-- end -->`.

    Raises DataError for a marker of no known table or without an end.
    """
    known = read(results / "study.jsonl")
    rows = headlines(known)
    tables = {
        "updates": updates_table(row for row in known if row.get("kind") == f"against {AS_LONG}"),
        "tuning": tuning_table(read(results / "tuning.jsonl")),
        "variants": variant_table(read(results / "variants.jsonl")),
        "adaptation": adaptation_table(read(results / "adaptation.jsonl")),
        "knowledge": knowledge_table(read(results / "knowledge.jsonl")),
    }
    for shots in SHOTS:
        here = [row for row in rows if row["shots"] == shots]
        tables[f"test {shots}"] = score_table(row for row in here if row["suite"] == "test")
        tables[f"shift {shots}"] = shift_table(row for row in here if row["suite"] != "test")
    parts = page.read_text(encoding="utf-8").split("<!-- table: ")
    text = parts[0]
    for part in parts[1:]:
        name, _, rest = part.partition(" -->")
        _, end, after = rest.partition("<!-- end -->")
        if name not in tables or not end:
            raise DataError(f"{page} has the marker 'table: {name}', which is no table or has no end.")
        text += f"<!-- table: {name} -->\n\n{tables[name]}\n<!-- end -->{after}"
    write_text_atomic(page, text)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def score_table(rows: Iterable[Row]) -> str:
    """Arms by task: mean over seeds, and the paired difference to `finetune` with its 95 % interval."""
    cells: dict[str, dict[str, Row]] = {}
    for row in rows:
        cells.setdefault(row["label"], {})[row["source"]] = row
    tasks = [task for task in TASKS if any(task in by_task for by_task in cells.values())]
    if not tasks:
        return "Not measured yet.\n"
    lines = ["| arm | " + " | ".join(f"{TASKS[task]} | against finetune" for task in tasks) + " |"]
    lines.append("|---|" + "---|" * (2 * len(tasks)))
    for label in ordered(cells):
        found = [cells[label].get(task) for task in tasks]
        columns = [column for row in found for column in ((score(row), difference(row)) if row else ("", ""))]
        lines.append(f"| {label} | " + " | ".join(columns) + " |")
    return "\n".join(lines) + "\n"


def shift_table(rows: Iterable[Row]) -> str:
    """Paired differences to `finetune` on each shifted suite."""
    cells: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        cells.setdefault((row["source"], row["suite"]), {})[row["label"]] = row
    if not cells:
        return "Not measured yet.\n"
    labels = ordered({label for by_label in cells.values() for label in by_label})
    lines = ["| task, suite | " + " | ".join(labels) + " |", "|---|" + "---|" * len(labels)]
    for source, suite in sorted(cells, key=lambda key: (list(TASKS).index(key[0]), key[1])):
        by_label = cells[source, suite]
        columns = [
            (score(by_label[label]) if label == "finetune" else difference(by_label[label]))
            if label in by_label
            else ""
            for label in labels
        ]
        lines.append(f"| {source}, {suite} | " + " | ".join(columns) + " |")
    return "\n".join(lines) + "\n"


def updates_table(rows: Iterable[Row]) -> str:
    """Paired differences to a fine-tuning of as many updates, where there is one."""
    cells: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        cells.setdefault((row["shots"], row["source"], row["suite"]), {})[row["label"]] = row
    cells = {place: by_label for place, by_label in cells.items() if AS_LONG in by_label and len(by_label) > 1}
    if not cells:
        return "Not measured yet.\n"
    labels = [AS_LONG, *ordered({label for by_label in cells.values() for label in by_label} - {AS_LONG})]
    lines = ["| labels | task, suite | " + " | ".join(labels) + " |", "|---|---|" + "---|" * len(labels)]
    for shots, source, suite in sorted(
        cells, key=lambda key: (SHOTS.index(key[0]), list(TASKS).index(key[1]), key[2] != "test", key[2])
    ):
        by_label = cells[shots, source, suite]
        columns = [score(by_label[AS_LONG]), *(difference(by_label[x]) if x in by_label else "" for x in labels[1:])]
        lines.append(f"| {shots} | {source}, {suite} | " + " | ".join(columns) + " |")
    return "\n".join(lines) + "\n"


def headlines(study: Sequence[Row]) -> list[Row]:
    """The rows of the main metric of each task against plain fine-tuning."""
    return [row for row in study if row.get("kind") == "row" and row["headline"]]


def ordered(labels: Iterable[str]) -> list[str]:
    """Arms in the order of the comparison, what is set apart from them behind."""
    return sorted(labels, key=lambda label: (place_of(label), label))


def place_of(label: str) -> int:
    """Where an arm stands in the order; the last place for a control and for what is not known."""
    arm = label.removesuffix(" (teacher at inference)")
    return ORDER.index(arm) if arm in ORDER else len(ORDER)


def score(row: Row) -> str:
    """Mean over the seeds and their number."""
    return f"{row['mean']:.1f} (n={row['n_seeds']})"


def difference(row: Row) -> str:
    """Paired difference with its interval; an asterisk where Holm's corrected test shows it."""
    found = row.get("difference")
    if not found:
        return "" if row["label"] == "finetune" else "no pair"
    if found["low"] is None:
        return f"{found['mean']:+.1f}"
    shown = f"{found['mean']:+.1f} [{found['low']:+.1f}, {found['high']:+.1f}]"
    return f"**{shown}** *" if found["p_holm"] is not None and found["p_holm"] < 0.05 else shown


def adaptation_table(rows: Sequence[Row]) -> str:
    """Labelled subsets by task: of how many the teacher was adapted, and its score before and after."""
    if not rows:
        return "Not measured yet.\n"
    lines = [
        "| task | labels | subsets | adapted | choices right, untouched to adapted, % |",
        "|---|---|---|---|---|",
    ]
    for task, shots in dict.fromkeys((row["task"], row["shots"]) for row in rows):
        mine = [row for row in rows if (row["task"], row["shots"]) == (task, shots)]
        better = [row for row in mine if row["kept_step"]]
        gains = ", ".join(
            f"{100 * row['before']['accuracy']:.1f} to {100 * row['after']['accuracy']:.1f}" for row in better
        )  # what wrong answers are chosen from differs by subset (mini-VQA), and with it the untouched teacher's score
        lines.append(f"| {task} | {shots} | {len(mine)} | {len(better)} | {gains} |")
    return "\n".join(lines) + "\n"


def _setting(key: str, value: float | str) -> str:
    return f"{key.split('.')[-1]} {value}" if isinstance(value, str) else f"{key.split('.')[-1]} {value:g}"


def tuning_table(rows: Sequence[Row]) -> str:
    """Every candidate with its score on the development split, the best of each arm that has all of them in bold."""
    groups: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for row in rows:
        value = row["dev"].get("Q->AR", row["dev"].get("accuracy"))
        settings = ", ".join(_setting(key, value) for key, value in row["settings"].items() if value is not None)
        groups.setdefault((row["task"], row["shots"], row["arm"]), {}).setdefault(settings, []).append(value)
    if not groups:
        return "Not measured yet.\n"
    budget = mode(len(candidates) for candidates in groups.values())  # a list that was changed has more rows
    lines = ["| task | labels | arm | candidates, with the score on the development split |", "|---|---|---|---|"]
    for (task, shots, arm), candidates in groups.items():
        means = {settings: sum(values) / len(values) for settings, values in candidates.items()}
        unfinished = len(means) < budget  # nothing is chosen before all are scored
        best = None if unfinished else max(means.values())
        shown = [f"**{name}: {mean:.1f}**" if mean == best else f"{name}: {mean:.1f}" for name, mean in means.items()]
        lines.append(f"| {task} | {shots} | {arm} | {'; '.join(shown)}{' (unfinished)' if unfinished else ''} |")
    return "\n".join(lines) + "\n"


def variant_table(rows: Sequence[Row]) -> str:
    """Variants by task: mean score on the development split, and the mean paired difference to `finetune`."""
    scores: dict[str, dict[str, dict[int, float]]] = {}
    for row in rows:
        value = row["dev"].get("Q->AR", row["dev"].get("accuracy"))
        scores.setdefault(row["variant"], {}).setdefault(row["task"], {})[row["seed"]] = value
    if not scores:
        return "Not measured yet.\n"
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = ["| variant | " + " | ".join(f"{task} | against finetune" for task in tasks) + " |"]
    lines.append("|---|" + "---|" * (2 * len(tasks)))
    for variant, by_task in scores.items():
        columns = []
        for task in tasks:
            mine, base = by_task.get(task, {}), scores.get("finetune", {}).get(task, {})
            common = sorted(set(mine) & set(base))
            columns.append(f"{sum(mine.values()) / len(mine):.1f} (n={len(mine)})" if mine else "")
            gain = sum(mine[seed] - base[seed] for seed in common) / len(common) if common else None
            columns.append("" if gain is None or variant == "finetune" else f"{gain:+.1f}")
        lines.append(f"| {variant} | " + " | ".join(columns) + " |")
    return "\n".join(lines) + "\n"


def knowledge_table(rows: Sequence[Row]) -> str:
    """Students by layer: what their states hold of the teacher's vectors, and of its choice of a region."""
    if not rows:
        return "Not measured yet.\n"
    layers = sorted({row["layer"] for row in rows})
    measures = [("region_r2", "regions, R²"), ("text_r2", "text tokens, R²"), ("relation", "closest region, %")]
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        chance = mine[0]["relation_chance"]
        lines += [
            f"{task}; a region drawn at random is the closest one in {chance:.1f} %.",
            "",
            "| student | " + " | ".join(f"{name}, by layer {layers[0]} to {layers[-1]}" for _, name in measures) + " |",
            "|---|" + "---|" * len(measures),
        ]
        for student in dict.fromkeys((row["student"], row["seed"]) for row in mine):
            found = {row["layer"]: row for row in mine if (row["student"], row["seed"]) == student}
            name = student[0] if student[1] is None else f"{student[0]}, seed {student[1]}"
            cells = [" / ".join(_shown(key, found[layer][key]) for layer in layers) for key, _ in measures]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _shown(measure: str, value: float) -> str:
    return f"{value:.1f}" if measure == "relation" else f"{value:.2f}"
