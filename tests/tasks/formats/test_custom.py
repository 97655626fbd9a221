from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from madkit.core.errors import DataError
from madkit.tasks.example import Example, Tag
from madkit.tasks.formats.custom import ImageFiles, LineReader
from madkit.tasks.formats.custom_lines import LinePlace, iter_lines, read_header, split_of
from madkit.tasks.formats.source_lines import iter_json_lines, load_json
from madkit.tasks.spec import TaskKind

IMAGES = Path("/pictures")
BOXES = {"boxes": [[0, 0, 10, 10], [5, 5, 20, 20]], "width": 20, "height": 20}
LINES: dict[str, dict[str, Any]] = {
    "multiple-choice": {"id": 1, "image": "a.jpg", "question": "What?", "choices": ["a cup", "a cat"], "label": 1},
    "classification": {"id": 1, "image": "a.jpg", "sentence": "A cat.", "label": "yes"},
    "vqa": {"id": 1, "image": "a.jpg", "question": "What?", "answers": ["cat"] * 9 + ["dog"]},
}


def read(kind: str, *changes: dict[str, Any], labels: list[str] | None = None, split: str = "train") -> list[Example]:
    reader = LineReader("mine", kind, ImageFiles(IMAGES), labels)
    rows = [{key: value for key, value in {**LINES[kind], **change}.items() if value is not ...} for change in changes]
    return [reader.example(row, LinePlace(Path("mine.jsonl"), n), split) for n, row in enumerate(rows, 1)]


def test_a_number_of_thousands_of_digits_has_its_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "f.jsonl"
    file.write_text('{"a": 1}\n{"a": ' + "1" * 5000 + "}\n")
    with pytest.raises(DataError, match=r"f.jsonl, line 2: a whole number has too many digits"):
        list(iter_json_lines(file))
    file.write_text("1" * 5000)
    with pytest.raises(DataError, match=r"f.jsonl: a whole number has too many digits"):
        load_json(file)


def test_multiple_choice() -> None:
    one, two = read("multiple-choice", {}, {"id": "x", "label": "a cup", "form": "easy", "_note": 3, "x_y": []})
    assert (one.id, one.question_id, one.task, one.label) == ("1", "1", "mine", 1)
    assert [segment.text for segment in one.candidates] == ["a cup", "a cat"]
    assert (one.image.id, one.image.path) == ("a.jpg", IMAGES / "a.jpg")
    assert (two.id, two.label, two.form) == ("x", 0, "easy")


def test_classes_by_name_and_by_number_where_they_are_named() -> None:
    assert [e.label for e in read("classification", {}, {"label": 0}, labels=["no", "yes"])] == [1, 0]


@pytest.mark.parametrize(
    ("answers", "scores", "kept"),
    [
        (["cat"] * 9 + ["dog"], {"cat": 1.0, "dog": 0.3}, 10),
        (["a", "b", "a", "a"], {"a": 0.75, "b": 0.25}, 4),
        (["a", "b", "a"], {"a": 0.666667, "b": 0.333333}, 0),
        ("yes", {"yes": 1.0}, 0),
        ([{"answer": "yes", "answer_id": 1}], {"yes": 1.0}, 0),
        ({"yes": 1, "no": 0.5, "never": 0}, {"yes": 1.0, "no": 0.5, "never": 0.0}, 0),
    ],
)
def test_answers(answers: Any, scores: dict[str, float], kept: int) -> None:
    (example,) = read("vqa", {"answers": answers, "answer_type": "other"})
    assert example.answers == pytest.approx(scores)
    assert len(example.annotations) == kept
    assert example.answer_type == "other"


def test_boxes_links_and_context() -> None:
    (example,) = read(
        "multiple-choice",
        {
            **BOXES, "objects": ["cup", "cat"], "context": ["They sit at [the table](1)."],
            "question": "What is [](2)?", "choices": [" [it](1) ", "[](1,2)"], "label": "it",
        },
    )  # fmt: skip
    assert [segment.text for segment in example.context] == ["They sit at the table.", "What is cat?"]
    assert example.context[1].tags == (Tag(8, 11, (1,)),)
    assert [segment.text for segment in example.candidates] == ["it", "cup and cat"]
    assert (example.boxes[1], example.width, example.label) == ((5.0, 5.0, 20.0, 20.0), 20, 0)


def test_images_are_known_by_their_path_below_the_folder() -> None:
    names = ["./sub/../b.jpg", "/pictures/sub/c.jpg", "/elsewhere/d.jpg"]
    examples = read("classification", *({"image": name} for name in names))
    assert [example.image.id for example in examples] == ["b.jpg", "sub/c.jpg", "/elsewhere/d.jpg"]
    assert examples[2].image.path == Path("/elsewhere/d.jpg")


def test_questions_without_answers_belong_into_submission() -> None:
    (example,) = read("vqa", {"answers": None}, split="submission")
    assert (example.answers, example.annotations) == (None, ())
    with pytest.raises(DataError, match=r"line 1: 'label' is given in the split submission"):
        read("classification", {}, split="submission")


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("vqa", {"anwsers": ["x"]}, r"there is no key 'anwsers'. Did you mean 'answers'\?$"),
    ("vqa", {"label": 1}, "'label' belongs to multiple-choice and classification tasks, and this one is vqa"),
    ("vqa", {"madkit": 1}, "there is no key 'madkit'"),
    ("vqa", {"id": ""}, "'id' is empty"),
    ("vqa", {"id": True}, "'id' must be a string, found a boolean"),
    ("vqa", {"image": ...}, "the key 'image' is missing"),
    ("vqa", {"image": None}, "'image' is null"),
    ("vqa", {"image": 7}, "'image' must be a string, found a number"),
    ("vqa", {"image": "a\0.jpg"}, "'image' holds a NUL"),
    ("vqa", {"question": ...}, "there is no text: none of the keys text, question, sentence, context"),
    ("vqa", {"question": " "}, "'question' is empty"),
    ("vqa", {"question": "\ud800"}, "half of a surrogate pair"),
    ("vqa", {"text": "Why?"}, "'text' and 'question' are two names for the same"),
    ("vqa", {"context": "Why?"}, "'context' must be a list, found a string"),
    ("vqa", {"context": [["Why?"]]}, r"'context\[0\]' must be a string, found a list"),
    ("vqa", {"answers": ...}, "the key 'answers' is missing"),
    ("vqa", {"answers": []}, "'answers' is empty"),
    ("vqa", {"answers": ["a", 1]}, r"'answers\[1\]' must be a string, found a number"),
    ("vqa", {"answers": {"a": 2}}, "'answers' must map answers to scores from 0 to 1, found 'a': 2"),
    ("vqa", {"answers": {"a": 0}}, "no answer with a score above 0"),
    ("vqa", {"answers": {"a": 1, " a": 1}}, "'answers' has 'a' twice"),
    ("vqa", {"answer_type": 1}, "'answer_type' must be a string"),
    ("multiple-choice", {"choices": ...}, "the key 'choices' is missing"),
    ("multiple-choice", {"choices": ["a"]}, "'choices' must have 2 to 100 entries, found 1"),
    ("multiple-choice", {"choices": ["a"] * 101}, "'choices' must have 2 to 100 entries, found 101"),
    ("vqa", {"context": ["a"] * 100}, "'context' must have fewer than 100 entries, found 100"),
    ("multiple-choice", {"choices": ["a", ""]}, r"'choices\[1\]' is empty"),
    ("multiple-choice", {"choices": [["a"], "b"]}, r"'choices\[0\]' must be a string, found a list"),
    ("multiple-choice", {"label": 2}, r"'label' must be 0 to 1 \(choices count from 0\), found 2"),
    ("multiple-choice", {"label": -1}, "'label' must be 0 to 1"),
    ("multiple-choice", {"label": True}, "'label' must be an integer, found a boolean"),
    ("multiple-choice", {"label": 1.0}, "'label' must be an integer, found a number"),
    ("multiple-choice", {"label": "a dog"}, "'label' 'a dog' is none of the choices"),
    ("multiple-choice", {"label": "x", "choices": ["x", "x"]}, "'label' 'x' is more than one of the choices"),
    ("classification", {"label": 3}, "'label' is the number 3, and nothing says which class that is"),
    ("classification", {"label": False}, "'label' must be the name of a class, found a boolean"),
    ("classification", {"label": None}, "'label' is null"),
    ("classification", {"label": ""}, "'label' is empty"),
    ("classification", {"choices": ["a", "b"]}, "'choices' belongs to multiple-choice tasks"),
    ("classification", {**BOXES, "width": ...}, "the key 'width' is missing: boxes are pixels"),
    ("classification", {**BOXES, "width": 0}, "'width' must be 1 or more"),
    ("classification", {**BOXES, "height": 9.5}, "'height' must be an integer"),
    ("classification", {**BOXES, "boxes": {}}, "'boxes' must be a list"),
    ("classification", {**BOXES, "boxes": [[0, 0, 30, 10]]}, r"'boxes\[0\]' .* lies outside the image of 20 x 20"),
    ("classification", {**BOXES, "boxes": [[0, 0, 9, 9], [9, 9, 3, 3]]}, r"'boxes\[1\]' .* is empty"),
    ("classification", {**BOXES, "boxes": [[0, 0, float("nan"), 9]]}, "not a finite number"),
    ("classification", {**BOXES, "objects": ["cat"]}, "'objects' has 1 entries, and 'boxes' has 2"),
    (
        "classification",
        {**BOXES, "sentence": "[x](3)"},
        r"'sentence': the link \[x\]\(3\) names a box",
    ),
    ("classification", {"sentence": "[x](1)"}, "as the line has no boxes"),
]


@pytest.mark.parametrize(("kind", "change", "problem"), BAD)
def test_wrong_lines(kind: str, change: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        read(kind, {}, {"id": 2, **change})
    assert str(caught.value).startswith("mine.jsonl, line 2: ")
    assert caught.value.hint


def test_an_unknown_key_is_answered_with_the_keys_there_are() -> None:
    with pytest.raises(DataError, match="there is no key 'answer'") as caught:
        read("multiple-choice", {"answer": 0})
    assert "choices, label" in (caught.value.hint or "")
    assert "x_answer" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("label", "problem"), [("ys", r"none of the classes \(no, yes\). Did you mean 'yes'\?"), (2, "0 to 1")]
)
def test_labels_that_are_no_classes(label: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        read("classification", {"label": label}, labels=["no", "yes"])


def test_what_lines_must_share() -> None:
    with pytest.raises(DataError, match=r"line 2: 'choices' has 3 entries, and 2 in mine.jsonl, line 1"):
        read("multiple-choice", {}, {"choices": ["a", "b", "c"]})
    with pytest.raises(DataError, match=r"line 2: the image is 30 x 20 here, and 20 x 20 in mine.jsonl, line 1"):
        read("vqa", BOXES, {**BOXES, "width": 30})


def write(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_header(tmp_path: Path) -> None:
    path = write(tmp_path, {"madkit": 1, "kind": "classification", "labels": ["no", "yes"], "_by": "me"}, LINES["vqa"])
    header = read_header(path)
    assert (header.kind, header.labels) == ("classification", ("no", "yes"))
    assert [(place.line, row["id"]) for place, row in iter_lines(path)] == [(2, 1)]
    assert read_header(write(tmp_path, LINES["vqa"])).labels is None


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"madkit": 2}, "'madkit' is the version of the format, 1; found 2"),
        ({"madkit": True}, "found True"),
        ({"madkit": 1, "lables": []}, r"a header has no key 'lables'. Did you mean 'labels'\?"),
        ({"madkit": 1, "kind": "choice"}, "'kind' must be one of"),
        ({"madkit": 1, "labels": ["a"]}, "'labels' must name 2 to 10,000 classes, found 1"),
        ({"madkit": 1, "labels": ["a", "b", "a"]}, "'labels' names the class 'a' twice"),
        ({"madkit": 1, "labels": [0, 1]}, "'labels' must be a string, found a number"),
    ],
)
def test_wrong_headers(tmp_path: Path, header: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        read_header(write(tmp_path, header, LINES["vqa"]))


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([LINES["vqa"], {"madkit": 1}], "line 2: a header may stand in the first line only"),
        ([{"madkit": 1}], "a header and no lines"),
        ([], "the file holds no lines"),
        ([LINES["vqa"], '{"id": 2, "image"'], "line 2: not valid JSON"),
        ([LINES["vqa"], [1]], "line 2: a JSON object is needed, found a list"),
    ],
)
def test_wrong_files(tmp_path: Path, rows: list[Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        list(iter_lines(write(tmp_path, *rows)))


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    path = write(tmp_path, LINES["vqa"], LINES["vqa"])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="line 2: the last line is not complete JSON, so the file is truncated"):
        list(iter_lines(path))


@pytest.mark.parametrize(
    ("value", "expected"),
    [("val", "dev"), ("Validation", "dev"), ("test_hard", "test-hard"), ("submission", "submission"), (None, "train")],
)
def test_splits(value: str | None, expected: str) -> None:
    file_split = "train" if value is None else None
    assert split_of({"split": value}, LinePlace(Path("x"), 1), file_split) == expected


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("trian", r"found 'trian'. Did you mean 'train'\?$"),
        (1, "found 1"),
        ("test", "'split' is 'test' in the file of dev"),
    ],
)
def test_wrong_splits(value: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        split_of({"split": value}, LinePlace(Path("x"), 1), "dev")


def test_every_kind_has_a_line_here() -> None:
    from typing import get_args

    assert set(LINES) == set(get_args(TaskKind))
