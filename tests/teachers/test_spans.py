"""Character spans of every tokenizer family, on texts that break assumptions about characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hf_models
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import get_clean_fn

from madkit.teachers.clip_bpe import ClipTokenizer
from madkit.teachers.fast_tokenizer import FastTokenizer
from madkit.teachers.interface import SpanTokenizer
from madkit.teachers.load import MINI_FOLDER
from madkit.teachers.open_clip_tokenizer import CleanedTokenizer
from madkit.teachers.text_cleaning import KINDS, clean_text
from madkit.teachers.token_file import FileTokenizer

PIECES = [
    "cat", "Two", "DOGS", "isn't", "under_score", "123", "!?", "(a)", "é", "e\u0301", "e\u0323\u0301", "\u0301", "ﬁ",
    "Ⅷ", "ß", "İ", "ΟΔΟΣ", "😀", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "👍🏽", "🇫🇷", "1\ufe0f\u20e3", "日本語",
    "中文字", "한국어", "שלום", "مرحبا", "हिन्दी", "ไทย", "\u200d", "\u200b", "\ufeff", "\u202e", "\x00", "\x07",
    "\x1b[0m", "\u00ad", "\ufffd", "\U00010348", "<s>", "</s>", "[SEP]", "&amp;", "schÃ¶n", "â€œ", "“so”", "naïve",
    "supercalifragilistic",
]  # fmt: skip
SPACES = [" ", "  ", "   ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u2028", "\x0b", ""]
PHRASES = st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(SPACES)), max_size=8).map(
    lambda parts: "".join(a + b for a, b in parts)
)
TEXT = st.one_of(PHRASES, st.text(max_size=30), st.text(st.characters(max_codepoint=0x2FF), max_size=30))
FAMILY_AT_HOME = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
EXAMPLES = [
    "", "  two   DOGS  ", f"{FAMILY_AT_HOME}👍🏽 🇫🇷", "e\u0323\u0301 \u0301x", "שלום world مرحبا", "日本語 の テキスト",
    "\x00\x07a\x1b",
]  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A tokenizer; ``keeps``: it drops no character but white space; ``surface``: what an id spells, where exact."""

    tokenizer: SpanTokenizer
    keeps: Callable[[str], bool]
    surface: Callable[[int], str | None]


def fast(library: Any) -> FastTokenizer:
    return FastTokenizer("x", library.backend_tokenizer, pad_id=library.pad_token_id or 0)


def byte_symbols() -> dict[str, int]:
    """The characters by which byte-level tokenizers write bytes: printable ones stand for themselves."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + i): byte for i, byte in enumerate(others)}


SYMBOLS = byte_symbols()


def spelt_in_bytes(token: str) -> str | None:
    try:
        return bytes(SYMBOLS[c] for c in token.removesuffix("</w>")).decode().strip()
    except (UnicodeDecodeError, KeyError):  # a piece of a character, or a special token
        return None


def spelt(library: Any, kind: str) -> Callable[[int], str | None]:
    def surface(number: int) -> str | None:
        token = str(library.convert_ids_to_tokens(number))
        if number in library.all_special_ids:
            return None
        if kind == "bytes":
            return spelt_in_bytes(token)
        return token.removeprefix("##") if kind == "pieces" else token.replace("▁", "").strip()

    return surface


def anything(_: str) -> bool:
    return True


def assigned(character: str) -> bool:
    """BERT drops control characters and what could not be decoded; SentencePiece drops some format characters."""
    return character != "\ufffd" and unicodedata.category(character)[0] != "C" and not unicodedata.combining(character)


def family(name: str) -> Family:
    if name == "open_clip's CLIP BPE":
        own = ClipTokenizer()
        return Family(own, lambda _: False, lambda number: spelt_in_bytes(own._reference.decoder[number]))
    if name == "the embedded teacher's words":
        file = FileTokenizer(MINI_FOLDER / "tokenizer.json")
        return Family(file, lambda _: False, lambda number: str(file._tokenizer.id_to_token(number)).removeprefix("##"))
    if name.startswith("SigLIP"):
        library = hf_models.unigram(template="$A </s>")
        tokenizer = CleanedTokenizer(fast(library), "canonicalize")
        return Family(tokenizer, lambda _: False, spelt(library, "words"))
    library = hf_models.TOKENIZERS[name]()
    kind = "bytes" if "BPE" in name else "pieces" if "WordPiece" in name else "words"
    if kind == "bytes" and "CLIP" not in name:
        return Family(fast(library), anything, spelt(library, kind))
    return Family(fast(library), assigned, spelt(library, kind))


NAMES = [*hf_models.TOKENIZERS, "the embedded teacher's words", "open_clip's CLIP BPE", "SigLIP's cleaned Unigram"]


@pytest.fixture(scope="module", params=NAMES)
def kind(request: pytest.FixtureRequest) -> Family:
    return family(request.param)


def folded(text: str) -> str:
    """What is left when case, accents, compatibility forms, white space and invisible characters are taken away."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return "".join(c for c in plain if assigned(c) and not c.isspace())


def test_spans_lie_inside_the_text_and_never_step_back(kind: Family) -> None:
    @settings(max_examples=50)
    @given(TEXT)
    def check(text: str) -> None:
        (found,) = kind.tokenizer.tokenize([text])
        assert len(found.spans) == len(found.ids)
        assert all(0 <= start <= end <= len(text) for start, end in found.spans)
        starts, ends = [a for a, _ in found.spans], [b for _, b in found.spans]
        assert starts == sorted(starts)
        assert ends == sorted(ends)
        for start, end in found.spans:  # no white space at the edges of anything but white space
            inside = text[start:end]
            assert not inside.strip() or inside == inside.strip()

    for text in EXAMPLES:
        check = example(text)(check)
    check()


def test_characters_that_are_not_dropped_are_covered(kind: Family) -> None:
    @settings(max_examples=50)
    @given(TEXT)
    @example(f"{FAMILY_AT_HOME} 👍🏽")
    def check(text: str) -> None:
        (found,) = kind.tokenizer.tokenize([text])
        covered = {position for start, end in found.spans for position in range(start, end)}
        kept = {position for position, c in enumerate(text) if not c.isspace() and kind.keeps(c)}
        assert kept <= covered, sorted(text[position] for position in kept - covered)

    check()


def test_the_text_of_a_span_is_what_the_token_spells(kind: Family) -> None:
    exact = []

    @settings(max_examples=50)
    @given(st.text(st.sampled_from("abcdegostIS ?!.,0  "), max_size=40))
    @example("Two dogs is at a gate, is it?  I do!")
    def check(text: str) -> None:
        (found,) = kind.tokenizer.tokenize([text])
        for number, (start, end) in zip(found.ids, found.spans, strict=True):
            said = kind.surface(number)
            if said is None or not said.strip() or said.startswith("["):  # [UNK]
                continue
            inside = text[start:end]
            if isinstance(kind.tokenizer, CleanedTokenizer):  # punctuation inside a piece is gone
                inside = "".join(c for c in inside if c.isalnum())
            assert folded(said) == folded(inside)
            exact.append(number)

    check()
    assert len(exact) > 20


@pytest.mark.parametrize("clean", KINDS)
def test_cleaning_is_open_clips_and_knows_where_characters_came_from(clean: str) -> None:
    reference = get_clean_fn(clean)

    @settings(max_examples=150)
    @given(TEXT)
    @example("ΟΔΟΣ. İ_x")
    @example("a &amp;lt; b")
    @example("It's -- so_called 'fine'!")
    def check(text: str) -> None:
        found = clean_text(text, clean)
        assert found.text == reference(text)
        assert len(found.spans) == len(found.text)
        assert all(0 <= start <= end <= len(text) for start, end in found.spans)
        assert [start for start, _ in found.spans] == sorted(start for start, _ in found.spans)
        if not found.approximate:
            for character, (start, end) in zip(found.text, found.spans, strict=True):
                if character != " ":
                    assert end - start == 1
                    assert character in text[start].lower() + text[start] + "σς"

    check()
