"""Extraction encodes batches side by side in threads: what comes out must not depend on it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hf_models
import pytest
import torch
from transformers import AutoConfig, AutoModel, BitImageProcessor

from madkit.teachers.load import load_teacher

torch.set_num_threads(1)
KINDS = {"bert": "WordPiece", "roberta": "byte-level BPE", "deberta-v2": "Unigram"}
TEXTS = ["a photo of a cat", "two dogs", "It's a house & what color is it?", "no", ""] * 8


@pytest.mark.parametrize("kind", KINDS)
def test_texts_side_by_side(kind: str, tmp_path: Path) -> None:
    tokenizer = hf_models.TOKENIZERS[KINDS[kind]]()
    teacher = load_teacher(f"hf:{hf_models.save(tmp_path, hf_models.text_model(kind, tokenizer), tokenizer)}").text
    assert teacher is not None
    batches = [teacher.tokenize(TEXTS[i : i + 3]) for i in range(len(TEXTS) - 2)]
    alone = [teacher.encode_tokenized(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(teacher.encode_tokenized, batches))
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a.tokens, b.tokens)
        assert torch.equal(a.global_, b.global_)


def test_images_side_by_side(tmp_path: Path) -> None:
    config = AutoConfig.for_model("dinov2", **hf_models.SMALL, patch_size=14, image_size=42)
    crop = {"height": 42, "width": 42}
    processor = BitImageProcessor(size={"shortest_edge": 42}, crop_size=crop)
    folder = hf_models.save(tmp_path, hf_models.randomised(AutoModel.from_config(config)), processor)
    teacher = load_teacher(f"hf:{folder}").vision
    assert teacher is not None
    images = torch.randint(0, 256, (40, 2, 3, 42, 42), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    alone = [teacher.encode(batch) for batch in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(teacher.encode, images))
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(alone, together, strict=True))
