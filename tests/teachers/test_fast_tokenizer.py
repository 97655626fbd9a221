"""Spans of every tokenizer family, on texts with accents, emoji, odd white space and scripts it never saw."""

from __future__ import annotations

import unicodedata

import hf_models
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from madkit.teachers.fast_tokenizer import FastTokenizer, tidy_spans

WILD = "abcdogIS É'?!  .,0é\u0301\u0323\u00a0\u3000\t\n😀👩‍👧🇫🇷ﬁⅧ日本ßİΣ"
TEXT = st.one_of(st.text(st.sampled_from(WILD), max_size=40), st.text(max_size=30))


def plain(text: str) -> str:
    """What is left when case, accents, compatibility forms and white space are taken away."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return "".join(c for c in folded if not unicodedata.combining(c) and not c.isspace()).replace("▁", "")


@pytest.fixture(scope="module", params=list(hf_models.TOKENIZERS))
def pair(request: pytest.FixtureRequest) -> tuple[str, FastTokenizer, object]:
    library = hf_models.TOKENIZERS[request.param]()
    return request.param, FastTokenizer("x", library.backend_tokenizer, pad_id=library.pad_token_id), library


def test_ids_are_the_librarys_and_spans_are_ordered_and_inside(pair) -> None:
    _, tokenizer, library = pair

    @settings(max_examples=60)
    @given(TEXT)
    @example("  two   DOGS  ")
    @example("e\u0323\u0301 \u0301x")
    @example("")
    def check(text: str) -> None:
        (found,) = tokenizer.tokenize([text])
        expected = library(text)["input_ids"]
        assert [*tokenizer.prefix, *found.ids, *tokenizer.suffix] == expected
        starts, ends = [a for a, _ in found.spans], [b for _, b in found.spans]
        assert starts == sorted(starts)
        assert ends == sorted(ends)
        assert all(0 <= start <= end <= len(text) for start, end in found.spans)
        assert len(found.spans) == len(found.ids)

    check()


def surface(family: str, library, number: int) -> str | None:
    """The characters that a token spells, where it spells any by itself."""
    token = library.convert_ids_to_tokens(number)
    if number == library.unk_token_id:
        return None
    if "BPE" in family:
        symbols = byte_symbols()
        try:
            return bytes(symbols[c] for c in token.removesuffix("</w>")).decode()
        except UnicodeDecodeError:  # a piece of a character
            return None
    return token.removeprefix("##")


def byte_symbols() -> dict[str, int]:
    """The characters by which byte-level tokenizers write bytes: printable ones stand for themselves."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + i): byte for i, byte in enumerate(others)}


def test_the_text_under_a_span_is_the_tokens_surface(pair) -> None:
    family, tokenizer, library = pair
    seen = []

    @settings(max_examples=60)
    @given(TEXT)
    @example("It's  TWO dogs & a house, isn't it? 😀")
    @example("déjà  vu")
    def check(text: str) -> None:
        (found,) = tokenizer.tokenize([text])
        for number, (start, end) in zip(found.ids, found.spans, strict=True):
            said = surface(family, library, number)
            if said is None or not plain(said):
                continue
            seen.append(number)
            # One character may become several tokens (a ligature), so the token may be a part of what it came from.
            assert plain(said) in plain(text[start:end]), (text, said, text[start:end])
            if len(plain(text[start:end])) > len(plain(said)):
                assert end - start <= 1 + sum(unicodedata.combining(c) > 0 for c in text[start:end])

    check()
    assert len(seen) > 20


def test_every_visible_character_of_plain_text_is_covered(pair) -> None:
    _, tokenizer, _ = pair

    @settings(max_examples=60)
    @given(st.text(st.sampled_from("abcdgotIS '?!.,0  "), max_size=40))
    def check(text: str) -> None:
        (found,) = tokenizer.tokenize([text])
        covered = {position for start, end in found.spans for position in range(start, end)}
        assert {position for position, c in enumerate(text) if not c.isspace()} <= covered

    check()


def test_white_space_at_the_edges_is_cut_off() -> None:
    assert tidy_spans(" a  b ", [(0, 2), (2, 5), (5, 6)]) == ((1, 2), (4, 5), (5, 6))
    assert tidy_spans("abc", [(1, 2), (0, 1), (2, 9)]) == ((1, 2), (1, 2), (2, 3))


def test_special_tokens_are_those_of_the_post_processor() -> None:
    library = hf_models.unigram(template="$A </s>")
    tokenizer = FastTokenizer("x", library.backend_tokenizer, pad_id=0)
    assert (tokenizer.prefix, tokenizer.suffix) == ((), (library.convert_tokens_to_ids("</s>"),))
    assert tokenizer.digest != FastTokenizer("x", library.backend_tokenizer, pad_id=1).digest
