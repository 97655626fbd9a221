"""Which region-feature files belong to a data set, and one reader over all of them under the data set's image ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.core.errors import DataError
from madkit.core.files import read_json, write_json_atomic
from madkit.tasks.data import REGIONS

if TYPE_CHECKING:
    from madkit.regions import RegionReader


def open_region_files(
    folder: Path, manifest: Mapping[str, Any], images: Callable[[], Mapping[str, str]]
) -> RegionReader | None:
    """The reader of a data set's region features, None where it has none.

    Features come with the data (the manifest's key `regions`: a file under the data's own image ids) or were added
    later (`regions.json` in the folder: one or several files in their owners' layouts and under their owners' names).

    Raises NotFoundError for a file that is gone, DataError for damaged ones.
    """
    from madkit.regions import open_regions

    listed = folder / REGIONS
    if listed.is_file():
        return _open_parts(folder, _parts(listed), images())
    own = manifest.get("regions")
    if own is None:
        return None
    if not (isinstance(own, dict) and {"format", "path"} <= own.keys()):
        raise DataError(f"{folder / 'manifest.json'}: 'regions' needs 'format' and 'path'.")
    return open_regions(str(own["format"]), folder / str(own["path"]))


def _parts(path: Path) -> list[dict[str, Any]]:
    content = read_json(path)
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, list) or not all(isinstance(p, dict) and {"format", "path"} <= p.keys() for p in parts):
        raise DataError(f"{path}: 'parts' must list entries with 'format' and 'path'.", hint="add the regions again")
    return parts


def _open_parts(folder: Path, parts: list[dict[str, Any]], images: Mapping[str, str]) -> RegionReader:
    from madkit.regions import NamedRegions, match_images, open_regions

    readers = [open_regions(p["format"], folder / p["path"], **p.get("options", {})) for p in parts]
    keys, _ = match_images(readers, images)
    concat = any(p.get("role") == "ground-truth" for p in parts)
    reader: RegionReader = NamedRegions(readers, keys, mode="concat" if concat else "first")
    return reader


def list_region_files(folder: Path) -> list[dict[str, Any]]:
    """The entries that were added to a data set."""
    path = folder / REGIONS
    return _parts(path) if path.is_file() else []


def write_region_files(folder: Path, parts: list[dict[str, Any]]) -> None:
    """Keep the entries of a data set's region files: format, path, options, role."""
    write_json_atomic(folder / REGIONS, {"parts": parts})
