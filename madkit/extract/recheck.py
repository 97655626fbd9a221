"""Encoding a sample of a store again with the live teacher, and comparing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from madkit.cache.parts import ImageTokens, TextTokens
from madkit.cache.reader import Place, TokenCache, extract_command
from madkit.core.errors import CacheError
from madkit.core.seeds import derive_seed
from madkit.core.workspace import Workspace
from madkit.extract.frozen import load_as_stored
from madkit.extract.items import Items, collect_items, split_names
from madkit.extract.planning import store_identity
from madkit.tasks.data import find_dataset, open_task
from madkit.teachers.adapter import adapter_of_store, adapters_folder
from madkit.teachers.interface import Teacher

COSINE_FLOOR = 0.999
"""Below this a stored token is not what the teacher gives: float16 storage alone keeps 0.99999 and better."""


@dataclass(frozen=True, slots=True)
class Recheck:
    """Cosines between stored and freshly computed tokens.

    Attributes:
        images: cosine of every stored patch token of the sampled images (of global vectors where these alone are kept).
        texts: cosine of every token of the sampled texts, likewise.
        floor: the least cosine that is in order.
    """

    images: npt.NDArray[np.float64]
    texts: npt.NDArray[np.float64]
    floor: float = COSINE_FLOOR

    @property
    def ok(self) -> bool:
        """Whether no token is below the floor."""
        return all(not len(cosines) or float(cosines.min()) >= self.floor for cosines in (self.images, self.texts))

    def as_row(self) -> dict[str, Any]:
        """Return counts, mean and worst cosine of both parts."""
        return {name: _summary(values) for name, values in (("images", self.images), ("texts", self.texts))}


def _summary(values: npt.NDArray[np.float64]) -> dict[str, Any]:
    if not len(values):
        return {"n": 0, "mean": 1.0, "worst": 1.0}
    return {"n": len(values), "mean": float(values.mean()), "worst": float(values.min())}


def recheck(workspace: Workspace, path: Place, sample: int, *, weights: Path | None = None) -> Recheck:
    """Encode ``sample`` images and texts of a store again (chosen by its key, so always the same ones).

    The teacher computes as it did for the store. An arithmetic of fewer digits than float32 gives other last digits on
    another device: how far off it may be is measured here, on the sample, against float32.

    Raises:
        CacheError: data or teacher have changed since the store was made.
    """
    with TokenCache.open(path, check=True) as cache:
        adapter = adapter_of_store(adapters_folder(workspace), cache.identity)
        teacher = load_as_stored(cache.identity, weights=weights, adapter=adapter)
        data = find_dataset(workspace, str(cache.identity["source"]), str(cache.identity["revision"])) or open_task(
            workspace, str(cache.identity["task"]), build=False, part="auto"
        )
        splits = cache.identity.get("splits", "all")
        identity = store_identity(teacher, data, None if splits == "all" else splits)
        for key in ("vision", "text", "revision"):
            if identity[key] != cache.identity.get(key):
                raise CacheError(
                    f"The cache {path.name} was made with another {key if key == 'revision' else key + ' teacher'} "
                    "than the one at hand, so nothing can be compared.",
                    hint=extract_command(identity),
                )
        items = collect_items(data, split_names(data, None if splits == "all" else splits), teacher)
        chosen = np.random.default_rng(derive_seed("recheck", cache.key))
        images = _sample(chosen, items.image_ids, sample, cache.images if "images" in cache.parts else None)
        texts = _sample(chosen, items.texts, sample, cache.texts if "texts" in cache.parts else None)
        fresh = _vectors(cache, teacher, items, images, texts)
        least = [COSINE_FLOOR, *(facts["worst_cosine"] - 1e-3 for facts in cache.manifest.get("rounding", {}).values())]
        if cache.identity.get("compute_dtype", "float32") != "float32":
            exactly = {**cache.identity, "compute_dtype": "float32"}
            exact = _vectors(cache, load_as_stored(exactly, weights=weights, adapter=adapter), items, images, texts)
            least.append(_floor_of_arithmetic(fresh, exact))
        stored = _stored(cache, items, images, texts)
    return Recheck(_cosines(fresh[0], stored[0]), _cosines(fresh[1], stored[1]), min(least))


def _sample(
    chosen: np.random.Generator, ids: Sequence[str], sample: int, part: ImageTokens | TextTokens | None
) -> npt.NDArray[np.int64]:
    """Places in `ids` of some items that the store holds."""
    rows = np.sort(chosen.choice(len(ids), min(sample, len(ids)), replace=False)) if ids else np.zeros(0, np.int64)
    if part is None or not len(rows):
        return np.zeros(0, np.int64)
    kept: npt.NDArray[np.int64] = rows[part.present([ids[row] for row in rows])]
    return kept


def _vectors(
    cache: TokenCache, teacher: Teacher, items: Items, images: npt.NDArray[np.int64], texts: npt.NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """What a teacher gives for the chosen images and texts, float32 [N, D] each: the tokens that the store keeps."""
    seen, read = [], []
    if teacher.vision is not None:
        for row in images:
            view = teacher.vision.encode(teacher.vision.load_image(items.image_paths[row])[None])
            if cache.images.has_tokens:
                places = cache.images.positions(cache.images.rows([items.image_ids[row]]))[0]
                seen.append(view.tokens[0].cpu()[torch.from_numpy(places.astype(np.int64))])
            else:
                seen.append(view.global_.cpu())
    if teacher.text is not None:
        for row in texts:
            output = teacher.text.encode([items.texts[row]])
            tokens = output.tokens[0][output.mask[0]] if cache.texts.has_tokens else output.global_
            read.append(tokens.cpu())
    return _joined(seen), _joined(read)


def _stored(
    cache: TokenCache, items: Items, images: npt.NDArray[np.int64], texts: npt.NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """The same vectors as the store has them."""
    seen, read = [], []
    for row in images:
        at = cache.images.rows([items.image_ids[row]])
        seen.append(cache.images.tokens(at)[0] if cache.images.has_tokens else cache.images.globals(at))
    for row in texts:
        at = cache.texts.rows([items.texts[row]])
        read.append(cache.texts.tokens(at).tokens if cache.texts.has_tokens else cache.texts.globals(at))
    return _joined([torch.from_numpy(one) for one in seen]), _joined([torch.from_numpy(one) for one in read])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.float() for part in parts]) if parts else torch.zeros(0, 1)


def _floor_of_arithmetic(fresh: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> float:
    """The cosine that two devices may be apart which both compute as the store was computed.

    Each of them is off by as much as this one is, so that the angle between them is at most twice as wide; and one
    minus a cosine grows with the square of the angle.
    """
    cosines = np.concatenate([_cosines(one, other) for one, other in zip(fresh, exact, strict=True)])
    return 1.0 - 4.0 * (1.0 - float(cosines.min())) if len(cosines) else 1.0


def _cosines(first: Tensor, second: Tensor) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = torch.nn.functional.cosine_similarity(
        first.double(), second.double(), dim=-1
    ).numpy()
    return values
