"""A handful of pictures and texts as a task's data, written as a real SNLI-VE workspace."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from madkit.tasks.formats.snli_ve import iter_snli_ve
from madkit.tasks.importing.plan import ImportPlan, SplitPlan
from madkit.tasks.importing.write import write_dataset

TEXTS = ("A cat is on the house", "two dogs", "It's no red  dog!", "what color is it?", "ÉCOLE of 3 cats", "")


def write_snli_ve(folder: Path, images: int = 10, lines_per_image: int = 3) -> Path:
    """Write imported SNLI-VE data: pictures of odd sizes, and hypotheses that repeat between images."""
    rng = np.random.default_rng(7)
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(images):
        size = (28 + 3 * number, 40)
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{100 + number}.png")
        for line in range(lines_per_image):
            text = f"{TEXTS[(number + line) % 5]} {number * line % 7}"
            rows.append(
                {
                    "gold_label": ("entailment", "neutral", "contradiction")[line % 3],
                    "sentence2": text,
                    "Flickr30K_ID": str(100 + number),
                    "pairID": f"{number}.png#{line}",
                    "captionID": f"{100 + number}.png#0",
                    "sentence1": "premise",
                    "annotator_labels": ["neutral"],
                }
            )
    for split, part in (("train", rows[: len(rows) // 2]), ("dev", rows[len(rows) // 2 :]), ("test", rows[:5])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    index(folder)
    return folder


def index(folder: Path) -> None:
    """Index the lines of the three splits, under a revision of our own."""

    def split(name: str) -> SplitPlan:
        path = folder / f"{name}.jsonl"
        return SplitPlan(name, name, lambda _: iter_snli_ve(path, folder / "images", extension=".png"), (path,))

    plan = ImportPlan("snli-ve", "snli-ve", "Made up", [split(name) for name in ("train", "dev", "test")], folder)
    write_dataset(folder, plan, check_images=False, revision="0123456789abcdef")


@pytest.fixture
def reindex() -> Callable[[Path], None]:
    """Index the lines of a data set's folder again, after a change."""
    return index


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing hundreds of small files takes minutes on a busy disk, and no test here cuts the power."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace with ten pictures and thirty hypotheses imported as snli-ve."""
    root = tmp_path / "workspace"
    write_snli_ve(root / "data" / "snli-ve")
    return root


@pytest.fixture
def more_pictures() -> Callable[[Path], None]:
    """Replace a data set's folder by one of 16 pictures and 128 hypotheses, about 35 of them different."""

    def write(folder: Path) -> None:
        shutil.rmtree(folder)
        write_snli_ve(folder, images=16, lines_per_image=8)

    return write


@pytest.fixture(scope="session")
def forks() -> Iterator[Callable[..., dict[str, Any]]]:
    """Run command lines in forks of a prepared process: see ``forks.py`` for the request and the answer."""
    script = Path(__file__).with_name("forks.py")
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:

        def ask(*argv: object, **request: Any) -> dict[str, Any]:
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(json.dumps({"argv": [str(argument) for argument in argv], **request}) + "\n")
            server.stdin.flush()
            answer: dict[str, Any] = json.loads(server.stdout.readline())
            return answer

        yield ask
        assert server.stdin is not None
        server.stdin.close()
