"""An example as a picture: the image with its boxes, and under it the texts with their tags and the right answer."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from madkit.core import archives
from madkit.core.errors import DataError, MadkitError
from madkit.tasks.example import Example, Segment
from madkit.tasks.spec import TaskSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image, ImageDraw, ImageFont

WIDTH = 640  # pixels of a drawn example
_TALLEST = 480
_MARGIN, _LINE, _FONT = 14, 21, 15
# Dark enough for white numbers and for text on white.
_COLOURS = ("#c0392b", "#1f6fb2", "#1e8449", "#8e44ad", "#b9770e", "#117a8b", "#7d3c98", "#5d6d7e")
_INK, _FAINT, _RIGHT = "#1b1f24", "#66707c", "#1e8449"


def draw_example(example: Example, spec: TaskSpec) -> Image.Image:
    """Draw one example, 640 pixels wide.

    Raises DataError where its image cannot be read, or is no copy of a picture of the size that its boxes are meant in.
    """
    from PIL import Image, ImageDraw, ImageFont

    image, boxes = _open(example)
    scale = min(WIDTH / image.width, _TALLEST / image.height)
    picture = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    lines = list(_lines(example, spec))
    font = ImageFont.load_default(_FONT)
    page = Image.new("RGB", (WIDTH, picture.height + 2 * _MARGIN + _LINE * len(lines)), "white")
    page.paste(picture, ((WIDTH - picture.width) // 2, 0))
    draw = ImageDraw.Draw(page)
    left = (WIDTH - picture.width) // 2
    for number, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        colour = _COLOURS[number % len(_COLOURS)]
        corners = [left + x1 * scale, y1 * scale, left + x2 * scale - 1, y2 * scale - 1]
        draw.rectangle(corners, outline=colour, width=2)
        _mark(draw, font, f"{number + 1}", corners[0], corners[1], colour)
    top = picture.height + _MARGIN
    for text, colour in lines:
        draw.text((_MARGIN, top), text, fill=colour, font=font)
        top += _LINE
    return page


def contact_sheet(pictures: Sequence[Image.Image], columns: int = 2) -> Image.Image:
    """Several drawn examples on one page."""
    from PIL import Image

    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    gap = 16
    width = min(columns, len(pictures))
    page = Image.new("RGB", (width * WIDTH + (width - 1) * gap, sum(heights) + gap * (len(rows) - 1)), "#d5d9de")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            cell = Image.new("RGB", (WIDTH, height), "white")
            cell.paste(picture, (0, 0))
            page.paste(cell, (column * (WIDTH + gap), top))
        top += height + gap
    return page


def _open(example: Example) -> tuple[Image.Image, npt.NDArray[np.float64]]:
    from PIL import Image, UnidentifiedImageError

    from madkit.regions.declared import DeclaredBoxes, placed

    path = example.image.path
    try:
        with Image.open(BytesIO(archives.read_bytes(path))) as opened:
            boxes = DeclaredBoxes(example.boxes, (example.width, example.height))
            picture, corners = placed(opened, boxes, str(path))
            return picture.convert("RGB"), corners
    except UnidentifiedImageError:  # whose message shows an object of Python
        raise DataError(f"The image {path} cannot be read (no format that Pillow knows).") from None
    except (MadkitError, MemoryError):
        raise
    except Exception as error:  # decoders raise what they like for damage
        raise DataError(f"The image {path} cannot be read ({error or type(error).__name__}).") from None


def _mark(
    draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str, x: float, y: float, c: str
) -> None:
    box = draw.textbbox((x + 3, y + 1), text, font=font)
    draw.rectangle((x, y, box[2] + 3, box[3] + 2), fill=c)
    draw.text((x + 3, y + 1), text, fill="white", font=font)


def numbered(segment: Segment) -> str:
    """The text with the number of its box behind every tag, as the picture shows it: "person [2] smiles."."""
    parts, last = [], 0
    for tag in sorted(segment.tags, key=lambda tag: tag.start):
        parts += [segment.text[last : tag.end], " [", ", ".join(str(box + 1) for box in tag.boxes), "]"]
        last = tag.end
    return "".join([*parts, segment.text[last:]])


def text_lines(example: Example, spec: TaskSpec) -> list[tuple[str, str]]:
    """(what it is, text) of everything the example says: "id", "text", "choice", "right choice", "label", "answers"."""
    lines = [("id", f"{example.id}, image {example.image.id}")]
    lines += [("text", numbered(segment)) for segment in example.context]
    for number, choice in enumerate(example.candidates):
        lines.append(("right choice" if number == example.label else "choice", f"({number + 1}) {numbered(choice)}"))
    if example.label is not None and spec.labels:
        lines.append(("label", spec.labels[example.label]))
    if example.answers:
        best = sorted(example.answers.items(), key=lambda item: -item[1])[:5]
        lines.append(("answers", ", ".join(f"{answer} ({score:g})" for answer, score in best)))
    return lines


def _lines(example: Example, spec: TaskSpec) -> list[tuple[str, str]]:
    colours = {"id": _FAINT, "right choice": _RIGHT, "label": _RIGHT, "answers": _RIGHT}
    drawn = []
    for what, text in text_lines(example, spec):
        for piece in textwrap.wrap(text, 82, subsequent_indent="    ") or [""]:
            drawn.append((piece, colours.get(what, _INK)))
    return drawn
