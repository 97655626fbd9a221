"""`madkit bench distill`: what a step of distillation costs beyond a step of fine-tuning, both measured in turns.

All sides train the same student on the same batches with the code that a run uses: batches are cut from an
`ExampleSet` and the banks of a token cache (on a GPU by a thread, ahead of the step), then forward, backward, clipping
and the optimiser's step. A turn begins as a run goes on: its first batch is there, and the thread that made it has its
memory. Data, weights and cache are made up from a fixed seed. Fine-tuning is measured under two names, at both ends of
every round; what its two turns differ by is the noise.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median, quantiles
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

SCHEMA = 2
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


@dataclass(frozen=True, slots=True)
class _Turn:
    """Seconds of the clock and of the processor, and the share of steps before which the GPU waited for the batch."""

    wall: float
    cpu: float
    waited: float


class _Bench:
    """The set, the student, and a way to do a step for every side."""

    def __init__(self, options: DistillBenchOptions, device: str, folder: Path) -> None:
        self.options, self.device = options, device
        self.ahead = ExitStack()
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
        # for good, as in a run: a new thread would have a new stream, whose memory has to be taken first
        self.batches = {
            name: self.ahead.enter_context(Ahead(make, on=self.cuda, device=self.device))
            for name, make in self.makers.items()
        }

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
        waited: dict[str, list[float]] = {name: [] for name in order}
        peak: dict[str, float | None] = {}
        for name in order:
            self._turn(name, max(_WARM_UP, len(self.places)))
        for number in range(self.options.repeats):
            for name in (*order, *reversed(order)):
                if self.cuda:
                    torch.cuda.reset_peak_memory_stats(self.device)
                turn = self._turn(name, self.steps)
                clock[name].append(turn.wall / self.steps)
                processor[name].append(turn.cpu / self.steps)
                waited[name].append(turn.waited)
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
                "waited": round(fmean(waited[name]), 4) if self.cuda else None,
                "memory_mb": None if peak[name] is None else round(float(peak[name] or 0)),
                **({} if name in (PLAIN, AGAIN) else _overhead(times[name], base)),
            }
            if name in self.online:
                ratio = [theirs / ours for theirs, ours in zip(times[name], times[MAD], strict=True)]
                rows[name]["cached_is_faster"] = _digits(median(ratio))
        return rows, _overhead(times[AGAIN], times[PLAIN])

    def _turn(self, name: str, steps: int) -> _Turn:
        """So many steps and the making of as many batches, each of which is made while the step before is computed."""
        self._announce(name, 0)
        online = self.online.get(name)
        objective = self.objectives[name]
        batch = self._next(name, 0)
        synchronise(self.device)
        waited = 0
        wall, cpu = time.perf_counter(), time.process_time()
        for step in range(steps):
            self._announce(name, step + 1)
            batch = batch.to(self.device)
            if online is not None:
                batch = online.teach(batch)
            with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.cuda):
                loss = objective(batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            batch, late = self._awaited(name, step + 1)
            waited += late
        synchronise(self.device)
        found = _Turn(time.perf_counter() - wall, time.process_time() - cpu, waited / steps)
        self.last = loss.detach()
        return found

    def _announce(self, name: str, step: int) -> None:
        self.batches[name].announce([self.places[step % len(self.places)]], step)

    def _next(self, name: str, step: int) -> Any:
        """The batch of a step, made or waited for, perhaps still on its way to the device."""
        return self.batches[name](self.places[step % len(self.places)], step)

    def _awaited(self, name: str, step: int) -> tuple[Any, bool]:
        """The batch of a step, and whether the GPU had computed all that it was given before that was made."""
        if not self.cuda:
            return self._next(name, step), False
        computed = torch.cuda.current_stream(self.device).record_event()
        busy = not computed.query()
        batch = self._next(name, step)
        return batch, busy and computed.query()

    def reader(self, seconds: float) -> dict[str, Any]:
        """How fast one thread makes batches of `mad`, and how much faster than steps of so many seconds ask for them.

        All that the thread does for a batch: student's tensors and teacher's side are cut, and on a GPU page-locked
        and copied there; and the same of fine-tuning, whose thread does not read the cache. Both by the clock: the
        processor time of a step counts all its threads.
        """
        taken: dict[str, list[float]] = {PLAIN: [], MAD: []}
        for _ in range(max(2, self.options.repeats)):
            for name, found in taken.items():
                for step in range(len(self.places)):
                    synchronise(self.device)
                    began = time.perf_counter()
                    self._announce(name, step)
                    self._next(name, step)
                    synchronise(self.device)
                    found.append(time.perf_counter() - began)
        batch_s = median(taken[MAD])
        return {
            "batch_s": _digits(batch_s),
            "finetune_batch_s": _digits(median(taken[PLAIN])),
            "examples_per_s": _digits(self.batch / batch_s),
            "headroom": _digits(seconds / batch_s),
        }

    def close(self) -> None:
        """End the threads and let go of the cache, before its folder is removed."""
        self.ahead.close()
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
