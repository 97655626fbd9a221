"""Images in which a detector found nothing: every family answers about them, whatever else is in their batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from madkit.regions import Regions
from madkit.students.families import FAMILIES
from madkit.students.heads import HeadSpec
from madkit.students.inputs import collate
from madkit.students.start import new_student
from madkit.tasks.example import Example, ImageRef, Segment, Tag

BOXES = ((0.0, 0.0, 5.0, 5.0), (2.0, 2.0, 9.0, 9.0))


def regions(count: int, dim: int) -> Regions:
    generator = np.random.default_rng(count)
    low = generator.random((count, 2)) / 2
    boxes = np.concatenate([low, low + 0.25], axis=1).astype(np.float32)
    return Regions(boxes, generator.standard_normal((count, dim)).astype(np.float32))


@torch.no_grad()
@pytest.mark.parametrize("task", ["vcr", "vqa"])
@pytest.mark.parametrize("family", FAMILIES.names())
def test_an_image_without_boxes_is_answered_alike_alone_and_in_company(family: str, task: str) -> None:
    candidates = (Segment("person smiles", (Tag(0, 6, (1,)),)), Segment("a car")) if task == "vcr" else ()
    example = Example(
        id="1", task=task, question_id="1", image=ImageRef("i", Path("i.jpg")), candidates=candidates,
        context=(Segment("what is person", (Tag(8, 14, (0,)),)),), boxes=BOXES, width=10, height=10,
    )  # fmt: skip
    head = HeadSpec("multiple-choice") if task == "vcr" else HeadSpec("vqa", ("red", "blue"))
    student = new_student(f"mini-{family}", init="random", region_dim=None, head=head).student
    for parameter in student.parameters():  # away from the zeros of a fresh network
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    encoded, dim, pad = student.encode(example), student.region_dim, student.tokenizer.pad_id
    alone = student(collate([encoded], [regions(0, dim)], pad_id=pad)).logits
    assert alone.isfinite().all()
    company = student(collate([encoded, encoded], [regions(0, dim), regions(3, dim)], pad_id=pad)).logits
    torch.testing.assert_close(company[:1], alone, atol=1e-5, rtol=1e-5)
    both = collate([encoded] * 2, [regions(0, dim)] * 2, pad_id=pad)
    assert not both.region_mask.any()
    assert not (both.tag_regions >= 0).any()
