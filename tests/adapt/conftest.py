"""Pictures of one colour and sentences about it, as a real SNLI-VE workspace: what any encoder can learn."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from madkit.tasks.formats.snli_ve import iter_snli_ve
from madkit.tasks.importing.plan import ImportPlan, SplitPlan
from madkit.tasks.importing.write import write_dataset

# The models of transformers that the teachers' tests make are wanted here, too.
sys.path.insert(0, str(Path(__file__).parents[1] / "teachers"))

COLORS = {"red": (200, 30, 30), "blue": (30, 30, 200), "white": (230, 230, 230), "dark": (25, 25, 25)}
SIZES = {"train": 32, "dev": 24, "test": 4}


@pytest.fixture(autouse=True)
def _quiet_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One compute thread, and no fsync: no test here cuts the power."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_colors(folder: Path, sizes: dict[str, int]) -> None:
    """Write data in which a sentence with the picture's colour is entailed and one with another is not."""
    rng = np.random.default_rng(3)
    (folder / "images").mkdir(parents=True)
    names = list(COLORS)
    number = 0
    for split, images in sizes.items():
        rows = []
        for _ in range(images):
            color = names[number % len(names)]
            other = names[(number + 1 + number // len(names) % 3) % len(names)]
            pixels = rng.normal(COLORS[color], 12, (36, 36, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{100 + number}.png")
            for word, label in ((color, "entailment"), (other, "contradiction")):
                rows.append(
                    {
                        "gold_label": label,
                        "sentence2": f"the house is {word} {number}",
                        "Flickr30K_ID": str(100 + number),
                        "pairID": f"{number}.png#{label}",
                        "captionID": f"{100 + number}.png#0",
                        "sentence1": "premise",
                        "annotator_labels": [label],
                    }
                )
            number += 1
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def plan_of(name: str) -> SplitPlan:
        path = folder / f"{name}.jsonl"
        return SplitPlan(name, name, lambda _: iter_snli_ve(path, folder / "images", extension=".png"), (path,))

    plan = ImportPlan("snli-ve", "snli-ve", "Colours", [plan_of(name) for name in sizes], folder)
    write_dataset(folder, plan, check_images=False, revision="0123456789abcdef")


@pytest.fixture
def workspace(tmp_path: Path) -> Any:
    """A workspace with the colours imported as snli-ve."""
    from madkit.core.workspace import Workspace

    root = tmp_path / "workspace"
    write_colors(root / "data" / "snli-ve", SIZES)
    return Workspace.at(root)


@pytest.fixture(scope="session")
def hf_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models of transformers: a CLIP pair, a BERT and a DINOv2."""
    from hf_models import SMALL, clip_bpe, randomised, save, text_model, word_piece
    from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model
    from transformers.models.clip import CLIPImageProcessorPil

    root = tmp_path_factory.mktemp("hf")
    torch.manual_seed(0)
    bpe, pieces = clip_bpe(), word_piece()
    clip = CLIPModel(
        CLIPConfig(
            text_config={
                **SMALL, "vocab_size": len(bpe), "max_position_embeddings": 20, "eos_token_id": bpe.eos_token_id,
                "bos_token_id": bpe.bos_token_id, "pad_token_id": bpe.pad_token_id,
            },
            vision_config={**SMALL, "image_size": 32, "patch_size": 8},
            projection_dim=24,
        )
    )  # fmt: skip
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    dino = Dinov2Model(Dinov2Config(**SMALL, image_size=32, patch_size=8))
    return {
        "clip": save(root / "clip", randomised(clip), bpe, processor),
        "bert": save(root / "bert", text_model("bert", pieces), pieces),
        "dino": save(root / "dino", randomised(dino), processor),
    }
