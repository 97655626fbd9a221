"""Pixels and tokens of items: images decoded by threads and kept in memory up to a limit, texts tokenized once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from madkit.adapt.items import Item
from madkit.core.console import Progress
from madkit.core.errors import DataError
from madkit.teachers.interface import TextTeacher, TokenizedText, VisionTeacher


class Inputs:
    """What batches are made of.

    Attributes:
        unreadable: what is wrong with each image that cannot be read, by its id, once `check` has looked.
    """

    def __init__(self, vision: VisionTeacher, text: TextTeacher, *, memory_mb: int, threads: int = 0) -> None:
        self._vision = vision
        self._text = text
        self._room = memory_mb * 1_000_000
        self._images: dict[str, Tensor] = {}
        self._tokens: dict[str, TokenizedText] = {}
        self._paths: dict[str, Path] = {}
        self._pool = ThreadPoolExecutor(threads or min(16, os.cpu_count() or 1), thread_name_prefix="madkit-adapt")
        self.unreadable: dict[str, str] = {}

    def __enter__(self) -> Inputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def check(self, items: Sequence[Item], progress: Progress | None = None) -> list[Item]:
        """Decode every image once and tokenize every text; return the items whose image can be read."""
        for item in items:
            self._paths.setdefault(item.image.id, item.image.path)
        waiting = [image for image in dict.fromkeys(item.image.id for item in items) if image not in self._images]
        for image, pixels in self._decoded(waiting):
            if isinstance(pixels, str):
                self.unreadable[image] = pixels
            elif pixels.numel() <= self._room:
                self._room -= pixels.numel()
                self._images[image] = pixels
            if progress is not None:
                progress.advance()
        texts = [
            text for text in dict.fromkeys(text for item in items for text in item.texts) if text not in self._tokens
        ]
        self._tokens |= dict(zip(texts, self._text.tokenize(texts), strict=True))
        return [item for item in items if item.image.id not in self.unreadable]

    def _decoded(self, images: Iterable[str]) -> Iterable[tuple[str, Tensor | str]]:
        """Decode in order, a few dozen ahead: memory does not grow with the number of images."""
        waiting: list[tuple[str, Future[Tensor]]] = []
        for image in images:
            waiting.append((image, self._pool.submit(self._vision.load_image, self._paths[image])))
            if len(waiting) >= 64:
                first, future = waiting.pop(0)
                yield first, _result(future)
        for image, future in waiting:
            yield image, _result(future)

    def pixels(self, images: Sequence[str]) -> Tensor:
        """uint8 [n, 3, H, W] of images that `check` has read."""
        found = {image: self._images[image] for image in images if image in self._images}
        for image, pixels in self._decoded([image for image in images if image not in found]):
            if isinstance(pixels, str):
                raise DataError(f"{pixels}.", hint="it could be read before: look at the disk")
            found[image] = pixels
        return torch.stack([found[image] for image in images])

    def tokens(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenized texts."""
        return [self._tokens[text] for text in texts]

    def longer_than(self, limit: int) -> int:
        """How many texts are read in windows."""
        return sum(len(tokens.ids) > limit for tokens in self._tokens.values())


def _result(future: Future[Tensor]) -> Tensor | str:
    try:
        return future.result()
    except DataError as error:
        return error.message.rstrip(".")
