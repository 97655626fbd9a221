"""The files below a folder that the user pointed at, zips looked into."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from madkit.core import archives
from madkit.core.errors import NotFoundError, UsageProblem

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif")
_DEPTH = 6  # how far below the folder image folders are looked for


class FoundFiles:
    """Everything below `root` but images, which are too many to list and are found by name instead.

    Args:
        root: a folder, a zip, or a single file. Raises NotFoundError where it does not exist.
        images: where the images are, if the user said so; nowhere else is looked then.
        without_images: whether a folder that holds no image will do, because none will be opened.
    """

    def __init__(self, root: Path, images: Path | None = None, *, without_images: bool = False) -> None:
        self.root = root
        self.images = images
        self.without_images = without_images
        if not root.exists():
            raise NotFoundError(f"There is nothing at {root}.", hint="give the folder that holds the downloaded files")
        if images is not None and not archives.is_folder(images):
            what = "is neither a folder nor a zip" if images.exists() else "does not exist"
            raise UsageProblem(f"The image folder {images} {what}.", hint="give a folder or a zip: --images DIR")

    @cached_property
    def all(self) -> list[Path]:
        """Files that are no images, by folder and name; members of zips as virtual paths."""
        self._folders: dict[Path, None] = {self.root: None} if self.root.is_dir() else {}
        files = []
        for path in archives.walk(self.root):
            folder = path.parent
            if folder not in self._folders:
                self._add_folders(folder)
            if path.suffix.lower() not in _IMAGES:
                files.append(path)
        return files

    def _add_folders(self, folder: Path) -> None:
        self._folders[folder] = None
        for parent in folder.parents:
            if parent in self._folders or parent == self.root.parent:
                break
            self._folders[parent] = None

    @property
    def folders(self) -> list[Path]:
        """The folders that hold files, directly or below, the nearest to `root` first."""
        _ = self.all
        return sorted(self._folders, key=lambda folder: (len(folder.parts), folder))

    def matching(self, pattern: str) -> list[Path]:
        """Files whose whole name matches a regular expression, in upper or lower case."""
        expression = re.compile(pattern, re.IGNORECASE)
        return [path for path in self.all if expression.fullmatch(path.name)]

    def one(self, pattern: str, what: str) -> Path | None:
        """The file of that name, None where there is none.

        Of copies (the zip beside what was unpacked from it) the unpacked one counts. Raises UsageProblem for several
        that lie in different folders: guessing would read the wrong data.
        """
        found = self.matching(pattern)
        plain = [path for path in found if path.is_file()] or found
        if len(plain) > 1:
            shown = ", ".join(str(path) for path in plain[:4])
            raise UsageProblem(
                f"There are {len(plain)} files that could be {what}: {shown}.",
                hint="give the folder of the one that is meant",
            )
        return plain[0] if plain else None

    def need(self, pattern: str, what: str, hint: str | None = None) -> Path:
        """As `one`, but NotFoundError where there is none."""
        found = self.one(pattern, what)
        if found is None:
            raise NotFoundError(
                f"There is no {what} below {self.root} (a file named like {pattern}).",
                hint=hint or "give the folder that holds the downloaded files",
            )
        return found

    def folder_of(self, relative: str | Path, *, beside: Iterable[Path] = ()) -> Path | None:
        """The folder (or zip, or folder inside one) F for which F/relative exists, None where there is none.

        Looked in: the user's image folder, `beside`, and every folder below `root`, then the same one level deeper.
        """
        places = [] if self.images is None else [self.images, *_below(self.images)]
        if self.images is None:
            places += [*beside, *self.folders]
        searched = self.root if self.images is None else self.images  # which need not have anything in common
        for place in dict.fromkeys(places):
            if len(place.parts) - len(searched.parts) <= _DEPTH and archives.exists(place / relative):
                return place
        return (self.images or self.root) if self.without_images else None


def _below(folder: Path) -> list[Path]:
    """The folders right below a folder; those of a zip's members where it is one."""
    if folder.is_dir():
        return sorted(path for path in folder.iterdir() if path.is_dir())
    found = {path.parent for path in archives.walk(folder)}
    return sorted(found | {parent for path in found for parent in path.parents if folder in parent.parents})
