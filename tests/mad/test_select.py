from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from madkit.mad import select
from madkit.mad.select import (
    choose,
    function_word_mask,
    function_word_mask_of_spans,
    random_scores,
    region_relevance,
    select_indices,
    select_tokens,
    text_relevance,
)

torch.set_num_threads(1)


def test_mixed_arithmetic_chooses_the_same_tokens() -> None:
    """A streamed teacher is chosen from inside the step, under autocast."""
    text, images = torch.randn(64, 40, 16), torch.randn(8, 16)
    asked = text, text.mean(1), images, torch.arange(64) % 8
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = text_relevance(*asked, shared=True)
    assert torch.equal(mixed, text_relevance(*asked, shared=True))


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_the_k_best_are_those_that_a_sort_in_python_finds(data: st.DataObject) -> None:
    N, T = 3, 7
    scores = data.draw(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 0.5, 1.0]), min_size=N * T, max_size=N * T))
    flags = data.draw(st.lists(st.booleans(), min_size=N * T, max_size=N * T))
    k = data.draw(st.integers(0, T + 2))
    mask = torch.tensor(flags).view(N, T)
    chosen = select_tokens(torch.tensor(scores).view(N, T), mask, k=k)
    for n in range(N):
        ranked = sorted(
            (t for t in range(T) if flags[n * T + t]),
            key=lambda t, n=n: (-scores[n * T + t], t),
        )
        assert torch.nonzero(chosen[n]).flatten().tolist() == sorted(ranked[:k])


@pytest.mark.parametrize(
    ("fraction", "available", "kept"), [(0.1, 10, 1), (0.5, 5, 3), (1.0, 7, 7), (0.3, 1, 1), (0.25, 0, 0), (0.2, 6, 2)]
)
def test_a_share_is_of_the_choosable_tokens_and_rounded_up(fraction: float, available: int, kept: int) -> None:
    mask = torch.arange(12) < available
    assert int(select_tokens(torch.rand(1, 12), mask.unsqueeze(0), fraction=fraction).sum()) == kept


def test_k_and_fraction_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="either k or fraction"):
        select_indices(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))


def test_relevance_of_a_shared_space_asks_the_other_modality() -> None:
    text_global, image_global = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    tokens = torch.tensor([[[3.0, 0.0], [0.0, 5.0]]])
    row = torch.zeros(1, dtype=torch.long)
    assert text_relevance(tokens, text_global, image_global, row, shared=True).tolist() == [[0.0, 1.0]]
    assert text_relevance(tokens, text_global, image_global, row, shared=False).tolist() == [[1.0, 0.0]]
    assert region_relevance(tokens, image_global, text_global, row, shared=True).tolist() == [[1.0, 0.0]]
    assert region_relevance(tokens, image_global, text_global, row, shared=False).tolist() == [[0.0, 1.0]]


def test_relevance_follows_the_image_of_each_sequence() -> None:
    regions = torch.eye(2).unsqueeze(1)  # two images with one region each
    text_global = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    got = region_relevance(regions, torch.zeros(2, 2), text_global, torch.tensor([0, 1, 0]), shared=True)
    assert got.tolist() == [[1.0], [0.0], [1.0]]


def test_selectors() -> None:
    mask = torch.tensor([[True, True, False, True]])
    relevance = torch.tensor([[0.1, 0.9, 5.0, 0.5]])
    index, valid = choose("all", mask)
    assert index[valid].tolist() == [0, 1, 3]
    index, valid = choose("global", mask)
    assert index.shape == valid.shape == (1, 0)
    index, valid = choose("adaptive", mask, relevance=relevance, k=2)
    assert index[valid].tolist() == [1, 3]
    index, valid = choose("random", mask, keys=torch.tensor([5]), k=2)
    assert set(index[valid].tolist()) < {0, 1, 3}
    with pytest.raises(ValueError, match="example keys"):
        choose("random", mask, k=2)
    with pytest.raises(ValueError, match="relevance"):
        choose("adaptive", mask, k=2)


def test_random_scores_depend_on_example_and_step_alone() -> None:
    keys = torch.tensor([3, 2**62 + 7, -5])
    scores = random_scores(keys, 4, 6)
    assert torch.equal(random_scores(keys[[2, 0]], 4, 9)[:, :6], scores[[2, 0]])  # other batch, other padding
    assert not torch.equal(random_scores(keys, 5, 6), scores)
    assert not torch.equal(random_scores(keys, 4, 6, salt=1), scores)


def test_random_scores_are_uniform() -> None:
    scores = random_scores(torch.arange(4000), 1, 10)
    assert scores.min() >= 0
    assert scores.max() < 1
    # 40,000 draws: the standard error of a tenth's share is 0.0015.
    shares = torch.histc(scores, 10, 0, 1) / scores.numel()
    torch.testing.assert_close(shares, torch.full((10,), 0.1), atol=0.0075, rtol=0)
    winners = torch.bincount(scores.argmax(-1), minlength=10) / 4000
    torch.testing.assert_close(winners, torch.full((10,), 0.1), atol=0.024, rtol=0)
    correlation = torch.corrcoef(scores.T)
    assert float((correlation - torch.eye(10)).abs().max()) < 0.08


def test_function_words_of_common_tokenizers() -> None:
    words = ["the", "Ġof", "▁is", "dog</w>", "##s", "The", ",", "", "not", "under", "red", "'s", "two"]
    flags = function_word_mask(words)
    assert [word for word, flag in zip(words, flags, strict=True) if flag] == [
        "the",
        "Ġof",
        "▁is",
        "The",
        ",",
        "",
        "'s",
    ]


def test_pieces_are_judged_by_their_whole_word() -> None:
    text = "The island is  red."
    spans = [(0, 3), (4, 6), (6, 10), (10, 13), (15, 18), (18, 19), (0, 0)]  # The|is|land| is|red|.|<pad>
    assert function_word_mask_of_spans(text, spans).tolist() == [True, False, False, True, False, True, True]


def pieces_of(text: str) -> list[tuple[int, int]]:
    return [found.span() for found in re.finditer(r"[a-zA-Z]+|[^\sa-zA-Z]", text)]


@pytest.mark.parametrize("apostrophe", ["'", "’"])
def test_contractions_of_function_words_are_function_words(apostrophe: str) -> None:
    for text in ("What's", "it's", "THEY'RE", "i'm", "I'd've", "who'll"):
        whole = text.replace("'", apostrophe)
        assert function_word_mask_of_spans(whole, pieces_of(whole)).all()
        assert function_word_mask([whole, "Ġ" + whole]).all()


@pytest.mark.parametrize("apostrophe", ["'", "’"])
def test_negations_possessives_and_names_stay_content(apostrophe: str) -> None:
    for text in ("don't", "isn't", "can't", "dog's", "O'Brien", "'red"):
        whole = text.replace("'", apostrophe)
        spans = pieces_of(whole)
        content = [whole[slice(*span)] for span in spans if whole[slice(*span)] != apostrophe]
        flags = function_word_mask_of_spans(whole, spans).tolist()
        assert [whole[a:b] for (a, b), flag in zip(spans, flags, strict=True) if not flag] == content
        assert not function_word_mask([whole]).any()
    assert not function_word_mask_of_spans("the dogs'", [(4, 9)]).any()  # tokens that hold a word and its apostrophe


def test_the_list_has_no_word_that_decides_entailment() -> None:
    assert not {"no", "not", "none", "all", "two", "under", "behind", "left", "without"} & select.FUNCTION_WORDS


def test_pad_mask() -> None:
    rows = [torch.tensor([True, True, True]), torch.tensor([True])]
    assert select.pad_mask(rows, 2).tolist() == [[True, True], [True, False]]
