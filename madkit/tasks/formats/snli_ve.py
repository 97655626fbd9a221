"""SNLI-VE: one JSONL line per pair of image and hypothesis, or a JSON list of (image, sentence, label).

JSONL is what the owners' generator writes, and SNLI's own files have the same keys. The image id stands under one of
three keys, with or without extension, depending on which tool wrote the file; where none is present (SNLI) it is taken
from `captionID` ("2248275918.jpg#2"). An optional `form` (madkit's own data has it) becomes the example's.

The list, ``[{"image": "2248275918", "sentence": "A toddler sleeps.", "label": "contradiction"}, ...]``, is ALBEF's and
LAVIS's. It has no pairIDs, so a pair is named after its image and its place among the image's pairs: "2248275918#0".

Labels are read by name only: of the code bases around this task, some number contradiction 0 and some entailment.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from madkit.core.archives import open_binary
from madkit.tasks.example import Example, ImageRef, Segment
from madkit.tasks.formats.json_stream import JsonList
from madkit.tasks.formats.source_lines import (
    Advance,
    Place,
    UniqueIds,
    check_files,
    iter_json_lines,
    kind_of,
    many_small_objects,
    need_string,
)
from madkit.tasks.spec import SNLI_VE_LABELS

IMAGE_KEYS: tuple[str, ...] = ("Flickr30K_ID", "Flickr30kID", "Flikr30kID")
NO_GOLD = "no-gold-label"
VISUAL_GENOME = "visual-genome"

_EXTENSION = re.compile(r"\.(?:jpe?g|png)$", re.IGNORECASE)
_LABEL_INDEX = {name: index for index, name in enumerate(SNLI_VE_LABELS)}
_NAMES = ", ".join(SNLI_VE_LABELS)


@dataclass(frozen=True, slots=True)
class Pair:
    """One pair as its file has it: `label` is an index into SNLI_VE_LABELS, None where the file has no label."""

    id: str
    image: str
    hypothesis: str
    label: int | None
    form: str = ""


def iter_snli_ve(
    annotations: Path,
    images: Path,
    *,
    extension: str = ".jpg",
    counts: MutableMapping[str, int] | None = None,
    labelled: bool = False,
    advance: Advance | None = None,
) -> Iterator[Example]:
    """Read an SNLI-VE split: context is the hypothesis (`sentence2`), label an index into SNLI_VE_LABELS.

    The premise (`sentence1`, the image's caption) is not read: it is no input of the task. Pairs without an agreed
    label (`gold_label` "-") and pairs of Visual Genome images (`pairID` "vg_...", not part of the benchmark) are left
    out; their numbers are added to `counts` under "no-gold-label" and "visual-genome".

    Args:
        annotations: the file, JSONL or a JSON list; may lie in a zip.
        images: folder of the photos, "<image id><extension>"; may be a zip or lie in one.
        extension: of the image files.
        counts: receives what was left out.
        labelled: whether a pair without `gold_label` is an error; otherwise its label is None.
        advance: receives the number of bytes read.

    Raises:
        NotFoundError: the file does not exist.
        DataError: a line or entry that breaks the format; file, line and key are named.
    """
    pairs = iter_pairs(annotations, counts=counts, labelled=labelled, advance=advance)
    return examples_of(pairs, images, extension=extension)


@many_small_objects()
def read_snli_ve(
    annotations: Path,
    images: Path,
    *,
    extension: str = ".jpg",
    check_images: bool = False,
    counts: MutableMapping[str, int] | None = None,
    labelled: bool = False,
) -> list[Example]:
    """The pairs of `iter_snli_ve` as a list; `check_images` looks for every image file (DataError)."""
    examples = list(iter_snli_ve(annotations, images, extension=extension, counts=counts, labelled=labelled))
    if check_images:
        place = Place(annotations)
        check_files({example.image.path: place for example in examples}, "images")
    return examples


def examples_of(pairs: Iterable[Pair], images: Path, *, extension: str = ".jpg") -> Iterator[Example]:
    """Pairs as examples; those of one image share its ImageRef."""
    references: dict[str, ImageRef] = {}
    for pair in pairs:
        image = references.get(pair.image)
        if image is None:
            image = references[pair.image] = ImageRef(pair.image, images / f"{pair.image}{extension}")
        yield Example(
            id=pair.id,
            task="snli-ve",
            question_id=pair.id,
            image=image,
            context=(Segment(pair.hypothesis),),
            label=pair.label,
            form=pair.form,
        )


def iter_pairs(
    annotations: Path,
    *,
    counts: MutableMapping[str, int] | None = None,
    labelled: bool = False,
    advance: Advance | None = None,
) -> Iterator[Pair]:
    """The pairs of a file in either layout; arguments and errors as for `iter_snli_ve`."""
    if _starts_a_list(annotations):
        return _list_entries(annotations, labelled=labelled, advance=advance)
    return _lines(annotations, counts=counts, labelled=labelled, advance=advance)


def _lines(
    path: Path, *, counts: MutableMapping[str, int] | None, labelled: bool, advance: Advance | None
) -> Iterator[Pair]:
    ids = UniqueIds("pairID")
    for place, row in iter_json_lines(path, advance, whole=True):
        pair_id = need_string(row, "pairID", place)
        ids.add(pair_id, place)
        left_out = why_left_out(pair_id, row.get("gold_label"))
        if left_out:
            if counts is not None:
                counts[left_out] = counts.get(left_out, 0) + 1
            continue
        label = label_index(row, "gold_label", place, labelled=labelled)
        hypothesis = hypothesis_of(row, "sentence2", place)
        form = row.get("form", "")
        if not isinstance(form, str):
            place.fail(f"'form' must be a string, found {kind_of(form)}")
        yield Pair(pair_id, _image_id(row, place), hypothesis, label, form)


def _list_entries(path: Path, *, labelled: bool, advance: Advance | None) -> Iterator[Pair]:
    seen: Counter[str] = Counter()
    for number, row in enumerate(JsonList(path, "pairs", advance=advance)):
        place = Place(path, extra=f"pairs[{number}]")
        if not isinstance(row, dict):
            place.fail(f"an object is needed, found {kind_of(row)}")
        image = plain_image_id(need_string(row, "image", place))
        hypothesis = hypothesis_of(row, "sentence", place)
        yield Pair(f"{image}#{seen[image]}", image, hypothesis, label_index(row, "label", place, labelled=labelled))
        seen[image] += 1
    if not seen:
        Place(path).fail("the list is empty")


def why_left_out(pair_id: str, gold: object) -> str:
    """Why a pair of SNLI is no pair of SNLI-VE (the key of a count), "" for one that is."""
    if gold == "-":
        return NO_GOLD
    return VISUAL_GENOME if pair_id.startswith("vg_") else ""


def label_index(row: Mapping[str, Any], key: str, place: Place, *, labelled: bool) -> int | None:
    """The index of the label named by row[key]; None where there is none and `labelled` is False (else DataError)."""
    gold = row.get(key)
    if gold is None:
        if labelled:
            place.fail(f"the key '{key}' is missing" if key not in row else f"'{key}' is null")
        return None
    index = _LABEL_INDEX.get(gold) if isinstance(gold, str) else None
    if index is None:
        _refuse_label(gold, key, place)
    return index


def _refuse_label(gold: object, key: str, place: Place) -> NoReturn:
    if isinstance(gold, int | float) or (isinstance(gold, str) and gold.strip().lstrip("+-").isdecimal()):
        place.fail(
            f"'{key}' is the number {gold}, and numbers are refused because code bases order the three labels "
            "differently",
            hint=f"write the label's name: {_NAMES}",
        )
    place.fail(f"'{key}' must be one of {_NAMES} or -, found {gold!r}")


def hypothesis_of(row: Mapping[str, Any], key: str, place: Place) -> str:
    """The hypothesis under row[key] without white space around it. Raises DataError for an empty one."""
    hypothesis = need_string(row, key, place).strip()
    if not hypothesis:
        place.fail(f"'{key}' is empty")
    return hypothesis


def plain_image_id(name: str) -> str:
    """A Flickr30k image id without folders, caption number and extension."""
    return _EXTENSION.sub("", name.split("#")[0].rpartition("/")[2].strip())


def _image_id(row: Mapping[str, Any], place: Place) -> str:
    for key in IMAGE_KEYS:
        value = row.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and value:
            return plain_image_id(value)
    caption = row.get("captionID")
    if not isinstance(caption, str) or not caption:
        place.fail(f"no image id: none of the keys {', '.join(IMAGE_KEYS)}, captionID holds one")
    return plain_image_id(caption)


def _starts_a_list(path: Path) -> bool:
    """Whether the text starts with "["; raises DataError for UTF-16, whose bytes would only give riddles later."""
    with open_binary(path) as stream:
        start = stream.read(256)
    refuse_utf16(start, path)
    return start.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def refuse_utf16(start: bytes, path: Path) -> None:
    """Raise DataError where the first bytes of a file are those of UTF-16 text."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\x00" in start:
        Place(path).fail("the file is UTF-16 text (or no text at all)", hint=f"convert {path.name} to UTF-8")
