"""Render the glyph atlas of the embedded benchmark from the DejaVu Sans font.

    python examples/render_mini_atlas.py --font DejaVuSans.ttf

The atlas is shipped (`madkit/tasks/mini/atlas.png`), so nobody needs to run this: font rasterisers differ between
machines, the shipped pixels do not. DejaVu fonts 2.37, https://dejavu-fonts.github.io (free licence, embedding
allowed).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from madkit.tasks.mini.atlas import COLUMNS, TILE
from madkit.tasks.mini.concepts import concepts

MARGIN = 1


def tile(glyph: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One glyph's coverage, its ink scaled to fill a TILE x TILE square and centred. Mode L."""
    left, top, right, bottom = font.getbbox(glyph)
    canvas = Image.new("L", (int(right - left) + 8, int(bottom - top) + 8), 0)
    ImageDraw.Draw(canvas).text((4 - left, 4 - top), glyph, fill=255, font=font)
    ink = canvas.crop(canvas.getbbox())
    scale = (TILE - 2 * MARGIN) / max(ink.size)
    size = (max(1, round(ink.width * scale)), max(1, round(ink.height * scale)))
    result = Image.new("L", (TILE, TILE), 0)
    result.paste(ink.resize(size, Image.Resampling.LANCZOS), ((TILE - size[0]) // 2, (TILE - size[1]) // 2))
    return result


def main() -> None:
    """Write the atlas."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--font", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("madkit/tasks/mini/atlas.png"))
    args = parser.parse_args()
    font = ImageFont.truetype(str(args.font), 160)
    rows = -(-len(concepts()) // COLUMNS)
    atlas = Image.new("L", (COLUMNS * TILE, rows * TILE), 0)
    for concept in concepts():
        row, column = divmod(concept.index, COLUMNS)
        atlas.paste(tile(concept.glyph, font), (column * TILE, row * TILE))
    atlas.save(args.out, optimize=True)
    print(f"{args.out}: {len(concepts())} glyphs, {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
