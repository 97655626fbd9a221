"""Answers computed on a GPU that is not there: everything of a batch is on it, and a batch is waited for once."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from madkit.evaluate.scorer import StudentScorer
from madkit.tasks.spec import get_task
from tests.pretended_training import training_on_pretended_cuda

WAITING = "madkit/evaluate/predict.py Answering.batches"  # for the logits of a batch


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_a_student_answers_there(tiny, monkeypatch, precision):
    examples = tiny.data.examples("test")[:24]
    asked = (tiny.run / "student", examples, tiny.data.regions(), get_task(examples[0].task))
    here = StudentScorer("cpu")(*asked)
    linear, computed = torch.nn.functional.linear, []

    def watched(*arguments):
        found = linear(*arguments)
        computed.append((found.device.type, found.dtype))
        return found

    for place in ("madkit.core.devices.device_of", "madkit.evaluate.predict.device_of"):
        monkeypatch.setattr(place, lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    reads: set[str] = set()
    with training_on_pretended_cuda(reads):
        there = StudentScorer(precision=precision)(*asked)
    encoder = torch.bfloat16 if precision == "auto" else torch.float32
    assert computed.count(("cuda", encoder)) > len(computed) / 2
    assert {where for where, _ in computed} == {"cuda"}
    assert computed[-1] == ("cuda", torch.float32)  # the head
    assert reads == {WAITING}
    assert [row["id"] for row in there] == [row["id"] for row in here]
    assert [len(row["logits"]) for row in there] == [len(row["logits"]) for row in here]
    assert all(set(row["logits"]) == {0.0} for row in there)  # as all values of this GPU are
