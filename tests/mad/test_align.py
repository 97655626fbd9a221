"""Text alignment against an oracle that counts characters one by one."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from madkit.mad.align import align_spans, align_tags, align_text, span_overlap_weights

torch.set_num_threads(1)
LENGTH = 24
Span = tuple[int, int]


@st.composite
def tokenization(draw: st.DrawFn) -> list[Span]:
    """Pieces of a text in order, with gaps where a tokenizer drops blanks."""
    cuts = sorted(draw(st.sets(st.integers(0, LENGTH), max_size=9)))
    pieces = list(pairwise(cuts))
    return [piece for piece in pieces if draw(st.booleans()) or len(pieces) < 3]


# Any spans at all: empty ones, repeated ones (pieces of one emoji), nested ones, in any order.
anything = st.lists(st.tuples(st.integers(0, LENGTH), st.integers(0, 6)), max_size=7).map(
    lambda pairs: [(start, min(start + length, LENGTH)) for start, length in pairs]
)


def oracle(student: list[Span], teacher: list[Span]) -> list[list[float]]:
    rows = []
    for a, b in student:
        shared = [sum(1 for c in range(a, b) if s <= c < e) for s, e in teacher]
        total = sum(shared)
        rows.append([x / total if total else 0.0 for x in shared])
    return rows


def spans(pieces: list[Span]) -> torch.Tensor:
    return torch.tensor(pieces, dtype=torch.int32).reshape(-1, 2)


@given(tokenization() | anything, tokenization() | anything)
@settings(max_examples=80, deadline=None)
def test_weights_are_the_share_of_characters(student: list[Span], teacher: list[Span]) -> None:
    weights = span_overlap_weights(spans(student), spans(teacher))
    wanted = torch.tensor(oracle(student, teacher)).reshape(len(student), len(teacher))
    torch.testing.assert_close(weights, wanted)
    total = weights.sum(-1)
    torch.testing.assert_close(total, (total > 0.5).float())  # one, or zero where nothing overlaps


@given(st.lists(tokenization() | anything, min_size=1, max_size=4), st.data())
@settings(max_examples=80, deadline=None)
def test_ragged_batch_gives_what_the_oracle_gives_text_by_text(teacher: list[list[Span]], data: st.DataObject) -> None:
    S, T, D = 3, 6, 5
    rows = data.draw(
        st.lists(st.integers(-1, len(teacher) - 1), min_size=S * T, max_size=S * T), label="text of each student token"
    )
    student = data.draw(
        st.lists(st.tuples(st.integers(0, LENGTH), st.integers(0, 9)), min_size=S * T, max_size=S * T), label="spans"
    )
    student = [(start, start + length) for start, length in student]
    offsets = torch.tensor([0, *[len(pieces) for pieces in teacher]]).cumsum(0)
    tokens = torch.randn(int(offsets[-1]), D, generator=torch.Generator().manual_seed(1)).half()
    targets, mask = align_text(
        spans(student).view(S, T, 2),
        torch.tensor(rows).view(S, T),
        tokens,
        spans([piece for pieces in teacher for piece in pieces]),
        offsets,
    )
    assert targets.shape == (S, T, D)
    assert targets.dtype == torch.float32
    for n, (row, span) in enumerate(zip(rows, student, strict=True)):
        wanted = torch.zeros(D)
        covered = False
        if row >= 0 and teacher[row]:
            weights = torch.tensor(oracle([span], teacher[row])[0])
            covered = bool(weights.sum() > 0)
            wanted = weights @ tokens[offsets[row] : offsets[row + 1]].float()
        assert bool(mask.view(-1)[n]) == covered
        torch.testing.assert_close(targets.view(-1, D)[n], wanted, atol=1e-6, rtol=1e-5)


@given(tokenization().filter(lambda pieces: len(pieces) > 0))
@settings(max_examples=50, deadline=None)
def test_identical_tokenizers_give_the_identity(pieces: list[Span]) -> None:
    T = len(pieces)
    torch.testing.assert_close(span_overlap_weights(spans(pieces), spans(pieces)), torch.eye(T))
    tokens = torch.randn(T, 4, generator=torch.Generator().manual_seed(0))
    targets, mask = align_text(
        spans(pieces).unsqueeze(0), torch.zeros(1, T, dtype=torch.long), tokens, spans(pieces), torch.tensor([0, T])
    )
    assert bool(mask.all())
    assert torch.equal(targets[0], tokens)


def test_pairs_grow_with_the_text_and_not_with_its_square() -> None:
    T = 2000
    edges = torch.arange(T + 1) * 3
    teacher = torch.stack([edges[:-1], edges[1:]], -1)
    alignment = align_spans(
        (teacher + 1).unsqueeze(0), torch.zeros(1, T, dtype=torch.long), teacher, torch.tensor([0, T])
    )
    assert alignment.index.shape[0] <= 2 * T


def test_student_tokens_of_several_segments_read_their_own_text() -> None:
    # "a dog" and "red": the same spans mean different words in different texts.
    tokens = torch.tensor([[1.0], [2.0], [3.0]])
    targets, mask = align_text(
        torch.tensor([[[-1, -1], [0, 1], [2, 5], [0, 3], [-1, -1]]]),
        torch.tensor([[-1, 0, 0, 1, -1]]),
        tokens,
        torch.tensor([[0, 1], [2, 5], [0, 3]]),
        torch.tensor([0, 2, 3]),
    )
    assert targets.flatten().tolist() == [0.0, 1.0, 2.0, 3.0, 0.0]
    assert mask.tolist() == [[False, True, True, True, False]]


def test_a_word_takes_the_mean_of_its_pieces_by_length() -> None:
    targets, _ = align_text(
        torch.tensor([[[0, 4]]]), torch.tensor([[0]]), torch.tensor([[0.0], [4.0]]), torch.tensor([[0, 1], [1, 4]]),
        torch.tensor([0, 2]),
    )  # fmt: skip
    assert targets.item() == 3.0


def test_no_teacher_token_at_all() -> None:
    targets, mask = align_text(
        torch.tensor([[[0, 4]]]), torch.tensor([[0]]), torch.zeros(0, 3), torch.zeros(0, 2, dtype=torch.int32),
        torch.tensor([0, 0]),
    )  # fmt: skip
    assert targets.shape == (1, 1, 3)
    assert not mask.any()


def test_tags_take_their_region_of_their_image() -> None:
    regions = torch.arange(12.0).view(2, 3, 2)
    region_mask = torch.tensor([[True, True, True], [True, True, False]])
    targets, mask = align_tags(torch.tensor([[-1, 1], [2, 0], [9, 0]]), regions, region_mask, torch.tensor([0, 1, 1]))
    assert mask.tolist() == [[False, True], [False, True], [False, True]]
    assert targets[0, 1].tolist() == [2.0, 3.0]
    assert targets[1, 1].tolist() == [6.0, 7.0]
