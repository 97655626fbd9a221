"""Which tokens of an example are taught: relevance to the other modality, and the k best of it.

All of it works on whole batches with fixed shapes: a choice is an index [N, K] with a validity mask, so that only
chosen states pass through the projection heads and no step waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from madkit.mad.config import Selector

_ROUNDING = 1e-4  # 0.1 * 10 is a little more than 1 in binary: rounding up must not make it 2


def cosine_relevance(tokens: Tensor, reference: Tensor) -> Tensor:
    """Cosine [N, K] float32 of tokens [N, K, D] with one reference [N, D] each; 0 for zero vectors."""
    tokens, reference = tokens.float(), reference.float()
    with torch.autocast(tokens.device.type, enabled=False):  # in 16 bits relevances tie: the first would win
        dots = torch.matmul(tokens, reference.unsqueeze(-1)).squeeze(-1)
    norms = torch.linalg.vector_norm(tokens, dim=-1) * torch.linalg.vector_norm(reference, dim=-1, keepdim=True)
    relevance: Tensor = dots / norms.clamp_min(1e-12)
    return relevance


def region_relevance(
    regions: Tensor, image_global: Tensor, text_global: Tensor, image_index: Tensor, *, shared: bool
) -> Tensor:
    """Relevance [S, R] of the regions [B, R, Dv] to each of S sequences (method.md, token selection).

    Shared space: r_j = cos(v_j, l_0) with the sequence's text_global [S, D]. Unrelated teachers: r_j = cos(v_j, v_0).
    """
    if shared:
        return cosine_relevance(regions[image_index], text_global)
    return cosine_relevance(regions, image_global)[image_index]


def text_relevance(
    text_tokens: Tensor, text_global: Tensor, image_global: Tensor, image_index: Tensor, *, shared: bool
) -> Tensor:
    """Relevance [S, T] of text_tokens [S, T, Dl]: cos(l_i, v_0) in a shared space, else cos(l_i, l_0)."""
    return cosine_relevance(text_tokens, image_global[image_index] if shared else text_global)


def select_indices(
    relevance: Tensor, mask: Tensor, *, k: int | None = None, fraction: float | None = None
) -> tuple[Tensor, Tensor]:
    """The most relevant tokens of each row, best first; of equals the first in the row.

    Args:
        relevance: [N, T]; finite where the mask is set.
        mask: [N, T] bool: tokens that may be chosen.
        k: how many per row, at most.
        fraction: or which share of a row's choosable tokens, rounded up.

    Returns:
        index [N, K] long and valid [N, K] bool; K = min(k, T), or the share of T.

    Raises:
        ValueError: neither or both of k and fraction.
    """
    if (k is None) == (fraction is None):
        raise ValueError("give either k or fraction")
    available = mask.sum(-1, keepdim=True)
    width = chosen_width(mask.shape[-1], k=k, fraction=fraction)
    if fraction is None:
        wanted = available.clamp(max=k)
    else:
        wanted = torch.ceil(available * fraction - _ROUNDING).long().clamp(max=width)
    scores = relevance.float().masked_fill(~mask, -math.inf)
    index = torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :width]
    return index, torch.arange(width, device=mask.device) < wanted


def chosen_width(length: int, *, k: int | None, fraction: float | None) -> int:
    """How many tokens of rows of `length` are kept at most: k, or the share `fraction` rounded up, which goes first."""
    if fraction is not None:
        return max(0, math.ceil(fraction * length - _ROUNDING))
    assert k is not None
    return min(k, length)


def select_tokens(relevance: Tensor, mask: Tensor, *, k: int | None = None, fraction: float | None = None) -> Tensor:
    """`select_indices` as a mask [N, T] bool over the tokens."""
    index, valid = select_indices(relevance, mask, k=k, fraction=fraction)
    return indices_to_mask(index, valid, mask.shape[-1])


def indices_to_mask(index: Tensor, valid: Tensor, length: int) -> Tensor:
    """[N, length] bool, set where a valid index [N, K] points."""
    chosen = torch.zeros(*index.shape[:-1], length, dtype=torch.int32, device=index.device)
    return chosen.scatter_add_(-1, index, valid.int()) > 0


def random_scores(keys: Tensor, step: int, length: int, *, salt: int = 0) -> Tensor:
    """Scores [N, length] in [0, 1) that depend on (example key, step, position, salt) and on nothing else.

    The same on every device and in every batch, so a resumed run selects the same tokens. Integer mixing by
    multiply and xor-shift (the finaliser of MurmurHash3 with other constants), kept below 2**63.

    Args:
        keys: [N] long, any values.
        step: number of the training step.
        length: positions per row.
        salt: tells modalities apart.
    """
    seed = _mix(_mix(keys & 0xFFFFFFFF) ^ ((keys >> 32) & 0xFFFFFFFF))
    seed = _mix(seed ^ ((step * 2654435761 + salt * 40503) & 0xFFFFFFFF))
    positions = torch.arange(length, device=keys.device, dtype=torch.long)
    mixed = _mix(seed.unsqueeze(-1) ^ _mix(positions + 1))
    return (mixed >> 8).float() / float(1 << 24)


def _mix(x: Tensor) -> Tensor:
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def choose(
    tokens: Selector,
    mask: Tensor,
    *,
    relevance: Tensor | None = None,
    keys: Tensor | None = None,
    step: int = 0,
    salt: int = 0,
    k: int | None = None,
    fraction: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Index [N, K] and validity [N, K] of the tokens that a selector keeps of one modality.

    Args:
        tokens: ``all`` keeps the mask, ``global`` nothing, ``adaptive`` the most relevant, ``random`` any.
        mask: [N, T] bool: tokens that may be chosen.
        relevance: [N, T], for ``adaptive``.
        keys: [N] example keys, for ``random``.
        step: training step, for ``random``.
        salt: tells modalities apart, for ``random``.
        k: how many per row, or
        fraction: which share of a row (takes precedence).
    """
    N, T = mask.shape
    if tokens == "all":
        return torch.arange(T, device=mask.device).expand(N, T), mask
    if tokens == "global":
        return torch.zeros(N, 0, dtype=torch.long, device=mask.device), mask[:, :0]
    if tokens == "random":
        if keys is None:
            raise ValueError("random selection needs example keys")
        relevance = random_scores(keys, step, T, salt=salt)
    if relevance is None:
        raise ValueError("adaptive selection needs relevance")
    return select_indices(relevance, mask, k=None if fraction is not None else k, fraction=fraction)


# Words that carry grammar alone. Negation ("no", "not"), quantity ("all", "two") and place ("under", "behind",
# "left") stay out of the list: they decide entailment and reference.
_FUNCTION_WORDS = """
    a an the this that these those
    and or but nor so yet if because while as than then though although whether
    of to in on at by for from with into onto about
    i you he she it we they me him her us them my your his its our their mine yours hers ours theirs
    myself yourself himself herself itself ourselves yourselves themselves
    am is are was were be been being do does did doing done have has had having
    will would shall should can could may might must
    who whom whose which what when where why how there here
    's 're 've 'll 'd 'm s t d ll m re ve
    very just also too
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
_APOSTROPHES = "'’"  # as typed and as typeset


def function_word_mask(words: Sequence[str]) -> Tensor:
    """Which words or tokens carry no content.

    Args:
        words: whole words, or tokens with the marks of common tokenizers (``Ġthe``, ``▁the``, ``the</w>``). A
            continuation piece (``##s``) belongs to a longer word and is no function word; where pieces look like
            words (``is`` of ``is|land`` in a byte-level vocabulary), use `function_word_mask_of_spans`.

    Returns:
        [n] bool: True for function words, contractions of them alone, punctuation and empty strings.
    """
    return torch.tensor([_is_function(_strip_marks(word)) for word in words], dtype=torch.bool)


def function_word_mask_of_spans(text: str, spans: Sequence[tuple[int, int]]) -> Tensor:
    """`function_word_mask` for character spans of a text: each span is judged by the whole word it lies in.

    Args:
        text: the text.
        spans: (start, end) of each token; empty spans are no content.

    Returns:
        [n] bool: True for tokens that carry no content. A token without a letter or digit has none, whatever word it
            stands in.
    """
    flags = []
    for start, end in spans:
        while start < end and text[start].isspace():
            start += 1
        while end > start and text[end - 1].isspace():
            end -= 1
        if _says_something(text[start:end]):
            while start > 0 and _in_word(text[start - 1]):
                start -= 1
            while end < len(text) and _in_word(text[end]):
                end += 1
        flags.append(_is_function(text[start:end]))
    return torch.tensor(flags, dtype=torch.bool)


def _in_word(character: str) -> bool:
    return character.isalnum() or character in _APOSTROPHES


def _says_something(word: str) -> bool:
    return any(character.isalnum() for character in word)


def _strip_marks(word: str) -> str:
    return word.removesuffix("</w>").lstrip("Ġ▁ ")


def _is_function(word: str) -> bool:
    if not _says_something(word):
        return True
    if word.startswith("##"):
        return False
    first, *others = word.lower().replace("’", "'").strip("'\"").split("'")
    # "it's" and "they're" carry grammar alone, as their parts do; the t of "can't" is a negation, which is content
    return first in FUNCTION_WORDS and all(part in FUNCTION_WORDS and part != "t" for part in others)


def pad_mask(masks: Sequence[Tensor], length: int) -> Tensor:
    """Bool masks of differing lengths [n_i] as rows of [N, length], padded with False."""
    return torch.stack([F.pad(mask[:length], (0, length - min(len(mask), length))) for mask in masks])
