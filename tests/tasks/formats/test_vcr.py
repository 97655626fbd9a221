from __future__ import annotations

import copy
import json
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madkit.core.errors import DataError, NotFoundError
from madkit.tasks.formats.source_lines import Place
from madkit.tasks.formats.vcr import examples_of_row, iter_vcr, read_vcr
from madkit.tasks.formats.vcr_metadata import MetadataFiles

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
        (changed(img_fn="/etc/passwd"), "line 2: 'img_fn' must be a path below the folder of the images, found '/etc"),
        (changed(metadata_fn="1_A/../../a.json"), "line 2: 'metadata_fn' must be a path below"),
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


@pytest.mark.parametrize("key", ["answer_label", "rationale_label"])
def test_a_labelled_split_has_all_labels(tmp_path: Path, key: str) -> None:
    path = write(tmp_path, LINE, changed(annot_id="train-1", **{key: ...}))
    assert len(read_vcr(path, tmp_path / "images")) >= 3  # without the promise, such a line is one without label
    with pytest.raises(DataError, match=f"line 2: '{key}' is missing, and this split has labels"):
        list(iter_vcr(path, tmp_path / "images", labelled=True))


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
    assert {e.form for e in examples} == {"east-asia", "west", "africa", "south-asia"}


def test_a_question_without_labels_gets_a_rationale_question_for_every_answer(tmp_path: Path) -> None:
    path = write(tmp_path, changed(answer_label=..., rationale_label=...), changed(annot_id="train-1"))
    examples = read_vcr(path, tmp_path / "images", conditioned=True)
    assert [e.id for e in examples[:5]] == ["train-0/answer", *(f"train-0/rationale-a{i}" for i in range(4))]
    assert {e.subtask for e in examples[1:5]} == {"rationale"}
    assert {e.question_id for e in examples[:5]} == {"train-0"}
    assert [e.label for e in examples] == [None] * 5 + [1, None, 3, None, None]  # the right answer is a1
    for number, example in enumerate(examples[1:5]):
        assert example.context == (examples[0].context[0], examples[0].candidates[number])
        assert example.candidates == examples[1].candidates


def test_files_inside_zips(tmp_path: Path) -> None:
    plain = write(tmp_path, LINE, changed(annot_id="train-1"))
    with zipfile.ZipFile(tmp_path / "vcr1annots.zip", "w") as packed:
        packed.write(plain, "train.jsonl")
    with zipfile.ZipFile(tmp_path / "vcr1images.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(tmp_path / "images" / "1_A" / "a.json", "vcr1images/1_A/a.json")
        packed.writestr("vcr1images/1_A/a.jpg", b"")
    images = tmp_path / "vcr1images.zip" / "vcr1images"
    seen: list[int] = []
    zipped = list(iter_vcr(tmp_path / "vcr1annots.zip" / "train.jsonl", images, check_images=True, advance=seen.append))
    assert sum(seen) == plain.stat().st_size
    assert zipped[0].image.path == images / "1_A" / "a.jpg"
    expected = read_vcr(plain, tmp_path / "images")
    for ours, theirs in zip(zipped, expected, strict=True):
        assert (ours.id, ours.boxes, ours.context, ours.candidates) == (
            theirs.id, theirs.boxes, theirs.context, theirs.candidates,
        )  # fmt: skip


def test_one_choice_a_line_says_which_file_to_take(tmp_path: Path) -> None:
    path = write(tmp_path, changed(answer_choices=[["Yes"]]))
    with pytest.raises(DataError, match="must have 4 entries, found 1") as caught:
        read_vcr(path, tmp_path / "images")
    assert "four choices" in str(caught.value.hint)


def test_reading_is_lazy(tmp_path: Path) -> None:
    examples = iter_vcr(write(tmp_path, LINE, changed(annot_id="train-1", answer_label=9)), tmp_path / "images")
    assert [next(examples).id, next(examples).id] == ["train-0/answer", "train-0/rationale"]
    with pytest.raises(DataError, match="line 2"):
        next(examples)


WORDS = st.sampled_from(["He", "is", "n't", "here", ",", "``", "t", "-", "shirt", "'", "s", "[MASK]", "naïve", "."])
TAGS = st.lists(st.integers(0, 2) | st.integers(10_000, 10_002), min_size=1, max_size=3)
TOKENS = st.lists(WORDS | TAGS, min_size=1, max_size=8).filter(lambda tokens: tokens != ["``"])


@given(TOKENS, st.lists(TOKENS, min_size=4, max_size=4), st.lists(TOKENS, min_size=4, max_size=4), st.integers(0, 3))
def test_every_tag_of_a_line_names_its_box(
    question: list[Any], answers: list[list[Any]], rationales: list[list[Any]], label: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), LINE)
        line = changed(
            question=question,
            answer_choices=answers,
            rationale_choices=rationales,
            answer_label=label,
            rationale_label=3 - label,
        )
        metadata = MetadataFiles(Path(folder) / "images")
        made = examples_of_row(line, Place(Path("x.jsonl"), 1), metadata)
    assert [e.label for e in made] == [label, 3 - label][: len(made)]
    assert len(made) == 1 + (answers != rationales)
    for example in made:
        sources = [question, *([answers[label]] if example.subtask == "rationale" else [])]
        given_choices = answers if example.subtask == "answer" else rationales
        segments = (*example.context, *example.candidates)
        for segment, tokens in zip(segments, [*sources, *given_choices], strict=True):
            indices = [index for token in tokens if isinstance(token, list) for index in token]
            assert [tag.boxes for tag in segment.tags] == [(index,) for index in indices if index < 10_000]
            assert all(segment.text[tag.start : tag.end] == LINE["objects"][tag.boxes[0]] for tag in segment.tags)
            masks = sum(index >= 10_000 for index in indices) + tokens.count("[MASK]")
            assert segment.text.count("[MASK]") == masks


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted({*LINE, "answer_choices", "question", "objects"})), JSON, min_size=1))
def test_a_line_with_any_values_is_read_or_named(values: dict[str, Any]) -> None:
    """Whatever stands in a line, the reader says so in one sentence and never fails in another way."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), LINE)
        metadata = MetadataFiles(Path(folder) / "images", required=False)
        caught: DataError | None = None
        try:
            made = examples_of_row({**LINE, **values}, Place(Path("x.jsonl"), 7), metadata)
        except DataError as error:
            caught = error
    if caught is not None:
        assert "x.jsonl, line 7" in str(caught)
    else:
        assert made[0].question_id == {**LINE, **values}["annot_id"]
