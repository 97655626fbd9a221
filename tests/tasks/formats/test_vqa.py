from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from madkit.core.errors import DataError
from madkit.tasks.formats.vqa import SOFT_SCORES, iter_vqa, read_vqa

SHARED = Path(__file__).parents[4] / "shared" / "data" / "vqa_v2"


def question(number: int | str = 9000, **change: Any) -> dict[str, Any]:
    return {"image_id": 9, "question": "What is it?", "question_id": number} | change


def annotation(number: int = 9000, answers: list[str] | None = None, **change: Any) -> dict[str, Any]:
    given = answers or ["net"] * 6 + ["netting", "mesh", "pitcher", "orange"]
    return {
        "question_type": "what is",
        "answer_type": "other",
        "multiple_choice_answer": "net",
        "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": i + 1} for i, a in enumerate(given)],
        "image_id": 9,
        "question_id": number,
    } | change


def write(
    folder: Path, questions: list[Any], annotations: list[Any], *, wrapped: bool = True, subtype: str = "val2014"
) -> tuple[Path, Path]:
    wrapper = {"data_subtype": subtype, "license": {}}
    asked, answered = folder / "questions.json", folder / "annotations.json"
    asked.write_text(json.dumps({**wrapper, "questions": questions} if wrapped else questions))
    answered.write_text(json.dumps({**wrapper, "annotations": annotations} if wrapped else annotations))
    return asked, answered


def test_a_question_with_its_answers(tmp_path: Path) -> None:
    (example,) = read_vqa(*write(tmp_path, [question()], [annotation()]), tmp_path)
    assert (example.id, example.question_id, example.image.id) == ("9000", "9000", "9")
    assert example.image.path == tmp_path / "COCO_val2014_000000000009.jpg"
    assert example.answers == {"net": 1.0, "netting": 0.3, "mesh": 0.3, "pitcher": 0.3, "orange": 0.3}
    assert example.annotations[:1] == ("net",)
    assert len(example.annotations) == 10
    assert (example.form, example.answer_type) == ("what is", "other")


def test_soft_scores_are_the_mean_over_leaving_one_annotator_out() -> None:
    for count, score in enumerate(SOFT_SCORES):
        mean = (count * min(1, (count - 1) / 3) + (10 - count) * min(1, count / 3)) / 10
        assert score == pytest.approx(mean)
    assert len(SOFT_SCORES) == 11


def test_bare_lists_with_coco_split(tmp_path: Path) -> None:
    files = write(
        tmp_path,
        [question(9000, coco_split="train2014"), question(9001, coco_split="val2014", image_id=8)],
        [annotation(9001, image_id=8), annotation(9000)],
        wrapped=False,
    )
    examples = read_vqa(*files, tmp_path)
    assert [e.image.path.name for e in examples] == ["COCO_train2014_000000000009.jpg", "COCO_val2014_000000000008.jpg"]


def test_the_main_answer_is_the_files_own(tmp_path: Path) -> None:
    files = write(tmp_path, [question()], [annotation(multiple_choice_answer="the net")])
    assert read_vqa(*files, tmp_path)[0].main_answer == "the net"
    bare = {key: value for key, value in annotation().items() if key != "multiple_choice_answer"}
    assert read_vqa(*write(tmp_path, [question()], [bare]), tmp_path)[0].main_answer == ""
    assert read_vqa(files[0], None, tmp_path)[0].main_answer == ""


def test_the_order_of_the_annotations_does_not_matter_and_ids_may_be_those_of_v1(tmp_path: Path) -> None:
    ids = [90, 93, 91, 92]
    annotations = [annotation(number, [str(number)] * 10) for number in sorted(ids)]
    examples = read_vqa(*write(tmp_path, [question(number) for number in ids], annotations), tmp_path)
    assert [(e.id, e.annotations[0]) for e in examples] == [(str(number), str(number)) for number in ids]


def test_questions_come_one_by_one_and_bytes_are_told(tmp_path: Path) -> None:
    files = write(tmp_path, [question(1), question(1)], [annotation(1)])
    told: list[int] = []
    examples = iter_vqa(*files, tmp_path, advance=told.append)
    assert next(examples).id == "1"
    assert sum(told) == sum(path.stat().st_size for path in files)
    with pytest.raises(DataError, match="used before"):
        next(examples)


def test_images_of_several_folders(tmp_path: Path) -> None:
    files = write(
        tmp_path,
        [question(1, coco_split="train2014"), question(2, coco_split="val2014", image_id=8)],
        [annotation(1), annotation(2, image_id=8)],
        wrapped=False,
    )
    folders = {"train2014": tmp_path / "train2014.zip" / "train2014", "val2014": tmp_path / "v"}
    assert [e.image.path for e in iter_vqa(*files, folders)] == [
        folders["train2014"] / "COCO_train2014_000000000009.jpg",
        folders["val2014"] / "COCO_val2014_000000000008.jpg",
    ]
    with pytest.raises(DataError, match=r"questions\[1\]: an image of 'val2014' is meant, but .* from train2014"):
        list(iter_vqa(*files, {"train2014": tmp_path}))


def test_the_part_of_coco_may_stand_behind_the_questions(tmp_path: Path) -> None:
    asked = tmp_path / "questions.json"
    asked.write_text(json.dumps({"questions": [question()], "data_subtype": "val2014"}))
    assert read_vqa(asked, None, tmp_path)[0].image.path.name == "COCO_val2014_000000000009.jpg"


def test_files_inside_a_zip(tmp_path: Path) -> None:
    files = write(tmp_path, [question()], [annotation()])
    inside = []
    for path in files:
        with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
            archive.write(path, path.name)
        inside.append(path.with_suffix(".zip") / path.name)
    assert list(iter_vqa(*inside, tmp_path)) == read_vqa(*files, tmp_path)


def test_without_annotations_and_test_dev_images(tmp_path: Path) -> None:
    asked, _ = write(tmp_path, [question()], [], subtype="test-dev2015")
    (example,) = read_vqa(asked, None, tmp_path)
    assert (example.answers, example.annotations) == (None, ())
    assert example.image.path.name == "COCO_test2015_000000000009.jpg"


def test_optional_fields_and_own_pattern(tmp_path: Path) -> None:
    bare = {key: value for key, value in annotation().items() if key in ("answers", "question_id")}
    files = write(tmp_path, [question()], [bare])
    (example,) = read_vqa(*files, tmp_path, pattern="{subset}/{id}.png", subset="mini")
    assert (example.form, example.answer_type) == ("", "")
    assert example.image.path == tmp_path / "mini" / "9.png"


@pytest.mark.parametrize(
    ("questions", "annotations", "problem"),
    [
        (
            [question(1), question(2)],
            [annotation(1)],
            r"1 questions have no annotation in annotations.json: question_id 2",
        ),
        (
            [question(1)],
            [annotation(1), annotation(3)],
            r"1 annotations have no question in questions.json: question_id 3",
        ),
        ([question(i) for i in range(9)], [annotation(8)], "8 questions .* question_id 0, 1, 2, 3, 4, ..."),
        ([question(1), question(1)], [annotation(1)], r"questions\[1\]: 'question_id' 1 was used before"),
        ([question(1)], [annotation(1), annotation(1)], r"annotations\[1\]: 'question_id' 1 was used before"),
        ([question("1")], [annotation(1)], r"questions\[0\]: 'question_id' must be an integer, found a string"),
        ([question(1, question=" ")], [annotation(1)], r"questions\[0\]: 'question' is empty"),
        ([question(1, image_id=None)], [annotation(1)], r"'image_id' must be an integer, found null"),
        ([question(1, image_id=7)], [annotation(1)], r"'image_id' is 7, but 9 in the annotation of 1"),
        ([question(1)], [annotation(1, ["a"] * 9)], r"annotations\[0\]: 'answers' must have 10 entries, found 9"),
        ([question(1)], [{**annotation(1), "answers": [{}] * 10}], "must have a string under 'answer'"),
        ([question(1)], [{**annotation(1), "answers": ["a"] * 10}], "must have a string under 'answer'"),
        ([question(1)], [annotation(1, answer_type=3)], r"'answer_type' must be a string, found a number"),
        ([question(1)], ["x"], r"annotations\[0\]: an object is needed, found a string"),
        ([question(1)], [annotation(1, multiple_choice_answer=["net"])], "'multiple_choice_answer' must be a string"),
        ([question(1)], [{**annotation(1), "answers": {"a": 1}}], "'answers' must be a list, found an object"),
        ([question(1)], [{**annotation(1), "answers": [{"answer": 2}] * 10}], "must have a string under 'answer'"),
        ([question(-1)], [annotation(-1)], r"annotations\[0\]: 'question_id' is -1, and ids start at 0"),
        ([question(1, image_id=True)], [annotation(1)], "'image_id' must be an integer, found a boolean"),
        ([{"image_id": 9, "question": "Why?"}], [annotation(1)], r"questions\[0\]: the key 'question_id' is missing"),
        ([question(1)], [], r"1 questions have no annotation"),
        (["x"], [], r"questions\[0\]: an object is needed, found a string"),
    ],
)
def test_a_broken_entry_is_named(tmp_path: Path, questions: list[Any], annotations: list[Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        read_vqa(*write(tmp_path, questions, annotations), tmp_path)


def test_broken_files_are_named(tmp_path: Path) -> None:
    asked, answered = write(tmp_path, [question()], [annotation()])
    whole = answered.read_bytes()
    answered.write_bytes(whole[:-3])
    with pytest.raises(DataError, match=r"annotations\.json, line 1, annotations\[0\]: .*truncated"):
        read_vqa(asked, answered, tmp_path)
    answered.write_bytes(b'{"annotations": []} x')
    with pytest.raises(DataError, match=r"annotations\.json, line 1: not valid JSON \(Extra data at column 21\)"):
        read_vqa(asked, answered, tmp_path)
    answered.write_bytes(b"{}")
    with pytest.raises(DataError, match=r"annotations\.json: the key 'annotations' is missing"):
        read_vqa(asked, answered, tmp_path)
    answered.write_bytes(b"3")
    with pytest.raises(DataError, match="found a number"):
        read_vqa(asked, answered, tmp_path)
    answered.write_bytes(whole.decode().encode("utf-16"))
    with pytest.raises(DataError, match="is not UTF-8"):
        read_vqa(asked, answered, tmp_path)


def test_unknown_image_names(tmp_path: Path) -> None:
    asked, answered = write(tmp_path, [question()], [annotation()], wrapped=False)
    with pytest.raises(DataError, match="part of COCO is unknown"):
        read_vqa(asked, answered, tmp_path)
    with pytest.raises(DataError, match="no format string"):
        read_vqa(asked, answered, tmp_path, pattern="{name}.jpg")
    with pytest.raises(DataError, match="1 of 1 images are missing"):
        read_vqa(asked, answered, tmp_path, subset="val2014", check_images=True)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the sample of real VQA questions is not here")
def test_real_questions() -> None:
    examples = read_vqa(SHARED / "questions.json", SHARED / "annotations.json", SHARED)
    assert len(examples) == 3
    net = next(e for e in examples if e.id == "458752000")
    assert net.answers == {"net": 1.0, "netting": 0.3, "mesh": 0.3, "pitcher": 0.3, "orange": 0.3}
