"""What adaptive selection keeps of one example: boxes, or patches where there are no boxes, and words of its texts.

Relevance and choice are those of training (`madkit.mad.select`), over the teacher's own tokens: boxes take the mean of
the patches under them, as regions do in training, and words are the teacher's, where training selects the student's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from madkit.cache import ImageTokens, TokenCache, choose_cache
from madkit.cache.manage import find_store
from madkit.core.errors import MadkitError
from madkit.core.workspace import Workspace
from madkit.mad.align import boxes_in_view, grid_boxes, pool_regions, pool_selected
from madkit.mad.config import MADConfig
from madkit.mad.select import cosine_relevance, function_word_mask_of_spans, select_tokens
from madkit.tasks.data import TaskData
from madkit.tasks.example import Example

_SEEN = 0.5  # a box of which the teacher saw less than this has no target, in training as here
_WHOLE = 0.999

Box = tuple[float, float, float, float]
Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Selected:
    """The kept tokens of one example.

    Attributes:
        regions: indices of the kept boxes.
        patches: corners (x1, y1, x2, y2) of the kept patches in shares of the image; only where there are no boxes.
        spans: text -> (start, end) characters of its kept words.
    """

    regions: tuple[int, ...]
    patches: tuple[Box, ...]
    spans: Mapping[str, Spans]


class Selector:
    """Reads selections from the workspace's caches; what no cache tells is None. A context manager."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._open: dict[str, TokenCache | None] = {}

    def __enter__(self) -> Selector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for cache in self._open.values():
            if cache is not None:
                cache.close()
        self._open.clear()

    def __call__(
        self, data: TaskData, settings: Mapping[str, Any], example: Example, boxes: Sequence[Box]
    ) -> Selected | None:
        """The selection of an example, None where no cache of its data knows it.

        Args:
            data: the data it is from.
            settings: of the run that is shown, flat (`mad.k_text`, `mad.k_region`, `mad.fraction`, `cache_key`); what
                is not set is madkit's default.
            example: its texts are the context and, of choices, the right one.
            boxes: corners in shares of the image.
        """
        try:
            cache = self._cache(data, str(settings.get("cache_key") or ""))
            return None if cache is None else select(cache, example, boxes, settings)
        except MadkitError:  # a cache that lacks this example, or was damaged since
            return None

    def _cache(self, data: TaskData, key: str) -> TokenCache | None:
        name = key.partition(", ")[0]
        place = name or f"{data.source} {data.revision}"
        if place not in self._open:
            self._open[place] = _opened(self._workspace, data, name)
        return self._open[place]


def _opened(workspace: Workspace, data: TaskData, name: str) -> TokenCache | None:
    try:
        return TokenCache.open(find_store(workspace, name)[0]) if name else choose_cache(workspace, data, None)
    except MadkitError:
        return None


def select(
    cache: TokenCache, example: Example, boxes: Sequence[Box], settings: Mapping[str, Any] | None = None
) -> Selected | None:
    """Choose as training does; None where the cache keeps no tokens of both modalities, or not of this example.

    Raises CacheError where the cache does not know the image or a text.
    """
    images, texts = cache.images, cache.texts
    if not images.has_tokens or not texts.has_tokens:
        return None
    said = [segment.text for segment in example.context]
    if example.candidates:
        said.append(example.candidates[example.label or 0].text)
    said = list(dict.fromkeys(said))
    if not bool(images.present([example.image.id])[0]) or not bool(np.all(texts.present(said))):
        return None
    given = settings or {}
    rows = images.rows([example.image.id])
    image = _floats(images.globals(rows))
    sentence = _floats(texts.globals(texts.rows(said))).mean(0, keepdim=True)
    shared = cache.shared_space if given.get("mad.relevance", "auto") == "auto" else given["mad.relevance"] == "shared"
    regions, patches = _seen(images, rows, image, sentence if shared else image, boxes, given)
    return Selected(regions, patches, _words(cache, said, image if shared else sentence, given))


def _seen(
    images: ImageTokens, rows: Any, image: Tensor, reference: Tensor, boxes: Sequence[Box], given: Mapping[str, Any]
) -> tuple[tuple[int, ...], tuple[Box, ...]]:
    """Kept boxes; or kept patches, where there are no boxes."""
    tokens = _floats(images.tokens(rows))
    views = images.views(rows)
    if not boxes:
        kept = _best(
            cosine_relevance(tokens, reference), torch.ones(tokens.shape[:2], dtype=torch.bool), given, "region"
        )
        cells = grid_boxes(*images.grid)[torch.from_numpy(np.array(images.positions(rows)))[0][kept]]
        x1, y1, x2, y2 = (0.0, 0.0, 1.0, 1.0) if views is None else views[0].tolist()
        low, side = torch.tensor([x1, y1] * 2), torch.tensor([x2 - x1, y2 - y1] * 2)
        a, b, c, d = (low + cells * side).T.tolist()
        return (), tuple(zip(a, b, c, d, strict=True))
    corners = torch.tensor([list(map(float, box)) for box in boxes])[None]
    whole = (corners[..., 2] - corners[..., 0]) * (corners[..., 3] - corners[..., 1]) >= _WHOLE
    seen = torch.ones_like(whole)
    if views is not None:
        corners, share = boxes_in_view(corners, torch.from_numpy(views))
        seen = whole | (share >= _SEEN)
    if images.selected is None:
        pooled = pool_regions(tokens, corners, images.grid, image_global=image, whole_image=whole)
    else:
        places = torch.from_numpy(np.array(images.positions(rows)))
        pooled, known = pool_selected(tokens, places, corners, images.grid, image_global=image, whole_image=whole)
        seen = seen & known
    return tuple(_best(cosine_relevance(pooled, reference), seen, given, "region")), ()


def _words(cache: TokenCache, said: Sequence[str], reference: Tensor, given: Mapping[str, Any]) -> dict[str, Spans]:
    """Kept words of all texts together: the k best of the sequence, not of each text."""
    places: list[tuple[str, tuple[int, int]]] = []
    tokens, content = [], []
    for text in said:
        ragged = cache.texts.tokens(cache.texts.rows([text]))
        spans = [(int(start), int(end)) for start, end in ragged.spans]
        places += [(text, span) for span in spans]
        tokens.append(_floats(ragged.tokens))
        content.append(~function_word_mask_of_spans(text, spans))
    relevance = cosine_relevance(torch.cat(tokens)[None], reference)
    found: dict[str, list[tuple[int, int]]] = {text: [] for text in said}
    for index in _best(relevance, torch.cat(content)[None], given, "text"):
        text, span = places[index]
        found[text].append(span)
    return {text: tuple(spans) for text, spans in found.items()}


def _best(relevance: Tensor, mask: Tensor, given: Mapping[str, Any], kind: str) -> list[int]:
    """Indices in their order, the k or the share of them that the settings keep."""
    fraction = given.get("mad.fraction")
    default: int = MADConfig.model_fields[f"k_{kind}"].default
    k = None if fraction is not None else int(given.get(f"mad.k_{kind}", default))
    kept: list[int] = select_tokens(relevance, mask, k=k, fraction=fraction)[0].nonzero().flatten().tolist()
    return kept


def _floats(values: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()
