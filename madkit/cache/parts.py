"""The image part and the text part of a token store: which rows belong to whom, and their tokens, in batches."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from madkit.cache.layout import IMAGE_IDS, TEXT_EXTENTS, TEXTS, verify_hint
from madkit.cache.quantise import dequantise
from madkit.cache.rows import Fetch, ShardedRows, read_spec
from madkit.cache.shards import unpack_chunk
from madkit.cache.statistics import GLOBAL_MEAN, GLOBAL_VAR, TOKEN_MEAN, TOKEN_VAR
from madkit.core.errors import CacheError
from madkit.core.files import read_json

Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Absent = Literal["error", "skip"]


@dataclass(frozen=True, slots=True)
class RaggedTokens:
    """Tokens of several texts, one after the other.

    Attributes:
        tokens: [sum of lengths, D] float16.
        spans: [sum of lengths, 2] int32, half-open character offsets into the original text.
        offsets: [n + 1] int64; text i has rows ``offsets[i]`` to ``offsets[i + 1]``.
    """

    tokens: Float16
    spans: npt.NDArray[np.int32]
    offsets: Int64


class _Part:
    """What images and texts share: global vectors, statistics, and items that the teacher could not read.

    Attributes:
        absent: what is wrong with each row that has no values (an unreadable image, an empty text).
    """

    def __init__(
        self, root: Path, part: str, check: bool, absent: Mapping[int, str], extract: str, fetch: Fetch | None
    ) -> None:
        self._root = root
        self._fetch = fetch
        self.absent = dict(absent)
        self._gone = np.array(sorted(absent), dtype=np.int64)
        self._check = check
        self._tokens = _open(root, f"{part}/tokens", check, fetch)
        self._scales = _open(root, f"{part}/scales", check, fetch)
        self._channels: Float32 | None = None
        self._globals = ShardedRows(root, read_spec(root, f"{part}/globals"), check=check, fetch=fetch)
        self._part = part
        self._extract = extract
        self._statistics: Float32 | None = None
        self._lock = threading.Lock()

    @property
    def dim(self) -> int:
        """Width of tokens and global vectors."""
        return self._globals.spec.item[-1]

    def __len__(self) -> int:
        return self._globals.spec.rows

    def globals(self, rows: npt.ArrayLike) -> Float16:
        """Return the global vectors of rows: [n, D] float16 (CacheError for an absent row)."""
        self._refuse_absent(rows)
        return self._globals.take(rows)

    @property
    def has_tokens(self) -> bool:
        """Whether the store has more than global vectors."""
        return self._tokens is not None

    @property
    def dtype(self) -> str:
        """How tokens lie on disk: ``float16`` or ``int8``. Reading gives float16 in any case."""
        return "float16" if self._scales is None else "int8"

    def _token_rows(self) -> ShardedRows:
        if self._tokens is None:
            raise CacheError(
                f"The cache {self._root.name} holds global vectors only, no tokens.",
                hint=f"extract tokens: {self._extract.partition(' --tokens ')[0]}",
            )
        return self._tokens

    def _channels_of(self, units: Int64) -> Float32:
        """Return the channel scales of units: [n, D]."""
        with self._lock:
            if self._channels is None:
                self._channels = _read_units(self._root, f"{self._part}/channel_scales", self._fetch)
            chosen: Float32 = self._channels[units]
            return chosen

    def _refuse_absent(self, rows: npt.ArrayLike) -> None:
        if not len(self._gone):
            return
        asked = np.asarray(rows, dtype=np.int64).reshape(-1)
        gone = asked[np.isin(asked, self._gone)]
        if len(gone):
            row = int(gone[0])
            raise CacheError(
                f"The cache {self._root.name} has no values for row {row} of its {self._part}: {self.absent[row]}.",
                hint=f"ask with absent='skip', or mend the item and extract again: {self._extract}",
            )

    def _choose(self, rows: Int64, absent: Absent) -> Int64:
        if absent == "skip":
            return rows[~np.isin(rows, self._gone)]
        self._refuse_absent(rows)
        return rows

    def _statistic(self, number: int) -> Float32:
        with self._lock:
            if self._statistics is None:
                stored = _read_whole(self._root, f"{self._part}/statistics", self._fetch)
                self._statistics = np.asarray(stored, dtype=np.float32)
            row: Float32 = self._statistics[number]
            return row

    @property
    def mean(self) -> Float32:
        """Mean of each channel over all tokens: [D]."""
        return self._statistic(TOKEN_MEAN)

    @property
    def var(self) -> Float32:
        """Population variance of each channel over all tokens: [D]."""
        return self._statistic(TOKEN_VAR)

    @property
    def global_mean(self) -> Float32:
        """Mean of each channel over all global vectors: [D]."""
        return self._statistic(GLOBAL_MEAN)

    @property
    def global_var(self) -> Float32:
        """Population variance of each channel over all global vectors: [D]."""
        return self._statistic(GLOBAL_VAR)

    def close(self) -> None:
        """Let go of open files."""
        for rows in (self._tokens, self._scales, self._globals):
            if rows is not None:
                rows.close()


class ImageTokens(_Part):
    """The image half of a store. Safe to use from several threads."""

    def __init__(
        self,
        root: Path,
        *,
        check: bool,
        grid: tuple[int, int],
        extract: str,
        absent: Mapping[int, str],
        fetch: Fetch | None = None,
    ) -> None:
        super().__init__(root, "images", check, absent, extract, fetch)
        document = read_json(root / IMAGE_IDS)
        self.ids: list[str] = document["ids"]
        self.grid = grid
        self._rows = {name: row for row, name in enumerate(self.ids)} | document["aliases"]
        self._positions = _open(root, "images/positions", check, fetch)
        self._views = _open(root, "images/views", check, fetch)

    @property
    def selected(self) -> int | None:
        """How many patches of each image are kept; None where all are."""
        return None if self._positions is None else self._positions.spec.item[0]

    @property
    def has_views(self) -> bool:
        """Whether the store says which part of each image its patches cover."""
        return self._views is not None

    def views(self, rows: npt.ArrayLike) -> Float32 | None:
        """Return the part of each image that its patches cover: [n, 4] corners (x1, y1, x2, y2) in shares of its sides.

        None where the store does not say, because its teacher saw whole images (or an older madkit wrote it).
        """
        if self._views is None:
            return None
        self._refuse_absent(rows)
        return np.asarray(self._views.take(rows), dtype=np.float32)

    def positions(self, rows: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """Return which patches the tokens of rows stand for: [n, T] int32, ascending, row-major in ``grid``."""
        self._refuse_absent(rows)
        if self._positions is not None:
            return self._positions.take(rows)
        every = np.arange(self._token_rows().spec.item[0], dtype=np.int32)
        return np.broadcast_to(every, (np.asarray(rows).size, len(every)))

    def rows(self, image_ids: Sequence[str], *, absent: Absent = "error") -> Int64:
        """Return the rows of images: [n] int64.

        Args:
            image_ids: names of images.
            absent: what becomes of images that could not be read: ``error``, or ``skip`` to leave their rows out.

        Raises:
            CacheError: images that the store does not know, or absent ones; the message names the first.
        """
        return self._choose(_lookup(self._rows, image_ids, "images", self._root, self._extract), absent)

    def present(self, image_ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return which images have values: [n] bool (CacheError for one that the store does not know)."""
        return ~np.isin(_lookup(self._rows, image_ids, "images", self._root, self._extract), self._gone)

    def tokens(self, rows: npt.ArrayLike) -> Float16:
        """Return the patch tokens of rows: [n, T, D] float16, those of :meth:`positions` (all P, or a selection).

        Raises:
            CacheError: an absent row, a damaged file, or a store of global vectors only.
        """
        self._refuse_absent(rows)
        stored = self._token_rows()
        if self._scales is None:
            return stored.take(rows)
        values, scales, channels = self.rounded_tokens(rows)
        return dequantise(values, scales, channels[:, None, :])

    def rounded_tokens(self, rows: npt.ArrayLike) -> tuple[npt.NDArray[np.int8], Float16, Float32]:
        """Return what an int8 store holds of rows, to be decoded elsewhere, such as on a GPU.

        Returns:
            values [n, T, D], scales [n, T] and channel scales [n, D]; a token is the product of the three.
        """
        self._refuse_absent(rows)
        stored = self._token_rows()
        if self._scales is None:
            raise CacheError(f"The cache {self._root.name} holds {self.dtype} tokens, which are not rounded.")
        units = np.asarray(rows, dtype=np.int64).reshape(-1) // stored.spec.shard_rows
        return stored.take(rows), self._scales.take(rows), self._channels_of(units)

    def close(self) -> None:
        """Let go of open files."""
        super().close()
        for rows in (self._positions, self._views):
            if rows is not None:
                rows.close()


class TextTokens(_Part):
    """The text half of a store. Safe to use from several threads."""

    def __init__(
        self, root: Path, *, check: bool, extract: str, absent: Mapping[int, str], fetch: Fetch | None = None
    ) -> None:
        super().__init__(root, "texts", check, absent, extract, fetch)
        self.texts: list[str] = read_json(root / TEXTS)
        self._spans = _open(root, "texts/spans", check, fetch)
        self._extents = np.zeros((len(self), 2), dtype=np.int64)
        if self._spans is not None:
            self._extents = np.asarray(_read_whole(root, TEXT_EXTENTS, fetch), dtype=np.int64)
        self._rows = {text: row for row, text in enumerate(self.texts)}

    def rows(self, texts: Sequence[str], *, absent: Absent = "error") -> Int64:
        """Return the rows of texts: [n] int64. Arguments and errors as for :meth:`ImageTokens.rows`."""
        return self._choose(_lookup(self._rows, texts, "texts", self._root, self._extract), absent)

    def present(self, texts: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return which texts have values: [n] bool (CacheError for one that the store does not know)."""
        return ~np.isin(_lookup(self._rows, texts, "texts", self._root, self._extract), self._gone)

    def lengths(self, rows: npt.ArrayLike) -> Int64:
        """Return how many tokens each row has: [n] int64."""
        extents = self._extents[np.asarray(rows, dtype=np.int64)]
        return extents[:, 1] - extents[:, 0]

    def spans(self, rows: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """Return the character spans of the tokens of rows, text after text: [sum of lengths, 2] int32.

        Raises:
            CacheError: an absent row, or a store of global vectors only.
        """
        self._refuse_absent(rows)
        self._token_rows()
        assert self._spans is not None  # they come with the tokens
        extents = self._extents[np.asarray(rows, dtype=np.int64).reshape(-1)]
        return self._spans.take_ranges(extents[:, 0], extents[:, 1])

    def tokens(self, rows: npt.ArrayLike) -> RaggedTokens:
        """Return tokens and character spans of rows (CacheError for an absent row)."""
        self._refuse_absent(rows)
        extents = self._extents[np.asarray(rows, dtype=np.int64).reshape(-1)]
        starts, stops = extents[:, 0], extents[:, 1]
        stored = self._token_rows()
        assert self._spans is not None  # they come with the tokens
        lengths = stops - starts
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        tokens = stored.take_ranges(starts, stops)
        if self._scales is not None:
            # a shard of tokens is a unit; an empty text may end where its shard does, and needs no scale
            units = np.repeat(starts // stored.spec.shard_rows, lengths)
            tokens = dequantise(tokens, self._scales.take_ranges(starts, stops), self._channels_of(units))
        return RaggedTokens(tokens, self._spans.take_ranges(starts, stops), offsets)

    def close(self) -> None:
        """Let go of open files."""
        super().close()
        if self._spans is not None:
            self._spans.close()


def _open(root: Path, name: str, check: bool, fetch: Fetch | None) -> ShardedRows | None:
    """Open a sharded array; None where the store has none of this name (metadata are there from the start)."""
    if not (root / name / "zarr.json").is_file():
        return None
    return ShardedRows(root, read_spec(root, name), check=check, fetch=fetch)


def _read_units(root: Path, name: str, fetch: Fetch | None) -> Float32:
    """Read an array with a file per unit."""
    spec = read_spec(root, name)
    rows = np.zeros((spec.rows, *spec.item), dtype=np.float32)
    if fetch is not None:
        fetch(*(spec.file(unit) for unit in range(spec.rows)))
    for unit in range(spec.rows):
        path = root / spec.file(unit)
        rows[unit] = unpack_chunk(spec, path.read_bytes(), path, root)[0]
    return rows


def _read_whole(root: Path, name: str, fetch: Fetch | None) -> npt.NDArray[Any]:
    """Read an array that is one file and not sharded."""
    spec = read_spec(root, name)
    if spec.rows == 0:
        return np.zeros((0, *spec.item), dtype=spec.dtype)
    path = root / spec.file(0)
    if fetch is not None:
        fetch(spec.file(0))
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CacheError(f"{path} is missing.", hint=verify_hint(root)) from None
    return unpack_chunk(spec, data, path, root)[: spec.rows]


def _lookup(table: Mapping[str, int], names: Iterable[str], what: str, root: Path, command: str) -> Int64:
    names = list(names)
    rows = [table.get(name, -1) for name in names]
    if -1 in rows:
        absent = list(dict.fromkeys(name for name, row in zip(names, rows, strict=True) if row < 0))
        first = ", ".join(repr(name if len(name) <= 60 else name[:57] + "...") for name in absent[:3])
        raise CacheError(
            f"{len(absent)} of the {what} asked for are not in the cache {root.name} (first: {first}).",
            hint=f"extract them: {command}",
        )
    return np.asarray(rows, dtype=np.int64)
