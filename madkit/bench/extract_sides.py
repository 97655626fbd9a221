"""Who reads images in `madkit bench extract`: madkit, and the loops that one would write with the libraries alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from itertools import count as numbers
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from madkit.bench.extract_inputs import PictureTask
from madkit.bench.extract_models import Source, as_open_clip, as_teacher, as_transformers, image_processor
from madkit.cache import TokenCache
from madkit.core.workspace import Workspace
from madkit.extract.image_encoding import ImageEncoder
from madkit.extract.options import ExtractOptions
from madkit.extract.ordered import ordered_map
from madkit.extract.pipeline import one_thread_per_operation
from madkit.extract.stage import extract_task
from madkit.teachers.interface import Teacher
from madkit.teachers.mixed import as_mixed

Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Reader:
    """A way from uint8 images [B, 3, H, W] on the device to patch tokens [B, P, D] on the device.

    Attributes:
        name: whose way.
        dtype: what it computes in.
        encode: the way.
        together: a context that says how many batches are encoded at a time.
        mixed: whether its feed-forward layers multiply in bfloat16.
    """

    name: str
    dtype: torch.dtype
    encode: Encode
    together: Callable[[], Any]
    mixed: bool = False


def open_clip_reader(source: Source, device: str, dtype: torch.dtype) -> Reader:
    """open_clip's image encoder with its own option for tokens, which are then projected as the pooled vector is."""
    visual = as_open_clip(source, device=device, dtype=dtype)
    normalise = _normaliser(source)

    @torch.inference_mode()
    def encode(images: Tensor) -> Tensor:
        _, tokens = visual(normalise(images, dtype))
        projected: Tensor = tokens if visual.proj is None else tokens @ visual.proj
        return projected

    return Reader("open_clip", dtype, encode, _one)


def transformers_reader(source: Source, device: str, dtype: torch.dtype) -> Reader:
    """The library's CLIP vision model; the patches go the way of its pooled output.

    Raises:
        ConfigError: the library has no such encoder.
    """
    model = as_transformers(source, device=device, dtype=dtype)
    normalise = _normaliser(source)

    @torch.inference_mode()
    def encode(images: Tensor) -> Tensor:
        found = model(pixel_values=normalise(images, dtype))
        tokens: Tensor = model.visual_projection(model.vision_model.post_layernorm(found.last_hidden_state[:, 1:]))
        return tokens

    return Reader("transformers", dtype, encode, _one)


def madkit_reader(
    source: Source, device: str, dtype: torch.dtype, *, batch: int, compiled: bool = False, mixed: bool = False
) -> tuple[Reader, list[str]]:
    """Return madkit's image encoder, and what it chose of its own with the reasons."""
    teacher = _teacher(source, device, dtype, mixed)
    assert teacher.vision is not None
    encoder = ImageEncoder(teacher.vision, batch=batch, compile=compiled)
    encoder.warm_up()
    choices = [f"{choice.name}: {choice.value} ({choice.reason})" for choice in encoder.choices]
    return Reader(
        f"madkit{', compiled' if compiled else ''}",
        dtype,
        lambda images: encoder.encode(images).tokens,
        lambda: one_thread_per_operation(device),
        mixed,
    ), choices


def _teacher(source: Source, device: str, dtype: torch.dtype, mixed: bool) -> Teacher:
    teacher = as_teacher(source, device=device, dtype=dtype)
    if not mixed:
        return teacher
    changed = as_mixed(teacher)
    assert changed is not None  # whoever asks for it has seen that it can be
    return changed


def compute_work(reader: Reader, batches: Sequence[Tensor], together: int) -> Callable[[int], object]:
    """Return work of which a piece is ``together`` batches; the batches take turns."""
    places = numbers()

    def work(pieces: int) -> None:
        todo = [batches[next(places) % len(batches)] for _ in range(pieces * together)]
        with reader.together() as parallel:
            if parallel == 1:
                for images in todo:
                    reader.encode(images)
            else:
                for done in ordered_map(reader.encode, todo, threads=parallel, window=parallel + 1):
                    done.result()

    return work


@contextmanager
def _one() -> Iterator[int]:
    yield 1


def _normaliser(source: Source) -> Callable[[Tensor, torch.dtype], Tensor]:
    settings = source.preprocessing
    constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def normalise(images: Tensor, dtype: torch.dtype) -> Tensor:
        if images.device not in constants:
            constants[images.device] = tuple(  # type: ignore[assignment]
                torch.tensor(settings[key], device=images.device).view(1, 3, 1, 1) for key in ("mean", "std")
            )
        mean, std = constants[images.device]
        return images.float().div_(255).sub_(mean).div_(std).to(dtype)

    return normalise


class OpenClipLoop:
    """JPEG files to .npy files: open_clip's own transform with Pillow, one process.

    With `threads`, so many of them make the next batch of pixels while a batch is encoded, as a `DataLoader` does with
    processes: Pillow leaves the interpreter to others while it decodes and resizes.
    """

    name = "open_clip loop"
    mixed = False

    def __init__(self, source: Source, device: str, dtype: torch.dtype, *, batch: int, threads: int = 0) -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        settings = dict(source.preprocessing)
        self._transform: Any = image_transform_v2(PreprocessCfg(**settings), is_train=False)
        self._visual = as_open_clip(source, device=device, dtype=dtype)
        self.dtype, self._device, self._batch = dtype, device, batch
        self.threads = threads
        if threads:
            self.name = f"{self.name}, threads"

    @torch.inference_mode()
    def run(self, paths: Sequence[Path], folder: Path) -> None:
        """Encode all files."""
        visual = self._visual
        for number, pixels in enumerate(self._pixels(paths)):
            pooled, tokens = visual(pixels.to(self._device, self.dtype))
            if visual.proj is not None:
                tokens = tokens @ visual.proj
            _save(folder, number, tokens, pooled)

    def _pixels(self, paths: Sequence[Path]) -> Iterator[Tensor]:
        if not self.threads:
            for batch in _batches(paths, self._batch):
                yield torch.stack([self._one(path) for path in batch])
            return
        threads = torch.get_num_threads()
        try:
            # one for each of their operations, as a `DataLoader` has it: or sixteen would start sixteen each
            with ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                ahead: list[Future[Tensor]] = []
                for batch in _batches(paths, self._batch):
                    coming = [pool.submit(self._one, path) for path in batch]
                    if ahead:
                        yield torch.stack([one.result() for one in ahead])
                    ahead = coming
                yield torch.stack([one.result() for one in ahead])
        finally:
            torch.set_num_threads(threads)  # of threads that are yet to come

    def _one(self, path: Path) -> Tensor:
        pixels: Tensor = self._transform(Image.open(path))
        return pixels


class TransformersLoop:
    """JPEG files to .npy files: the library's image processor with Pillow, one process."""

    name = "transformers loop"
    mixed = False
    threads = 0

    def __init__(self, source: Source, device: str, dtype: torch.dtype, *, batch: int) -> None:
        self._processor = image_processor(source)
        self._model = as_transformers(source, device=device, dtype=dtype)
        self.dtype, self._device, self._batch = dtype, device, batch

    @torch.inference_mode()
    def run(self, paths: Sequence[Path], folder: Path) -> None:
        """Encode all files."""
        model = self._model
        for number, batch in enumerate(_batches(paths, self._batch)):
            inputs = self._processor(images=[Image.open(path) for path in batch], return_tensors="pt")
            found = model(pixel_values=inputs["pixel_values"].to(self._device, self.dtype))
            tokens = model.visual_projection(model.vision_model.post_layernorm(found.last_hidden_state[:, 1:]))
            _save(folder, number, tokens, found.image_embeds)


class Extraction:
    """JPEG files to a token store: `madkit extract`, each time into a new workspace.

    Compiling, where it is asked for, happens in the run that warms up.
    """

    def __init__(
        self,
        source: Source,
        device: str,
        dtype: torch.dtype,
        *,
        batch: int = 0,
        compiled: bool = False,
        mixed: bool = False,
    ) -> None:
        self.name = "madkit extract" + (", compiled" if compiled else "")
        whole = _teacher(source, device, dtype, mixed)
        self._teacher: Teacher = replace(whole, text=None)  # the loops read no texts
        self._options = ExtractOptions(device=device, image_batch=batch, compile="on" if compiled else "off")
        self.dtype, self.mixed = dtype, mixed

    def run(self, paths: Sequence[Path], folder: Path) -> Path:
        """Extract all files and return the store's folder."""
        with redirect_stderr(StringIO()):  # what it says of every single run is no news
            report = extract_task(Workspace.at(folder), self._teacher, PictureTask(paths), options=self._options)
        return report.path


def stored_tokens(folder: Path, rows: int) -> npt.NDArray[Any]:
    """Return the tokens [rows, P, D] of the first images, from a store or from .npy files."""
    files = sorted(folder.glob("tokens-*.npy"))
    if files:
        found = [np.load(files[0])]
        while sum(map(len, found)) < rows:
            found.append(np.load(files[len(found)]))
        return np.concatenate(found)[:rows]
    with TokenCache.open(next(iter(sorted(folder.glob("**/manifest.json")))).parent) as cache:
        return cache.images.tokens(np.arange(rows))


def empty(folder: Path) -> None:
    """Remove what a run left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def reference(source: Source, images: Tensor) -> npt.NDArray[np.float64]:
    """Return the tokens of a few images by open_clip's encoder in float64."""
    reader = open_clip_reader(source, str(images.device), torch.float64)
    tokens: npt.NDArray[np.float64] = reader.encode(images).cpu().numpy()
    return tokens


def _batches(paths: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    for start in range(0, len(paths), size):
        yield paths[start : start + size]


def _save(folder: Path, number: int, tokens: Tensor, pooled: Tensor) -> None:
    for name, values in (("tokens", tokens), ("globals", pooled)):
        np.save(folder / f"{name}-{number:05d}.npy", values.to(torch.float16).cpu().numpy())
