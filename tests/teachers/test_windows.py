from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from madkit.teachers.interface import TextOutput, TokenizedText
from madkit.teachers.load import load_teacher
from madkit.teachers.windows import encode_in_windows, windows_of

torch.set_num_threads(1)


@given(st.integers(0, 400), st.integers(1, 60))
def test_every_token_stands_once_with_context_on_both_sides(length: int, limit: int) -> None:
    windows = windows_of(length, limit)
    assert [position for window in windows for position in range(window.first, window.last)] == list(range(length))
    for window in windows:
        assert 0 <= window.start <= window.first <= window.last <= window.stop <= length
        assert window.stop - window.start == min(limit, length)
        assert window.first == 0 or window.first - window.start >= limit // 4
        assert window.last == length or window.stop - window.last >= limit // 4
    assert len(windows) == 1 or length > limit


def test_known_windows() -> None:
    kept = [(w.start, w.stop, w.first, w.last) for w in windows_of(20, 8)]
    assert kept == [(0, 8, 0, 6), (4, 12, 6, 10), (8, 16, 10, 14), (12, 20, 14, 20)]


def test_tokens_spans_and_globals_come_from_the_windows(tiny_teacher: Path) -> None:
    """Encoding each window by itself and putting the pieces together by hand gives the same."""
    text = load_teacher(f"local:{tiny_teacher}").text
    assert text is not None
    words = "the red cat is on a blue house and two dog under it no yes what color of three cat a red dog is"
    short = "a cat"
    long, other = text.tokenize([words, short])
    assert len(long.ids) > text.limit == 14
    found = text.encode_tokenized([other, long])
    tokens, globals_ = [], torch.zeros(text.dim)
    for window in windows_of(len(long.ids), 14):
        alone = text.encode_tokenized(
            [TokenizedText(long.ids[window.start : window.stop], long.spans[window.start : window.stop])]
        )
        real = alone.tokens[0][alone.mask[0]]
        tokens.append(real[window.first - window.start : window.last - window.start])
        globals_ += alone.global_[0] * (window.last - window.first) / len(long.ids)
    torch.testing.assert_close(found.tokens[1][found.mask[1]], torch.cat(tokens), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.global_[1], globals_, atol=1e-5, rtol=1e-5)
    assert [words[a:b] for a, b in found.spans[1][found.mask[1]].tolist()] == words.split()
    alone = text.encode([short])
    torch.testing.assert_close(found.tokens[0][found.mask[0]], alone.tokens[0][alone.mask[0]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.global_[0], alone.global_[0], atol=1e-5, rtol=1e-5)


def test_texts_that_fit_go_through_untouched() -> None:
    answer = TextOutput(torch.zeros(1, 3, 2), torch.zeros(1, 2), torch.ones(1, 3).bool(), torch.zeros(1, 3, 2).int())
    assert encode_in_windows([TokenizedText((1, 2, 3), ((0, 1),) * 3)], 3, lambda texts: answer) is answer
