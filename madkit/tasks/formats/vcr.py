"""VCR: one JSONL line per question, one metadata JSON with boxes per image; either may lie in a zip.

Field names after the dataset's own files; tolerated besides them: missing `movie`, `match_fold` and `*_sources`,
`*_orig` as token lists (none of these is read), absent labels (test), masked tags (10000 and more, of
shortcut-mitigated sets), boxes of 4 or 5 columns, and GD-VCR's lines, whose rationales repeat the answers. The
example's form is the optional `question_type` (madkit's own data has it), else GD-VCR's `region`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from madkit.tasks.example import Example, ImageRef, Segment
from madkit.tasks.formats.source_lines import (
    Advance,
    Place,
    Row,
    UniqueIds,
    check_files,
    iter_json_lines,
    kind_of,
    many_small_objects,
    need_int,
    need_list,
    need_string,
)
from madkit.tasks.formats.tagged_text import TagError, segment_of
from madkit.tasks.formats.vcr_metadata import Metadata, MetadataFiles, MetadataSource

N_CHOICES = 4


def iter_vcr(
    annotations: Path,
    images: Path,
    *,
    require_metadata: bool = True,
    check_images: bool = False,
    allow_missing_images: bool = False,
    conditioned: bool = False,
    labelled: bool = False,
    advance: Advance | None = None,
) -> Iterator[Example]:
    """Read a VCR split: for every line an Example "<annot_id>/answer" and, behind it, one "<annot_id>/rationale".

    The first asks for the answer to the question (context: question); the second for the rationale of the right answer
    (context: question, right answer). Candidates are the four choices, `label` the right one. Both share
    `question_id`, the annot_id. Boxes are absolute pixel corners, and the tags of the texts point into them.

    A line without `answer_label` (test set) gives an answer example with label None and no rationale example, because
    the rationale is conditioned on the right answer. With `conditioned` every line gives four rationale examples
    instead, "<annot_id>/rationale-a0" to "-a3" (context: question, that answer): what the leaderboard's 16 rationale
    scores are made of. Only the one of the right answer has a label, where the line tells it.

    A line without rationales, or whose rationales repeat its answers (GD-VCR), gives no rationale example either way.

    Args:
        annotations: the JSONL file, on disk or in a zip (`vcr1annots.zip/val.jsonl`).
        images: the folder, on disk or in a zip, that `img_fn` and `metadata_fn` are relative to.
        require_metadata: whether the boxes must be there. If not, an image without metadata file has no boxes, and
            the texts about it carry no tags (the class names stay in the text).
        check_images: whether to look for every image file, at the end.
        allow_missing_images: whether an image that is missing together with its metadata file is one without boxes, for
            callers that deal with missing images themselves. Metadata missing for an image that is there stay an error.
        conditioned: whether to ask for a rationale of every answer.
        labelled: whether the split has labels, so that a line without one is an error.
        advance: receives the bytes of every line that has been read.

    Raises:
        NotFoundError: the JSONL file does not exist.
        DataError: any line or metadata file that breaks the format; file, line and key are named.
    """
    ids = UniqueIds("annot_id")
    metadata = MetadataFiles(images, required=require_metadata, allow_missing_images=allow_missing_images)
    image_files: dict[Path, Place] = {}
    for place, row in iter_json_lines(annotations, advance, whole=True):
        examples = examples_of_row(row, place, metadata, conditioned=conditioned)
        if labelled and any(example.label is None for example in examples):
            key = "answer_label" if examples[0].label is None else "rationale_label"
            place.fail(f"'{key}' is missing, and this split has labels")
        ids.add(examples[0].question_id, place)
        if check_images:
            image_files.setdefault(examples[0].image.path, place)
        yield from examples
    check_files(image_files, "images")


@many_small_objects()
def read_vcr(
    annotations: Path,
    images: Path,
    *,
    require_metadata: bool = True,
    check_images: bool = False,
    conditioned: bool = False,
) -> list[Example]:
    """All of `iter_vcr` as a list."""
    return list(
        iter_vcr(
            annotations,
            images,
            require_metadata=require_metadata,
            check_images=check_images,
            conditioned=conditioned,
        )
    )


def examples_of_row(row: Row, place: Place, metadata: MetadataSource, *, conditioned: bool = False) -> list[Example]:
    """The examples of one line, as `iter_vcr` yields them: the answer example first.

    Rows need not come from a file as they are: shifted suites pass rewritten ones. Raises DataError with `place`.
    """
    annot_id = need_string(row, "annot_id", place)
    objects = need_list(row, "objects", place)
    if not all(isinstance(name, str) and name for name in objects):
        place.fail("'objects' must be a list of class names")
    image_name = _file_name(row, "img_fn", place)
    metadata_name = _file_name(row, "metadata_fn", place)
    about = metadata.get(metadata_name, place, image_name)
    if about is not None:
        _check_objects(objects, about, metadata.images / metadata_name, place)
    image = ImageRef(image_name, metadata.images / image_name)
    return _examples(row, annot_id, objects, image, about, place, conditioned)


def _file_name(row: Row, key: str, place: Place) -> str:
    name = need_string(row, key, place)
    if name.startswith("/") or ".." in name.split("/"):
        place.fail(f"'{key}' must be a path below the folder of the images, found {name[:80]!r}")
    return name


def _examples(
    row: Row,
    annot_id: str,
    objects: list[str],
    image: ImageRef,
    about: Metadata | None,
    place: Place,
    conditioned: bool,
) -> list[Example]:
    tagged = about is not None
    question = _segment(row.get("question"), "question", objects, place, tagged)
    answers = _choices(row, "answer", objects, place, tagged)
    answer_label = _label(row, "answer", place)
    form = _form(row, place)
    boxes, width, height = (about.boxes, about.width, about.height) if about else ((), 0, 0)

    def example(
        name: str, subtask: str, context: tuple[Segment, ...], choices: tuple[Segment, ...], label: int | None
    ) -> Example:
        return Example(
            id=f"{annot_id}/{name}",
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

    made = [example("answer", "answer", (question,), answers, answer_label)]
    if not has_rationales(row):
        return made
    rationales = _choices(row, "rationale", objects, place, tagged)
    rationale_label = _label(row, "rationale", place)
    if conditioned:
        for number, answer in enumerate(answers):
            label = rationale_label if number == answer_label else None
            made.append(example(f"rationale-a{number}", "rationale", (question, answer), rationales, label))
    elif answer_label is not None:
        made.append(example("rationale", "rationale", (question, answers[answer_label]), rationales, rationale_label))
    return made


def has_rationales(row: Mapping[str, Any]) -> bool:
    """Whether a line asks for a rationale at all: it has some, and they do not repeat its answers (GD-VCR)."""
    return row.get("rationale_choices") is not None and row["rationale_choices"] != row.get("answer_choices")


def _form(row: Row, place: Place) -> str:
    for key in ("question_type", "region"):
        value = row.get(key, "")
        if not isinstance(value, str):
            place.fail(f"'{key}' must be a string, found {kind_of(value)}")
        if value:
            return value
    return ""


def _choices(row: Row, part: str, objects: list[str], place: Place, tagged: bool) -> tuple[Segment, ...]:
    key = f"{part}_choices"
    choices = need_list(row, key, place)
    if len(choices) != N_CHOICES:
        hint = (
            "one choice a line is a list of raw questions: give the file with four choices"
            if len(choices) == 1
            else None
        )
        place.fail(f"'{key}' must have {N_CHOICES} entries, found {len(choices)}", hint=hint)
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


def _check_objects(objects: list[str], about: Metadata, path: Path, place: Place) -> None:
    """The line and the metadata must speak of the same boxes, or every tag would point to a wrong one."""
    if len(objects) != len(about.boxes):
        place.fail(f"'objects' has {len(objects)} entries, but {path} has {len(about.boxes)} boxes")
    # Spaces are left out: "dining table" and "diningtable" are both in use.
    if about.names and tuple(objects) != about.names:
        plain = [name.replace(" ", "") for name in objects]
        if plain != [name.replace(" ", "") for name in about.names]:
            place.fail(f"'objects' differs from 'names' in {path}")
