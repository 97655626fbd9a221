"""Answers as files: the official submission formats, each checked against the question set before it is written.

VCR's leaderboard takes a CSV with the column `annot_id` and 20 scores: `answer_0..3`, and for each of the four answers
the scores of the four rationales given that answer, `rationale_conditioned_on_a{0..3}_{0..3}`; rows are sorted by the
number in `test-<number>`, and only the order within a group of four counts (r2c's and VL-BERT's files hold softmax
probabilities, UNITER's raw scores). VQA takes a JSON list of `{"question_id": int, "answer": str}` with every question
of the split once. SNLI-VE has no official form: lines of `pairID` and `label`, the names of the benchmark's own files.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.core.errors import DataError, UsageProblem
from madkit.core.files import write_text_atomic
from madkit.core.registry import suggest

if TYPE_CHECKING:
    from madkit.tasks.example import Example
    from madkit.tasks.spec import TaskSpec

FORMATS = ("jsonl", "csv", "vcr-csv", "vqa-json", "snli-ve-jsonl")
OWN_FORMATS = ("jsonl", "csv")  # of answers to any questions
VCR_CHOICES = 4
ANSWER_COLUMNS = tuple(f"answer_{number}" for number in range(VCR_CHOICES))
RATIONALE_COLUMNS = tuple(
    f"rationale_conditioned_on_a{answer}_{number}" for answer in range(VCR_CHOICES) for number in range(VCR_CHOICES)
)
VCR_COLUMNS = ("annot_id", *ANSWER_COLUMNS, *RATIONALE_COLUMNS)

_SHOWN = 5


def official_format(spec: TaskSpec) -> str:
    """The format in which a task's official test answers are handed in, "jsonl" where there is none."""
    if spec.subtasks:
        return "vcr-csv"
    if spec.kind == "vqa":
        return "vqa-json"
    return "snli-ve-jsonl" if spec.name == "snli-ve" else "jsonl"


def check_format(name: str, spec: TaskSpec) -> None:
    """Raise UsageProblem for an unknown format, or one that belongs to another task."""
    if name not in FORMATS:
        raise UsageProblem(f"There is no format {name!r}.{suggest(name, FORMATS)}", hint=f"use one of {known(spec)}")
    if name not in known(spec):
        raise UsageProblem(
            f"The format {name} does not hold answers of the task {spec.name}.",
            hint=f"use one of: {', '.join(known(spec))}",
        )


def known(spec: TaskSpec) -> tuple[str, ...]:
    """The formats that can hold answers of a task."""
    return tuple(dict.fromkeys((official_format(spec), "jsonl", "csv")))


def suffix(name: str) -> str:
    """The file name's end for a format."""
    return {"vcr-csv": ".csv", "csv": ".csv", "vqa-json": ".json"}.get(name, ".jsonl")


_ENDINGS = (".jsonl", ".csv", ".json", ".parquet")  # that say what a file holds, whether answers are written so or not


def format_of(path: Path | None, asked: str | None, usual: str, fitting: Sequence[str]) -> str:
    """The format of a file of answers: what was asked for, else what the file's name says, else the usual one.

    Args:
        path: the file, None where it is not the user who names it.
        asked: a format, or None.
        usual: where nothing else is said; it goes before others of its ending.
        fitting: the formats that can hold the answers.

    Raises UsageProblem for a name that ends otherwise than what was asked for, or as none of `fitting`.
    """
    ending = "" if path is None else path.suffix.lower()
    if asked is not None:
        if path is not None and ending in _ENDINGS and ending != suffix(asked):
            raise UsageProblem(
                f"{path.name} does not end as a file in the format {asked} does.",
                hint=f"--out {path.with_suffix(suffix(asked))}, or without --format",
            )
        return asked
    if not ending:
        return usual
    found = [one for one in dict.fromkeys((usual, *OWN_FORMATS, *fitting)) if one in fitting and suffix(one) == ending]
    if not found:
        raise UsageProblem(
            f"No answers to these questions are written as {ending}.",
            hint=f"--format {' or '.join(fitting)}, or a file name that says it",
        )
    return found[0]


def conditioned(examples: Iterable[Example]) -> list[Example]:
    """VCR: an answer example and four rationale examples of each question, one given each answer.

    The submission splits hold them already (ids "<annot_id>/rationale-a<i>"); for a labelled split, whose rationale
    example is given the right answer, they are made. Raises DataError for a question without rationales.
    """
    made: list[Example] = []
    held: dict[str, dict[str, Example]] = {}
    for example in examples:
        held.setdefault(example.question_id, {})[_part(example.id)] = example
    for question, parts in held.items():
        answer, rationale = parts.get("answer"), parts.get("rationale")
        given = [parts.get(f"rationale-a{number}") for number in range(VCR_CHOICES)]
        if answer is None or (rationale is None and None in given):
            raise DataError(
                f"The question {question} has no rationales, which the VCR file has columns for.",
                hint="--format jsonl holds the answers alone",
            )
        made.append(answer)
        for number, (one, choice) in enumerate(zip(given, answer.candidates, strict=True)):
            if one is not None:
                made.append(one)
            elif rationale is not None:
                context = (*answer.context, choice)
                name = f"{question}/rationale-a{number}"
                label = rationale.label if number == answer.label else None
                made.append(replace(rationale, id=name, context=context, label=label))
    return made


def _part(example_id: str) -> str:
    return example_id.rpartition("/")[2]


def check_submission(found: Iterable[str], expected: Iterable[str], *, where: str, subset: bool = False) -> None:
    """Compare the ids that are answered with those that are asked.

    Args:
        found: one id per answer, in any order.
        expected: the ids of the split.
        where: which answers and which split, for the message.
        subset: whether ids may be missing.

    Raises DataError naming how many ids are missing, answered twice, or not of the split, and the first of them.
    """
    counts = Counter(iter(found))  # of a mapping, Counter would take the values
    asked = dict.fromkeys(expected)
    missing = [one for one in asked if one not in counts]
    problems = [
        f"{len(ids):,} {words} ({', '.join(ids[:_SHOWN])}{', ...' if len(ids) > _SHOWN else ''})"
        for ids, words in (
            ([] if subset else missing, "missing"),
            ([one for one, count in counts.items() if count > 1], "answered twice"),
            ([one for one in counts if one not in asked], "not of this split"),
        )
        if ids
    ]
    if problems:
        raise DataError(
            f"{where}: {'; '.join(problems)}, of {len(asked):,} that are asked.",
            hint="leave out what is asked elsewhere, and answer no question twice"
            if subset or not missing or len(problems) > 1
            else "answer every question once; madkit score takes a part of them with --subset",
        )


def write_submission(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    examples: Sequence[Example],
    spec: TaskSpec,
    format_: str,
    *,
    raw: bool = False,
    where: str = "The answers",
) -> int:
    """Write answers as a file, whole or not at all, and return the number of questions.

    Args:
        path: the file.
        rows: what the student answered (`metrics.prediction_row`), in any order.
        examples: what was asked: the split, through `conditioned` for "vcr-csv".
        spec: the task.
        format_: one of `FORMATS`.
        raw: the student's scores as they are, in place of softmax probabilities.
        where: which answers they are, for messages.

    Raises:
        UsageProblem: a format of another task.
        DataError: ids that are missing, doubled or of no question, or scores that are not finite; nothing is written.
    """
    check_format(format_, spec)
    check_submission((str(row["id"]) for row in rows), (example.id for example in examples), where=where)
    broken = [str(row["id"]) for row in rows if not all(math.isfinite(value) for value in row["logits"])]
    if broken:
        raise DataError(
            f"{where}: {len(broken):,} of {len(rows):,} have NaN or infinite scores (first: {broken[0]}).",
            hint="look at the losses in the run's metrics.jsonl; a lower learning rate usually mends it",
        )
    write = {"vcr-csv": _vcr_csv, "vqa-json": _vqa_json, "csv": csv_text}.get(format_, _json_lines)
    text = write(rows, spec, raw) if format_ != "snli-ve-jsonl" else _pair_lines(rows, spec, raw)
    write_text_atomic(path, text)
    return len({str(row["question_id"]) for row in rows})


def probabilities(logits: Sequence[float], raw: bool = False) -> list[float]:
    """Softmax over scores, or the scores themselves."""
    if raw:
        return [float(value) for value in logits]
    top = max(logits)
    powers = [math.exp(value - top) for value in logits]
    return [value / sum(powers) for value in powers]


def id_order(name: str) -> tuple[str, int, str]:
    """Sort key: "test-2" before "test-10"."""
    found = re.fullmatch(r"(.*?)(\d+)", name)
    return (found[1], int(found[2]), "") if found else (name, -1, name)


def _vcr_csv(rows: Sequence[Mapping[str, Any]], spec: TaskSpec, raw: bool) -> str:
    questions: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if len(row["logits"]) != VCR_CHOICES:
            raise DataError(f"{row['id']} has {len(row['logits'])} scores; VCR has {VCR_CHOICES} choices.")
        questions.setdefault(str(row["question_id"]), {})[_part(str(row["id"]))] = row["logits"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(VCR_COLUMNS)
    for question in sorted(questions, key=id_order):
        parts = questions[question]
        groups = [parts["answer"], *(parts[f"rationale-a{number}"] for number in range(VCR_CHOICES))]
        writer.writerow([question, *(repr(value) for group in groups for value in probabilities(group, raw))])
    return out.getvalue()


def _vqa_json(rows: Sequence[Mapping[str, Any]], spec: TaskSpec, raw: bool) -> str:
    answers = []
    for row in rows:
        if not re.fullmatch(r"\d+", str(row["question_id"])):
            raise DataError(
                f"The question id {row['question_id']!r} is no number, which the VQA file needs.",
                hint="--format jsonl takes any id",
            )
        answers.append({"question_id": int(row["question_id"]), "answer": str(row["prediction"])})
    return json.dumps(answers, ensure_ascii=False)


def _named(row: Mapping[str, Any], spec: TaskSpec) -> str | int:
    """A prediction as other programs can read it: classes by name, because their order differs from one to another."""
    prediction = row["prediction"]
    if spec.kind == "classification":
        return spec.labels[int(prediction)]
    return str(prediction) if spec.kind == "vqa" else int(prediction)


def _sure(row: Mapping[str, Any], spec: TaskSpec) -> float | None:
    """The probability of what is answered; None for an answer of VQA whose row does not tell it."""
    if spec.kind != "vqa":
        return round(probabilities(row["logits"])[int(row["prediction"])], 6)
    return round(float(row["confidence"]), 6) if "confidence" in row else None


def _json_lines(rows: Sequence[Mapping[str, Any]], spec: TaskSpec, raw: bool) -> str:
    lines = []
    for row in rows:
        line: dict[str, Any] = {"id": row["id"], "prediction": _named(row, spec)}
        sure = _sure(row, spec)
        if sure is not None:
            line["probability"] = sure
        if row["question_id"] != row["id"]:
            line["question_id"] = row["question_id"]
        if spec.kind == "vqa":
            line["top"] = row.get("top", [])
        else:
            line["scores"] = probabilities(row["logits"], raw)
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines)


def _pair_lines(rows: Sequence[Mapping[str, Any]], spec: TaskSpec, raw: bool) -> str:
    return "".join(
        json.dumps(
            {
                "pairID": row["id"],
                "label": _named(row, spec),
                "scores": dict(zip(spec.labels, probabilities(row["logits"], raw), strict=True)),
            },
            ensure_ascii=False,
        )
        + "\n"
        for row in rows
    )


def csv_text(rows: Sequence[Mapping[str, Any]], spec: TaskSpec, raw: bool) -> str:
    """Lines of id, prediction and a score for every class or choice; of VQA the probability of the answer."""
    width = 0 if spec.kind == "vqa" else max((len(row["logits"]) for row in rows), default=0)
    names = spec.labels if spec.kind == "classification" else tuple(map(str, range(width)))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "prediction", *(f"score_{name}" for name in names), *([] if width else ["probability"])])
    for row in rows:
        scores = probabilities(row["logits"], raw) if width else [_sure(row, spec)]
        writer.writerow([row["id"], _named(row, spec), *("" if value is None else repr(value) for value in scores)])
    return out.getvalue()
