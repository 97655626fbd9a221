from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from madkit.core.errors import DataError, NotFoundError
from madkit.tasks.example import Example, ImageRef, Segment, Tag
from madkit.tasks.index import ExampleTable, ExampleWriter, ImageTable
from madkit.tasks.index.columns import leave_one_out, soft_scores
from madkit.tasks.index.images import StoredImages

TEXT = st.text(max_size=12)
NAME = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=8)


def round_trip(folder: Path, examples: list[Example], task: str = "t") -> ExampleTable:
    images = ImageTable(Path("/root"))
    writer = ExampleWriter(folder, "train", images)
    for example in examples:
        writer.add(example)
    writer.write()
    images.write(folder)
    return ExampleTable(folder / "train.arrow", StoredImages(folder / "images.arrow", Path("/root")), task)


@st.composite
def segments(draw: st.DrawFn, boxes: int) -> Segment:
    text = draw(st.text(st.characters(exclude_categories=("Cs",)), max_size=12))
    if not boxes or not text:
        return Segment(text)
    starts = draw(st.lists(st.integers(0, len(text) - 1), unique=True, max_size=2))
    numbers = st.lists(st.integers(0, boxes - 1), min_size=1, max_size=3)
    return Segment(text, tuple(Tag(start, start + 1, tuple(draw(numbers))) for start in starts))


@st.composite
def examples(draw: st.DrawFn) -> Example:
    corner = st.floats(0, 1000)
    boxes = tuple(draw(st.lists(st.tuples(corner, corner, corner, corner), max_size=3)))
    image = ImageRef(draw(NAME), Path("/root") / draw(st.sampled_from(["a.jpg", "b/c.jpg"])))
    identity = draw(NAME)
    given_answers = tuple(draw(st.lists(st.sampled_from(["yes", "no", "", "2 dogs"]), max_size=10)))
    soft: dict[str, float] | None = draw(st.none() | st.dictionaries(NAME, st.floats(0, 1), max_size=3))
    if given_answers:
        soft = draw(st.sampled_from([dict(soft_scores(given_answers)), soft]))
    return Example(
        id=identity,
        task="t",
        question_id=draw(st.just(identity) | NAME),
        image=image,
        context=tuple(draw(st.lists(segments(len(boxes)), max_size=2))),
        candidates=tuple(draw(st.lists(segments(len(boxes)), max_size=3))),
        boxes=boxes,
        width=draw(st.integers(0, 5000)),
        height=draw(st.integers(0, 5000)),
        label=draw(st.none() | st.integers(0, 400)),
        answers=soft,
        annotations=given_answers,
        subtask=draw(st.sampled_from(["", "answer"])),
        form=draw(st.sampled_from(["", "é"])),
        answer_type=draw(st.sampled_from(["", "other"])),
        main_answer=draw(st.sampled_from(["", "yes"])),
    )


@given(rows=st.lists(examples(), min_size=1, max_size=6))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[Example]) -> None:
    table = round_trip(tmp_path_factory.mktemp("index"), rows)
    assert list(table) == rows
    assert len(table) == len(rows)
    assert table[-1] == rows[-1]
    assert table[1:3] == rows[1:3]
    for row, example in enumerate(rows):
        assert (table.question_id(row), table.image_id(row)) == (example.question_id, example.image.id)


def test_no_example_beyond_the_last(tmp_path: Path) -> None:
    table = round_trip(tmp_path, [Example("1", "t", "1", ImageRef("i", Path("/root/a")), (Segment("x"),))])
    with pytest.raises(IndexError, match="example 1 of 1"):
        table[1]
    with pytest.raises(IndexError):
        table[-2]


def simple(identity: str, image: str = "i", text: str = "x", place: str = "/root", **more: object) -> Example:
    ref = ImageRef(image, Path(place) / f"{image}.jpg")
    return Example(identity, "t", identity, ref, (Segment(text),), **more)


def digest(folder: Path, rows: list[Example], first: list[Example] = []) -> str:  # noqa: B006  # never changed
    images = ImageTable(Path("/root"))
    for example in first:
        images.row_of(example)
    writer = ExampleWriter(folder, "d", images)
    for example in rows:
        writer.add(example)
    return writer.write()


def test_the_digest_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    rows = [simple("1"), simple("2", "j")]
    one = digest(tmp_path, rows)
    assert digest(tmp_path, rows, first=[simple("9", "k"), simple("8", "j")]) == one
    assert digest(tmp_path, [simple("1", place="/moved"), simple("2", "j", place="/moved")]) == one
    changed = [
        [simple("1"), simple("2", "i")],
        [simple("2", "j"), simple("1")],
        [simple("1", label=0), simple("2", "j")],
        [simple("1", text="y"), simple("2", "j")],
        [simple("1", boxes=((0.0, 0.0, 1.0, 1.0),)), simple("2", "j")],
        [simple("1", main_answer="x"), simple("2", "j")],
        [simple("1", subtask="x"), simple("2", "j")],
        [simple("12"), simple("", "j")],
    ]
    digests = [digest(tmp_path, rows) for rows in changed]
    assert len({one, *digests}) == len(changed) + 1


def test_texts_are_stored_once_and_images_too(tmp_path: Path) -> None:
    rows = [simple(str(number), "i", "the same long text " * 20) for number in range(200)]
    round_trip(tmp_path, rows)
    assert (tmp_path / "train.arrow").stat().st_size < 60_000
    assert len(pa.ipc.open_file(tmp_path / "images.arrow").read_all()) == 1


def test_arrow_reads_the_files_as_any_other(tmp_path: Path) -> None:
    round_trip(tmp_path, [simple("1", label=3), simple("2", "j", "y")])
    table = pa.ipc.open_file(tmp_path / "train.arrow").read_all()
    assert table.column("id").to_pylist() == ["1", "2"]
    assert table.column("texts").to_pylist() == [["x"], ["y"]]
    assert table.column("label").to_pylist() == [3, -1]


def test_damage_is_named(tmp_path: Path) -> None:
    rows = [simple("1")]
    round_trip(tmp_path, rows)
    images = StoredImages(tmp_path / "images.arrow", Path("/root"))
    with pytest.raises(NotFoundError, match=r"dev\.arrow does not exist"):
        ExampleTable(tmp_path / "dev.arrow", images, "t")
    whole = (tmp_path / "train.arrow").read_bytes()
    for cut in (0, 3, 8, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.arrow").write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"cut\.arrow is damaged"):
            ExampleTable(tmp_path / "cut.arrow", images, "t")
    other = pa.table({"x": [1]})
    with pa.OSFile(str(tmp_path / "other.arrow"), "wb") as file, pa.ipc.new_file(file, other.schema) as writer:
        writer.write_table(other)
    with pytest.raises(DataError, match="another version of madkit"):
        ExampleTable(tmp_path / "other.arrow", images, "t")


def test_a_context_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    writer = ExampleWriter(tmp_path, "train", ImageTable(tmp_path))
    long = Example("1", "t", "1", ImageRef("i", tmp_path / "a"), (Segment("x"),) * 101)
    with pytest.raises(DataError, match="a context of 101 texts"):
        writer.add(long)


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=12))
def test_soft_scores_are_the_mean_over_leaving_one_annotator_out(answers: list[str]) -> None:
    scores = soft_scores(tuple(answers))
    for answer, count in Counter(answers).items():
        left = [
            min(1.0, sum(other == answer for other in answers[:i] + answers[i + 1 :]) / 3) for i in range(len(answers))
        ]
        assert scores[answer] == pytest.approx(np.mean(left), abs=1e-9)
        assert scores[answer] == leave_one_out(count, len(answers))


def test_ten_annotators_give_the_published_table() -> None:
    assert [leave_one_out(count, 10) for count in range(11)] == [0, 0.3, 0.6, 0.9, *[1.0] * 7]
