"""The row of a word table that learns nothing is that of the tokenizer's padding, in every family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from madkit.regions import Regions
from madkit.students.inputs import collate
from madkit.students.load import load_student, save_student
from madkit.students.start import new_student
from madkit.students.student import Student
from madkit.tasks.example import Example, ImageRef, Segment

FAMILIES = ("uniter", "villa", "vl-bert", "visualbert", "lxmert", "vilt")


def word_gradient(student: Student) -> Tensor:
    """Of the word table, after one batch in which a short text is padded."""
    example = Example(
        id="1", task="vcr", question_id="1", image=ImageRef("i", Path("i.jpg")), context=(Segment("the dog"),),
        candidates=(Segment("dog"), Segment("the red dog")),
    )  # fmt: skip
    seen = Regions(np.array([[0, 0, 0.5, 0.5]], np.float32), np.ones((1, student.region_dim), np.float32))
    batch = collate([student.encode(example)], [seen], pad_id=student.tokenizer.pad_id)
    student.eval().zero_grad()
    (student(batch).logits * torch.tensor([1.0, -2.0])).sum().backward()
    (grad,) = (p.grad for n, p in student.named_parameters() if n.endswith("word_embeddings.weight"))
    assert grad is not None
    return grad


def padding_words(student: Student) -> list[int | None]:
    return [table.padding_idx for name, table in student.encoder.named_modules() if name.endswith("word_embeddings")]


@pytest.mark.parametrize("family", FAMILIES)
def test_robertas_first_word_learns(roberta_folder, tmp_path: Path, family: str) -> None:
    roberta_folder(tmp_path / "roberta")
    made = new_student(f"mini-{family}", init=tmp_path / "roberta", region_dim=None).student
    assert (made.tokenizer.cls_id, made.tokenizer.pad_id) == (0, 1)
    save_student(made, tmp_path / "student")
    for student in (made, load_student(tmp_path / "student")):
        grad = word_gradient(student)
        assert grad[student.tokenizer.cls_id].any()
        assert grad[student.tokenizer.sep_id].any()
        assert not grad[student.tokenizer.pad_id].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_berts_padding_is_row_0(bert_folder, tmp_path: Path, family: str) -> None:
    bert_folder(tmp_path / "bert")
    student = new_student(f"mini-{family}", init=tmp_path / "bert", region_dim=None).student
    # as the networks are made; VL-BERT's authors let every word learn
    assert padding_words(student) == ([None] if family == "vl-bert" else [0])
    grad = word_gradient(student)
    assert grad[student.tokenizer.cls_id].any()
    assert not grad[student.tokenizer.pad_id].any()
