"""Where COCO's images of a split lie: one folder or zip for each of train2014, val2014 and test2015."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from madkit.core.errors import NotFoundError
from madkit.tasks.formats.json_stream import JsonList
from madkit.tasks.formats.vqa import COCO_PATTERN
from madkit.tasks.importing.found import FoundFiles

# How many images of each part are looked for: with missing images the first one need not be there.
_LOOKED_AT = 20


def first_images(questions: Path, subset: str | None, *, parts: int = 1) -> dict[str, list[str]]:
    """File names of the first images that a questions file is about, by part of COCO.

    The part is `subset`, else each question's `coco_split`; the file is read until `parts` of them have names enough.
    Entries that break the format are passed over: reading the file will tell.
    """
    names: dict[str, dict[str, None]] = {}
    for row in JsonList(questions, "questions"):
        part, image = _part_and_image(row, subset)
        if part is None:
            continue
        known = names.setdefault(part, {})
        if len(known) < _LOOKED_AT:
            known[image] = None
        if len(names) >= parts and all(len(found) >= _LOOKED_AT for found in names.values()):
            break
    return {part: list(found) for part, found in names.items()}


def _part_and_image(row: Any, subset: str | None) -> tuple[str | None, str]:
    if not isinstance(row, dict):
        return None, ""
    if isinstance(row.get("img_id"), str):  # LXMERT's entries
        name = row["img_id"]
        pieces = name.split("_")
        return (pieces[1] if len(pieces) == 3 else None), f"{name}.jpg"
    part, number = subset or row.get("coco_split"), row.get("image_id")
    if not isinstance(part, str) or not isinstance(number, int):
        return None, ""
    return part, COCO_PATTERN.format(subset=part, id=number)


def find_images(files: FoundFiles, names: Mapping[str, list[str]]) -> dict[str, Path | None]:
    """The folder of each part of COCO, None for one of whose images none is there."""
    return {
        part: next((folder for name in wanted if (folder := files.folder_of(name)) is not None), None)
        for part, wanted in names.items()
    }


def need_images(files: FoundFiles, names: Mapping[str, list[str]]) -> dict[str, Path]:
    """As `find_images`, but raises NotFoundError, naming a file and its archive, for a part that is not there."""
    folders: dict[str, Path] = {}
    for part, folder in find_images(files, names).items():
        if folder is None:
            raise NotFoundError(
                f"Nothing below {files.images or files.root} holds the image {names[part][0]}, which the questions "
                "name.",
                hint=f"download {part}.zip from cocodataset.org and give its folder: --images DIR; or go on with "
                "region features alone: --without-images",
            )
        folders[part] = folder
    return folders


def common_folder(folders: Iterable[Path]) -> Path:
    """The folder that holds all of the folders, or the only one."""
    return Path(os.path.commonpath(list(folders)))
