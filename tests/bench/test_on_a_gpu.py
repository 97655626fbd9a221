"""Benchmarks on a GPU that is not there: every side of them runs, and measures nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from madkit.bench import distill
from madkit.bench.agreement import Agreement
from madkit.bench.distill import DistillBenchOptions
from madkit.bench.extract import ExtractBenchOptions, bench_extract
from madkit.bench.student_step import compare_student_step
from madkit.bench.text import TextBenchOptions, bench_text
from madkit.extract import ordered
from madkit.extract.transfer import CudaStreams
from tests.pretended_training import AtOnce, training_on_pretended_cuda

torch.set_num_threads(1)
SIDES = ["finetune", "mad", "mad, all tokens", "online teacher", "online, open_clip", "finetune again"]


def same_shapes(tokens: Any, reference: Any) -> Agreement:
    assert tokens.shape == reference.shape
    return Agreement(0.0, 1.0, 0.0, finite=True)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("madkit.extract.options.device_of", torch.device)
    monkeypatch.setattr(ordered, "ThreadPoolExecutor", AtOnce)
    monkeypatch.setattr(CudaStreams, "buffer", lambda self, shape, dtype: torch.ones(tuple(shape), dtype=dtype))
    limits = {
        "edge": 1,
        "tflops": {"bfloat16": 1.0},
        "limit_tflops": 1.0,
        "copy_gb_s": 1.0,
    }  # asks a driver
    monkeypatch.setattr("madkit.bench.extract.measure_ceilings", lambda *_, **__: limits)
    for place in ("extract", "text"):  # of values there are none, but their shapes are compared
        monkeypatch.setattr(f"madkit.bench.{place}.compare", same_shapes)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "none")
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)


@pytest.mark.parametrize("shape", ["vcr", *(pytest.param(name, marks=pytest.mark.slow) for name in ("snli-ve", "vqa"))])
def test_distill(there: None, monkeypatch: pytest.MonkeyPatch, shape: str) -> None:
    monkeypatch.setattr(distill, "_STEPS", {"cuda": 1})
    monkeypatch.setattr(distill, "_WARM_UP", 1)
    reads: set[str] = set()
    with training_on_pretended_cuda(reads):
        found = distill.bench_distill(DistillBenchOptions(shape=shape, device="cuda", tiny=True, repeats=1))
    assert [(row["side"], row["waited"]) for row in found["rows"]] == [(side, 0.0) for side in SIDES]
    assert reads == {
        "madkit/bench/distill.py _Bench.measure",  # whether the last loss was a number
        "madkit/distill/teacher/choices.py _Best.fill",  # the teacher's choices, made once
    }


def test_extract(there: None) -> None:
    reads: set[str] = set()
    with training_on_pretended_cuda(reads):
        found = bench_extract(ExtractBenchOptions(device="cuda", tiny=True, repeats=1))
    peers = ["open_clip fp32", "open_clip bf16", "transformers bf16"]
    ours = ["madkit fp16", "madkit, compiled fp16", "madkit, compiled bf16"]
    assert [row["side"] for row in found["compute"]["rows"]] == [*peers, *ours]
    loops = ["open_clip loop bf16", "open_clip loop, threads bf16", "transformers loop bf16"]
    mine = ["madkit extract fp16", "madkit extract, compiled fp16"]
    assert [row["side"] for row in found["end_to_end"]["rows"]] == [*loops, *mine]
    assert reads == {
        "madkit/bench/extract.py _Bench.compute",  # what the sides gave, to be compared
        "madkit/bench/extract_sides.py reference",
        "madkit/bench/extract_sides.py _save",  # a plain loop's
    }


def test_text(there: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # whoever cuts texts out by a mask gets all of a batch here
    monkeypatch.setattr("madkit.bench.text._same", lambda *_: same_shapes(torch.ones(1), torch.ones(1)).as_row())
    reads: set[str] = set()
    with training_on_pretended_cuda(reads):
        found = bench_text(TextBenchOptions(device="cuda", tiny=True, repeats=1))
    clip = ["open_clip encode_text fp32", "open_clip encode_text bf16", "madkit fp16"]
    assert [row["side"] for row in found["clip"]["rows"]] == clip
    roberta = ["transformers loop fp32", "transformers loop bf16", "madkit fp16"]
    assert [row["side"] for row in found["roberta"]["rows"]] == roberta
    assert reads == {
        "madkit/extract/text_encoding.py TextEncoder._encode",  # the tokens of a batch
        "madkit/bench/text_sides.py transformers_texts.<locals>.read",
        "madkit/bench/text_sides.py _half",
    }


def test_student(there: None) -> None:
    """Both sides compute in 16 bits, as a run does on a GPU."""
    reads: set[str] = set()
    widened: dict[nn.Module, set[torch.dtype]] = {}  # of the feed-forward layers, one on each side

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(module, nn.Linear) and module.out_features == 4 * module.in_features:
            widened.setdefault(module, set()).add(output.dtype)

    with training_on_pretended_cuda(reads), register_module_forward_hook(look):
        found = compare_student_step("mini-uniter", device="cuda", rounds=1, sequences=4, candidates=4, layers=1)
    assert (found["device"], found["dtype"]) == ("cuda", "bfloat16 autocast")
    assert list(widened.values()) == [{torch.bfloat16}] * 2
    assert not any("students" in reader for reader in reads)
