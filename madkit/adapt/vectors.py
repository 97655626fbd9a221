"""Global vectors of a batch in the common space: from the encoders, or from what frozen encoders said once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from madkit.adapt.inputs import Inputs
from madkit.adapt.items import Item
from madkit.adapt.objective import Pairing, pair_up
from madkit.adapt.trained_pair import TrainedPair
from madkit.core.console import Progress

CHUNK = 64


class Vectors(Protocol):
    """Where a batch's vectors come from."""

    def of(self, items: Sequence[Item]) -> tuple[Tensor, Tensor, Pairing]:
        """Images [I, D], texts [T, D] and who belongs to whom, with gradients where anything is trained."""


class LiveVectors:
    """The encoders read every batch."""

    def __init__(self, pair: TrainedPair, inputs: Inputs) -> None:
        self._pair = pair
        self._inputs = inputs

    def of(self, items: Sequence[Item]) -> tuple[Tensor, Tensor, Pairing]:
        """See `Vectors`."""
        pairing = pair_up(items)
        images, texts = self._pair(self._inputs.pixels(pairing.image_ids), self._inputs.tokens(pairing.texts))
        return images, texts, pairing.to(images.device)


class StoredVectors:
    """Frozen encoders have read everything once, in float32; only the new linear layers see every batch."""

    def __init__(self, pair: TrainedPair, inputs: Inputs, items: Sequence[Item], progress: Progress) -> None:
        self._pair = pair
        paths = list(dict.fromkeys(item.image.id for item in items))
        texts = sorted(dict.fromkeys(text for item in items for text in item.texts), key=lambda text: (len(text), text))
        self._images = {name: row for row, name in enumerate(paths)}
        self._texts = {text: row for row, text in enumerate(texts)}
        seen, said = [], []
        with torch.no_grad():
            for start in range(0, len(paths), CHUNK):
                seen.append(pair.see(inputs.pixels(paths[start : start + CHUNK])).float())
                progress.advance(len(seen[-1]))
            for start in range(0, len(texts), CHUNK):
                said.append(pair.read(inputs.tokens(texts[start : start + CHUNK])).float())
                progress.advance(len(said[-1]))
        self._seen, self._said = torch.cat(seen), torch.cat(said)

    @staticmethod
    def count(items: Sequence[Item]) -> int:
        """How many images and texts there are to read."""
        return len({item.image.id for item in items}) + len({text for item in items for text in item.texts})

    def of(self, items: Sequence[Item]) -> tuple[Tensor, Tensor, Pairing]:
        """See `Vectors`."""
        pairing = pair_up(items)
        images = self._seen[[self._images[image] for image in pairing.image_ids]]
        texts = self._said[[self._texts[text] for text in pairing.texts]]
        return *self._pair.project(images, texts), pairing.to(images.device)
