"""Random batches out of a token store, against `np.take` on a flat memory map and a gather of zarr-python's reads.

The three hold the same random values and read the same shuffled batches in turns, within one process. The memory map
is the limit: no index, no shards, no checks. Cold means that the pages of all files were dropped before each turn and
that every side opened its files anew.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from madkit.bench.machine import busy, forget_cached, machine_facts
from madkit.cache import TokenCache
from madkit.cache.layout import DEFAULT_SHARD_MB, image_layout, text_layout
from madkit.cache.plan import PARTS, StorePlan
from madkit.cache.writer import StoreWriter
from madkit.core.console import progress
from madkit.core.errors import RunError, UsageProblem

Rows = npt.NDArray[np.int64]
Read = Callable[[Rows], npt.NDArray[np.float16]]
TEXT_TOKENS = 20
MADKIT, FLAT, ZARR = "madkit", "np.take", "zarr-python"


@dataclass(frozen=True, slots=True)
class ReadBenchOptions:
    """What to measure.

    Attributes:
        images: images in the made-up store.
        tokens: tokens of an image (257: all of ViT-L/14 at 224 pixels; 33: a selection).
        dim: width.
        texts: texts, of about 20 tokens.
        batch: items read at a time.
        batches: batches of a turn.
        repeats: turns of each side; medians are reported.
    """

    images: int = 1024
    tokens: int = 257
    dim: int = 768
    texts: int = 8192
    batch: int = 64
    batches: int = 12
    repeats: int = 3

    def __post_init__(self) -> None:
        if min(self.images, self.texts) < self.batch:
            raise UsageProblem(
                f"Batches of {self.batch} need as many images and texts at least.", hint="--images 1024 --texts 8192"
            )


def bench_cache_read(options: ReadBenchOptions | None = None) -> dict[str, Any]:
    """Write a store and flat files of random values, measure, and remove them.

    Returns:
        ``machine``, ``options``, ``rows`` (part, state, items per second of each side and the ratios), ``warnings``.

    Raises:
        RunError: not enough disk, or a side read other values than were written.
        UsageProblem: options that cannot be meant.
    """
    options = options or ReadBenchOptions()
    size = (options.images * options.tokens + options.texts * TEXT_TOKENS * 2) * options.dim * 2
    machine = machine_facts()
    with tempfile.TemporaryDirectory(prefix="madkit-bench-") as name:
        folder = Path(name)
        free = shutil.disk_usage(folder).free
        if 2.1 * size > free:
            raise RunError(
                f"The files need {2.1 * size / 1e9:.1f} GB, and {folder.parent} has {free / 1e9:.1f} GB free.",
                hint="ask for less (--images, --texts), or set TMPDIR to a folder on another disk",
            )
        _write(folder, options)
        rows = [*_images(folder, options), *_texts(folder, options)]
    warning = busy(machine)
    return {
        "machine": machine,
        "options": {field: getattr(options, field) for field in ReadBenchOptions.__dataclass_fields__},
        "rows": rows,
        "warnings": [warning] if warning else [],
    }


def _write(folder: Path, options: ReadBenchOptions) -> None:
    draw = np.random.default_rng(0)
    lengths = draw.integers(TEXT_TOKENS // 2, TEXT_TOKENS * 3 // 2, options.texts).astype(np.int64)
    plan = StorePlan(
        identity={"teacher": "bench", "task": "bench", "source": "bench", "revision": "bench"},
        image_ids=[str(number) for number in range(options.images)],
        image_aliases={},
        texts=[str(number) for number in range(options.texts)],
        lengths=lengths,
        images=image_layout(options.images, (1, options.tokens), options.dim, DEFAULT_SHARD_MB),
        text=text_layout(lengths, options.dim, DEFAULT_SHARD_MB),
        facts={},
    )
    total = sum(plan.units(part) for part in PARTS)
    with (
        StoreWriter(folder / "store", plan) as writer,
        (folder / "images.bin").open("wb") as images,
        (folder / "texts.bin").open("wb") as texts,
        progress("Writing random tokens", total, "shards") as bar,
    ):
        for part in PARTS:
            flat = images if part == "images" else texts
            for unit in range(plan.units(part)):
                rows = len(plan.items(part, unit))
                count = plan.token_count(part, unit)
                tokens = draw.integers(0x2800, 0x3C00, (count, options.dim), dtype=np.uint16).view(np.float16)
                arrays: dict[str, npt.NDArray[Any]] = {"globals": np.zeros((rows, options.dim), np.float16)}
                if part == "images":
                    arrays["tokens"] = tokens.reshape(rows, options.tokens, options.dim)
                else:
                    arrays |= {"tokens": tokens, "spans": np.zeros((count, 2), np.int32)}
                writer.write_unit(part, unit, arrays)
                flat.write(tokens.tobytes())
                bar.advance(1)
        writer.finish(seconds=0.0)
    np.save(folder / "lengths.npy", lengths)
    np.zeros((int(lengths.sum()), 2), np.int32).tofile(folder / "spans.bin")


def _images(folder: Path, options: ReadBenchOptions) -> list[dict[str, Any]]:
    import zarr

    def ours() -> Read:
        return TokenCache.open(folder / "store").images.tokens

    def flat() -> Read:
        shape = (options.images, options.tokens, options.dim)
        whole = np.memmap(folder / "images.bin", np.float16, "r", shape=shape)
        return lambda rows: np.take(whole, rows, axis=0)

    def gather() -> Read:
        array: Any = zarr.open_group(folder / "store", mode="r")["images/tokens"]
        return lambda rows: np.stack([array[int(row)] for row in rows])

    return _compare("images", folder, options, options.images, {MADKIT: ours, FLAT: flat, ZARR: gather})


def _texts(folder: Path, options: ReadBenchOptions) -> list[dict[str, Any]]:
    import zarr

    lengths = np.load(folder / "lengths.npy")
    offsets = np.concatenate([[0], np.cumsum(lengths)])

    def ours() -> Read:
        texts = TokenCache.open(folder / "store").texts
        return lambda rows: texts.tokens(rows).tokens

    def flat() -> Read:
        whole = np.memmap(folder / "texts.bin", np.float16, "r", shape=(int(offsets[-1]), options.dim))
        spans = np.memmap(folder / "spans.bin", np.int32, "r", shape=(int(offsets[-1]), 2))  # a text comes with them

        def read(rows: Rows) -> npt.NDArray[np.float16]:
            places = np.concatenate([np.arange(offsets[row], offsets[row + 1]) for row in rows])
            np.take(spans, places, axis=0)
            return np.take(whole, places, axis=0)

        return read

    def gather() -> Read:
        group: Any = zarr.open_group(folder / "store", mode="r")
        array, spans, extents = group["texts/tokens"], group["texts/spans"], group["texts/extents"][:]

        def read(rows: Rows) -> npt.NDArray[np.float16]:
            places = [slice(int(extents[row, 0]), int(extents[row, 1])) for row in rows]
            np.concatenate([spans[place] for place in places])
            return np.concatenate([array[place] for place in places])

        return read

    return _compare("texts", folder, options, options.texts, {MADKIT: ours, FLAT: flat, ZARR: gather})


def _compare(
    part: str, folder: Path, options: ReadBenchOptions, items: int, sides: dict[str, Callable[[], Read]]
) -> list[dict[str, Any]]:
    draw = np.random.default_rng(1)
    batches = [draw.choice(items, options.batch, replace=False) for _ in range(options.batches)]
    _same(part, {name: make()(batches[0]) for name, make in sides.items()})
    found: list[dict[str, Any]] = []
    for state in ("warm", "cold"):
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.repeats):
            for name, make in sides.items():
                # the peer that is slower by orders of magnitude reads fewer batches
                mine = batches if name != ZARR else batches[: max(1, options.batches // 6)]
                if state == "cold" and not all(forget_cached(path) for path in _data_files(folder)):
                    return found
                seconds[name].append(_time(make(), mine, warm=state == "warm") / (len(mine) * options.batch))
        per_second = {name: 1 / median(values) for name, values in seconds.items()}
        found.append(
            {
                "part": part,
                "state": state,
                "items_per_s": {name: round(value, 1) for name, value in per_second.items()},
                "of_np_take": round(per_second[MADKIT] / per_second[FLAT], 3),
                "of_zarr_python": round(per_second[MADKIT] / per_second[ZARR], 2),
            }
        )
    return found


def _time(read: Read, batches: Sequence[Rows], *, warm: bool) -> float:
    if warm:
        for batch in batches:  # pages of the file and of the map are there, indices are parsed
            read(batch)
    started = time.perf_counter()
    for batch in batches:
        read(batch)
    return time.perf_counter() - started


def _data_files(folder: Path) -> list[Path]:
    return [*folder.glob("*.bin"), *(path for path in folder.glob("store/*/*/c/**/*") if path.is_file())]


def _same(part: str, read: dict[str, npt.NDArray[np.float16]]) -> None:
    for name, values in read.items():
        if not np.array_equal(values, read[FLAT]):
            raise RunError(f"{name} read other {part} than were written.")
