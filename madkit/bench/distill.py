"""`madkit bench distill`: what a step of distillation costs beyond a step of fine-tuning, both measured in turns.

All sides train the same student on the same batches with the code that a run uses: batches are cut from an
`ExampleSet` and the banks of a token cache (on a GPU by a thread, ahead of the step), then forward, backward, clipping
and the optimiser's step. Data, weights and cache are made up from a fixed seed. Fine-tuning is measured under two
names, at both ends of every round; what its two turns differ by is the noise.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch

from madkit.bench.ceilings import device_facts
from madkit.bench.distill_data import MINI_SHAPES, SHAPES, MadeUpRegions, Shape, made_up_examples, write_cache
from madkit.bench.distill_online import OnlineTeacher
from madkit.bench.extract import when_and_how
from madkit.bench.extract_models import TINY, source
from madkit.bench.machine import busy, machine_facts
from madkit.bench.turns import synchronise
from madkit.cache import TokenCache
from madkit.core.console import info
from madkit.core.errors import RunError, UsageProblem
from madkit.distill.batches.examples import ExampleSet
from madkit.distill.batches.micro_batch import Batch, BatchMaker
from madkit.distill.batches.order import Indices
from madkit.distill.loop.ahead import Ahead
from madkit.distill.objective.objective import Objective
from madkit.distill.teacher.bank_room import Room
from madkit.distill.teacher.criterion import make_criterion
from madkit.distill.teacher.side import TeacherSide
from madkit.extract.options import resolve_device
from madkit.mad.config import MADConfig
from madkit.students.start import new_student

SCHEMA = 1
PLAIN, AGAIN, MAD, ALL, ONLINE, EAGER = (
    "finetune", "finetune again", "mad", "mad, all tokens", "online teacher", "online, open_clip",
)  # fmt: skip
STUDENTS = ("uniter-base", "uniter-large", "mini-uniter")
_TOKENS = {"cuda": 32_768, "cpu": 1_024}
_STEPS = {"cuda": 10, "cpu": 2}
_BATCHES = 4  # that take turns
_DRAWS = 2_000  # of the bootstrap
_NOISY = 0.03
_WARM_UP = 2
_CLIP_TOKENS = 75  # that a CLIP text tower reads


@dataclass(frozen=True, slots=True)
class DistillBenchOptions:
    """What to measure.

    Attributes:
        student: one of STUDENTS.
        shape: ``vcr``, ``snli-ve`` or ``vqa``; a mini student has the embedded benchmark's lengths.
        tokens: text tokens and regions of a step; 0 for 32,768 on a GPU, 1,024 on a CPU and 32 examples of a mini one.
        kept: image tokens in the cache beside the global one.
        teacher: architecture of open_clip, for the online side and the width of the cache; empty leaves that side out
            on a CPU and is ViT-L-14 on a GPU.
        repeats: rounds, of two turns for each side.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        tiny: everything small, for tests: no figure of it means anything.
    """

    student: str = "uniter-base"
    shape: str = "vcr"
    tokens: int = 0
    kept: int = 32
    teacher: str = ""
    repeats: int = 5
    device: str = "auto"
    tiny: bool = False


def bench_distill(options: DistillBenchOptions) -> dict[str, Any]:
    """Measure and return one document.

    Raises:
        UsageProblem: an unknown student or shape, or a device that is not there.
        RunError: a loss is not a number.
    """
    if options.student not in STUDENTS:
        raise UsageProblem(
            f"'{options.student}' is no student of this benchmark.", hint=f"one of {', '.join(STUDENTS)}"
        )
    if options.shape not in SHAPES:
        raise UsageProblem(f"'{options.shape}' is no shape of this benchmark.", hint=f"one of {', '.join(SHAPES)}")
    device, _ = resolve_device(options.device)
    machine = machine_facts()
    with tempfile.TemporaryDirectory(prefix="madkit-bench-") as folder:
        bench = _Bench(options, device, Path(folder))
        try:
            rows, noise = bench.measure()
            reader = bench.reader(rows[MAD]["clock_s"])
        finally:
            bench.close()
    document: dict[str, Any] = {
        "schema": SCHEMA,
        **when_and_how(),
        "options": asdict(options),
        "machine": machine,
        "device": device_facts(device),
        **bench.facts,
        "rows": list(rows.values()),
        "noise": noise,
        "reader": reader,
        "warnings": [],
    }
    if (line := busy(machine)) is not None:
        document["warnings"].append(line)
    if max(abs(end) for end in noise["interval"]) > _NOISY:
        low, high = noise["interval"]
        document["warnings"].append(
            f"Fine-tuning differs from itself by {low:+.1%} to {high:+.1%}: smaller overheads mean nothing. Use a "
            "quiet machine, or more --repeats."
        )
    return document


class _Bench:
    """The set, the student, and a way to do a step for every side."""

    def __init__(self, options: DistillBenchOptions, device: str, folder: Path) -> None:
        self.options, self.device = options, device
        self.cuda = torch.device(device).type == "cuda"
        mini = options.student.startswith("mini") or options.tiny
        self.shape: Shape = (MINI_SHAPES if mini else SHAPES)[options.shape]
        wanted = options.tokens or (32 * self.shape.tokens if mini else _TOKENS["cuda" if self.cuda else "cpu"])
        self.batch = max(2, wanted // self.shape.tokens) if not options.tiny else 3
        self.steps = _STEPS["cuda" if self.cuda else "cpu"]
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"layers": 1} if options.tiny else {}
        name = "mini-uniter" if options.tiny else options.student
        self.student = new_student(name, init="random", head=self.shape.head(), **sizes).student
        count = _BATCHES * self.batch
        examples = made_up_examples(self.shape, self.student, count)
        regions = MadeUpRegions(self.shape, self.student.region_dim, count)
        self.set = ExampleSet(examples, self.student, regions)
        model = TINY if options.tiny else options.teacher or ("ViT-L-14" if self.cuda else "")
        self.teacher = source(model) if model else None
        teacher: Any = self.teacher.visual if self.teacher is not None else None
        dim = int(teacher.output_dim) if teacher is not None else (128 if mini else 768)
        edge = 16 if teacher is None else int(teacher.image_size[0]) // int(teacher.patch_size[0])
        write_cache(folder / "cache", examples, dim=dim, grid=(edge, edge), kept=options.kept)
        self.cache = TokenCache.open(folder / "cache")
        self.facts = {
            "student": name,
            "shape": {**asdict(self.shape), "candidates": self.shape.candidates},
            "batch": {"examples": self.batch, "sequences": self.batch * self.shape.candidates,
                      "tokens": self.batch * self.shape.tokens},
            "teacher": None if self.teacher is None else self.teacher.name,
            "kept": options.kept,
        }  # fmt: skip
        self.places = [np.arange(start, start + self.batch) for start in range(0, count, self.batch)]
        # a question and its choices are short: what the student reads at once, the teacher reads in pieces
        self.words = [
            min(_CLIP_TOKENS, len(text.split())) for example in examples[: self.batch] for text in example.texts()
        ]
        self._prepare()

    def _prepare(self) -> None:
        """The sides: who cuts the batches, what is minimised, and who teaches beside the cache."""
        settings = {MAD: MADConfig(), ALL: MADConfig(tokens="all")}
        confidence = torch.rand(len(self.set), generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
        plain = Objective(self.student, None).to(self.device).train()
        self.objectives = {PLAIN: plain, AGAIN: plain}
        self.makers: dict[str, Callable[[Indices, int], Batch]] = {}
        self.makers[PLAIN] = self.makers[AGAIN] = BatchMaker(self.set, 1000)
        self.sides = {}
        for name, config in settings.items():
            side = self.sides[name] = TeacherSide(self.set, self.cache, config, room=Room(device=self.device))
            criterion = make_criterion(config, self.student, side, 0)
            self.objectives[name] = Objective(self.student, criterion).to(self.device).train()
            self.makers[name] = BatchMaker(self.set, 1000, teacher=side, confidence=confidence)
        self.online: dict[str, OnlineTeacher] = {}
        if self.teacher is not None:
            dtype = torch.float16 if self.cuda else torch.float32
            for name in (ONLINE, EAGER):
                self.online[name] = OnlineTeacher(
                    self.teacher, self.device, torch.bfloat16 if self.cuda and name == EAGER else dtype,
                    images=self.batch, words=self.words, eager=name == EAGER,
                )  # fmt: skip
                self.objectives[name] = self.objectives[MAD]
                self.makers[name] = self._whole(self.sides[MAD], confidence)
        parameters = {id(p): p for objective in self.objectives.values() for p in objective.parameters()}
        self.parameters = list(parameters.values())
        # one optimiser for all: a parameter without gradient, such as a head of another side, is passed over
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-6, fused=True)
        self.last = torch.zeros(())

    def _whole(self, side: TeacherSide, confidence: torch.Tensor) -> Callable[[Indices, int], Batch]:
        """Batches with whole targets: what is not known beforehand cannot be chosen beforehand."""
        plain = BatchMaker(self.set, 1000, confidence=confidence)

        def make(indices: Indices, step: int) -> Batch:
            batch = plain(indices, step)
            targets = side.targets(self.set.teacher_rows(indices), indices, batch.inputs)
            return Batch(batch.inputs, batch.target, targets, None, batch.confidence, step, batch.progress)

        return make

    def measure(self) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """A row per side by its name, and the noise."""
        order = [PLAIN, *(name for name in self.objectives if name not in (PLAIN, AGAIN)), AGAIN]
        clock: dict[str, list[float]] = {name: [] for name in order}
        processor: dict[str, list[float]] = {name: [] for name in order}
        peak: dict[str, float | None] = {}
        for name in order:
            self._turn(name, max(_WARM_UP, len(self.places)))
        for number in range(self.options.repeats):
            for name in (*order, *reversed(order)):
                if self.cuda:
                    torch.cuda.reset_peak_memory_stats(self.device)
                wall, cpu = self._turn(name, self.steps)
                clock[name].append(wall / self.steps)
                processor[name].append(cpu / self.steps)
                peak[name] = torch.cuda.max_memory_allocated(self.device) / 1e6 if self.cuda else None
            info(f"Round {number + 1} of {self.options.repeats}.")
        if not torch.isfinite(self.last):
            raise RunError("The loss of a made-up batch is not a number.")
        times = clock if self.cuda else processor
        base = [(a + b) / 2 for a, b in zip(times[PLAIN], times[AGAIN], strict=True)]
        rows = {}
        for name in order:
            low, _, high = quantiles(times[name], n=4) if len(times[name]) > 1 else times[name] * 3
            rows[name] = {
                "side": name,
                "seconds": _digits(median(times[name])),
                "quartiles": [_digits(low), _digits(high)],
                "clock_s": _digits(median(clock[name])),
                "examples_per_s": _digits(self.batch / median(clock[name])),
                "memory_mb": None if peak[name] is None else round(float(peak[name] or 0)),
                **({} if name in (PLAIN, AGAIN) else _overhead(times[name], base)),
            }
            if name in self.online:
                ratio = [theirs / ours for theirs, ours in zip(times[name], times[MAD], strict=True)]
                rows[name]["cached_is_faster"] = _digits(median(ratio))
        return rows, _overhead(times[AGAIN], times[PLAIN])

    def _turn(self, name: str, steps: int) -> tuple[float, float]:
        """Seconds of the clock and of the processor for so many steps."""
        online = self.online.get(name)
        objective = self.objectives[name]
        synchronise(self.device)
        with Ahead(self.makers[name], on=self.cuda, device=self.device) as make:
            make.announce([self.places[0]], 0)
            wall, cpu = time.perf_counter(), time.process_time()
            for step in range(steps):
                batch = make(self.places[step % len(self.places)], step).to(self.device)
                make.announce([self.places[(step + 1) % len(self.places)]], step + 1)
                if online is not None:
                    batch = online.teach(batch)
                with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.cuda):
                    loss = objective(batch).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
            synchronise(self.device)
            found = time.perf_counter() - wall, time.process_time() - cpu
        self.last = loss.detach()
        return found

    def reader(self, seconds: float) -> dict[str, Any]:
        """How fast the teacher's side of a batch is made by one thread, and how much faster than a step asks for it.

        Both by the clock: the processor time of a step counts all its threads.
        """
        side = self.sides[MAD]
        taken = []
        for _ in range(max(2, self.options.repeats)):
            for step, indices in enumerate(self.places):
                inputs, rows = self.set.inputs(indices), self.set.teacher_rows(indices)
                label = (
                    self.set.target[torch.from_numpy(indices)] if isinstance(self.set.target, torch.Tensor) else None
                )
                began = time.perf_counter()
                side.chosen(rows, indices, inputs, label=label, step=step)
                taken.append(time.perf_counter() - began)
        supplied = self.batch / median(taken)
        return {
            "examples_per_s": _digits(supplied),
            "headroom": _digits(supplied * seconds / self.batch),
        }

    def close(self) -> None:
        """Let go of the cache, before its folder is removed."""
        self.cache.close()


def _overhead(times: list[float], base: list[float]) -> dict[str, Any]:
    """Median of the paired ratios less 1, and a 95 % interval by resampling the pairs."""
    ratios = np.asarray(times) / np.asarray(base)
    draw = np.random.default_rng(0)
    medians = np.median(draw.choice(ratios, (_DRAWS, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975]) - 1
    return {
        "overhead": round(float(np.median(ratios)) - 1, 4),
        "interval": [round(float(low), 4), round(float(high), 4)],
    }


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
