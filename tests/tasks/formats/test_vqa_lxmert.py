from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from madkit.core.errors import DataError
from madkit.tasks.formats.vqa_lxmert import iter_lxmert_vqa


def entry(number: int = 458752000, **change: Any) -> dict[str, Any]:
    return {
        "answer_type": "other",
        "img_id": "COCO_train2014_000000458752",
        "label": {"net": 1, "mesh": 0.3},
        "question_id": number,
        "question_type": "what is this",
        "sent": "What is this photo taken looking through?",
    } | change


def read(folder: Path, entries: list[Any], images: Any = None) -> list[Any]:
    path = folder / "train.json"
    path.write_text(json.dumps(entries))
    return list(iter_lxmert_vqa(path, images or folder))


def test_an_entry(tmp_path: Path) -> None:
    (example,) = read(tmp_path, [entry()])
    assert (example.id, example.image.id, example.task) == ("458752000", "458752", "vqa")
    assert example.image.path == tmp_path / "COCO_train2014_000000458752.jpg"
    assert example.context[0].text == "What is this photo taken looking through?"
    assert (example.answers, example.annotations, example.main_answer) == ({"net": 1.0, "mesh": 0.3}, (), "")
    assert (example.form, example.answer_type) == ("what is this", "other")


def test_no_label_no_types_and_other_images(tmp_path: Path) -> None:
    bare = {"img_id": "2375429", "question_id": 3, "sent": "Why?"}
    (example,) = read(tmp_path, [bare])
    assert (example.answers, example.form, example.image.id) == (None, "", "2375429")
    assert read(tmp_path, [entry(label={})])[0].answers == {}


def test_images_of_several_folders(tmp_path: Path) -> None:
    examples = read(tmp_path, [entry()], {"train2014": tmp_path / "t"})
    assert examples[0].image.path.parent == tmp_path / "t"
    with pytest.raises(DataError, match="names no image of val2014"):
        read(tmp_path, [entry()], {"val2014": tmp_path})


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([entry(1), entry(1)], r"questions\[1\]: 'question_id' 1 was used before"),
        ([entry(label={"net": 1.5})], r"the score of 'net' in 'label' must be a number from 0 to 1, found 1.5"),
        ([entry(label={"net": True})], r"the score of 'net'"),
        ([entry(label={"net": float("nan")})], r"the score of 'net'"),
        ([entry(label=["net"])], r"'label' must be an object of answers and scores, found a list"),
        ([entry(1), entry(2, label=None)], r"questions\[1\]: the entry has no 'label', but the first one has 'label'"),
        ([entry(1, label=None), entry(2)], r"questions\[1\]: the entry has 'label', but the first one has no 'label'"),
        ([entry(sent=" ")], "'sent' is empty"),
        ([entry(img_id=9)], "'img_id' must be a non-empty string, found a number"),
        ([entry(answer_type=9)], "'answer_type' must be a string"),
        ([entry("1")], "'question_id' must be an integer"),
        ([3], r"questions\[0\]: an object is needed, found a number"),
    ],
)
def test_a_broken_entry_is_named(tmp_path: Path, entries: list[Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        read(tmp_path, entries)
