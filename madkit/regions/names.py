"""Region files under a data set's own image ids, whatever their makers called the images.

COCO's image 9 is "9", "COCO_train2014_000000000009" or "coco_train2014_000000000009.npz", depending on who ran the
detector. A data set knows its images by id and by file name; from both follow the names under which a file can have
them. All keys of a file are listed once and looked up in memory, so that 120,000 images take seconds in a slow store.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.core.registry import suggest
from madkit.regions.interface import RegionReader, Regions

Places = tuple[tuple[int, str], ...]  # (number of the part, key in it)
Key = str | Places
Mode = Literal["first", "concat"]

_ENDINGS = frozenset(("npz", "npy", "json", "jpg", "jpeg", "png"))
_COCO = re.compile(r"coco_((?:train|val|test)20\d\d)_0*(\d+)", re.ASCII)
_NUMBERED = ("coco_train2014_", "coco_val2014_", "coco_test2015_", "flickr30k_")
_VCR_FRAME = re.compile(r"@\d+$")
_VCR_FOLDER = "vcr1images/"
_NAMED = 5  # in a message


def candidate_keys(image_id: str, image_file: str) -> tuple[str, ...]:
    """The names under which region files may have an image, the data set's own first, without repetitions.

    Args:
        image_id: the data set's id: "458752", "1016887272", "lsmdc_x/y@0.jpg".
        image_file: the image's file name, or its path below the folder of the images.

    Upper and lower case, and the endings .npz, .npy, .json, .jpg, .jpeg and .png, do not matter in `match_images`; of
    those variants only what UNITER's files have (`.npz`) stands here.
    """
    bare = _bare_names(image_id, image_file)
    return tuple(dict.fromkeys((image_id, image_file, *bare, *(f"{name}.npz" for name in bare))))


def _bare_names(image_id: str, image_file: str) -> list[str]:
    """Names without ending, in lower case."""
    own, path = _bare(image_id), _bare(image_file)
    stem = path.rpartition("/")[2]
    names = {own: None, path: None, stem: None}
    names.pop("", None)
    coco = False
    for name in (stem, own):  # a file name that says the part of COCO settles it for the id
        match = _COCO.fullmatch(name) if name.startswith("coco_") else None
        if match is not None:
            coco = True
            number = match[2]
            padded = number.zfill(12)
            names[f"coco_{match[1]}_{padded}"] = None
        elif name.isdecimal() and name.isascii() and len(name) <= 12:
            number = name.lstrip("0") or "0"
            padded = number.zfill(12)
            if not coco:
                for prefix in _NUMBERED:
                    names[prefix + padded] = None
                names[f"flickr30k_{number}"] = None
        else:
            continue
        names[number] = names[padded] = None
    if _VCR_FRAME.search(stem):
        names[f"{_VCR_FOLDER}{path.removeprefix(_VCR_FOLDER)}"] = None
        for kind in ("vcr", "vcr_gt"):
            names[f"{kind}_{stem}"] = None
            for split in ("train", "val", "test"):
                names[f"{kind}_{split}_{stem}"] = None
    return list(names)


def _bare(name: str) -> str:
    """A name in lower case without the endings of images and of their records (".jpg.npz" is both)."""
    name = name.casefold()
    for _ in range(2):
        front, _, ending = name.rpartition(".")
        if ending not in _ENDINGS:
            break
        name = front
    return name


class _Keys:
    """The keys of one part, by exact name and by bare name."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.exact = frozenset(keys)
        self._bare: dict[str, list[str]] = {}
        for key in self.exact:
            name = _bare(key)
            self._bare.setdefault(name, []).append(key)
            _, found, behind = name.rpartition(_VCR_FOLDER)
            if found and name != f"{_VCR_FOLDER}{behind}":  # an absolute path of the machine that ran the detector
                self._bare.setdefault(f"{_VCR_FOLDER}{behind}", []).append(key)

    def matching(self, names: Sequence[str]) -> list[str]:
        """The keys that have one of these bare names."""
        bare = self._bare
        found = {key for name in names if name in bare for key in bare[name]}
        return sorted(found)


def match_images(
    parts: Sequence[RegionReader], images: Mapping[str, str], *, mode: Mode = "first"
) -> tuple[dict[str, Key], list[str]]:
    """Find the images of a data set in region files.

    Args:
        parts: the open files.
        images: file name (or path below the image folder) by image id.
        mode: "first": an image must be in one part; "concat": it must be in as many as the other images are, as
            ground-truth and detected boxes that lie in two files are.

    Returns:
        What `NamedRegions` wants to know (the key, or where an image is in several parts, all places), and the ids of
        the images that are missing.

    Raises:
        DataError: a part has several keys that fit one image, or one key that fits several images; it names them.
    """
    found: dict[str, list[tuple[int, str]]] = {image_id: [] for image_id in images}
    names: dict[str, list[str]] = {}  # of images that no part has under the data set's own name
    listed = [_Keys(part.ids()) for part in parts]
    for number, keys in enumerate(listed):
        several: list[str] = []
        owner: dict[str, str] = {}
        for image_id, file in images.items():
            own = image_id if image_id in keys.exact else file if file in keys.exact else None
            if own is None:
                forms = names.get(image_id)
                if forms is None:
                    forms = names[image_id] = _bare_names(image_id, file)
                matching = keys.matching(forms)
            else:
                matching = [own]
            if len(matching) > 1:
                several.append(f"image {image_id!r} fits {_few(matching)}")
            elif matching:
                other = owner.setdefault(matching[0], image_id)
                if other != image_id and images[other] != file:
                    several.append(f"the images {other!r} and {image_id!r} both fit {matching[0]!r}")
                found[image_id].append((number, matching[0]))
        if several:
            raise DataError(
                f"Part {number + 1} of the region files does not say clearly which record is whose "
                f"({len(several):,} cases): {'; '.join(several[:_NAMED])}.",
                hint="rename the records after the images, or give files that hold one kind of boxes each",
            )
    needed = max(map(len, found.values()), default=1) if mode == "concat" else 1
    missing = [image_id for image_id, places in found.items() if len(places) < max(1, needed)]
    left_out = frozenset(missing)
    return {
        image_id: _shortest(places, listed) for image_id, places in found.items() if image_id not in left_out
    }, missing


def _shortest(places: list[tuple[int, str]], listed: Sequence[_Keys]) -> Key:
    """The key alone where it says enough."""
    key = places[0][1]
    if len(places) == 1 and sum(key in keys.exact for keys in listed) == 1:
        return key
    return tuple(places)


def _few(names: Sequence[str]) -> str:
    shown = " and ".join(repr(name) for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


class NamedRegions(RegionReader):
    """Several readers as one, under a data set's image ids. Safe for threads as far as its parts are."""

    def __init__(
        self,
        parts: Sequence[RegionReader],
        key_of: Mapping[str, Key],
        *,
        mode: Mode = "first",
        hint: str | None = None,
    ) -> None:
        """Join readers.

        Args:
            parts: the readers; with "concat", ground truth first. They are closed with this one.
            key_of: what `match_images` found: by image id a key, or (number of the part, key) pairs.
            mode: "first": an image's regions come from the first part that has it. "concat": those of all parts that
                have it one after another, as UNITER does on VCR with ground-truth and detected boxes.
            hint: what to do about an image that no part has.

        Raises:
            UsageProblem: no parts, an unknown mode, a place in a part that is not there.
            DataError: the parts have features of different lengths.
        """
        if not parts:
            raise UsageProblem("There are no region files to read.")
        if mode not in ("first", "concat"):
            raise UsageProblem(f"Region files are joined by 'first' or 'concat', not by {mode!r}.")
        dims = [part.dim for part in parts]
        if len(set(dims)) != 1:
            raise DataError(f"The region files have features of different lengths: {', '.join(map(str, dims))}.")
        self._parts = list(parts)
        self._mode = mode
        self._hint = hint or "add a file with this image's regions to the data set, or leave the image out"
        self._places: dict[str, Places] = {}
        known = [frozenset(part.ids()) for part in parts] if any(isinstance(k, str) for k in key_of.values()) else []
        for image_id, key in key_of.items():
            places = (
                tuple((number, key) for number, keys in enumerate(known) if key in keys)
                if isinstance(key, str)
                else tuple((number, name) for number, name in key)
            )
            if any(not 0 <= number < len(parts) for number, _ in places):
                raise UsageProblem(f"The image {image_id!r} is said to lie in a part that is not there.")
            self._places[image_id] = places if mode == "concat" else places[:1]

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return self._parts[0].dim

    def ids(self) -> Sequence[str]:
        """The data set's ids of the images."""
        return list(self._places)

    def get(self, image_id: str) -> Regions:
        """The regions of an image (NotFoundError for one that no part has)."""
        return self.get_many([image_id])[0]

    def get_many(self, image_ids: Sequence[str]) -> list[Regions]:
        """The regions of many images, in their order; every part is asked once."""
        wanted: dict[int, dict[str, None]] = {}
        for image_id in image_ids:
            for number, key in self._places_of(image_id):
                wanted.setdefault(number, {})[key] = None
        got = {
            (number, key): regions
            for number, keys in wanted.items()
            for key, regions in zip(keys, self._parts[number].get_many(list(keys)), strict=True)
        }
        return [joined([got[place] for place in self._places[image_id]], f"image {image_id}") for image_id in image_ids]

    def close(self) -> None:
        """Close all parts; a later `get` opens them again."""
        for part in self._parts:
            part.close()

    def _places_of(self, image_id: str) -> Places:
        places = self._places.get(image_id, ())
        if not places:
            near = suggest(image_id, list(self._places)[:2000])
            raise NotFoundError(
                f"The region files have no image {image_id!r}.{near}",
                hint=self._hint,
            )
        return places


def joined(regions: Sequence[Regions], where: str) -> Regions:
    """The boxes of several records of one image, one after another.

    Confidences remain where all records have them. Raises DataError where the records say different image sizes.
    """
    if len(regions) == 1:
        return regions[0]
    sizes = {part.size for part in regions if part.size is not None}
    if len(sizes) > 1:
        raise DataError(f"{where}: the region files say different image sizes: {sorted(sizes)}.")
    confidences = [part.confidence for part in regions if part.confidence is not None]
    return Regions(
        np.concatenate([part.boxes for part in regions]),
        np.concatenate([part.features for part in regions]),
        np.concatenate(confidences) if len(confidences) == len(regions) else None,
        next(iter(sizes), None),
    )
