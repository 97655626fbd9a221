"""e-SNLI-VE: SNLI-VE's pairs with corrected labels, as CSV (e-ViL's) or as the older TSV.

The CSV names its columns: a row number without a name, `pairID`, `Flickr30kID` (with ".jpg"), `hypothesis`,
`gold_label`, `explanation`. The TSV has nine columns that are told by their place: label, premise tokens, hypothesis
tokens, image, premise, hypothesis, pairID, explanation, explanation tokens; with a header, except in the second half
of a train file that was cut in two.

Explanations are not read: they say what the label is. Both kinds are quoted as spreadsheets do it, so that a field may
hold line breaks.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from madkit.core.archives import open_binary
from madkit.tasks.example import Example
from madkit.tasks.formats.snli_ve import (
    Pair,
    examples_of,
    hypothesis_of,
    label_index,
    plain_image_id,
    refuse_utf16,
    why_left_out,
)
from madkit.tasks.formats.source_lines import Advance, Place, UniqueIds, many_small_objects, need_string
from madkit.tasks.spec import SNLI_VE_LABELS

CSV_COLUMNS: tuple[str, ...] = ("pairID", "Flickr30kID", "hypothesis", "gold_label")
TSV_COLUMNS: tuple[str, ...] = (
    "gold_label",
    "premise tokens",
    "hypothesis tokens",
    "Flickr30kID",
    "premise",
    "hypothesis",
    "pairID",
    "explanation",
    "explanation tokens",
)


def iter_e_snli_ve(
    annotations: Path,
    images: Path,
    *,
    extension: str = ".jpg",
    counts: MutableMapping[str, int] | None = None,
    advance: Advance | None = None,
) -> Iterator[Example]:
    """Read an e-SNLI-VE file, CSV or TSV (told by its first line); arguments and errors as for `iter_snli_ve`.

    Every pair must have a label.
    """
    return examples_of(iter_pairs(annotations, counts=counts, advance=advance), images, extension=extension)


@many_small_objects()
def read_e_snli_ve(
    annotations: Path, images: Path, *, extension: str = ".jpg", counts: MutableMapping[str, int] | None = None
) -> list[Example]:
    """The pairs of `iter_e_snli_ve` as a list."""
    return list(iter_e_snli_ve(annotations, images, extension=extension, counts=counts))


def iter_pairs(
    path: Path, *, counts: MutableMapping[str, int] | None = None, advance: Advance | None = None
) -> Iterator[Pair]:
    """The pairs of a file in either layout; arguments and errors as for `iter_e_snli_ve`."""
    ids = UniqueIds("pairID")
    for place, row in _rows(path, advance):
        pair_id = need_string(row, "pairID", place).strip()
        ids.add(pair_id, place)
        row["gold_label"] = row["gold_label"].strip()
        left_out = why_left_out(pair_id, row["gold_label"])
        if left_out:
            if counts is not None:
                counts[left_out] = counts.get(left_out, 0) + 1
            continue
        yield Pair(
            pair_id,
            plain_image_id(need_string(row, "Flickr30kID", place)),
            hypothesis_of(row, "hypothesis", place),
            label_index(row, "gold_label", place, labelled=True),
        )


def _rows(path: Path, advance: Advance | None) -> Iterator[tuple[Place, dict[str, str]]]:
    """Every row as (place of its first line, column -> field)."""
    with open_binary(path) as stream:
        first = stream.readline(1 << 16)
    refuse_utf16(first, path)
    tabs = b"\t" in first
    lines = _Lines(path, advance)
    reader = csv.reader(lines, delimiter="\t" if tabs else ",", strict=True)
    columns: tuple[str, ...] = TSV_COLUMNS if tabs else ()
    start, empty = 1, True
    while True:
        place = Place(path, start)
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            place.fail(_csv_problem(error))
        start = reader.line_num + 1
        if not fields or (tabs and place.line == 1 and _is_header(fields)):
            continue
        if not columns:
            columns = _header(fields, place)
            continue
        if len(fields) != len(columns):
            cut = ", so the file is truncated" if lines.cut and len(fields) < len(columns) else ""
            place.fail(f"{len(columns)} columns are needed, found {len(fields)}{cut}")
        empty = False
        yield place, dict(zip(columns, fields, strict=True))
    if empty:
        Place(path).fail("the file holds no pairs")


class _Lines:
    """The decoded lines of a file; `cut` tells whether the last one handed out had no line break."""

    def __init__(self, path: Path, advance: Advance | None) -> None:
        self.cut = False
        self._path = path
        self._advance = advance

    def __iter__(self) -> Iterator[str]:
        with open_binary(self._path) as stream:
            for number, raw in enumerate(stream, 1):
                if self._advance is not None:
                    self._advance(len(raw))
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    Place(self._path, number).fail(
                        f"byte {error.start + 1} of the line is not UTF-8 text",
                        hint=f"convert {self._path.name} to UTF-8",
                    )
                self.cut = not text.endswith(("\n", "\r"))
                yield text


def _header(fields: list[str], place: Place) -> tuple[str, ...]:
    columns = tuple(field.strip() for field in fields)
    missing = [name for name in CSV_COLUMNS if name not in columns]
    if missing:
        shown = ", ".join(repr(name) for name in columns[:12])
        place.fail(
            f"the column{'s' if len(missing) > 1 else ''} {', '.join(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} missing, the header has {shown}",
            hint="use esnlive_train.csv, esnlive_dev.csv, esnlive_test.csv as their owners distribute them",
        )
    twice = next((name for name in CSV_COLUMNS if columns.count(name) > 1), None)
    if twice is not None:
        place.fail(f"the column {twice} stands in the header twice")
    return columns


def _is_header(fields: list[str]) -> bool:
    """Whether the first row of a TSV names columns: no label stands in its first field."""
    return fields[0].strip() not in SNLI_VE_LABELS and not fields[0].strip().isdecimal()


def _csv_problem(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end of data" in text or "field larger" in text:
        return "a quotation mark that opens here is never closed, so the file is truncated or damaged"
    if "new-line character" in text:
        return "a carriage return stands outside quotation marks"
    if "NUL" in text:
        return "the row holds a NUL byte"
    return f"the row is not valid CSV ({text})"
