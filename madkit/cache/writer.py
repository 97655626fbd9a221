"""Writing a token store so that nothing is lost whatever kills the process.

A unit of work is one shard of tokens with its global vectors, spans and statistics. Its files are assembled in memory,
written to temporary names, fsynced and renamed; then one line in the journal says that the unit is done. What has no
line is done again. The manifest, with size and checksum of every file, is written last and makes the store readable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from madkit.cache.layout import (
    FORMAT,
    IMAGE_IDS,
    JOURNAL,
    LOCK,
    MANIFEST,
    PLAN,
    SCHEMA,
    TEXTS,
    ArraySpec,
    ImageLayout,
    TextLayout,
    group_metadata,
    store_key,
    text_extents,
)
from madkit.cache.shards import file_crc32, pack_chunk, pack_shard, unpack_chunk
from madkit.cache.statistics import merge_moments, moments
from madkit.core.environment import environment
from madkit.core.errors import CacheError
from madkit.core.files import (
    FileLock,
    append_jsonl,
    read_json,
    read_jsonl,
    write_bytes_atomic,
    write_json_atomic,
)

Part = Literal["images", "texts"]
PARTS: tuple[Part, ...] = ("images", "texts")


@dataclass(frozen=True, slots=True)
class StorePlan:
    """Everything about a store that is known before the first encoding.

    Attributes:
        identity: what the store is of; its digest is the store's key.
        image_ids: one id per row of the image arrays.
        image_aliases: further ids that stand for a row, where several ids name one file.
        texts: one text per row of the text arrays.
        lengths: [texts] tokens of each text.
        images: sizes of the image part.
        text: sizes of the text part.
        facts: counts for the manifest, such as texts that were too long.
    """

    identity: Mapping[str, Any]
    image_ids: Sequence[str]
    image_aliases: Mapping[str, int]
    texts: Sequence[str]
    lengths: npt.NDArray[np.int64]
    images: ImageLayout
    text: TextLayout
    facts: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """Return what ``plan.json`` holds: identity, sizes, and a digest over ids, texts and lengths."""
        items = [list(self.image_ids), dict(self.image_aliases), list(self.texts), self.lengths.tolist()]
        return {
            "schema": SCHEMA,
            "format": FORMAT,
            "key": store_key(self.identity),
            "identity": dict(self.identity),
            "items": sha256(_json(items)).hexdigest()[:16],
            "images": asdict(self.images),
            "texts": asdict(self.text),
            "facts": dict(self.facts),
        }

    def arrays(self, part: Part) -> dict[str, ArraySpec]:
        """Return the arrays of a part by their last name."""
        return self.images.arrays() if part == "images" else self.text.arrays()

    def units(self, part: Part) -> int:
        """Return the number of units of a part."""
        return self.images.units if part == "images" else self.text.units

    def items(self, part: Part, unit: int) -> range:
        """Return the rows (images or texts) that a unit holds."""
        layout: ImageLayout | TextLayout = self.images if part == "images" else self.text
        return range(unit * layout.unit, min(layout.n, (unit + 1) * layout.unit))

    def token_count(self, part: Part, unit: int) -> int:
        """Return the number of token rows that a unit holds."""
        rows = self.items(part, unit)
        if part == "images":
            return len(rows) * self.images.tokens
        return int(self.lengths[rows.start : rows.stop].sum())


class StoreWriter:
    """Writes one store. Use as a context manager: it holds the store's lock.

    Args:
        folder: the store's folder.
        plan: what to write. Where the folder holds a plan of the same items in other shard sizes, that one is kept,
            and :attr:`plan` is it.

    Raises:
        CacheError: another process writes the store, or the folder holds something else.
    """

    def __init__(self, folder: Path, plan: StorePlan) -> None:
        self.folder = folder
        self.plan = plan
        self._lock = FileLock(folder / LOCK, error=CacheError, what=f"The cache {folder.name}")
        self._files: dict[str, dict[str, Any]] = {}
        self._done: set[tuple[Part, int]] = set()

    def __enter__(self) -> StoreWriter:
        self._lock.acquire()
        try:
            self._prepare()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def pending(self, part: Part) -> list[int]:
        """Return the units that are still to be done."""
        return [unit for unit in range(self.plan.units(part)) if (part, unit) not in self._done]

    @property
    def finished(self) -> bool:
        """Whether the store is complete and readable."""
        return (self.folder / MANIFEST).is_file() and not any(self.pending(part) for part in PARTS)

    @property
    def total_bytes(self) -> int:
        """Bytes of all files written so far."""
        return sum(int(entry["bytes"]) for entry in self._files.values())

    def _prepare(self) -> None:
        for leftover in self.folder.rglob(".*.tmp"):  # what a kill between write and rename leaves
            leftover.unlink()
        path = self.folder / PLAN
        if path.is_file():
            self._resume(read_json(path))
        else:
            write_json_atomic(path, self.plan.document())
        self._write_fixed()
        self._read_journal()

    def _resume(self, old: Mapping[str, Any]) -> None:
        """Go on in the shard sizes of the plan in the folder."""
        new = self.plan.document()
        try:
            same = all(old[name] == new[name] for name in ("schema", "key", "items"))
            sizes = replace(
                self.plan,
                images=replace(self.plan.images, unit=int(old["images"]["unit"])),
                text=replace(
                    self.plan.text,
                    unit=int(old["texts"]["unit"]),
                    capacity=int(old["texts"]["capacity"]),
                    rows=int(old["texts"]["rows"]),
                ),
            )
        except (KeyError, TypeError, ValueError):
            same = False
        if not same:
            raise CacheError(
                f"The cache {self.folder} was begun with other images or texts under the same key.",
                hint=f"remove it and extract again: madkit cache prune --store {self.folder.name} --yes",
            )
        self.plan = sizes

    def _write_fixed(self) -> None:
        """Write what depends on the plan alone: metadata, ids, texts, extents."""
        plan = self.plan
        attributes = {"madkit": plan.document()}
        self._put("zarr.json", _json(group_metadata(attributes)))
        for part in PARTS:
            self._put(f"{part}/zarr.json", _json(group_metadata({})))
            for spec in plan.arrays(part).values():
                self._put(f"{spec.name}/zarr.json", _json(spec.metadata()))
        self._put(IMAGE_IDS, _json({"ids": list(plan.image_ids), "aliases": dict(plan.image_aliases)}))
        self._put(TEXTS, _json(list(plan.texts)))
        extents = plan.arrays("texts")["extents"]
        if extents.shards:
            self._put(extents.file(0), pack_chunk(extents, text_extents(plan.lengths, plan.text)))

    def _put(self, name: str, data: bytes) -> None:
        """Write a file unless it already has this content."""
        path = self.folder / name
        if not (path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data):
            write_bytes_atomic(path, data)
        self._files[name] = _entry(data)

    def _read_journal(self) -> None:
        path = self.folder / JOURNAL
        if not path.is_file():
            return
        for row in read_jsonl(path):
            part, unit, files = row["part"], int(row["unit"]), row["files"]
            key = (part, unit)
            if all(_has_size(self.folder / name, int(entry["bytes"])) for name, entry in files.items()):
                self._done.add(key)
                self._files.update(files)
            else:
                self._done.discard(key)

    def write_unit(self, part: Part, unit: int, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Store the arrays of one unit and journal it. To be called from one thread at a time.

        Args:
            part: ``images`` or ``texts``.
            unit: its number.
            arrays: ``tokens`` and ``globals`` as float16 and, for texts, ``spans`` as int32, the unit's rows only.

        Raises:
            OSError: the disk is full, or the folder cannot be written; nothing half-written is left.
        """
        specs = self.plan.arrays(part)
        files: dict[str, dict[str, Any]] = {}
        packed = {
            specs[name].file(unit): pack_shard(specs[name], values) for name, values in arrays.items() if len(values)
        }
        dim = specs["globals"].item[0]
        tokens = np.asarray(arrays["tokens"], dtype=np.float16).reshape(-1, dim)
        both = np.concatenate([moments(tokens), moments(np.asarray(arrays["globals"], dtype=np.float16))])
        statistics = specs["unit_statistics"]
        packed[statistics.file(unit)] = pack_chunk(statistics, both[None])
        for name, data in packed.items():
            write_bytes_atomic(self.folder / name, data)
            files[name] = _entry(data)
        append_jsonl(self.folder / JOURNAL, {"part": part, "unit": unit, "files": files})
        self._files.update(files)
        self._done.add((part, unit))

    def finish(self, *, seconds: float) -> dict[str, Any]:
        """Write the statistics and the manifest, which makes the store readable, and return the manifest.

        Args:
            seconds: how long this process worked on it, for the manifest.
        """
        if any(self.pending(part) for part in PARTS):
            raise ValueError("the store is not complete")
        for part in PARTS:
            self._write_statistics(part)
        plan = self.plan.document()
        manifest = {
            **plan,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "bytes": self.total_bytes,
            "seconds": round(seconds, 1),
            "environment": environment(),
            "files": dict(sorted(self._files.items())),
        }
        write_json_atomic(self.folder / MANIFEST, manifest)
        return manifest

    def _write_statistics(self, part: Part) -> None:
        specs = self.plan.arrays(part)
        units = range(self.plan.units(part))
        target = specs["statistics"]
        if not units:
            self._put(target.file(0), pack_chunk(target, np.zeros((4, *target.item), dtype=np.float32)))
            return
        source = specs["unit_statistics"]
        values = [
            np.asarray(
                unpack_chunk(source, (self.folder / source.file(unit)).read_bytes(), source.file(unit))[0], np.float64
            )
            for unit in units
        ]
        tokens = merge_moments([self.plan.token_count(part, unit) for unit in units], [value[:2] for value in values])
        globals_ = merge_moments([len(self.plan.items(part, unit)) for unit in units], [value[2:] for value in values])
        self._put(target.file(0), pack_chunk(target, np.concatenate([tokens, globals_]).astype(np.float32)))


def _entry(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "crc32": f"{file_crc32(data):08x}"}


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _json(document: object) -> bytes:
    return (json.dumps(document, allow_nan=False, separators=(",", ":")) + "\n").encode()
