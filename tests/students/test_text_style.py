"""Sequences of texts: order, types, names of people, tags, and what is cut off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from madkit.students.inputs import UNITER_TEXT, encode_example, encode_segments
from madkit.students.text_style import Body, Mark, TextStyle, query_plan, rewrite, segment_plan
from madkit.students.tokenizer import SPECIALS, StudentTokenizer
from madkit.tasks.example import Example, ImageRef, Segment, Tag

WORDS = [*SPECIALS, "why", "is", "person", "car", "and", "casey", "ri", "##ley", "here", "?", "she", "a", "b"]
TOKENIZER = StudentTokenizer.of_words(WORDS, lowercase=True)
IMAGE = ImageRef("i", Path("i.png"))


def words_of(sequence) -> list[str]:
    return [WORDS[number] for number in sequence.ids]


def test_uniters_question_and_answer() -> None:
    sequence = encode_segments([Segment("why"), Segment("she is")], TOKENIZER, 40, UNITER_TEXT, candidate=True)
    assert words_of(sequence) == ["[CLS]", "why", "[SEP]", "she", "is", "[SEP]"]
    assert sequence.types.tolist() == [0, 0, 2, 2, 2, 2]
    assert sequence.ends.tolist() == [2, 5]


def test_uniters_question_answer_and_rationale() -> None:
    texts = [Segment("why"), Segment("she is"), Segment("a b")]
    sequence = encode_segments(texts, TOKENIZER, 40, UNITER_TEXT, candidate=True)
    assert words_of(sequence) == ["[CLS]", "why", "[SEP]", "she", "is", "[SEP]", "a", "b", "[SEP]"]
    assert sequence.types.tolist() == [0, 0, 2, 2, 2, 3, 3, 3, 3]
    assert sequence.ends.tolist() == [2, 5, 8]


def test_segments_without_a_separator_share_their_end() -> None:
    def plan(context: int, candidate: bool):
        assert (context, candidate) == (2, True)
        return (Mark("cls", 0), Body(0, 0), Body(1, 0), Mark("sep", 0), Body(2, 1), Mark("sep", 1))

    texts = [Segment("why"), Segment("she is"), Segment("a b")]
    sequence = encode_segments(texts, TOKENIZER, 40, TextStyle(plan), candidate=True)
    assert words_of(sequence) == ["[CLS]", "why", "she", "is", "[SEP]", "a", "b", "[SEP]"]
    assert sequence.ends.tolist() == [4, 4, 7]
    assert sequence.segment.tolist() == [-1, 0, 1, 1, -1, 2, 2, -1]


def test_a_slot_for_the_answer() -> None:
    style = TextStyle(query_plan(Mark("mask", 0), Mark("sep", 0)))
    sequence = encode_segments([Segment("why ?")], TOKENIZER, 40, style)
    assert words_of(sequence) == ["[CLS]", "why", "?", "[MASK]", "[SEP]"]
    assert sequence.types.tolist() == [0] * 5
    assert sequence.ends.tolist() == [3]
    choice = encode_segments([Segment("why ?"), Segment("a")], TOKENIZER, 40, style, candidate=True)
    assert words_of(choice) == ["[CLS]", "why", "?", "[SEP]", "a", "[SEP]"]
    assert choice.types.tolist() == [0, 0, 0, 0, 1, 1]


def test_people_are_called_by_name_and_keep_their_tags_and_spans() -> None:
    segment = Segment(
        "why is person and person and car here ?", (Tag(7, 13, (4,)), Tag(18, 24, (2,)), Tag(29, 32, (1,)))
    )
    style = TextStyle(segment_plan((0,)), naming=lambda example: [{4: "Riley", 2: "Casey", 1: "Nobody"}])
    example = Example("1", "vcr", "1", IMAGE, (segment,), boxes=((0, 0, 5, 5),) * 5, width=10, height=10)
    (sequence,) = encode_example(example, TOKENIZER, 40, style).sequences
    assert words_of(sequence)[1:-1] == ["why", "is", "ri", "##ley", "and", "casey", "and", "car", "here", "?"]
    assert sequence.tag_box.tolist() == [-1, -1, -1, 4, 4, -1, 2, -1, 1, -1, -1, -1]  # a car has no name
    surfaces = [segment.text[a:b] for a, b in sequence.spans[1:-1]]
    assert surfaces == ["why", "is", "person", "person", "and", "person", "and", "car", "here", "?"]
    assert sequence.texts == (segment.text,)  # what the teacher read


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(["person", "car", "why is", "é?"]), min_size=1, max_size=6), st.data())
def test_renamed_text_is_the_old_one_but_for_its_people(parts: list[str], data: st.DataObject) -> None:
    text, tags = "", []
    for i, part in enumerate(parts):
        text += " " * bool(text)
        if part in ("person", "car"):
            tags.append(Tag(len(text), len(text) + len(part), (i,)))
        text += part
    names = {i: data.draw(st.sampled_from(["Casey", "Jo", "R"])) for i, part in enumerate(parts) if part == "person"}
    new = rewrite(Segment(text, tuple(tags)), names)
    assert new.text == " ".join(names.get(i, part) for i, part in enumerate(parts))
    at = 0
    for i, part in enumerate(parts):
        written = names.get(i, part)
        start, end = new.span(at, at + len(written))
        assert text[start:end] == part
        at += len(written) + 1


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=3), st.integers(8, 60))
def test_too_long_text_loses_the_tail_of_its_longest_segment(lengths: list[int], limit: int) -> None:
    segments = [Segment(" ".join(["a"] * n)) for n in lengths]
    sequence = encode_segments(segments, TOKENIZER, limit, UNITER_TEXT, candidate=True)
    kept = [int((sequence.segment == i).sum()) for i in range(len(lengths))]
    specials = len(lengths) + 1
    assert len(sequence.ids) == min(limit, sum(lengths) + specials)
    assert sequence.shortened == sum(lengths) - sum(kept)
    if sequence.shortened:
        cut = [k for k, n in zip(kept, lengths, strict=True) if k < n]
        assert max(kept) - min(cut) <= 1  # nothing was cut below what another segment kept
    assert np.array_equal(sequence.ends, np.flatnonzero(sequence.segment < 0)[1:])


@pytest.mark.parametrize("names", [{}, {0: "Casey"}])
def test_text_without_people_is_left_as_it_is(names: dict[int, str]) -> None:
    segment = Segment("car here", (Tag(0, 3, (0,)),))
    assert rewrite(segment, names) == (segment.text, None)
