"""Low-shot subsets as files: which questions a run saw, to publish, and to train on exactly those again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.core.files import read_json, write_json_atomic
from madkit.core.registry import suggest
from madkit.tasks.data import SHOTS, TaskData
from madkit.tasks.example import Example
from madkit.tasks.shots import parse_shots, question_order, select_shots

SCHEMA = 1
_SHOWN = 5


def labelled_examples(data: TaskData, shots: str, seed: int) -> Sequence[Example]:
    """The training examples that a run may see with their labels.

    Args:
        data: the data set.
        shots: see `parse_shots`; "list:NAME" is a list that was imported into the data set.
        seed: of the subset; a list has none.

    Raises UsageProblem for shots that cannot be meant, NotFoundError for a list that does not exist.
    """
    train = data.examples("train")
    wanted = parse_shots(shots)
    if wanted.kind == "full":
        return train
    if wanted.kind != "list":
        return select_shots(train, wanted, seed=seed, revision=data.revision)
    chosen = set(read_named(data, wanted.name)["questions"])
    found = [example for example in train if example.question_id in chosen]
    if len({example.question_id for example in found}) != len(chosen):
        raise DataError(f"The list {wanted.name} names questions that {data.source} no longer has.", hint=_AGAIN)
    return found


_AGAIN = "import the list again: madkit data shots TASK --import FILE --name NAME"


def export_shots(data: TaskData, shots: str, seed: int) -> dict[str, Any]:
    """A subset as a document: what it was drawn from, how, and the ids of its questions in the order of the draw."""
    wanted = parse_shots(shots)
    if wanted.kind == "list":
        return read_named(data, wanted.name)
    train = data.examples("train")
    total = len({example.question_id for example in train})
    ids = question_order(train, seed=seed, revision=data.revision, limit=wanted.questions(total))
    return {
        "schema": SCHEMA,
        "source": data.source,
        "revision": data.revision,
        "shots": str(wanted),
        "seed": seed,
        "questions": ids,
    }


def import_shots(data: TaskData, path: Path, name: str | None = None) -> tuple[str, int]:
    """Keep a list of question ids with a data set, as "list:NAME" for `--shots`.

    Args:
        data: the data set.
        path: what `export_shots` gives as JSON, a JSON list of ids, or text with one id a line.
        name: of the list; by default the file's.

    Returns its name and its number of questions.

    Raises:
        UsageProblem: a name with odd characters.
        NotFoundError: no such file.
        DataError: no ids, an id twice, or ids that the train split does not have (count and the first five).
    """
    chosen = (name or re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._") or "list").lower()
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", chosen):
        raise UsageProblem(f"A list cannot be named {name!r}.", hint="use letters, digits, dots and hyphens")
    document, ids = _read(path)
    where: dict[str, int] = {}
    for number, one in enumerate(ids, 1):
        if one in where:
            raise DataError(f"{path}: the id {one!r} stands at {where[one]} and again at {number}.")
        where[one] = number
    known = {example.question_id for example in data.examples("train")}
    unknown = [one for one in ids if one not in known]
    if unknown:
        shown = ", ".join(unknown[:_SHOWN]) + (", ..." if len(unknown) > _SHOWN else "")
        raise DataError(
            f"{path}: {len(unknown)} of {len(ids)} ids are no questions of {data.source}'s train split: {shown}.",
            hint="ids are those of questions: annot_id (VCR), pairID (SNLI-VE), question_id (VQA)",
        )
    kept = {"schema": SCHEMA, "source": data.source, "revision": data.revision, "from": path.name}
    kept |= {key: document[key] for key in ("shots", "seed") if key in document}
    write_json_atomic(data.root / SHOTS / f"{chosen}.json", {**kept, "name": chosen, "questions": ids})
    return chosen, len(ids)


def _read(path: Path) -> tuple[dict[str, Any], list[str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"The file {path} does not exist.") from None
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read as text ({error}).") from None
    if text.lstrip()[:1] in ("{", "["):
        content = read_json(path)
        document = content if isinstance(content, dict) else {}
        ids = document.get("questions") if isinstance(content, dict) else content
        if not isinstance(ids, list) or not all(isinstance(one, (str, int)) for one in ids):
            raise DataError(f"{path}: a list of ids is needed, under 'questions' or on its own.")
        found = [str(one) for one in ids]
    else:
        document, found = {}, [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise DataError(f"{path} holds no ids.")
    return document, found


def read_named(data: TaskData, name: str) -> dict[str, Any]:
    """An imported list. Raises NotFoundError with the nearest name."""
    names = data.named_shots()
    if name not in names:
        raise NotFoundError(
            f"{data.source} has no list of ids named {name!r}.{suggest(name, names)}",
            hint=f"use one of: {', '.join(names)}" if names else f"import one: {_AGAIN.partition(': ')[2]}",
        )
    content = read_json(data.root / SHOTS / f"{name}.json")
    if not isinstance(content, dict) or not isinstance(content.get("questions"), list):
        raise DataError(f"The list {name} of {data.source} is damaged.", hint=_AGAIN)
    return content
