"""Which region-feature files belong to a data set, and one reader over all of them under the data set's image ids."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from madkit.core.console import warn
from madkit.core.errors import DataError, UsageProblem
from madkit.core.files import FileLock, digest_of, read_json, write_json_atomic
from madkit.core.folders import plain_path
from madkit.core.registry import suggest
from madkit.core.seeds import permutation
from madkit.tasks.data import REGIONS, SUITES, TaskData

if TYPE_CHECKING:
    from madkit.regions import RegionReader

PIXELS = "regions-pixels.h5"
GROUND_TRUTH = "ground-truth"
_SHOWN = 5
_SAMPLED = 16  # images whose features stand for all


def open_region_files(
    folder: Path,
    manifest: Mapping[str, Any],
    images: Callable[[], Mapping[str, str]],
    *,
    hint: str | None = None,
    indexes: Path | None = None,
) -> RegionReader | None:
    """The reader of a data set's region features, None where it has none.

    Features come with the data (the manifest's key `regions`: a file under the data's own image ids) or were added
    later (`regions.json` in the folder: one or several files in their owners' layouts and under their owners' names).
    `hint` is what to do about an image that these lack, `indexes` where indexes go that cannot lie beside the files.

    Raises NotFoundError for a file that is gone, DataError for damaged ones and for those that have been written anew
    since they were added and hold something else.
    """
    from madkit.regions import open_regions

    listed = folder / REGIONS
    if listed.is_file():
        parts = _parts(listed)
        reader = _open_parts(folder, parts, images(), hint, indexes)[0]
        _check_unchanged(folder, parts, reader, hint)
        return reader
    own = manifest.get("regions")
    if own is None:
        return None
    if not (isinstance(own, dict) and {"format", "path"} <= own.keys()):
        raise DataError(f"{folder / 'manifest.json'}: 'regions' needs 'format' and 'path'.")
    return open_regions(str(own["format"]), folder / str(own["path"]), index_folder=indexes)


def added_digest(folder: Path) -> str | None:
    """What the region features that were added to a data set are known by, None where none were added."""
    path = folder / REGIONS
    content = read_json(path) if path.is_file() else {}
    digest = content.get("digest") if isinstance(content, dict) else None
    return str(digest) if digest else None


def share_region_files(data: TaskData, folder: Path) -> None:
    """Give a data set that is made beside another one the region features that were added to that one."""
    path = data.root / REGIONS
    if not path.is_file():
        return
    beside = Path("..") / data.root.name
    parts = [
        {**part, "path": str(part["path"] if Path(part["path"]).is_absolute() else beside / part["path"])}
        for part in _parts(path)
    ]
    write_json_atomic(folder / REGIONS, {"parts": parts, "digest": added_digest(data.root)})


def _parts(path: Path) -> list[dict[str, Any]]:
    content = read_json(path)
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, list) or not all(isinstance(p, dict) and {"format", "path"} <= p.keys() for p in parts):
        raise DataError(f"{path}: 'parts' must list entries with 'format' and 'path'.", hint="add the regions again")
    return parts


def _open_parts(
    folder: Path,
    parts: Sequence[Mapping[str, Any]],
    images: Mapping[str, str],
    hint: str | None = None,
    indexes: Path | None = None,
) -> tuple[RegionReader, list[str]]:
    """One reader over the parts, and the ids of the images that none of them has.

    Features of the annotated boxes come first and the detector's behind them, as UNITER reads VCR; otherwise each image
    is in one part.
    """
    from madkit.regions import NamedRegions, match_images, open_regions

    def reader_of(chosen: Sequence[Mapping[str, Any]]) -> tuple[RegionReader, list[str]]:
        readers = [
            open_regions(p["format"], folder / p["path"], index_folder=indexes, **p.get("options", {})) for p in chosen
        ]
        keys, missing = match_images(readers, images)
        return NamedRegions(readers, keys, hint=hint), missing

    annotated = [part for part in parts if part.get("role") == GROUND_TRUTH]
    detected = [part for part in parts if part.get("role") != GROUND_TRUTH]
    if not annotated or not detected:
        return reader_of(parts)
    first, missing_first = reader_of(annotated)
    second, missing_second = reader_of(detected)
    ours = {image: image for image in images}
    both: RegionReader = NamedRegions([first, second], ours, mode="concat", hint=hint)
    return both, sorted({*missing_first, *missing_second})


def list_region_files(folder: Path) -> list[dict[str, Any]]:
    """The entries that were added to a data set."""
    path = folder / REGIONS
    return _parts(path) if path.is_file() else []


@dataclass(frozen=True, slots=True)
class Attached:
    """What attaching found: the parts, the width of the features, how many images have some, and some without."""

    parts: list[dict[str, Any]]
    dim: int
    images: int
    covered: int
    without: list[str]
    read: int = 0  # images whose features were looked at


def attach_regions(
    data: TaskData,
    paths: Sequence[Path],
    *,
    format: str | None = None,
    ground_truth: Path | None = None,
    suite: str | None = None,
    options: Mapping[str, Any] | None = None,
    allow_missing: bool = False,
) -> Attached:
    """Say which files hold the region features of a data set; what was said before is replaced.

    Args:
        data: the data set.
        paths: files or folders of any layout; together they hold the images.
        format: their layout, found out by default.
        ground_truth: features of the annotated boxes, which are put before the detected ones.
        suite: an added suite with images of its own, whose features these are.
        options: min_confidence, min_boxes, max_boxes of the detected boxes.
        allow_missing: whether images may be without features.

    Raises:
        UsageProblem: no path, an unknown layout or suite.
        DataError: a layout that cannot be told, images without features (count and the first five).
    """
    from madkit.regions import detect_format

    folder = data.root if suite is None else data.root / SUITES / suite
    if suite is not None:
        _check_suite(data, suite)
    if not paths and ground_truth is None:
        raise UsageProblem("No region features are named.", hint="give their files or folders")
    parts: list[dict[str, Any]] = []
    for path in [*paths, *([ground_truth] if ground_truth else [])]:
        full = plain_path(path)
        annotated = path is ground_truth
        entry: dict[str, Any] = {"format": format or detect_format(full), "path": str(full)}
        if annotated:
            entry["role"] = GROUND_TRUTH
        elif options:
            entry["options"] = dict(options)
        parts.append(entry)
    return _attach(data, folder, suite, parts, allow_missing=allow_missing)


def _check_suite(data: TaskData, suite: str) -> None:
    names = [name for name in data.suites() if "images_of" in data.about(name)]
    if suite not in names:
        why = "has no suite" if suite not in data.suites() else "itself has the images of its suite"
        hint = f"suites with images of their own: {', '.join(names)}" if names else "leave out --suite"
        raise UsageProblem(f"{data.name} {why} {suite!r}.{suggest(suite, names)}", hint=hint)


def _attach(
    data: TaskData, folder: Path, suite: str | None, parts: list[dict[str, Any]], *, allow_missing: bool
) -> Attached:
    images = data.image_files(suite)
    reader, missing = _open_parts(folder, parts, images, indexes=data.region_indexes)
    if len(missing) == len(images) or (missing and not allow_missing):
        shown = ", ".join(missing[:_SHOWN]) + (", and others" if len(missing) > _SHOWN else "")
        files = ", ".join(f"{part['path']} ({part['format']})" for part in parts)
        raise DataError(
            f"{len(missing):,} of {len(images):,} images of {data.name} have no region features in {files}: {shown}.",
            hint="name all files with features (train, validation, test), or add --allow-missing"
            if len(missing) < len(images)
            else "give the file or folder that holds the features of this data set's images",
        )
    covered = sorted(images.keys() - set(missing))
    sample = [covered[place] for place in permutation(len(covered), "regions")[:_SAMPLED].tolist()]
    content = _content(reader, sample)
    # what the features are known by does not depend on where the files lie, nor on when they were written
    digest = digest_of([len(covered), reader.dim, content])
    seen = {"files": _states(folder, parts), "images": sample, "content": content}
    write_json_atomic(folder / REGIONS, {"parts": parts, "digest": digest, "seen": seen})
    return Attached(parts, reader.dim, len(images), len(images) - len(missing), missing[:_SHOWN], len(sample))


def _content(reader: RegionReader, images: Sequence[str]) -> str:
    """A digest of what a few images' features hold, which stand for all: 25 GB of them are not read for a name.

    Raises DataError where one of the few cannot be right.
    """
    found = hashlib.sha256()
    for image, regions in zip(images, reader.get_many(images), strict=True):
        found.update(image.encode())
        for values in (regions.boxes, regions.features):
            found.update(np.ascontiguousarray(values, dtype="<f4").tobytes())
    return found.hexdigest()


def _states(folder: Path, parts: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Size and time of the parts' files, as far as they are files or folders of their own.

    Of a folder also the number, bytes and newest time of the files in it: a file that is written over in its place
    changes nothing of the folder itself.
    """
    states = {}
    for part in parts:
        with suppress(OSError):
            path = folder / part["path"]
            state = path.stat()
            inside = _inside(path) if path.is_dir() else []
            states[str(part["path"])] = [state.st_size, state.st_mtime_ns, *inside]
    return states


def _inside(root: Path) -> list[int]:
    """Number, bytes and newest time (ns) of the files below a folder, but for hidden ones and what readers write."""
    count = size = newest = 0
    todo = [root]
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "lock.mdb":
                    continue
                if entry.is_dir():
                    todo.append(Path(entry.path))
                    continue
                state = entry.stat()
                count, size, newest = count + 1, size + state.st_size, max(newest, state.st_mtime_ns)
    return [count, size, newest]


def _check_unchanged(folder: Path, parts: Sequence[Mapping[str, Any]], reader: RegionReader, hint: str | None) -> None:
    """Raise DataError where a file is not what it was when it was added: runs and results would mix two detectors."""
    seen = read_json(folder / REGIONS).get("seen")
    if not isinstance(seen, dict):  # added by an earlier version, or beside another data set
        return
    now = _states(folder, parts)
    # earlier versions noted nothing of what is in a folder
    changed = [path for path, state in seen["files"].items() if now.get(path, [])[: len(state)] != state]
    if not changed:
        return
    if _content(reader, seen["images"]) != seen["content"]:
        raise DataError(
            f"{changed[0]} has been written since it was added, and the region features in it are others.",
            hint=hint or "add the files again",
        )
    if (folder / changed[0]).is_dir():
        warn(
            f"Files in {changed[0]} have been written since it was added. The features of {len(seen['images'])} images "
            "by lot are as they were; if others are not, add the folder again."
        )


def image_sizes(data: TaskData, reader: RegionReader) -> dict[str, tuple[int, int]]:
    """Width and height in pixels of the images of a region file, under its own keys, read from a data set's images.

    Only the heads of the image files are read. Raises DataError for an image that cannot be read.
    """
    from io import BytesIO

    from PIL import Image

    from madkit.core.archives import read_bytes
    from madkit.regions import match_images

    keys, _ = match_images([reader], data.image_files())
    root = data.image_root()
    sizes: dict[str, tuple[int, int]] = {}
    for image, file in data.image_files().items():
        key = keys.get(image)
        if key is None:
            continue
        path = root / file
        try:
            with Image.open(path if path.is_file() else BytesIO(read_bytes(path))) as opened:
                sizes[key if isinstance(key, str) else key[0][1]] = opened.size
        except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
            raise DataError(f"The image {path} cannot be read ({error or type(error).__name__}).") from None
    return sizes


def make_pixels(
    data: TaskData, *, side: int, grid: int, workers: int, advance: Callable[[int], None] | None = None
) -> Attached:
    """Make pixel features of every image of a data set, from all boxes that its lines name or a grid, and attach them.

    They know nothing of objects; they make a data set without detector features usable, by the embedded student among
    others. Raises DataError for images that cannot be read, or whose shape is not that of the declared size.
    """
    from madkit.regions.declared import DeclaredBoxes, joined
    from madkit.regions.pixels import make_pixel_regions

    seen: dict[str, tuple[Path, DeclaredBoxes | None]] = {}
    for name in [*data.splits(), *data.suites(), *data.submissions()]:
        for example in data.examples(name):
            path, known = seen.get(example.image.id, (example.image.path, None))
            if example.boxes:  # lines about one image may each name a box of their own
                boxes = DeclaredBoxes(example.boxes, (example.width, example.height))
                known = boxes if known is None or known == boxes else joined(known, boxes)
            seen[example.image.id] = (path, known)
    items = [(image, path, boxes) for image, (path, boxes) in seen.items()]
    with FileLock(data.root / f".{PIXELS}.lock", what=f"the pixel features of {data.name}"):
        for left in data.root.glob(f".{PIXELS}.*.tmp"):  # of a killed one; the lock is ours
            left.unlink(missing_ok=True)
        make_pixel_regions(data.root / PIXELS, items, side=side, grid=grid, workers=workers, advance=advance)
    return _attach(data, data.root, None, [{"format": "butd-hdf5", "path": PIXELS}], allow_missing=False)
