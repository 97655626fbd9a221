"""A task of one's own, from pictures and a JSONL file to a table of results, in about a minute on a CPU.

    python examples/custom_task.py --out my-first-task

Draws pictures of coloured shapes, writes statements about them in the format of docs/custom.md (with boxes, and words
that are linked to them), and then runs the commands that anybody would run on their own data. Everything lands in the
folder `--out`; a second run finds finished steps finished.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

COLOURS = {"red": (205, 45, 40), "green": (40, 150, 60), "blue": (40, 70, 200), "yellow": (235, 205, 50)}
SHAPES = ("circle", "square", "triangle")
WIDTH, HEIGHT = 96, 64


def draw_shape(draw: ImageDraw.ImageDraw, shape: str, colour: str, box: tuple[int, int, int, int]) -> None:
    """Fill a box with a shape."""
    x1, y1, x2, y2 = box
    paint = COLOURS[colour]
    if shape == "circle":
        draw.ellipse((x1, y1, x2 - 1, y2 - 1), fill=paint)
    elif shape == "square":
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=paint)
    else:
        draw.polygon([((x1 + x2) // 2, y1), (x2 - 1, y2 - 1), (x1, y2 - 1)], fill=paint)


def picture(number: int, folder: Path) -> list[dict[str, Any]]:
    """Draw two shapes side by side and say something about each, true or not: two lines of the JSONL file."""
    random_ = random.Random(number)
    grey = random_.randint(215, 245)
    image = Image.new("RGB", (WIDTH, HEIGHT), (grey, grey, grey))
    draw = ImageDraw.Draw(image)
    shapes, colours, boxes = random_.sample(SHAPES, 2), random_.choices(list(COLOURS), k=2), []
    for side, (shape, colour) in enumerate(zip(shapes, colours, strict=True)):
        size = random_.randint(22, 36)
        x, y = side * WIDTH // 2 + random_.randint(2, 46 - size), random_.randint(2, HEIGHT - size - 2)
        boxes.append((x, y, x + size, y + size))
        draw_shape(draw, shape, colour, boxes[-1])
    name = f"{number:04d}.png"
    image.save(folder / name)
    lines = []
    for side, shape in enumerate(shapes):
        said = colours[side] if random_.random() < 0.5 else random_.choice([c for c in COLOURS if c != colours[side]])
        lines.append(
            {
                "id": f"{number:04d}-{side}",
                "split": "test" if number % 4 == 0 else "train",
                "image": name,
                "width": WIDTH,
                "height": HEIGHT,
                "boxes": boxes,
                "objects": shapes,
                # "[the circle](1)" links words to the first box; "[](1)" would take its name from "objects"
                "sentence": f"[The {shape}]({side + 1}) is {said}.",
                "label": "right" if said == colours[side] else "wrong",
                "form": shape,
            }
        )
    return lines


def madkit(*words: str) -> None:
    """Run a command and show it."""
    print(f"\n$ madkit {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "madkit", *words], check=True)


def main() -> None:
    """Draw, write, import, extract, distil, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("my-first-task"), help="folder for everything")
    parser.add_argument("--pictures", type=int, default=240)
    parser.add_argument("--shots", default="50")
    parser.add_argument("--steps", default="60")
    args = parser.parse_args()

    images = args.out / "pictures"
    images.mkdir(parents=True, exist_ok=True)
    lines = [line for number in range(args.pictures) for line in picture(number, images)]
    statements = args.out / "shapes.jsonl"
    statements.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    print(f"{len(lines)} statements about {args.pictures} pictures in {statements}, such as\n{json.dumps(lines[0])}")

    workspace = ("--workspace", str(args.out / "workspace"))
    own = ("--kind", "classification", "--images", str(images))
    madkit("data", "import", "custom", str(statements), *own, *workspace)
    madkit("data", "regions", "make", "shapes", *workspace)
    madkit("extract", "--teacher", "mini", "--task", "shapes", *workspace)
    run = ("--task", "shapes", "--student", "mini-uniter", "--shots", args.shots, "--steps", args.steps)
    run += ("--set", "optim.batch_size=16", "--threads", "1")  # such small steps gain nothing from a second thread
    for arm in ("finetune", "mad"):
        madkit("distill", "--arm", arm, *run, *workspace)
    madkit("evaluate", *workspace)


if __name__ == "__main__":
    main()
