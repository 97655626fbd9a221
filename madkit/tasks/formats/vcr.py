"""VCR: one JSONL line per question, one metadata JSON with boxes per image.

Field names after the dataset's own files; tolerated besides them: missing `movie`, `match_fold` and `*_sources`,
`*_orig` as token lists (none of these is read), absent labels (test), masked tags (10000 and more, of
shortcut-mitigated sets), boxes of 4 or 5 columns, and GD-VCR's lines, whose rationales repeat the answers. An optional
`question_type` (madkit's own data has it) becomes the example's form.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from madkit.core.errors import NotFoundError
from madkit.tasks.example import Example, ImageRef, Segment
from madkit.tasks.formats.boxes import Box, BoxError, clean_box
from madkit.tasks.formats.source_lines import (
    Place,
    Row,
    UniqueIds,
    check_files,
    iter_json_lines,
    kind_of,
    load_json,
    many_small_objects,
    need_int,
    need_list,
    need_string,
)
from madkit.tasks.formats.tagged_text import TagError, segment_of

N_CHOICES = 4


@dataclass(frozen=True, slots=True)
class _Metadata:
    boxes: tuple[Box, ...]
    names: tuple[str, ...]
    width: int
    height: int


@many_small_objects()
def read_vcr(
    annotations: Path, images: Path, *, require_metadata: bool = True, check_images: bool = False
) -> list[Example]:
    """Read a VCR split: for every line an Example "<annot_id>/answer" and, behind it, one "<annot_id>/rationale".

    The first asks for the answer to the question (context: question); the second for the rationale of the right answer
    (context: question, right answer). Candidates are the four choices, `label` the right one. Both share
    `question_id`, the annot_id. Boxes are absolute pixel corners, and the tags of the texts point into them.

    A line without `answer_label` (test set) gives an answer example with label None and no rationale example, because
    the rationale is conditioned on the right answer. The same holds for a line without rationales, or whose
    rationales repeat its answers (GD-VCR).

    Args:
        annotations: the JSONL file.
        images: the folder that `img_fn` and `metadata_fn` are relative to.
        require_metadata: whether the boxes must be there. If not, an image without metadata file has no boxes, and
            the texts about it carry no tags (the class names stay in the text).
        check_images: whether to look for every image file.

    Raises:
        NotFoundError: the JSONL file does not exist.
        DataError: any line or metadata file that breaks the format; file, line and key are named.
    """
    examples: list[Example] = []
    metadata: dict[str, _Metadata | None] = {}
    ids = UniqueIds("annot_id")
    image_files: dict[Path, Place] = {}
    for place, row in iter_json_lines(annotations):
        annot_id = need_string(row, "annot_id", place)
        ids.add(annot_id, place)
        objects = need_list(row, "objects", place)
        if not all(isinstance(name, str) and name for name in objects):
            place.fail("'objects' must be a list of class names")
        image_name = need_string(row, "img_fn", place)
        metadata_name = need_string(row, "metadata_fn", place)
        if metadata_name not in metadata:
            metadata[metadata_name] = _read_metadata(images / metadata_name, place, required=require_metadata)
        about = metadata[metadata_name]
        if about is not None:
            _check_objects(objects, about, images / metadata_name, place)
        path = images / image_name
        if check_images:
            image_files.setdefault(path, place)
        examples.extend(_examples(row, annot_id, objects, ImageRef(image_name, path), about, place))
    check_files(image_files, "images")
    return examples


def _examples(
    row: Row, annot_id: str, objects: list[str], image: ImageRef, about: _Metadata | None, place: Place
) -> list[Example]:
    tagged = about is not None
    question = _segment(row.get("question"), "question", objects, place, tagged)
    answers = _choices(row, "answer", objects, place, tagged)
    answer_label = _label(row, "answer", place)
    form = row.get("question_type", "")
    if not isinstance(form, str):
        place.fail(f"'question_type' must be a string, found {kind_of(form)}")
    boxes, width, height = (about.boxes, about.width, about.height) if about else ((), 0, 0)

    def example(subtask: str, context: tuple[Segment, ...], choices: tuple[Segment, ...], label: int | None) -> Example:
        return Example(
            id=f"{annot_id}/{subtask}",
            task="vcr",
            question_id=annot_id,
            image=image,
            context=context,
            candidates=choices,
            boxes=boxes,
            width=width,
            height=height,
            label=label,
            subtask=subtask,
            form=form,
        )

    made = [example("answer", (question,), answers, answer_label)]
    has_rationales = row.get("rationale_choices") is not None and row["rationale_choices"] != row["answer_choices"]
    if has_rationales:
        rationales = _choices(row, "rationale", objects, place, tagged)
        rationale_label = _label(row, "rationale", place)
        if answer_label is not None:
            made.append(example("rationale", (question, answers[answer_label]), rationales, rationale_label))
    return made


def _choices(row: Row, part: str, objects: list[str], place: Place, tagged: bool) -> tuple[Segment, ...]:
    key = f"{part}_choices"
    choices = need_list(row, key, place)
    if len(choices) != N_CHOICES:
        place.fail(f"'{key}' must have {N_CHOICES} entries, found {len(choices)}")
    return tuple(_segment(tokens, f"{key}[{number}]", objects, place, tagged) for number, tokens in enumerate(choices))


def _label(row: Row, part: str, place: Place) -> int | None:
    key = f"{part}_label"
    if row.get(key) is None:
        return None
    label = need_int(row, key, place)
    if not 0 <= label < N_CHOICES:
        place.fail(f"'{key}' must be 0 to {N_CHOICES - 1}, found {label}")
    return label


def _segment(tokens: Any, key: str, objects: list[str], place: Place, tagged: bool) -> Segment:
    if not isinstance(tokens, list):
        if tokens is None:
            place.fail(f"the key '{key}' is missing")
        place.fail(f"'{key}' must be a list of tokens, found {kind_of(tokens)}")
    try:
        return segment_of(tokens, objects, keep_tags=tagged)
    except TagError as error:
        place.fail(f"'{key}': {error}")


def _read_metadata(path: Path, place: Place, *, required: bool) -> _Metadata | None:
    try:
        content = load_json(path)
    except NotFoundError:
        if required:
            place.fail(f"the metadata file {path} does not exist", hint="check the folder of the images")
        return None
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
    return _Metadata(tuple(boxes), tuple(names), width, height)


def _check_objects(objects: list[str], about: _Metadata, path: Path, place: Place) -> None:
    """The line and the metadata must speak of the same boxes, or every tag would point to a wrong one."""
    if len(objects) != len(about.boxes):
        place.fail(f"'objects' has {len(objects)} entries, but {path} has {len(about.boxes)} boxes")
    # Spaces are left out: "dining table" and "diningtable" are both in use.
    if about.names and tuple(objects) != about.names:
        plain = [name.replace(" ", "") for name in objects]
        if plain != [name.replace(" ", "") for name in about.names]:
            place.fail(f"'objects' differs from 'names' in {path}")
