"""Encoding a sample of a store again with the live teacher, and comparing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from madkit.cache.reader import Place, TokenCache, extract_command
from madkit.core.errors import CacheError
from madkit.core.seeds import derive_seed
from madkit.core.workspace import Workspace
from madkit.extract.frozen import load_as_stored
from madkit.extract.items import Items, collect_items, split_names
from madkit.extract.planning import store_identity
from madkit.tasks.data import find_dataset, open_task
from madkit.teachers.adapter import adapter_of_store, adapters_folder
from madkit.teachers.interface import TextTeacher, VisionTeacher

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

    Raises:
        CacheError: data or teacher have changed since the store was made.
    """
    with TokenCache.open(path, check=True) as cache:
        adapter = adapter_of_store(adapters_folder(workspace), cache.identity)
        teacher = load_as_stored({**cache.identity, "compute_dtype": "float32"}, weights=weights, adapter=adapter)
        data = find_dataset(workspace, str(cache.identity["source"]), str(cache.identity["revision"])) or open_task(
            workspace, str(cache.identity["task"]), build=False, part="auto"
        )
        splits = cache.identity["splits"]
        identity = store_identity(teacher, data, None if splits == "all" else splits)
        for key in ("vision", "text", "revision"):
            if identity[key] != cache.identity[key]:
                raise CacheError(
                    f"The cache {path.name} was made with another {key if key == 'revision' else key + ' teacher'} "
                    "than the one at hand, so nothing can be compared.",
                    hint=extract_command(identity),
                )
        items = collect_items(data, split_names(data, None if splits == "all" else splits), teacher)
        chosen = np.random.default_rng(derive_seed("recheck", cache.key))
        images = _images(cache, teacher.vision, items, _sample(chosen, len(items.image_ids), sample))
        texts = _texts(cache, teacher.text, items, _sample(chosen, len(items.texts), sample))
        rounding = cache.manifest.get("rounding", {}).values()
        floor = min([COSINE_FLOOR, *(facts["worst_cosine"] - 1e-3 for facts in rounding)])
    return Recheck(images, texts, floor)


def _sample(chosen: np.random.Generator, n: int, sample: int) -> npt.NDArray[np.int64]:
    return np.sort(chosen.choice(n, min(sample, n), replace=False)) if n else np.zeros(0, np.int64)


def _images(
    cache: TokenCache, vision: VisionTeacher | None, items: Items, rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    found = [np.zeros(0)]
    if vision is None or not len(rows):
        return found[0]
    for row in rows[cache.images.present([items.image_ids[row] for row in rows])]:
        seen = vision.encode(vision.load_image(items.image_paths[row])[None])
        at = cache.images.rows([items.image_ids[row]])
        if cache.images.has_tokens:
            places = torch.from_numpy(cache.images.positions(at)[0].astype(np.int64))
            found.append(_cosines(seen.tokens[0].cpu()[places], torch.from_numpy(cache.images.tokens(at)[0])))
        else:
            found.append(_cosines(seen.global_, torch.from_numpy(cache.images.globals(at))))
    return np.concatenate(found)


def _texts(
    cache: TokenCache, text: TextTeacher | None, items: Items, rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    found = [np.zeros(0)]
    if text is None or not len(rows):
        return found[0]
    for row in rows[cache.texts.present([items.texts[row] for row in rows])]:
        output = text.encode([items.texts[row]])
        at = cache.texts.rows([items.texts[row]])
        if cache.texts.has_tokens:
            kept = cache.texts.tokens(at)
            found.append(_cosines(output.tokens[0][output.mask[0]], torch.from_numpy(kept.tokens)))
        else:
            found.append(_cosines(output.global_, torch.from_numpy(cache.texts.globals(at))))
    return np.concatenate(found)


def _cosines(fresh: torch.Tensor, stored: torch.Tensor) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = torch.nn.functional.cosine_similarity(
        fresh.double().cpu(), stored.double(), dim=-1
    ).numpy()
    return values
