"""The tokens of one image and one text that adaptive selection would keep, read from a token cache.

Relevance and choice are those of training (`madkit.mad.select`), here over the patches themselves: in training they
are first averaged over the student's regions, which a cache does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from madkit.cache import TokenCache
from madkit.core.errors import CacheError
from madkit.mad.select import cosine_relevance, function_word_mask_of_spans, select_tokens

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Relevance:
    """What a cache says of one image and one text.

    Attributes:
        image_id: the image.
        text: the text.
        shared: whether patches are compared with the sentence's vector and words with the image's (one space), or each
            with its own modality's global vector.
        grid: (rows, columns) of the patches.
        patches: [P] cosine of each patch; NaN for one that the cache does not keep.
        chosen_patches: [P] bool, the most relevant ones.
        spans: [T, 2] characters of each text token.
        words: [T] cosine of each text token.
        chosen_words: [T] bool, the most relevant ones; function words never qualify.
        view: (x1, y1, x2, y2) of the image that the patches cover, in shares of its width and height.
    """

    image_id: str
    text: str
    shared: bool
    grid: tuple[int, int]
    patches: Float32
    chosen_patches: npt.NDArray[np.bool_]
    spans: npt.NDArray[np.int32]
    words: Float32
    chosen_words: npt.NDArray[np.bool_]
    view: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)

    def as_row(self) -> dict[str, Any]:
        """Return the chosen tokens with their cosines, most relevant first."""
        rows, columns = np.divmod(np.arange(len(self.patches)), self.grid[1])
        best = sorted(np.flatnonzero(self.chosen_patches).tolist(), key=lambda patch: -self.patches[patch])
        said = sorted(np.flatnonzero(self.chosen_words).tolist(), key=lambda token: -self.words[token])
        return {
            "image": self.image_id,
            "text": self.text,
            "shared_space": self.shared,
            "view": list(self.view),
            "patches": [
                {"row": int(rows[patch]), "column": int(columns[patch]), "cosine": _plain(self.patches[patch])}
                for patch in best
            ],
            "words": [
                {
                    "text": self.text[self.spans[token, 0] : self.spans[token, 1]],
                    "span": self.spans[token].tolist(),
                    "cosine": _plain(self.words[token]),
                }
                for token in said
            ],
        }


def _plain(value: np.float32) -> float:
    return round(float(value), 4)


def relevance_of(cache: TokenCache, image_id: str, text: str, *, top: int = 8) -> Relevance:
    """Read an image and a text from a cache and choose the tokens most relevant to the other modality.

    Args:
        cache: an open store with tokens.
        image_id: an image of it.
        text: a text of it, to the letter.
        top: how many patches and how many words are chosen, at most.

    Raises:
        CacheError: the cache does not know the image or the text, has no values for them, or keeps no tokens.
    """
    images, texts = cache.images, cache.texts
    for part, there in (("image", images.has_tokens), ("text", texts.has_tokens)):
        if not there:
            raise CacheError(
                f"The cache {cache.path.name} holds no {part} tokens, so there is nothing to show.",
                hint="extract with --tokens all or --tokens selected:K, by a teacher that reads both",
            )
    at, line = images.rows([image_id]), texts.rows([text])
    kept = torch.from_numpy(np.ascontiguousarray(images.tokens(at))).float()  # [1, K, D]
    image = torch.from_numpy(np.ascontiguousarray(images.globals(at))).float()
    ragged = texts.tokens(line)
    said = torch.from_numpy(np.ascontiguousarray(ragged.tokens)).float().unsqueeze(0)  # [1, T, D]
    sentence = torch.from_numpy(np.ascontiguousarray(texts.globals(line))).float()
    shared = cache.shared_space
    near = cosine_relevance(kept, sentence if shared else image)
    words = cosine_relevance(said, image if shared else sentence)
    spans = np.asarray(ragged.spans, dtype=np.int32)
    content = ~function_word_mask_of_spans(text, [(int(a), int(b)) for a, b in spans])
    rows, columns = images.grid
    patches = np.full(rows * columns, np.nan, dtype=np.float32)
    chosen = np.zeros(rows * columns, dtype=bool)
    places = images.positions(at)[0]
    patches[places] = near[0].numpy()
    chosen[places] = _best(near, torch.ones_like(near, dtype=torch.bool), top)
    views = images.views(at)
    return Relevance(
        image_id,
        text,
        shared,
        images.grid,
        patches,
        chosen,
        spans,
        words[0].numpy(),
        _best(words, content.unsqueeze(0), top),
        (0.0, 0.0, 1.0, 1.0) if views is None else tuple(views[0].tolist()),
    )


def _best(relevance: Tensor, mask: Tensor, top: int) -> npt.NDArray[np.bool_]:
    chosen: npt.NDArray[np.bool_] = select_tokens(relevance, mask, k=top)[0].numpy()
    return chosen
