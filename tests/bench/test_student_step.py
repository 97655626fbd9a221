"""The comparison of a student's step with BertModel's runs, on a network so small that its figures mean nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from madkit.bench import student_step
from madkit.bench.student_step import compare_student_step


@pytest.mark.parametrize(("sequences", "candidates"), [(4, 1), (4, 4)])
def test_sides_do_the_same_number_of_tokens(sequences: int, candidates: int) -> None:
    torch.set_num_threads(1)
    made = compare_student_step(
        "mini-uniter", sequences=sequences, candidates=candidates, text=6, regions=4, rounds=2, layers=1
    )
    assert made["dtype"] == "float32"
    assert made["tokens"] == sequences * 10
    assert made["turns"] == 4
    assert made["ratio_quartiles"][0] <= made["ratio"] <= made["ratio_quartiles"][1]
    assert made["student_s"] > 0
    assert made["bert_s"] > 0
    assert made["ratio"] == pytest.approx(made["student_s"] / made["bert_s"], rel=3)


def test_the_first_three_steps_of_both_sides_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    done: list[str] = []

    def measured(work: Any, where: torch.device) -> float:
        done.append("measured")
        return 1.0

    monkeypatch.setattr(student_step, "_step", lambda module, loss, where: lambda: done.append(type(module).__name__))
    monkeypatch.setattr(student_step, "_seconds", measured)
    compare_student_step("mini-uniter", rounds=1, layers=1)
    before = done[: done.index("measured")]
    assert before == ["Student", "ModuleList"] * 3
