from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from madkit.teachers.clip_bpe import ClipTokenizer
from madkit.teachers.text_alignment import align_clean_text

REFERENCE = SimpleTokenizer()
TOKENIZER = ClipTokenizer()

PIECES = (
    "a The cat's we'll I'M don't 2024 3.5kg naïve ÉCOLE café cafe\u0301 İstanbul ΟΔΟΣ straße ﬁne ½ Ⅷ 😀 👨‍👩‍👧 日本語 "
    "&amp; &lt;b&gt; &nbsp; &amp;amp; “so” it’s … schÃ¶n â€œ <start_of_text> <end_of_text> <END_OF_TEXT> !!! --- # _x_ "
    "supercalifragilistic xyzzyqwv \x1b[31mred\x1b[0m \x00 \ufeff \u200b \u00ad ſ 'ſ \u0130 \ud83d"
)
WORDS = st.sampled_from(PIECES.split(" "))
SPACES = st.sampled_from([" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u2028", "\x0b", "\x1c", ""])
PHRASES = st.lists(st.tuples(WORDS, SPACES), max_size=8).map(lambda parts: "".join(a + b for a, b in parts))
ANY_TEXT = st.one_of(PHRASES, st.text(max_size=30), st.text(st.characters(max_codepoint=127), max_size=40))


def check_spans(text: str, spans: tuple[tuple[int, int], ...]) -> None:
    starts = [start for start, _ in spans]
    assert starts == sorted(starts)
    assert all(0 <= start <= end <= len(text) for start, end in spans)


@given(ANY_TEXT)
@example("A photo of a  Cat's hat!!")
@example("</w> </w>x a</w>b")
@example("x\x1b[0m")
@example("'ſt <\u017ftart_of_text>")
def test_ids_equal_open_clip_and_spans_are_ordered_and_in_range(text: str) -> None:
    (found,) = TOKENIZER.tokenize([text])
    assert list(found.ids) == REFERENCE.encode(text)
    check_spans(text, found.spans)


@given(ANY_TEXT)
def test_spans_cover_every_character_unless_cleaning_removed_it(text: str) -> None:
    (found,) = TOKENIZER.tokenize([text])
    covered = {position for start, end in found.spans for position in range(start, end)}
    visible = {position for position, character in enumerate(text) if not character.isspace()}
    if not found.approximate:
        assert covered == visible
    else:  # inside words that were repaired, everything still belongs to some token
        cleaned = REFERENCE.clean_fn(text)
        kept = {character for character in cleaned if character.isascii() and character.isalnum()}
        untouched = {p for p in visible if text[p].lower() in kept and text.lower().count(text[p].lower()) == 1}
        assert untouched <= covered


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="&<"), max_size=60))
def test_token_text_is_the_text_under_its_span_in_plain_english(text: str) -> None:
    (found,) = TOKENIZER.tokenize([text])
    for number, (start, end) in zip(found.ids, found.spans, strict=True):
        assert REFERENCE.decoder[number].removesuffix("</w>") == text[start:end].lower()


@pytest.mark.parametrize(
    ("text", "expected", "approximate"),
    [
        ("  Two   DOGS", ["Two", "DOGS"], False),
        ("😀 ok", ["😀", "ok"], False),
        ("don’t", ["don", "’t"], True),  # ftfy straightens the quote
        ("a &amp; b", ["a", "&amp;", "b"], True),
        ("cafe\u0301 x", ["cafe\u0301", "x"], True),  # NFC joins the accent
        ("schÃ¶n", ["sch", "Ã¶", "n"], True),
    ],
)
def test_known_spans(text: str, expected: list[str], approximate: bool) -> None:
    (found,) = TOKENIZER.tokenize([text])
    assert [text[start:end] for start, end in found.spans] == expected
    assert found.approximate is approximate


def test_a_long_text_begins_as_open_clip_cuts_it() -> None:
    text = "a red cat " * 40
    (found,) = TOKENIZER.tokenize([text])
    padded = REFERENCE([text], 77)[0].tolist()
    assert [TOKENIZER.start_id, *found.ids[:75], TOKENIZER.end_id] == padded
    assert len(found.ids) == len(found.spans) == 120


@given(st.text(max_size=30), st.text(max_size=30))
def test_alignment_of_any_two_texts_is_monotone(original: str, other: str) -> None:
    cleaned = " ".join(other.lower().split())
    alignment = align_clean_text(original, cleaned)
    assert len(alignment.spans) == len(cleaned)
    assert all(0 <= start <= end <= len(original) for start, end in alignment.spans)
    starts = [start for start, _ in alignment.spans]
    assert starts == sorted(starts)
