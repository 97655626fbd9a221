"""A training step of a student against one of transformers' BertModel on as many tokens, with the same head.

Both do forward, backward and the optimiser's step on the same number of sequences and tokens. BertModel reads word
ids for all tokens; the student reads its regions from features, which is its extra work, and shares them between the
candidates of an image. The sides take turns in the order A B B A; BertModel is measured under two names, and their
ratio says how much a ratio means here. On a GPU both compute under bfloat16 autocast, as a run does there: what a
student does beside its matrix products does not shrink with them, so that its share would look smaller in float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from madkit.bench.machine import machine_facts
from madkit.students.heads import HeadSpec, TaskHead, task_loss
from madkit.students.interface import Encoded, StudentInputs
from madkit.students.start import new_student

Step = Callable[[], None]
_WARM_UP = 3  # steps of each side that are not counted: kernels are loaded and memory is taken in the first ones


def compare_student_step(
    name: str = "uniter-base",
    *,
    sequences: int = 4,
    candidates: int = 1,
    text: int = 20,
    regions: int = 36,
    rounds: int = 5,
    device: str = "cpu",
    **sizes: Any,
) -> dict[str, Any]:
    """Seconds of a step of both sides, and their ratio (above 1: the student is slower).

    Args:
        name: a student with BERT's layers.
        sequences: in a step; a multiple of `candidates`.
        candidates: sequences of one image.
        text: tokens of a sequence.
        regions: of an image.
        rounds: times that each side has two turns; three steps before them are not counted.
        device: where.
        sizes: fields of the student's config that shall differ, for tests.

    On a CPU the seconds are those of the processor (all threads), which other programs do not change; on a GPU those of
    the clock, the device waited for.
    """
    where = torch.device(device)
    torch.manual_seed(0)
    student = new_student(name, init="random", head=HeadSpec("multiple-choice"), **sizes).student.to(where).train()
    config: Any = student.encoder.config
    batch = _inputs(sequences, candidates, text, regions, config).to(where)
    target = torch.zeros(sequences // candidates, dtype=torch.long, device=where)
    ours = _step(student, lambda: task_loss("multiple-choice", student(batch).logits, target).mean(), where)
    ids = torch.randint(5, config.vocab_size, (sequences, text + regions), device=where)
    theirs = _bert_step(config, ids, batch, target, candidates, where)
    turns: dict[str, list[float]] = {"bert": [], "student": [], "bert again": []}
    works = {"bert": theirs, "student": ours, "bert again": theirs}
    for _ in range(_WARM_UP):
        for work in (ours, theirs):
            work()
    order = ["bert", "student", "bert again"]
    for _ in range(rounds):
        for side in (*order, *reversed(order)):
            turns[side].append(_seconds(works[side], where))
    bert = [(a + b) / 2 for a, b in zip(turns["bert"], turns["bert again"], strict=True)]
    ratios = [mine / his for mine, his in zip(turns["student"], bert, strict=True)]
    noise = [a / b for a, b in zip(turns["bert again"], turns["bert"], strict=True)]
    return {
        "student": name,
        "device": str(where),
        "dtype": "bfloat16 autocast" if _mixed(where) else "float32",
        "threads": torch.get_num_threads(),
        "shape": {"sequences": sequences, "candidates": candidates, "text": text, "regions": regions},
        "tokens": sequences * (text + regions),
        "student_s": median(turns["student"]),
        "bert_s": median(bert),
        "ratio": median(ratios),
        "ratio_quartiles": quantiles(ratios, n=4)[::2] if len(ratios) > 1 else [ratios[0]] * 2,
        "noise": median(noise),
        "turns": len(ratios),
        "machine": machine_facts(),
    }


def _inputs(sequences: int, candidates: int, text: int, regions: int, config: Any) -> StudentInputs:
    images = sequences // candidates
    corners = torch.rand(images, regions, 2) * 0.5
    return StudentInputs(
        input_ids=torch.randint(5, config.vocab_size, (sequences, text)),
        token_type_ids=torch.zeros(sequences, text, dtype=torch.long),
        text_mask=torch.ones(sequences, text, dtype=torch.bool),
        image_index=torch.arange(images).repeat_interleave(candidates),
        region_features=torch.randn(images, regions, config.region_dim),
        region_boxes=torch.cat([corners, corners + 0.3], dim=-1),
        region_mask=torch.ones(images, regions, dtype=torch.bool),
        tag_regions=torch.full((sequences, text), -1),
        n_candidates=candidates,
    )


def _bert_step(
    config: Any, ids: Tensor, batch: StudentInputs, target: Tensor, candidates: int, where: torch.device
) -> Step:
    like: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": max(config.max_positions, ids.shape[1]),
        "attn_implementation": "sdpa",
    }
    bert, head = BertModel(BertConfig(**like)), TaskHead(config.hidden_size, HeadSpec("multiple-choice"))
    both = nn.ModuleList([bert, head]).to(where).train()
    mask = torch.ones_like(ids)

    def loss() -> Tensor:
        out = bert(ids, mask, output_hidden_states=True)
        logits = head(Encoded(out.pooler_output, out.hidden_states), batch).view(-1, candidates)
        return task_loss("multiple-choice", logits, target).mean()

    return _step(both, loss, where)


def _step(module: nn.Module, loss: Callable[[], Tensor], where: torch.device) -> Step:
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=where.type in ("cpu", "cuda"))

    def step() -> None:
        with torch.autocast(where.type, torch.bfloat16, enabled=_mixed(where)):
            found = loss()
        found.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _mixed(where: torch.device) -> bool:
    """Whether a run computes in 16 bits there."""
    return where.type == "cuda"


def _seconds(work: Step, where: torch.device) -> float:
    if where.type == "cuda":
        torch.cuda.synchronize(where)
        began = time.perf_counter()
        work()
        torch.cuda.synchronize(where)
        return time.perf_counter() - began
    began = time.process_time()
    work()
    return time.process_time() - began
