"""SNLI-VE: one JSONL line per pair of image and hypothesis.

The image id stands under one of three keys, with or without extension, depending on which tool wrote the file; where
none is present it is taken from `captionID` ("2248275918.jpg#2"). An optional `form` (madkit's own data has it)
becomes the example's.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from pathlib import Path

from madkit.tasks.example import Example, ImageRef, Segment
from madkit.tasks.formats.source_lines import (
    Place,
    Row,
    UniqueIds,
    check_files,
    iter_json_lines,
    kind_of,
    many_small_objects,
    need_string,
)
from madkit.tasks.spec import SNLI_VE_LABELS

IMAGE_KEYS: tuple[str, ...] = ("Flickr30K_ID", "Flickr30kID", "Flikr30kID")

_EXTENSION = re.compile(r"\.(?:jpe?g|png)$", re.IGNORECASE)
_LABEL_INDEX = {name: index for index, name in enumerate(SNLI_VE_LABELS)}


@many_small_objects()
def read_snli_ve(
    annotations: Path,
    images: Path,
    *,
    extension: str = ".jpg",
    check_images: bool = False,
    counts: MutableMapping[str, int] | None = None,
) -> list[Example]:
    """Read an SNLI-VE split: context is the hypothesis (`sentence2`), label an index into SNLI_VE_LABELS.

    The premise (`sentence1`, the image's caption) is not read: it is no input of the task. Pairs without an agreed
    label (`gold_label` "-") and pairs of Visual Genome images (`pairID` "vg_...", not part of the benchmark) are left
    out; their numbers are added to `counts` under "no-gold-label" and "visual-genome".

    Args:
        annotations: the JSONL file.
        images: folder of the photos, "<image id><extension>".
        extension: of the image files.
        check_images: whether to look for every image file.
        counts: receives what was left out.

    Raises:
        NotFoundError: the JSONL file does not exist.
        DataError: a line that breaks the format; file, line and key are named.
    """
    examples: list[Example] = []
    ids = UniqueIds("pairID")
    references: dict[str, ImageRef] = {}
    image_files: dict[Path, Place] = {}
    for place, row in iter_json_lines(annotations):
        pair = need_string(row, "pairID", place)
        ids.add(pair, place)
        gold = row.get("gold_label")
        if gold == "-" or pair.startswith("vg_"):
            reason = "no-gold-label" if gold == "-" else "visual-genome"
            if counts is not None:
                counts[reason] = counts.get(reason, 0) + 1
            continue
        if gold is not None and gold not in SNLI_VE_LABELS:
            place.fail(f"'gold_label' must be one of {', '.join(SNLI_VE_LABELS)} or -, found {gold!r}")
        hypothesis = need_string(row, "sentence2", place).strip()
        if not hypothesis:
            place.fail("'sentence2' is empty")
        form = row.get("form", "")
        if not isinstance(form, str):
            place.fail(f"'form' must be a string, found {kind_of(form)}")
        image_id = _image_id(row, place)
        image = references.get(image_id)
        if image is None:
            image = references[image_id] = ImageRef(image_id, images / f"{image_id}{extension}")
            image_files[image.path] = place
        examples.append(
            Example(
                id=pair,
                task="snli-ve",
                question_id=pair,
                image=image,
                context=(Segment(hypothesis),),
                label=None if gold is None else _LABEL_INDEX[gold],
                form=form,
            )
        )
    if check_images:
        check_files(image_files, "images")
    return examples


def _image_id(row: Row, place: Place) -> str:
    for key in IMAGE_KEYS:
        value = row.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and value:
            return _EXTENSION.sub("", value)
    caption = row.get("captionID")
    if not isinstance(caption, str) or not caption:
        place.fail(f"no image id: none of the keys {', '.join(IMAGE_KEYS)}, captionID holds one")
    return _EXTENSION.sub("", caption.split("#")[0])
