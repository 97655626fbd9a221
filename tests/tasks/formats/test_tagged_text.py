from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madkit.tasks.example import Tag
from madkit.tasks.formats.tagged_text import MASKED_TAG, TagError, segment_of

OBJECTS = ["person", "person", "car", "diningtable"]
GD_VCR = Path(__file__).parents[4] / "shared" / "data" / "vcr" / "gd_vcr_addition.jsonl"


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["Does", [2], "feel", "comfortable", "?"], "Does car feel comfortable?"),
        (["What", "'s", [0], "doing", "?"], "What's person doing?"),
        ([[0], "'", "s", "officer", "left", "."], "person's officer left."),
        ([[0], "'s", "car"], "person's car"),
        (["They", "do", "n't", "know", ",", "do", "they", "?"], "They don't know, do they?"),
        (["A", "t", "-", "shirt", "."], "A t-shirt."),
        (["He", "said", '"', "no", '"', "."], 'He said "no".'),
        (["He", "said", "``", "no", "''", "."], 'He said "no".'),
        (["(", [0], ")", "waits", "..."], "(person) waits..."),
        (["the", "boys", "'", "ball"], "the boys' ball"),
        (["a", "'", "toy", "'", "gun"], "a 'toy' gun"),
        ([[0, 1], "talk"], "person and person talk"),
        ([[0, 1, 2]], "person and person and car"),
        (["", "Yes", " "], "Yes"),
        (["It", "costs", "$", "5"], "It costs $5"),
        (["-", "yes"], "- yes"),
    ],
)
def test_text_reads_as_a_person_would_write_it(tokens: list[object], text: str) -> None:
    assert segment_of(tokens, OBJECTS).text == text


def test_every_index_of_a_list_has_its_own_tag() -> None:
    segment = segment_of(["Do", [0, 2], "fit", "?"], OBJECTS)
    assert segment.text == "Do person and car fit?"
    assert segment.tags == (Tag(3, 9, (0,)), Tag(14, 17, (2,)))


def test_a_masked_tag_has_no_box() -> None:
    segment = segment_of([[MASKED_TAG + 1], "and", [1, MASKED_TAG], "[MASK]"], OBJECTS)
    assert segment.text == "[MASK] and person and [MASK] [MASK]"
    assert segment.tags == (Tag(11, 17, (1,)),)


def test_without_tags_the_text_is_the_same() -> None:
    tokens = ["Does", [2], "move", "?"]
    plain = segment_of(tokens, OBJECTS, keep_tags=False)
    assert (plain.text, plain.tags) == (segment_of(tokens, OBJECTS).text, ())


@pytest.mark.parametrize(
    ("tokens", "problem"),
    [
        ([[4]], "tag 4 is beyond the list of 4 objects"),
        ([[-1]], "found -1"),
        ([[True]], "found True"),
        ([["0"]], "found '0'"),
        ([[]], "tag list is empty"),
        ([3], "found 3"),
        ([None], "found None"),
        ([], "no text"),
        ([" "], "no text"),
    ],
)
def test_what_is_no_tagged_text_is_refused(tokens: list[object], problem: str) -> None:
    with pytest.raises(TagError, match=problem):
        segment_of(tokens, OBJECTS)


WORDS = st.sampled_from(["What", "is", "'s", "'", '"', "s", "n't", "?", ".", ",", "-", "(", ")", "$", "car", "..."])
INDICES = st.lists(st.integers(0, 3) | st.integers(MASKED_TAG, MASKED_TAG + 3), min_size=1, max_size=3)


@given(st.lists(WORDS | INDICES, min_size=1, max_size=12), st.lists(st.text("ab é"), min_size=4, max_size=4))
def test_every_tag_covers_exactly_its_class_name(tokens: list[Any], names: list[str]) -> None:
    objects = [name.strip() or "x" for name in names]
    segment = segment_of(tokens, objects)
    indices = [i for token in tokens if isinstance(token, list) for i in token if i < MASKED_TAG]
    assert [tag.boxes for tag in segment.tags] == [(i,) for i in indices]
    assert all(segment.text[tag.start : tag.end] == objects[tag.boxes[0]] for tag in segment.tags)
    ends = [0, *(tag.end for tag in segment.tags)]
    assert all(tag.start >= end for tag, end in zip(segment.tags, ends, strict=False))
    assert segment.text == segment.text.strip()
    # Nothing is lost, nothing is added but spaces and the "and" of lists.
    letters = "".join(
        token if isinstance(token, str) else "and".join("[MASK]" if i >= MASKED_TAG else objects[i] for i in token)
        for token in tokens
    )
    assert segment.text.replace(" ", "") == letters.replace(" ", "")


@pytest.mark.skipif(not GD_VCR.is_file(), reason="the sample of GD-VCR lines is not here")
def test_real_lines_have_no_loose_punctuation() -> None:
    for line in GD_VCR.read_text().splitlines():
        item = json.loads(line)
        for tokens in (item["question"], *item["answer_choices"]):
            text = segment_of(tokens, item["objects"]).text
            assert not any(loose in text for loose in (" .", " ,", " ?", " '", "  ", "' s")), text
