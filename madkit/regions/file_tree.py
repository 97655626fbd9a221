"""Folders of one file per image, listed once."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from madkit.core.archives import list_files
from madkit.core.errors import DataError, NotFoundError


def list_tree(root: Path, suffix: str) -> list[str]:
    """Paths below `root` (with "/", sorted) of all files that end in `suffix`; hidden files and folders are left out.

    `root` may be a zip. Raises NotFoundError where there is no such folder, DataError where it is another file.
    """
    if not root.is_dir():
        if root.suffix.lower() == ".zip" and root.is_file():
            names = (path.relative_to(root).as_posix() for path in list_files(root))
            return sorted(name for name in names if name.endswith(suffix))
        if root.exists():
            raise DataError(f"{root} is a file; this layout is a folder of '*{suffix}' files.")
        raise NotFoundError(f"The folder {root} does not exist.")
    found: list[str] = []
    todo = [""]
    while todo:
        folder = todo.pop()
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    todo.append(f"{folder}{entry.name}/")
                elif entry.name.endswith(suffix):
                    found.append(f"{folder}{entry.name}")
    return sorted(found)


def path_below(root: Path, name: str) -> Path:
    """The file of an image whose id becomes a file name. Raises DataError for an id that would leave the folder."""
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\0" in name or name.endswith("/"):
        raise DataError(
            f"The image id {name!r} cannot be a file name below {root}.",
            hint="convert to butd-hdf5 or lxmert-tsv, which take any id",
        )
    return root / pure
