from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from madkit.core.errors import DataError, NotFoundError
from madkit.tasks.formats.vcr import read_vcr

GD_VCR = Path(__file__).parents[4] / "shared" / "data" / "vcr" / "gd_vcr_addition.jsonl"

LINE: dict[str, Any] = {
    "movie": "1_A",
    "objects": ["person", "person", "diningtable"],
    "img_fn": "1_A/a.jpg",
    "metadata_fn": "1_A/a.json",
    "question_orig": "Does 2 feel comfortable?",
    "question": ["Does", [1], "feel", "comfortable", "?"],
    "answer_choices": [["No", "."], ["Yes", ",", [0, 1], "are", "."], [[2]], ["Maybe", "."]],
    "answer_label": 1,
    "rationale_choices": [["Because", [0], "."], ["So", "."], ["They", "sit", "."], ["A", [2], "."]],
    "rationale_label": 3,
    "annot_id": "train-0",
}
META: dict[str, Any] = {
    "boxes": [[0, 0, 50, 40, 0.9], [10.5, 10, 99, 60, 1], [-0.5, 20, 100.4, 80, 1]],
    "segms": [],
    "names": ["person", "person", "dining table"],
    "width": 100,
    "height": 80,
}


def write(folder: Path, *lines: dict[str, Any], meta: dict[str, Any] | None = None) -> Path:
    images = folder / "images"
    (images / "1_A").mkdir(parents=True, exist_ok=True)
    (images / "1_A" / "a.json").write_text(json.dumps(META if meta is None else meta))
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def changed(**values: Any) -> dict[str, Any]:
    line = copy.deepcopy(LINE)
    for key, value in values.items():
        if value is ...:
            del line[key]
        else:
            line[key] = value
    return line


def test_one_question_gives_two_examples(tmp_path: Path) -> None:
    answer, rationale = read_vcr(write(tmp_path, LINE), tmp_path / "images")
    assert (answer.id, answer.question_id, answer.subtask, answer.label) == ("train-0/answer", "train-0", "answer", 1)
    assert (rationale.id, rationale.question_id, rationale.label) == ("train-0/rationale", "train-0", 3)
    assert [s.text for s in answer.context] == ["Does person feel comfortable?"]
    assert [s.text for s in answer.candidates] == ["No.", "Yes, person and person are.", "diningtable", "Maybe."]
    assert rationale.context == (answer.context[0], answer.candidates[1])
    assert rationale.candidates[3].text == "A diningtable."
    assert answer.image.id == "1_A/a.jpg"
    assert answer.image.path == tmp_path / "images" / "1_A" / "a.jpg"
    assert (answer.width, answer.height) == (100, 80)
    # Five columns are read as four, and corners less than a pixel outside are moved to the border.
    assert answer.boxes == ((0, 0, 50, 40), (10.5, 10, 99, 60), (0, 20, 100, 80))


def test_a_test_line_has_no_label_and_no_rationale_example(tmp_path: Path) -> None:
    lines = write(tmp_path, changed(answer_label=..., rationale_label=...))
    (answer,) = read_vcr(lines, tmp_path / "images")
    assert answer.label is None


def test_optional_keys_and_four_columns(tmp_path: Path) -> None:
    meta = {**META, "boxes": [box[:4] for box in META["boxes"]]}
    meta.pop("names")
    line = changed(movie=..., question_orig=["Does", "[person2]"], question_type="why", extra={"a": 1})
    examples = read_vcr(write(tmp_path, line, meta=meta), tmp_path / "images")
    assert [e.form for e in examples] == ["why", "why"]


def test_rationales_that_repeat_the_answers_are_no_rationales(tmp_path: Path) -> None:
    line = changed(rationale_choices=LINE["answer_choices"], rationale_label=1)
    assert [e.subtask for e in read_vcr(write(tmp_path, line), tmp_path / "images")] == ["answer"]


def test_masked_tags(tmp_path: Path) -> None:
    line = changed(answer_choices=[[[10001], "."], ["[MASK]"], [[2]], ["x"]])
    answer = read_vcr(write(tmp_path, line), tmp_path / "images")[0]
    assert (answer.candidates[0].text, answer.candidates[0].tags) == ("[MASK].", ())


def test_without_metadata_the_texts_carry_no_tags(tmp_path: Path) -> None:
    path = write(tmp_path, LINE)
    (tmp_path / "images" / "1_A" / "a.json").unlink()
    with pytest.raises(DataError, match=r"line 1: the metadata file .*a\.json does not exist"):
        read_vcr(path, tmp_path / "images")
    answer = read_vcr(path, tmp_path / "images", require_metadata=False)[0]
    assert (answer.boxes, answer.context[0].tags, answer.width) == ((), (), 0)
    assert answer.context[0].text == "Does person feel comfortable?"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (changed(annot_id=...), "line 2: the key 'annot_id' is missing"),
        (changed(annot_id=""), "line 2: 'annot_id' is empty"),
        (changed(annot_id="train-0"), "line 2: 'annot_id' 'train-0' was used before, on line 1"),
        (changed(answer_choices=[["Yes"]]), "line 2: 'answer_choices' must have 4 entries, found 1"),
        (changed(rationale_choices=[["Yes"]] * 5), "line 2: 'rationale_choices' must have 4 entries, found 5"),
        (changed(answer_label=4), "line 2: 'answer_label' must be 0 to 3, found 4"),
        (changed(answer_label="1"), "line 2: 'answer_label' must be an integer, found a string"),
        (changed(rationale_label=-1), "line 2: 'rationale_label' must be 0 to 3, found -1"),
        (changed(question=...), "line 2: the key 'question' is missing"),
        (changed(question="Why?"), "line 2: 'question' must be a list of tokens, found a string"),
        (changed(question=["Why", [3]]), "line 2: 'question': tag 3 is beyond the list of 3 objects"),
        (changed(answer_choices=[["a"], ["b"], [[7]], ["c"]]), r"line 2: 'answer_choices\[2\]': tag 7 is beyond"),
        (changed(objects=["person"]), "line 2: 'objects' has 1 entries, but .*a.json has 3 boxes"),
        (changed(objects=["car", "person", "diningtable"]), "line 2: 'objects' differs from 'names'"),
        (changed(objects=[1]), "line 2: 'objects' must be a list of class names"),
        (changed(img_fn=5), "line 2: 'img_fn' must be a non-empty string, found a number"),
        (changed(question_type=[]), "line 2: 'question_type' must be a string, found a list"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: dict[str, Any], problem: str) -> None:
    if line.get("annot_id") == "train-0" and "used before" not in problem:
        line = {**line, "annot_id": "train-1"}
    with pytest.raises(DataError, match=problem) as caught:
        read_vcr(write(tmp_path, LINE, line), tmp_path / "images")
    assert "train.jsonl" in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"boxes": [[0, 0, 50]] * 3}, r"a.json: 'boxes\[0\]' must have 4 numbers"),
        ({"boxes": [[0, 0, 50, 40], [0, 0, 102, 40], [0, 0, 9, 9]]}, r"'boxes\[1\]' .* outside the image of 100 x 80"),
        ({"boxes": [[0, 0, 50, 99]] * 3}, "may be swapped"),
        ({"boxes": [[50, 0, 50, 40]] * 3}, "is empty"),
        ({"boxes": [[0, 0, "9", 40]] * 3}, "not a finite number"),
        ({"boxes": [[0, 0, float("nan"), 40]] * 3}, "not a finite number"),
        ({"width": 0}, "must be positive"),
        ({"width": None}, "'width' must be an integer, found null"),
        ({"names": "person"}, "'names' must be a list"),
    ],
)
def test_broken_metadata_is_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    path = write(tmp_path, LINE, meta={**META, **change})
    with pytest.raises(DataError, match=problem):
        read_vcr(path, tmp_path / "images")


def _cut(data: bytes) -> bytes:
    return data[:-20]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_cut, "line 2: the last line is not complete JSON, so the file is truncated"),
        (lambda data: data.replace(b"Does", b"D\xf6es"), "line 1: byte .* is not UTF-8"),
        (lambda data: data.decode().encode("utf-16"), "line 1: byte 1 of the line is not UTF-8"),
        (lambda data: b"{]\n" + data, r"line 1: not valid JSON \("),
        (lambda data: b"[1]\n" + data, "line 1: a JSON object is needed, found a list"),
        (lambda data: b"[" * 100_000 + b"\n" + data, "line 1: "),
        (lambda data: b"\n\n", "holds no lines"),
        (lambda data: b"", "holds no lines"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[bytes], bytes], problem: str) -> None:
    path = write(tmp_path, LINE, changed(annot_id="train-1"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=problem):
        read_vcr(path, tmp_path / "images")


def test_byte_order_mark_and_blank_lines_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, LINE)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n\n")
    assert len(read_vcr(path, tmp_path / "images")) == 2


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.jsonl does not exist"):
        read_vcr(tmp_path / "none.jsonl", tmp_path)
    path = write(tmp_path, LINE)
    with pytest.raises(DataError, match=r"1 of 1 images are missing: .*a\.jpg"):
        read_vcr(path, tmp_path / "images", check_images=True)
    (tmp_path / "images" / "1_A" / "a.jpg").touch()
    assert read_vcr(path, tmp_path / "images", check_images=True)


def test_reading_5000_lines_is_fast(tmp_path: Path) -> None:
    path = write(tmp_path, *(changed(annot_id=f"train-{i}") for i in range(5000)))
    start = time.process_time()
    assert len(read_vcr(path, tmp_path / "images")) == 10_000
    assert time.process_time() - start < 5  # CPU time, below 1 s on an idle core


@pytest.mark.skipif(not GD_VCR.is_file(), reason="the sample of GD-VCR lines is not here")
def test_real_gd_vcr_lines(tmp_path: Path) -> None:
    examples = read_vcr(GD_VCR, tmp_path, require_metadata=False)
    assert len(examples) == 86
    assert {e.subtask for e in examples} == {"answer"}
    assert examples[0].context[0].text == "What is person doing?"
    assert examples[0].candidates[0].text == "person is talking."
    assert all(len(e.candidates) == 4 and e.label is not None for e in examples)
    assert any("person's" in text for e in examples for text in e.texts())
