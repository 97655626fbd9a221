"""VCR's metadata file of an image: the boxes that tags point to, the class names, width and height."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from madkit.core.archives import exists, read_bytes
from madkit.core.errors import NotFoundError
from madkit.tasks.formats.boxes import Box, BoxError, clean_box
from madkit.tasks.formats.source_lines import Place, kind_of, load_json, need_int, need_list

# How many images' metadata are kept. The questions about an image stand together in VCR's files, so few are needed; a
# shuffled file costs a second reading, not memory for 100,000 images.
_KEPT = 8192

_SEGMENTS = b'"segms"'
_NUMBERS_AND_LISTS = b"0123456789.,+-eE[] \t\r\n"


@dataclass(frozen=True, slots=True)
class Metadata:
    """What one metadata file says: `boxes` are absolute pixel corners inside the image, `names` their class names."""

    boxes: tuple[Box, ...]
    names: tuple[str, ...]
    width: int
    height: int


class MetadataSource(Protocol):
    """Where the reader of lines asks for an image's boxes."""

    @property
    def images(self) -> Path:
        """The folder or zip that file names relate to."""
        ...

    def get(self, name: str, place: Place, image: str = "") -> Metadata | None:
        """The metadata under a file name, for the line at `place` about `image`; None where the image has no boxes."""
        ...


class MetadataFiles:
    """The metadata of a data set's images, read on demand; `images` is what `metadata_fn` and `img_fn` relate to.

    With `required=False` an image without metadata file is one without boxes (None). With `allow_missing_images` that
    holds only where the image itself is missing too, which the caller then deals with.
    """

    def __init__(self, images: Path, *, required: bool = True, allow_missing_images: bool = False) -> None:
        self.images = images
        self.required = required
        self.allow_missing_images = allow_missing_images
        self._kept: dict[str, Metadata | None] = {}

    def get(self, name: str, place: Place, image: str = "") -> Metadata | None:
        """The metadata of a file name, for the line at `place` that speaks about `image`.

        Raises DataError for a file that breaks the format, and for a missing one where metadata is required.
        """
        kept = self._kept
        if name not in kept:
            if len(kept) >= _KEPT:
                for old in list(kept)[: _KEPT // 4]:
                    del kept[old]
            kept[name] = self._read(name, place, image)
        return kept[name]

    def _read(self, name: str, place: Place, image: str) -> Metadata | None:
        try:
            return read_metadata(self.images / name)
        except NotFoundError:
            if self.required and not (self.allow_missing_images and not exists(self.images / image)):
                place.fail(
                    f"the metadata file {self.images / name} does not exist",
                    hint="check the folder of the images; --allow-missing goes on without the boxes",
                )
            return None


def read_metadata(path: Path) -> Metadata:
    """Read one metadata file, inside a zip or not.

    Boxes may have 4 or 5 columns (the fifth is a score); `names` may be absent.

    Raises:
        NotFoundError: there is no such file.
        DataError: it breaks the format, or a box lies outside the image; file and key are named.
    """
    content = _load(path)
    here = Place(path)
    if not isinstance(content, dict):
        here.fail(f"a JSON object is needed, found {kind_of(content)}")
    width, height = need_int(content, "width", here), need_int(content, "height", here)
    if width < 1 or height < 1:
        here.fail(f"'width' and 'height' must be positive, found {width} x {height}")
    boxes: list[Box] = []
    for number, values in enumerate(need_list(content, "boxes", here)):
        try:
            boxes.append(clean_box(values, width, height))
        except BoxError as error:
            here.fail(f"'boxes[{number}]' {error}")
    names = content.get("names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        here.fail("'names' must be a list of class names")
    return Metadata(tuple(boxes), tuple(names), width, height)


def _load(path: Path) -> Any:
    data = read_bytes(path)
    try:
        return json.loads(_without_segments(data))
    except (ValueError, RecursionError):
        return load_json(path)  # says what is wrong, and where


def _without_segments(data: bytes) -> bytes:
    """The same JSON with an empty list for the object outlines, which are most of the file and never read.

    Only a value that is made of numbers and balanced brackets is cut out: it holds no quotation mark, so the next one
    opens the next key. Whatever looks different is left to the JSON parser.
    """
    at = data.find(_SEGMENTS)
    if at < 0 or data.find(_SEGMENTS, at + 1) >= 0:
        return data
    start = data.find(b"[", at)
    if start < 0 or data[at + len(_SEGMENTS) : start].strip() != b":":
        return data
    end = data.find(b'"', start)
    if end < 0:
        end = data.rfind(b"}")
    end = data.rfind(b"]", start, end) + 1
    if end <= start:
        return data
    value = data[start:end]
    if value.translate(None, _NUMBERS_AND_LISTS) or value.count(b"[") != value.count(b"]"):
        return data
    return data[:start] + b"[]" + data[end:]
