"""Hugging Face datasets as `Dataset.save_to_disk` and `DatasetDict.save_to_disk` leave them, read with Arrow alone.

A saved split is a folder with `state.json` (which lists the data files, Arrow streams) and `dataset_info.json`; a
`dataset_dict.json` beside several such folders lists them. Columns carry the names of the keys in docs/custom.md; an
image column holds file names, or structs of `bytes` and `path` (the feature Image). The layout is that of
https://huggingface.co/docs/datasets, `datasets.arrow_dataset`, version 2 and later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from madkit.core import archives
from madkit.core.errors import DataError, NotFoundError
from madkit.core.files import read_json
from madkit.tasks.formats.custom import TEXT_KEYS, ImageFiles, keys_of
from madkit.tasks.formats.custom_lines import HIDDEN, LinePlace, check_labels, known_split, task_kind
from madkit.tasks.formats.source_lines import Row
from madkit.tasks.importing.plan import Advance

_DICT, _STATE = "dataset_dict.json", "state.json"
_FOLDER = "images"  # of the data set, for images that come as bytes
_ROWS = 256
# First bytes -> extension, of what Pillow reads everywhere.
_MAGIC = (
    (b"\x89PNG\r\n", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\x00", ".tif"),
    (b"MM\x00*", ".tif"),
)


class RowPlace(LinePlace):
    """A row of a saved dataset, counted from 0 as in `dataset[0]`."""

    unit = "row"

    def __str__(self) -> str:
        return f"{self.path}, row {self.line}"


class SavedPart:
    """One split of a saved dataset.

    Attributes:
        folder: where it lies.
        split: which split it is; None where a column says it row by row.
        files: its data files.
        schema: its columns.
        images: names of its rows' images, None for a row without.
    """

    def __init__(self, folder: Path, split: str | None) -> None:
        """Look at the files. Raises NotFoundError or DataError where they are missing or damaged."""
        state = read_json(folder / _STATE)
        listed = state.get("_data_files") if isinstance(state, dict) else None
        if not isinstance(listed, list) or not all(isinstance(e, dict) and "filename" in e for e in listed):
            raise DataError(f"{folder / _STATE}: '_data_files' must list file names.", hint="save the dataset again")
        if state.get("_indices_data_files"):
            raise DataError(
                f"{folder} keeps the order of its rows in a file of its own, as old versions of datasets did.",
                hint="load it, call flatten_indices(), and save it again",
            )
        self.folder = folder
        self.split = split
        self.files = tuple(folder / str(entry["filename"]) for entry in listed)
        for path in self.files:
            if not path.is_file():
                raise NotFoundError(
                    f"{path} does not exist, which {folder / _STATE} lists.", hint="save the dataset again"
                )
        if not self.files:
            raise DataError(f"{folder} holds no rows.")
        with closing(_Stream(self.files[0])) as stream:
            self.schema: pa.Schema = stream.reader.schema
        self.images: list[str | None] = []

    def feature(self, column: str) -> dict[str, Any]:
        """What `datasets` says about a column beyond its Arrow type, {} where it says nothing."""
        raw = (self.schema.metadata or {}).get(b"huggingface")
        try:
            features = json.loads(raw)["info"]["features"] if raw else {}
        except (ValueError, KeyError, TypeError):
            return {}
        found = features.get(column) if isinstance(features, dict) else None
        return found if isinstance(found, dict) else {}

    def pieces(self, advance: Advance | None = None) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(number of the first row, rows), a few at a time; the files stay on disk."""
        number = 0
        for path in self.files:
            left = path.stat().st_size
            with closing(_Stream(path)) as stream:
                for batch in stream.batches():
                    for start in range(0, len(batch), _ROWS):
                        piece = batch.slice(start, _ROWS)
                        yield number, piece
                        number += len(piece)
                    read = min(left, batch.nbytes)
                    left -= read
                    if advance is not None:
                        advance(read)
            if advance is not None:
                advance(left)

    def rows(self, advance: Advance, keys: Sequence[str] = ()) -> Iterator[tuple[LinePlace, Row]]:
        """The rows as lines; what is null is left out, as is a label of -1, which means none."""
        columns = [name for name in self.schema.names if name in keys and name != "image"]
        for first, piece in self.pieces(advance):
            values = {name: piece.column(name).to_pylist() for name in columns}
            for place in range(len(piece)):
                row = {name: value for name in columns if (value := _plain(values[name][place])) is not None}
                if row.get("label") == -1:
                    del row["label"]
                image = self.images[first + place]
                if image is not None:
                    row["image"] = image
                yield RowPlace(self.folder, first + place), row

    def is_hidden(self, key: str) -> bool:
        """Whether no row has a value in the column that holds the right answers."""
        if key not in self.schema.names:
            return True
        return all(value in (None, -1) for _, piece in self.pieces() for value in piece.column(key).to_pylist())


class _Stream:
    """An Arrow stream in a file, memory-mapped; damage is a DataError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = pa.memory_map(str(path))
        try:
            self.reader = pa.ipc.open_stream(self._map)
        except (pa.ArrowException, OSError) as error:
            self._map.close()
            raise self._damaged(error) from None

    def batches(self) -> Iterator[pa.RecordBatch]:
        while True:
            try:
                batch = self.reader.read_next_batch()
            except StopIteration:
                return
            except (pa.ArrowException, OSError) as error:
                raise self._damaged(error) from None
            yield batch

    def close(self) -> None:
        self._map.close()

    def _damaged(self, error: Exception) -> DataError:
        return DataError(f"{self.path} is damaged ({str(error).splitlines()[0]}).", hint="save the dataset again")


class SavedDataset:
    """A saved Dataset or DatasetDict, its splits and its images.

    Args:
        root: the folder.
        kind: of the task, if the user said so.
        images: folder of images that rows name by path.

    Attributes:
        parts: its splits.
        labels: the classes, where the column is a ClassLabel and the task is a classification.
        exported: names of images that come as bytes.
        notes: what the user should know.
    """

    def __init__(self, root: Path, kind: str | None, images: Path | None) -> None:
        """Look at all splits. Raises NotFoundError or DataError for missing or damaged files and missing columns."""
        self.root = root
        self.notes: list[str] = []
        self.parts = _parts(root)
        self.labels: tuple[str, ...] | None = None
        self._digests: dict[str, str] = {}
        self._keys: tuple[str, ...] = ()
        self._images = images
        known = task_kind(kind) if kind is not None else None
        if known is None:  # the import ends with a message about the kind
            return
        self._keys = keys_of(known)
        for part in self.parts:
            _check_columns(part, known)
            self._name_images(part)
        self._say_what_is_not_read()
        self._hide("answers" if known == "vqa" else "label")
        if known == "classification":
            self._take_labels()

    @staticmethod
    def is_at(root: Path) -> bool:
        """Whether a folder is a saved Dataset or DatasetDict."""
        return (root / _DICT).is_file() or (root / _STATE).is_file()

    @property
    def exported(self) -> frozenset[str]:
        """Names of images that come as bytes."""
        return frozenset(self._digests)

    def reader_of(self, part: SavedPart) -> Callable[[Advance], Iterator[tuple[LinePlace, Row]]]:
        """What reads the rows of a split as lines."""
        return lambda advance: part.rows(advance, self._keys)

    def image_files(self, root: Path, export_root: Path | None = None) -> ImageFiles:
        """Where the images lie: `root` for those named by path, `export_root` for the others."""
        return ImageFiles(root, exported=self.exported, export_root=export_root or root)

    def export(self, folder: Path) -> Path:
        """Write the images that come as bytes into a folder below `folder`, each once, and return it."""
        home = folder / _FOLDER
        home.mkdir()
        left = set(self._digests)
        for part in self.parts:
            for first, piece in part.pieces():
                column = piece.column("image")
                for place in range(len(piece)):
                    name = part.images[first + place]
                    if name in left:
                        left.discard(name)
                        data, _ = _image(column[place])
                        assert data is not None
                        (home / name).write_bytes(data)
        return home

    def _name_images(self, part: SavedPart) -> None:
        for first, piece in part.pieces():
            column = piece.column("image")
            for place in range(len(piece)):
                data, path = _image(column[place])
                if data is None or (path and self._is_there(path)):
                    part.images.append(path)
                else:
                    part.images.append(self._export_name(data, path, RowPlace(part.folder, first + place)))

    def _is_there(self, path: str) -> bool:
        if self._images is not None:
            return archives.exists(self._images / path)
        return path.startswith("/") and Path(path).is_file()

    def _export_name(self, data: pa.Buffer, path: str | None, place: RowPlace) -> str:
        """The name of the file that an image gets: its own, unless another image has that already."""
        digest = hashlib.sha256(data).hexdigest()
        start = bytes(data.slice(0, min(12, data.size)))
        extension = next((found for magic, found in _MAGIC if start.startswith(magic)), None)
        if start[:4] == b"RIFF" and start[8:] == b"WEBP":
            extension = ".webp"
        if extension is None:
            place.fail("'image' holds bytes that are no PNG, JPEG, WebP, GIF, BMP or TIFF file")
        own = PurePosixPath(path.replace("\\", "/")) if path else PurePosixPath()
        stem, suffix = own.stem.lstrip(".").replace("\0", ""), own.suffix or extension
        name = f"{stem}{suffix}" if stem else f"{digest[:20]}{extension}"
        if self._digests.setdefault(name, digest) != digest:
            name = f"{stem}-{digest[:12]}{suffix}"
            self._digests[name] = digest
        return name

    def _say_what_is_not_read(self) -> None:
        names = dict.fromkeys(name for part in self.parts for name in part.schema.names)
        others = [name for name in names if name not in self._keys]
        if others:
            self.notes.append(f"columns that are not read: {', '.join(others)}")

    def _hide(self, key: str) -> None:
        """A test split without labels is one to answer, not to score; this is how hubs publish hidden test sets."""
        for part in self.parts:
            if part.split not in (None, "train", "dev", HIDDEN) and part.is_hidden(key):
                if any(other.split == HIDDEN for other in self.parts):
                    continue
                self.notes.append(f"no row of {part.split} has a '{key}', so it is the split {HIDDEN}")
                part.split = HIDDEN

    def _take_labels(self) -> None:
        for part in self.parts:
            names = part.feature("label").get("names")
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                continue
            labels = tuple(name.strip() for name in names)
            if self.labels is not None and labels != self.labels:
                raise DataError(f"The splits of {self.root} have different classes.", hint="save them as one dataset")
            check_labels(labels, LinePlace(part.folder))
            self.labels = labels


def _parts(root: Path) -> list[SavedPart]:
    if not (root / _DICT).is_file():
        name = str(read_json(root / _STATE).get("_split") or "train")
        # "train[:10%]" is what load_dataset calls a slice
        part = SavedPart(root, known_split(name.partition("[")[0]) or "train")
        if "split" in part.schema.names:
            part.split = None
        return [part]
    content = read_json(root / _DICT)
    names = content.get("splits") if isinstance(content, dict) else None
    if not isinstance(names, list) or not names:
        raise DataError(f"{root / _DICT}: 'splits' must list the splits.", hint="save the dataset again")
    parts: dict[str, SavedPart] = {}
    for name in map(str, names):
        split = known_split(name)
        if split is None:
            raise DataError(
                f"{root / _DICT}: madkit has no split {name!r}.",
                hint="name the splits train, validation, test, test-SOMETHING or submission, and save the dataset "
                "again: DatasetDict({'train': ..., 'test': ...})",
            )
        if split in parts:
            raise DataError(f"{root / _DICT}: {name!r} is a second split {split}.", hint="remove one of them")
        parts[split] = SavedPart(root / name, split)
    return list(parts.values())


def _check_columns(part: SavedPart, kind: str) -> None:
    names = part.schema.names
    needed = {"image": ("image",), "text, question, sentence or context": (*TEXT_KEYS, "context")}
    if kind == "multiple-choice":
        needed["choices"] = ("choices",)
    for what, columns in needed.items():
        if not any(column in names for column in columns):
            raise DataError(
                f"{part.folder} has no column {what}; its columns are {', '.join(names)}.",
                hint="rename the one that is meant, and save again: dataset.rename_column(OLD, NEW)",
            )
    kind_of_image = part.schema.field("image").type
    if not (_is_bytes(kind_of_image) or _is_string(kind_of_image) or _is_struct(kind_of_image)):
        raise DataError(
            f"{part.folder}: the column image holds {kind_of_image}, neither images nor file names.",
            hint="cast it and save again: dataset.cast_column('image', datasets.Image())",
        )


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_struct(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind)) and {"bytes", "path"} <= {field.name for field in kind}


def _image(value: pa.Scalar) -> tuple[pa.Buffer | None, str | None]:
    """(bytes, path) of an image, without a copy of the bytes."""
    if not value.is_valid:
        return None, None
    if _is_string(value.type):
        return None, value.as_py()
    if _is_bytes(value.type):
        return value.as_buffer(), None
    data, path = value["bytes"], value["path"]
    return (data.as_buffer() if data.is_valid else None), (path.as_py() or None)


def _plain(value: Any) -> Any:
    """A value as JSON would have it: structs lose what is null, a struct of lists of answers is the list."""
    if isinstance(value, dict):
        if isinstance(value.get("answer"), list):
            return value["answer"]
        return {key: inner for key, inner in value.items() if inner is not None}
    if isinstance(value, list) and value and all(isinstance(entry, tuple) for entry in value):
        return dict(value)  # Arrow's maps
    return value
