from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madkit.tasks.example import Segment, Tag
from madkit.tasks.formats.box_links import read_links, write_links
from madkit.tasks.formats.tagged_text import TagError


@pytest.mark.parametrize(
    ("text", "plain", "linked"),
    [
        ("Why does [the man](1) look at [it](3)?", "Why does the man look at it?", {"the man": (0,), "it": (2,)}),
        ("[they](1,2) smile", "they smile", {"they": (0, 1)}),
        ("[they]( 2 , 2 )", "they", {"they": (1,)}),
        ("see [](1, 3)!", "see person and car!", {"person": (0,), "car": (2,)}),
        (r"\[the man](1)", "[the man](1)", {}),
        (r"\\[the man](1)", "\\the man", {"the man": (0,)}),
        (r"\\\[the man](1)", r"\[the man](1)", {}),
        ("[1] and [a](b) and (0) [] []()", "[1] and [a](b) and (0) [] []()", {}),
        (r"\(x\) \[y\] C:\dir", r"\(x\) \[y\] C:\dir", {}),
        ("[[a](1)](2)", "[a](2)", {"a": (0,)}),
        ("[a](1)[b](2)", "ab", {"a": (0,), "b": (1,)}),
        ("[é](1) ok", "é ok", {"é": (0,)}),
    ],
)
def test_links(text: str, plain: str, linked: dict[str, tuple[int, ...]]) -> None:
    segment = read_links(text, 3, ["person", "dog", "car"])
    assert segment.text == plain
    assert {segment.text[tag.start : tag.end]: tag.boxes for tag in segment.tags} == linked


@pytest.mark.parametrize(
    ("text", "boxes", "problem"),
    [
        ("[a](4)", 3, r"the link \[a\]\(4\) names a box that is not there, as the line has boxes 1 to 3"),
        ("[a](0)", 3, "boxes 1 to 3"),
        ("[a](1)", 0, "as the line has no boxes"),
        ("[a](1,7)", 3, "not there"),
        ("[a](" + "9" * 5000 + ")", 3, "not there"),
        ("[ ](1)", 3, "no words, and there are no 'objects'"),
    ],
)
def test_links_that_lead_nowhere(text: str, boxes: int, problem: str) -> None:
    with pytest.raises(TagError, match=problem):
        read_links(text, boxes)


PLAIN = st.text(st.sampled_from("ab [](),01\\"), max_size=12)
WORDS = st.text(st.sampled_from("ab (),01\\"), min_size=1, max_size=6).filter(str.strip)
BOXES = st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True).map(tuple)


@given(st.lists(st.tuples(PLAIN, WORDS, BOXES), max_size=4), PLAIN)
def test_what_is_written_is_read_back(pieces: list[tuple[str, str, tuple[int, ...]]], end: str) -> None:
    text, tags = "", []
    for plain, words, boxes in pieces:
        text += plain
        tags.append(Tag(len(text), len(text) + len(words), boxes))
        text += words
    segment = Segment(text + end, tuple(tags))
    assert read_links(write_links(segment), 5) == segment


@given(st.text(max_size=30))
def test_any_text_can_be_written(text: str) -> None:
    assert read_links(write_links(Segment(text)), 0) == Segment(text)


@pytest.mark.parametrize("tags", [(Tag(0, 2, (0,)), Tag(1, 3, (1,))), (Tag(0, 0, (0,)),), (Tag(3, 4, (0,)),)])
def test_tags_without_a_markup_are_refused(tags: tuple[Tag, ...]) -> None:
    with pytest.raises(ValueError, match="cannot be written"):
        write_links(Segment("abc[d]", tags))
