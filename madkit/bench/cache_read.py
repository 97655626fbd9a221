"""Random batches out of a token store, against `np.take` on a flat memory map and against zarr-python.

All hold the same random values and read the same shuffled batches in turns, within one process. The memory map is the
limit when warm: no index, no shards, no checks. It runs twice in each turn; the two differ by noise alone. Cold means
that before every single batch the pages of all files are dropped, that the system is asked whether they went, and that
the side opens its files anew: the state of every batch of a store that is larger than the memory.

zarr-python reads in two ways, item by item and with one `oindex` for a batch: which is faster depends on the items'
size, so both run and the faster one counts.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from madkit.bench.disk_reads import disk_seconds
from madkit.bench.machine import STAYED, busy, cached_bytes, forget_cached, machine_facts
from madkit.cache import TokenCache
from madkit.cache.layout import DEFAULT_SHARD_MB, image_layout, text_layout
from madkit.cache.plan import PARTS, StorePlan
from madkit.cache.writer import StoreWriter
from madkit.core.console import progress
from madkit.core.errors import RunError, UsageProblem

T = TypeVar("T")
Rows = npt.NDArray[np.int64]
Read = Callable[[Rows], npt.NDArray[np.float16]]
TEXT_TOKENS = 20
MADKIT, FLAT, ZARR = "madkit", "np.take", "zarr-python"
AGAIN = "np.take again"
AT_ONCE = "zarr-python at once"
_ZARR_WAYS = {ZARR: "item by item", AT_ONCE: "oindex"}
IMAGE_BYTES = 400_000_000  # of the made-up store, unless told otherwise


@dataclass(frozen=True, slots=True)
class ReadBenchOptions:
    """What to measure.

    Attributes:
        images: images in the made-up store; None for about 0.4 GB.
        tokens: tokens of an image (257: all of ViT-L/14 at 224 pixels; 33: a selection).
        dim: width.
        texts: texts, of about 20 tokens.
        batch: items read at a time.
        batches: batches of a warm turn.
        cold_batches: batches of a cold turn.
        repeats: turns of each side; medians are reported.
    """

    images: int | None = None
    tokens: int = 257
    dim: int = 768
    texts: int = 8192
    batch: int = 64
    batches: int = 12
    cold_batches: int = 2
    repeats: int = 5

    @property
    def image_count(self) -> int:
        """Images in the made-up store."""
        fitting = max(self.batch, IMAGE_BYTES // (self.tokens * self.dim * 2))
        return fitting if self.images is None else self.images

    def __post_init__(self) -> None:
        if min(self.image_count, self.texts) < self.batch:
            raise UsageProblem(
                f"Batches of {self.batch} need as many images and texts at least.", hint="--images 1024 --texts 8192"
            )


def bench_cache_read(options: ReadBenchOptions | None = None) -> dict[str, Any]:
    """Write a store and flat files of random values, measure, and remove them.

    Returns:
        ``machine``, ``options``, ``rows`` and ``warnings``. A row holds ``part``, ``state``, ``items_per_s`` of each
        side, ``zarr_python_way`` (the faster of its two ways, whose figures the row has), the ratios ``of_np_take`` and
        ``of_zarr_python`` with their least and greatest over the turns (``..._range``), ``noise`` (by how much two runs
        of `np.take` differed, as a share), and for cold batches ``read_mb`` (what came into memory for a batch, by the
        system's account), ``disk_per_s`` (what random reads of that size, straight from the disk in the same turns,
        give at most) and ``of_disk``; both None where the system has no such reads. ``of_np_take_cpu`` and
        ``of_zarr_python_cpu`` are ratios of processor times, which bear a busy machine better; np.take's is left out
        when cold, where it waits instead.

    Raises:
        RunError: not enough disk, or a side read other values than were written.
        UsageProblem: options that cannot be meant.
    """
    options = options or ReadBenchOptions()
    size = (options.image_count * options.tokens + options.texts * TEXT_TOKENS * 2) * options.dim * 2
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
    warnings = [warning] if (warning := busy(machine)) else []
    if not any(row["state"] == "cold" for row in rows):
        warnings.append("Cold batches are left out: the system did not drop the files' pages.")
    return {
        "machine": machine,
        "options": {field: getattr(options, field) for field in ReadBenchOptions.__dataclass_fields__},
        "rows": rows,
        "warnings": warnings,
    }


def _write(folder: Path, options: ReadBenchOptions) -> None:
    draw = np.random.default_rng(0)
    lengths = draw.integers(TEXT_TOKENS // 2, TEXT_TOKENS * 3 // 2, options.texts).astype(np.int64)
    plan = StorePlan(
        identity={"teacher": "bench", "task": "bench", "source": "bench", "revision": "bench"},
        image_ids=[str(number) for number in range(options.image_count)],
        image_aliases={},
        texts=[str(number) for number in range(options.texts)],
        lengths=lengths,
        images=image_layout(options.image_count, (1, options.tokens), options.dim, DEFAULT_SHARD_MB),
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
        shape = (options.image_count, options.tokens, options.dim)
        whole = np.memmap(folder / "images.bin", np.float16, "r", shape=shape)
        return lambda rows: np.take(whole, rows, axis=0)

    def gather() -> Read:
        array: Any = zarr.open_group(folder / "store", mode="r")["images/tokens"]
        return lambda rows: np.stack([array[int(row)] for row in rows])

    def at_once() -> Read:
        array: Any = zarr.open_group(folder / "store", mode="r")["images/tokens"]
        return lambda rows: np.asarray(array.oindex[rows])

    sides = {MADKIT: ours, FLAT: flat, ZARR: gather, AT_ONCE: at_once}
    return _compare("images", folder, options, options.image_count, sides)


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

    def at_once() -> Read:
        group: Any = zarr.open_group(folder / "store", mode="r")
        array, spans, extents = group["texts/tokens"], group["texts/spans"], group["texts/extents"][:]

        def read(rows: Rows) -> npt.NDArray[np.float16]:
            places = np.concatenate([np.arange(int(extents[row, 0]), int(extents[row, 1])) for row in rows])
            np.asarray(spans.oindex[places])
            return np.asarray(array.oindex[places])

        return read

    sides = {MADKIT: ours, FLAT: flat, ZARR: gather, AT_ONCE: at_once}
    return _compare("texts", folder, options, options.texts, sides)


def _compare(
    part: str, folder: Path, options: ReadBenchOptions, items: int, sides: dict[str, Callable[[], Read]]
) -> list[dict[str, Any]]:
    draw = np.random.default_rng(1)
    batches = [draw.choice(items, options.batch, replace=False) for _ in range(options.batches)]
    _same(part, {name: make()(batches[0]) for name, make in sides.items()})
    sides = {**sides, AGAIN: sides[FLAT]}
    turns, cpu = _warm(sides, batches, options.repeats)
    way = _faster_zarr(turns)
    turns, cpu = _of_way(turns, way), _of_way(cpu, way)
    spent = {"of_np_take_cpu": _ratio(cpu[FLAT], cpu[MADKIT]), "of_zarr_python_cpu": _ratio(cpu[ZARR], cpu[MADKIT])}
    rows = [{**_row(part, "warm", options, turns, way), **spent}]
    cold = [
        draw.choice(items, options.batch, replace=False) for _ in range(max(1, options.repeats * options.cold_batches))
    ]
    flat_file = folder / f"{part}.bin"
    found = _cold(sides, cold, _data_files(folder), flat_file, flat_file.stat().st_size // items)
    if found is not None:
        disk = [taken for taken in found.disk if taken is not None]
        ours = found.seconds[MADKIT]
        way = _faster_zarr(found.seconds)
        facts = {
            "of_zarr_python_cpu": _ratio(found.cpu[way], found.cpu[MADKIT]),
            "read_mb": _of_way(found.brought, way),
            "disk_per_s": round(options.batch / median(disk), 1) if disk else None,
            "of_disk": _ratio(disk, ours) if len(disk) == len(ours) else None,
        }
        rows.append({**_row(part, "cold", options, _of_way(found.seconds, way), way), **facts})
    return rows


def _faster_zarr(seconds: Mapping[str, Sequence[float]]) -> str:
    """Return which of zarr-python's ways took less time."""
    return min(_ZARR_WAYS, key=lambda way: median(seconds[way]))


def _of_way(found: Mapping[str, T], way: str) -> dict[str, T]:
    """Return what was found of every side, under zarr-python's name that of its faster way."""
    return {name: found[way if name == ZARR else name] for name in found if name != AT_ONCE}


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Return the median of the turns' ratios: whatever else the machine does weighs on neighbours alike."""
    return round(median(one / other for one, other in zip(theirs, ours, strict=True)), 3)


def _warm(
    sides: dict[str, Callable[[], Read]], batches: Sequence[Rows], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return seconds a batch of each side, turn by turn, by the clock and of the processor."""
    # the peer that is slower by orders of magnitude reads fewer batches
    mine = {name: batches if name not in _ZARR_WAYS else batches[: max(1, len(batches) // 6)] for name in sides}
    readers = {name: make() for name, make in sides.items()}
    for name, read in readers.items():
        for batch in mine[name]:  # pages of the file and of the map are there, indices are parsed
            read(batch)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats):
        for name in _order(sides, turn):
            started, spent = time.perf_counter(), time.process_time()
            for batch in mine[name]:
                readers[name](batch)
            seconds[name].append((time.perf_counter() - started) / len(mine[name]))
            cpu[name].append((time.process_time() - spent) / len(mine[name]))
    return seconds, cpu


@dataclass(frozen=True, slots=True)
class _Cold:
    """Cold batches: seconds by the clock and of the processor by side, MB that one brought, and seconds of the disk."""

    seconds: dict[str, list[float]]
    cpu: dict[str, list[float]]
    brought: dict[str, float]
    disk: list[float | None]


def _cold(
    sides: dict[str, Callable[[], Read]], batches: Sequence[Rows], files: Sequence[Path], flat: Path, size: int
) -> _Cold | None:
    """Measure each batch and side, and random reads of ``size`` bytes from ``flat``. None where pages stay."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    brought: dict[str, list[float]] = {name: [] for name in sides}
    disk: list[float | None] = []
    draw = np.random.default_rng(2)
    total = sum(path.stat().st_size for path in files)
    for number, batch in enumerate(batches):
        for name in _order(sides, number):
            if not all(forget_cached(path) for path in files):
                return None
            stayed = cached_bytes(files)
            if stayed is None or stayed > STAYED * total + 2**20:
                return None
            read = sides[name]()
            started, spent = time.perf_counter(), time.process_time()
            read(batch)
            seconds[name].append(time.perf_counter() - started)
            cpu[name].append(time.process_time() - spent)
            del read  # its maps would keep pages in memory
            brought[name].append(((cached_bytes(files) or stayed) - stayed) / 1e6)
        disk.append(disk_seconds(flat, size, len(batch), draw))
    shown = {name: round(median(values), 1) for name, values in brought.items() if name != AGAIN}
    return _Cold(seconds, cpu, shown, disk)


def _order(sides: dict[str, Callable[[], Read]], turn: int) -> list[str]:
    """Let another side begin each turn."""
    names = list(sides)
    return names[turn % len(names) :] + names[: turn % len(names)]


def _row(
    part: str, state: str, options: ReadBenchOptions, seconds: dict[str, list[float]], way: str = ZARR
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "part": part,
        "state": state,
        "zarr_python_way": _ZARR_WAYS[way],
        "items_per_s": {
            name: round(options.batch / median(values), 1) for name, values in seconds.items() if name != AGAIN
        },
    }
    for key, peer in (("of_np_take", FLAT), ("of_zarr_python", ZARR)):
        ratios = [theirs / ours for theirs, ours in zip(seconds[peer], seconds[MADKIT], strict=True)]
        row |= {key: round(median(ratios), 3), f"{key}_range": [round(min(ratios), 3), round(max(ratios), 3)]}
    both = zip(seconds[FLAT], seconds[AGAIN], strict=True)
    return {**row, "noise": round(median(abs(again / first - 1) for first, again in both), 3)}


def _data_files(folder: Path) -> list[Path]:
    return [*folder.glob("*.bin"), *(path for path in folder.glob("store/*/*/c/**/*") if path.is_file())]


def _same(part: str, read: dict[str, npt.NDArray[np.float16]]) -> None:
    for name, values in read.items():
        if not np.array_equal(values, read[FLAT]):
            raise RunError(f"{name} read other {part} than were written.")
