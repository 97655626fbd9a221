"""Relevant tokens as a picture: the image under a heat map of its patches, the text with its words marked."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from madkit.core import archives
from madkit.core.errors import DataError
from madkit.look.relevance import Relevance

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

WIDTH = 560  # pixels of one panel
_TALLEST = 560
_MARGIN, _LINE, _FONT, _SMALL = 14, 24, 16, 13
_INK, _FAINT, _PAPER = (27, 31, 36), (102, 112, 124), (255, 255, 255)
_COLD, _HOT = (255, 255, 255), (244, 128, 36)  # of a word's background
_FRAME = (255, 255, 255), (200, 30, 40)  # chosen patches: seen on dark and on light pictures


def draw_relevance(path: Path, found: Sequence[Relevance], *, teacher: str) -> Image.Image:
    """Draw one panel for each text, side by side, on one page.

    Args:
        path: the image file.
        found: relevance of the same image to one text each.
        teacher: the teacher's name, for the legend.

    Raises:
        DataError: the image cannot be read.
    """
    from PIL import Image

    image = _open(path)
    panels = [_panel(image, relevance, teacher) for relevance in found]
    gap = 16
    page = Image.new(
        "RGB",
        (len(panels) * WIDTH + gap * (len(panels) - 1), max(panel.height for panel in panels)),
        _PAPER,
    )
    for number, panel in enumerate(panels):
        page.paste(panel, (number * (WIDTH + gap), 0))
    return page


def _open(path: Path) -> Image.Image:
    from PIL import Image

    try:
        with Image.open(BytesIO(archives.read_bytes(path))) as opened:
            return opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
        raise DataError(f"The image {path} cannot be read ({error or type(error).__name__}).") from None


def _panel(image: Image.Image, found: Relevance, teacher: str) -> Image.Image:
    from PIL import Image, ImageDraw, ImageFont

    scale = min(WIDTH / image.width, _TALLEST / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    picture = _heated(image.resize(size), found)
    body, small = ImageFont.load_default(_FONT), ImageFont.load_default(_SMALL)
    words = _wrapped(found, body)
    legend = _legend(found, teacher)
    tall = picture.height + 2 * _MARGIN + _LINE * (1 + max(line for *_, line in words)) + 18 * len(legend) + 6
    page = Image.new("RGB", (WIDTH, tall), _PAPER)
    left = (WIDTH - picture.width) // 2
    page.paste(picture, (left, 0))
    draw = ImageDraw.Draw(page)
    _frames(draw, found, left, size)
    top = picture.height + _MARGIN
    heat = _heat(found.words)
    for x, text, token, line in words:
        y = top + line * _LINE
        if token >= 0:
            right = x + draw.textlength(text, font=body)
            draw.rectangle((x, y, right, y + _LINE - 4), fill=_mixed(heat[token]))
            if found.chosen_words[token]:
                draw.line((x, y + _LINE - 3, right, y + _LINE - 3), fill=_FRAME[1], width=2)
        draw.text((x, y + 1), text, fill=_INK, font=body)
    top += _LINE * (1 + max(line for *_, line in words)) + 6
    for row, text in enumerate(legend):
        draw.text((_MARGIN, top + 18 * row), text, fill=_FAINT, font=small)
    return page


def _legend(found: Relevance, teacher: str) -> list[str]:
    known = found.patches[~np.isnan(found.patches)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    against = "cosine to the sentence's vector" if found.shared else "cosine to the image's own vector"
    word = "to the image's vector" if found.shared else "to the sentence's own vector"
    name = found.image_id if len(found.image_id) <= 40 else "..." + found.image_id[-37:]
    return [
        f"{teacher}, image {name}",
        f"patches: {against}, {low:.3f} to {high:.3f}; {int(found.chosen_patches.sum())} kept (framed)",
        f"words: {word}, {_span(found.words)}; {int(found.chosen_words.sum())} kept (underlined)",
    ]


def _span(values: npt.NDArray[np.float32]) -> str:
    return f"{float(values.min()):.3f} to {float(values.max()):.3f}" if len(values) else "none"


def _heat(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Stretch values to 0..1; what is not known stays NaN."""
    known = values[~np.isnan(values)]
    if not len(known) or float(known.max()) == float(known.min()):
        return np.where(np.isnan(values), np.nan, 0.5).astype(np.float32)
    low, high = float(known.min()), float(known.max())
    stretched: npt.NDArray[np.float32] = ((values - low) / (high - low)).astype(np.float32)
    return stretched


def _heated(picture: Image.Image, found: Relevance) -> Image.Image:
    """Lay the heat of the patches over a picture; what no patch covers is greyed."""
    from PIL import Image

    pixels = np.asarray(picture, dtype=np.float32)
    heat = _heat(found.patches).reshape(found.grid)
    rows = _cells(picture.height, found.view[1], found.view[3], found.grid[0])
    columns = _cells(picture.width, found.view[0], found.view[2], found.grid[1])
    of_pixel = heat[np.maximum(rows, 0)[:, None], np.maximum(columns, 0)[None, :]]
    outside = (rows < 0)[:, None] | (columns < 0)[None, :] | np.isnan(of_pixel)
    strength = np.where(outside, 0.0, of_pixel)[..., None]
    dark = pixels * 0.45
    lit = dark + (pixels - dark) * strength + np.array(_HOT, dtype=np.float32) * 0.35 * strength
    grey = pixels.mean(-1, keepdims=True) * 0.25 + 160
    mixed = np.where(outside[..., None], grey, lit)
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def _cells(length: int, low: float, high: float, cells: int) -> npt.NDArray[np.int64]:
    """Return the cell of every pixel along one side; -1 outside the view."""
    place = (np.arange(length) + 0.5) / length
    cell = np.floor((place - low) / max(high - low, 1e-9) * cells).astype(np.int64)
    return np.where((cell >= 0) & (cell < cells), cell, -1)


def _frames(draw: ImageDraw.ImageDraw, found: Relevance, left: int, size: tuple[int, int]) -> None:
    x1, y1, x2, y2 = found.view
    for patch in np.flatnonzero(found.chosen_patches).tolist():
        row, column = divmod(patch, found.grid[1])
        box = [
            left + (x1 + (x2 - x1) * column / found.grid[1]) * size[0],
            (y1 + (y2 - y1) * row / found.grid[0]) * size[1],
            left + (x1 + (x2 - x1) * (column + 1) / found.grid[1]) * size[0] - 1,
            (y1 + (y2 - y1) * (row + 1) / found.grid[0]) * size[1] - 1,
        ]
        draw.rectangle(box, outline=_FRAME[0], width=3)
        draw.rectangle([box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1], outline=_FRAME[1], width=1)


def _mixed(share: float) -> tuple[int, int, int]:
    share = 0.0 if np.isnan(share) else float(share)
    red, green, blue = (round(cold + (hot - cold) * 0.8 * share) for cold, hot in zip(_COLD, _HOT, strict=True))
    return red, green, blue


def _wrapped(found: Relevance, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[tuple[float, str, int, int]]:
    """Place the pieces of the text: (x, piece, token or -1, line), broken where a piece would leave the panel."""
    pieces: list[tuple[str, int]] = []
    at = 0
    for token, (start, end) in enumerate(found.spans.tolist()):
        start = max(start, at)
        if start > at:
            pieces.append((found.text[at:start], -1))
        if end > start:
            pieces.append((found.text[start:end], token))
        at = max(at, end)
    if at < len(found.text):
        pieces.append((found.text[at:], -1))
    placed: list[tuple[float, str, int, int]] = []
    x, line = float(_MARGIN), 0
    for piece, token in pieces:
        for part in [piece] if token >= 0 else piece.splitlines() or [piece]:
            wide = font.getlength(part)
            if x + wide > WIDTH - _MARGIN and x > _MARGIN:
                x, line = float(_MARGIN), line + 1
                part = part.lstrip() if token < 0 else part
                wide = font.getlength(part)
            placed.append((x, part, token, line))
            x += wide
    return placed or [(float(_MARGIN), "", -1, 0)]
