"""Folders that are either whole or absent: filled beside their place, put there in one step.

A folder cannot be renamed over another one that holds files. Linux exchanges the two in one step; elsewhere the old one
is moved aside first, and comes back when the next writer finds that a kill has left its place empty.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from madkit.core.files import sync_folder

_HERE = -100  # AT_FDCWD: paths are relative to the working folder
_EXCHANGE = 2  # RENAME_EXCHANGE, linux/fs.h


@contextmanager
def replacing(home: Path) -> Iterator[Path]:
    """A new, empty folder that takes the place of `home` when the block ends well; otherwise `home` is as it was.

    The caller holds a lock on `home`: what another writer of it has left half-made is cleared away first.
    """
    home.parent.mkdir(parents=True, exist_ok=True)
    _mend(home)
    folder = home.with_name(f".{home.name}.{uuid.uuid4().hex[:12]}.new")
    folder.mkdir()
    try:
        yield folder
        _put(folder, home)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def visible(folder: Path, pattern: str) -> list[Path]:
    """Sorted paths below a folder that match a glob pattern, without those in folders that are still being made."""
    return sorted(
        path
        for path in folder.glob(pattern)
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def plain_path(path: Path) -> Path:
    """A path that a user typed as one to keep: absolute, without "~" and "..", which may not be there later."""
    return Path(os.path.normpath(path.expanduser().absolute()))  # links stay: what they lead to may move


def _mend(home: Path) -> None:
    """Clear away what killed writers left, after putting back the old folder where its successor never arrived."""
    name = re.compile(rf"\.{re.escape(home.name)}\.[0-9a-f-]+\.(new|old)")
    left = [path for path in home.parent.iterdir() if name.fullmatch(path.name)]
    aside = sorted((path for path in left if path.suffix == ".old"), key=lambda path: path.stat().st_mtime_ns)
    if aside and not home.exists():
        aside[-1].rename(home)
    for path in left:
        shutil.rmtree(path, ignore_errors=True)


def _put(folder: Path, home: Path) -> None:
    if not home.exists():
        folder.rename(home)
    elif not _exchanged(folder, home):
        aside = home.with_name(f".{home.name}.{uuid.uuid4().hex[:12]}.old")
        home.rename(aside)
        folder.rename(home)
        shutil.rmtree(aside, ignore_errors=True)
    sync_folder(home.parent)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether the two could be exchanged in one step; not every system and file system can."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0
