"""Finished units that wait to be written, kept so that a kill does not cost them.

A shard counts as done when it is synced and journalled, and the next one is computed meanwhile. So that no more than
the one being computed is lost, a unit's arrays go into a file of the store as soon as they are complete, without a
sync: what a killed process has written stays in the system's memory. A power cut may leave anything of it; therefore
the file names the boot of the machine that wrote it, counts in that boot alone, and goes when the unit is in the
journal. It names what it is a unit of, too: under other items or shard sizes a unit of the same number has other rows.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from madkit.cache.plan import PARTS, Part

_PREFIX, _SUFFIX, _ABOUT = ".kept-", ".npz", "about"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class KeptUnit:
    """The arguments of :meth:`madkit.cache.writer.StoreWriter.write_unit`."""

    part: Part
    unit: int
    arrays: Mapping[str, npt.NDArray[Any]]
    absent: Mapping[int, str]


def keep_unit(folder: Path, of: str, kept: KeptUnit) -> None:
    """Keep a finished unit of a plan (its :func:`~madkit.cache.plan.layout_digest`) until :func:`forget_unit`.

    Where the disk is full, or the system does not tell its boots apart (it does on Linux), nothing is kept: then a kill
    costs the unit, and nothing else.
    """
    boot = _boot()
    if boot is None:
        return
    about = {"boot": boot, "of": of, "absent": {str(row): error for row, error in kept.absent.items()}}
    arrays: dict[str, Any] = {_ABOUT: np.array(json.dumps(about)), **kept.arrays}
    path = _path(folder, kept.part, kept.unit)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)


def kept_units(folder: Path, of: str) -> Iterator[KeptUnit]:
    """Yield the units of a plan that an ended process of this boot has kept; what else is kept is removed."""
    boot = _boot()
    for path in sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}")):
        kept = None if boot is None else _read(path, boot, of)
        if kept is None:
            path.unlink(missing_ok=True)
        else:
            yield kept


def forget_unit(folder: Path, part: Part, unit: int) -> None:
    """Remove what was kept of a unit."""
    _path(folder, part, unit).unlink(missing_ok=True)


def _read(path: Path, boot: str, of: str) -> KeptUnit | None:
    part, _, unit = path.name.removeprefix(_PREFIX).removesuffix(_SUFFIX).rpartition("-")
    if not unit.isdigit():
        return None
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:  # a zip: CRC-32 of every array
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays.pop(_ABOUT)))
        if (about["boot"], about["of"]) != (boot, of):
            return None
        absent = {int(row): str(error) for row, error in about["absent"].items()}
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile):
        return None
    return next((KeptUnit(known, int(unit), arrays, absent) for known in PARTS if known == part), None)


def _path(folder: Path, part: Part, unit: int) -> Path:
    return folder / f"{_PREFIX}{part}-{unit}{_SUFFIX}"


def _boot() -> str | None:
    try:
        return _BOOT.read_text(encoding="ascii").strip() or None
    except OSError:
        return None
