"""`madkit bench text`: texts to tokens, against open_clip's `encode_text` and a loop of the transformers library."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from madkit.bench.agreement import compare, must_agree
from madkit.bench.ceilings import device_facts
from madkit.bench.extract import AGAIN, long, noise, short, warn_of_noise, when_and_how, with_ratios
from madkit.bench.extract_models import TINY, as_teacher, source
from madkit.bench.machine import busy, machine_facts
from madkit.bench.text_inputs import ROBERTA, TINY_ROBERTA, common_words, made_up_texts, write_roberta
from madkit.bench.text_sides import (
    Read,
    TextReader,
    madkit_texts,
    open_clip_texts,
    open_clip_tokens,
    transformers_texts,
)
from madkit.bench.turns import Side, take_turns
from madkit.core.console import info
from madkit.core.errors import RunError, UsageProblem
from madkit.extract.frozen import mixed_if_it_pays
from madkit.extract.options import TEXT_BATCH_TOKENS, resolve_device
from madkit.teachers.interface import Teacher
from madkit.teachers.load import load_teacher
from madkit.teachers.mixed import MIXED

SCHEMA = 1
_BATCH = {"cpu": 64, "cuda": 768}  # texts of a loop: on a GPU as many tokens, with padding, as madkit reads at a time
_COMPARED = 16
_MOST_OTHER = 0.01
_BFLOAT16, _FLOAT16, _FLOAT32 = torch.bfloat16, torch.float16, torch.float32


@dataclass(frozen=True, slots=True)
class TextBenchOptions:
    """What to measure.

    Attributes:
        model: architecture of open_clip whose text tower reads; empty for ViT-L-14 on a GPU and ViT-B-32 on a CPU.
        weights: a weight file; None for random weights.
        texts: how many; 0 for 50,000 on a GPU and 512 on a CPU.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        repeats: rounds, of two turns for each side; medians are reported.
        tiny: made-up small models, for tests: no figure of it means anything.
    """

    model: str = ""
    weights: Path | None = None
    texts: int = 0
    device: str = "auto"
    repeats: int = 3
    tiny: bool = False

    def __post_init__(self) -> None:
        if self.tiny and self.model:
            raise UsageProblem("--tiny is a model of its own.", hint="leave out --model or --tiny")
        if self.texts < 0 or self.repeats < 1:
            raise UsageProblem("Numbers of texts and rounds cannot be negative.")


def bench_text(options: TextBenchOptions | None = None) -> dict[str, Any]:
    """Measure, and return the document that `docs/bench.md` describes.

    Raises:
        UsageProblem: options that cannot be meant, no such model or device.
        RunError: a side gives other tokens or vectors than the others.
    """
    options = options or TextBenchOptions()
    device, _ = resolve_device(options.device)
    kind = torch.device(device).type
    cuda = kind == "cuda"
    model = TINY if options.tiny else options.model or ("ViT-L-14" if cuda else "ViT-B-32")
    machine = machine_facts()
    warning = busy(machine)
    words = common_words()
    texts = made_up_texts(words, options.texts or (48 if options.tiny else 50_000 if cuda else 512))
    budget = TEXT_BATCH_TOKENS.get(kind, 2048)
    own_dtype = _FLOAT16 if cuda else _FLOAT32
    info(f"Building {model} with {'random weights' if options.weights is None else options.weights}.")
    found = source(model, options.weights)
    teacher = as_teacher(found, device=device, dtype=own_dtype)
    assert teacher.text is not None
    document: dict[str, Any] = {
        "schema": SCHEMA,
        **when_and_how(),
        "machine": machine,
        "device": device_facts(device),
        "model": found.name.removeprefix("open_clip:"),
        "weights": found.weights,
        "options": {"texts": len(texts), "token_budget": budget, "repeats": options.repeats, "tiny": options.tiny},
        "mean_tokens": round(float(np.mean([len(one.ids) for one in teacher.text.tokenize(texts)])), 2),
        "warnings": [warning] if warning else [],
    }
    exact = open_clip_tokens(found, texts[:_COMPARED])
    peers = [open_clip_texts(found, device, dtype, batch=_BATCH.get(kind, 64)) for dtype in _dtypes(cuda)]
    ours = _madkit(lambda: as_teacher(found, device=device, dtype=own_dtype), budget)
    document["clip"] = _compare([*peers, *ours], texts, device, options.repeats, "CLIP texts", exact)
    del peers, ours, teacher
    info("Building a RoBERTa-shaped model with random weights.")
    with tempfile.TemporaryDirectory(prefix="madkit-bench-") as name:
        folder = Path(name)
        write_roberta(folder, words, TINY_ROBERTA if options.tiny else ROBERTA)
        ours = _madkit(lambda: load_teacher(f"hf:{folder}", device=device, dtype=own_dtype), budget)
        loops = [transformers_texts(folder, device, dtype, batch=_BATCH.get(kind, 64)) for dtype in _dtypes(cuda)]
        document["roberta"] = _compare([*loops, *ours], texts, device, options.repeats, "RoBERTa texts", None)
    warn_of_noise(document, document["clip"], document["roberta"])
    return document


def _madkit(load: Callable[[], Teacher], budget: int) -> list[TextReader]:
    """Return madkit in its device's dtype, and on a CPU in mixed arithmetic, too, where it would choose that."""
    readers = [madkit_texts(load(), token_budget=budget)]
    if readers[0].dtype is _FLOAT32:
        teacher, choice = mixed_if_it_pays(load())
        if choice.value == MIXED:
            info(f"{choice.name}: {choice.value} ({choice.reason}).")
            readers.append(madkit_texts(teacher, token_budget=budget))
    return readers


def _dtypes(cuda: bool) -> tuple[torch.dtype, ...]:
    return (_FLOAT32, _BFLOAT16) if cuda else (_FLOAT32,)


def _compare(
    readers: Sequence[TextReader],
    texts: Sequence[str],
    device: str,
    repeats: int,
    what: str,
    exact: list[Any] | None,
) -> dict[str, Any]:
    """Compare what the sides read, the first being the reference, and measure them; madkit is the last."""
    names = [f"{reader.name} {short(reader)}" for reader in readers]
    few = texts[: 4 * _COMPARED]
    read = [reader.read(few) for reader in readers]
    agreements = {names[0]: {"error": 0.0, "worst_cosine": 1.0, "unexplained": 0.0, "finite": True}}
    for name, got in zip(names[1:], read[1:], strict=True):
        agreements[name] = _same(name, names[0], got, read[0])
    if exact is not None and read[-1].tokens is not None:
        found = compare(np.concatenate(read[-1].tokens[: len(exact)]), np.concatenate(exact))
        must_agree(names[-1], "open_clip in float64", "texts", found, _MOST_OTHER)
        agreements[names[-1]] = found.as_row()
    sides = [
        Side(name, lambda pieces, reader=reader: [reader.read(texts) for _ in range(pieces)], len(texts))  # type: ignore[misc]
        for name, reader in zip(names, readers, strict=True)
    ]
    sides.append(Side(names[0] + AGAIN, sides[0].work, sides[0].items))
    speeds = take_turns(sides, repeats=repeats, device=device, what=what)
    rows = [
        {
            "side": name,
            "dtype": long(reader),
            **speeds[name].as_row(),
            **agreements[name],
        }
        for name, reader in zip(names, readers, strict=True)
    ]
    return {"rows": with_ratios(rows, names[-1]), "noise": noise(speeds, names[0])}


def _same(name: str, other: str, got: Read, expected: Read) -> dict[str, Any]:
    """Compare the tokens of two sides, or their vectors where one gives no tokens."""
    if got.tokens is not None and expected.tokens is not None:
        if [len(one) for one in got.tokens] != [len(one) for one in expected.tokens]:
            lengths = [sum(map(len, tokens)) for tokens in (got.tokens, expected.tokens)]
            raise RunError(
                f"{name} gives {lengths[0]:,} tokens of the same texts of which {other} gives {lengths[1]:,}."
            )
        found = compare(np.concatenate(got.tokens), np.concatenate(expected.tokens))
    else:
        assert got.globals is not None
        assert expected.globals is not None
        found = compare(got.globals, expected.globals)
    must_agree(name, other, "texts", found, _MOST_OTHER)
    return found.as_row()
