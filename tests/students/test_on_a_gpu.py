"""Every student answers on a GPU: no tensor of it stays behind, and no value is waited for."""

from __future__ import annotations

import pytest
import torch

from madkit.students.heads import HeadSpec
from madkit.students.start import new_student
from tests.pretended_cuda import pretended_cuda

NAMES = ["mini-vilt", "mini-uniter", "mini-villa", "mini-vl-bert", "mini-visualbert", "mini-lxmert", "mini-clip-vil",
           "mini-clip-vil-lxmert", "mini-clip-vil-visualbert", "mini-clip-vil-vl-bert"]  # fmt: skip
HEADS = [
    HeadSpec("multiple-choice"),
    HeadSpec("multiple-choice", binary=True),
    HeadSpec("classification", ("no", "yes", "maybe")),
    HeadSpec("vqa", ("red", "two")),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_student_answers_there(name: str, inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    student = new_student(name, head=HEADS[0]).student.eval()
    choices = inputs([6, 5, 7, 4], [3, 2], dim=student.region_dim, candidates=2, types=(0, 1))
    with pretended_cuda(), torch.no_grad():
        student.to("cuda")
        out = student(choices.to("cuda"))
        assert (out.logits.device.type, out.logits.shape) == ("cuda", (2, 2))
        assert {states.device.type for states in out.hidden_states} == {"cuda"}
        with torch.autocast("cuda", dtype=torch.bfloat16):
            assert student(choices.to("cuda")).logits.dtype == torch.float32


@pytest.mark.parametrize("head", HEADS[1:], ids=lambda head: head.kind + "-binary" * head.binary)
def test_every_head_answers_there(head: HeadSpec, inputs) -> None:
    student = new_student("mini-uniter", head=head).student.eval()
    candidates = 2 if head.kind == "multiple-choice" else 1
    batch = inputs([6, 5], [3, 2] if candidates == 1 else [3], dim=student.region_dim, candidates=candidates)
    with pretended_cuda(), torch.no_grad():
        student.to("cuda")
        logits = student(batch.to("cuda")).logits
    assert logits.device.type == "cuda"
    assert logits.shape == ((1, 2) if candidates == 2 else (2, len(head.outputs)))
