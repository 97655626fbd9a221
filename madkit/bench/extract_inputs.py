"""JPEG files of made-up pictures, and the data of a task that consists of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from madkit.bench.machine import cores
from madkit.tasks.example import Example, ImageRef, Segment
from madkit.tasks.spec import TaskSpec, custom_spec

FLICKR = (500, 375)  # the usual size of a picture in Flickr30k, in pixels
QUALITY = 90
DISTINCT = 256
TEXT = "a picture"
_OCTAVES = (
    (8, 40.0),
    (32, 20.0),
    (125, 9.0),
    (500, 4.0),
)  # cells across, and amplitude: falls like that of photographs


def write_pictures(folder: Path, count: int, size: tuple[int, int] = FLICKR, *, distinct: int = DISTINCT) -> list[Path]:
    """Write ``count`` JPEG files of ``size`` (width, height) and return them in order.

    Smooth random content with details down to single pixels, so that decoding has about as much to do as with a
    photograph (some 45 KB at 500 x 375). Beyond ``distinct`` files the contents repeat, under names of their own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:06d}.jpg" for number in range(count)]
    originals = paths[:distinct]
    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(lambda pair: _write(pair[1], pair[0], size), enumerate(originals)))
    for number in range(distinct, count):
        try:
            os.link(originals[number % distinct], paths[number])
        except OSError:  # file systems without links
            shutil.copyfile(originals[number % distinct], paths[number])
    return paths


def _write(path: Path, seed: int, size: tuple[int, int]) -> None:
    draw = np.random.default_rng(seed)
    pixels = np.full((size[1], size[0], 3), draw.uniform(60, 190, 3), dtype=np.float32)
    for cells, amplitude in _OCTAVES:
        across = min(cells, size[0])
        down = max(1, round(across * size[1] / size[0]))
        noise = draw.normal(128, amplitude, (down, across, 3)).clip(0, 255).astype(np.uint8)
        pixels += np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC), dtype=np.float32) - 128
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)


@dataclass(slots=True)
class PictureTask:
    """Pictures and one short text, as extraction sees a task (see :class:`madkit.extract.items.ExamplesOfTask`)."""

    paths: Sequence[Path]
    spec: TaskSpec = field(default_factory=lambda: custom_spec("bench", "classification", labels=("yes", "no")))
    source: str = "bench"
    revision: str = "bench"

    def own_splits(self) -> list[str]:
        """The one split."""
        return ["train"]

    def suites(self) -> list[str]:
        """None."""
        return []

    def submissions(self) -> list[str]:
        """None."""
        return []

    def examples(self, name: str, /) -> Sequence[Example]:
        """One example per picture, all with the same text."""
        return [
            Example(
                id=path.stem,
                task=self.spec.name,
                question_id=path.stem,
                image=ImageRef(path.stem, path),
                context=(Segment(TEXT),),
            )
            for path in self.paths
        ]
