"""Import of VQA-CP v2: bare lists, images of two parts of COCO in both splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from madkit.core.errors import DataError, NotFoundError
from madkit.core.workspace import Workspace
from madkit.tasks.data import TaskData
from madkit.tasks.importing import ImportOptions
from madkit.tasks.importing.run import import_data

PARTS = ("train2014", "val2014")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    root = tmp_path / "cp"
    for part in PARTS:
        (root / "coco" / part).mkdir(parents=True)
    for split, first in (("train", 0), ("test", 1)):
        questions, annotations = [], []
        for number in range(60):
            image, part = 100 + number // 2, PARTS[number // 2 % 2]  # both splits ask about every image
            question_id = image * 1000 + 10 * (number % 2) + first
            (root / "coco" / part / f"COCO_{part}_{image:012d}.jpg").touch()
            shared = {"image_id": image, "question_id": question_id, "coco_split": part}
            questions.append({**shared, "question": "Is it?"})
            main = "yes" if split == "train" else "no"
            annotations.append(
                {
                    **shared,
                    "question_type": "is it",
                    "answer_type": "yes/no",
                    "multiple_choice_answer": main,
                    "answers": [{"answer": main, "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)],
                }
            )
        (root / f"vqacp_v2_{split}_questions.json").write_text(json.dumps(questions))
        (root / f"vqacp_v2_{split}_annotations.json").write_text(json.dumps(annotations))
    return root


def imported(tmp_path: Path, root: Path, **options: Any) -> TaskData:
    data = import_data(Workspace(tmp_path / "ws"), "vqa-cp-v2", root, ImportOptions(**options)).data
    assert data is not None
    return data


def test_development_questions_come_from_train(tmp_path: Path, files: Path) -> None:
    data = imported(tmp_path, files, dev_cut=0.3)
    assert (data.spec.name, data.source, data.root.name) == ("vqa", "vqa-cp-v2", "vqa-cp-v2")
    train, dev, test = (list(data.examples(name)) for name in ("train", "dev", "test"))
    assert (len(train) + len(dev), len(test)) == (60, 60)
    assert dev
    assert {e.main_answer for e in train + dev} == {"yes"}
    assert {e.main_answer for e in test} == {"no"}
    assert not {e.image.id for e in train} & {e.image.id for e in dev}
    for example in test:
        part = PARTS[(int(example.image.id) - 100) % 2]
        assert example.image.path == files / "coco" / part / f"COCO_{part}_{int(example.image.id):012d}.jpg"


def test_missing_files_are_named(tmp_path: Path, files: Path) -> None:
    (files / "vqacp_v2_test_annotations.json").unlink()
    with pytest.raises(NotFoundError, match=r"test_questions\.json needs vqacp_v2_test_annotations\.json"):
        imported(tmp_path, files)
    (files / "vqacp_v2_test_questions.json").unlink()
    data = imported(tmp_path, files)
    assert data.splits() == ["train", "dev"]
    assert data.manifest["notes"] == ["vqacp_v2_test_*.json are not there, so there is no split 'test'."]
    for path in (files / "coco" / "val2014").iterdir():
        path.unlink()
    with pytest.raises(NotFoundError, match="COCO_val2014_000000000101"):
        imported(tmp_path, files)
    for path in files.glob("*.json"):
        path.unlink()
    with pytest.raises(NotFoundError, match="no files of VQA-CP v2"):
        imported(tmp_path, files)


def test_a_question_without_its_part_of_coco(tmp_path: Path, files: Path) -> None:
    path = files / "vqacp_v2_train_questions.json"
    rows = json.loads(path.read_text())
    for row in rows[2:4]:  # those about one image
        del row["coco_split"]
    path.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"train_questions\.json, questions\[2\]: the image's part of COCO is unknown"):
        imported(tmp_path, files)
    del rows[2:4]
    path.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"2 annotations have no question in vqacp_v2_train_questions\.json"):
        imported(tmp_path, files)
