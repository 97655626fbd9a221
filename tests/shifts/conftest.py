"""A small VCR on disk whose right choices carry the question's tag, imported as the real one is."""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from madkit.core.workspace import Workspace
from madkit.tasks.data import TaskData
from madkit.tasks.importing import ImportOptions
from madkit.tasks.importing.run import import_data

VERBS = ["sings", "sleeps", "waits", "drives", "reads", "cooks", "runs", "hides"]
PLACES = ["here", "outside", "inside", "upstairs", "there", "alone"]
OBJECTS = ["person", "person", "person", "person", "person", "car"]


def planted_row(split: str, number: int) -> dict[str, Any]:
    """A VCR line: words are drawn without regard to the labels, tags are not."""
    draw = random.Random(f"{split}-{number}")
    folder = f"{draw.choice(['lsmdc', 'movieclips'])}_{draw.randrange(8)}_Film"
    image = f"{folder}/{split}{number // 2}"
    if number % 2:
        image = planted_row(split, number - 1)["img_fn"].removesuffix(".jpg")
    people = draw.sample(range(5), 3)
    asked, others = people[0], people[1:]
    labels = draw.randrange(4), draw.randrange(4)

    def choice(right: bool) -> list[Any]:
        tag = asked if right else draw.choice(others)
        words = [draw.choice(VERBS), draw.choice(PLACES), "."]
        words.insert(draw.randrange(3), [tag])
        return words

    return {
        "annot_id": f"{split}-{number}",
        "objects": OBJECTS,
        "img_fn": f"{image}.jpg",
        "metadata_fn": f"{image}.json",
        "question": ["Why", "is", [asked], draw.choice(PLACES), "?"],
        "answer_choices": [choice(i == labels[0]) for i in range(4)],
        "answer_label": labels[0],
        "rationale_choices": [choice(i == labels[1]) for i in range(4)],
        "rationale_label": labels[1],
    }


def metadata() -> dict[str, Any]:
    boxes = [[10.0 * i, 5.0, 10.0 * i + 9, 60.0, 0.9] for i in range(len(OBJECTS))]
    return {"boxes": boxes, "segms": [[[[1, 2], [3, 4]]]], "names": OBJECTS, "width": 100, "height": 80}


def write_vcr(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> Path:
    """Write annotation files and, in a zip, the metadata and (empty) images that they name."""
    folder.mkdir(parents=True, exist_ok=True)
    names = set()
    for official, rows in splits.items():
        (folder / f"{official}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        names |= {row["img_fn"].removesuffix(".jpg") for row in rows}
    with zipfile.ZipFile(folder / "vcr1images.zip", "w") as images:
        for name in sorted(names):
            images.writestr(f"vcr1images/{name}.json", json.dumps(metadata()))
            images.writestr(f"vcr1images/{name}.jpg", b"")
    return folder


@pytest.fixture(scope="session")
def make_vcr(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Workspace, TaskData]]:
    """Import a planted VCR of so many questions; `change` edits the rows of a split before they are written."""

    def make(train: int, val: int, change: Callable[..., list[dict[str, Any]]] | None = None) -> Any:
        home = tmp_path_factory.mktemp("vcr")
        splits = {
            name: [planted_row(name, number) for number in range(count)]
            for name, count in (("train", train), ("val", val))
        }
        if change is not None:
            splits = {name: change(name, rows) for name, rows in splits.items()}
        workspace = Workspace(home / "workspace")
        made = import_data(workspace, "vcr", write_vcr(home / "files", splits), ImportOptions(dev_cut=0.3))
        assert made.data is not None
        return workspace, made.data

    return make
