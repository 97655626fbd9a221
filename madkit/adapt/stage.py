"""One adaptation from its names to its folder: data, subset, teacher, training, and the file with what it changed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin

from madkit.adapt.config import AdaptConfig, load_adapt_config, resolve
from madkit.adapt.development import Match, match, sample
from madkit.adapt.folder import AdaptFolder, AdaptIdentity
from madkit.adapt.inputs import Inputs
from madkit.adapt.items import Item, answers_of, make_items
from madkit.adapt.loop import CHECKPOINTS, Progression, Training
from madkit.adapt.trained_pair import LOGIT_SCALE, TrainedPair
from madkit.adapt.vectors import LiveVectors, StoredVectors, Vectors
from madkit.core.console import duration, info, progress, warn
from madkit.core.errors import DataError, RunError, UsageProblem
from madkit.core.files import FileLock, digest_of, sha256_file, write_bytes_atomic
from madkit.core.launcher import asked_accumulation, job_hidden, world_size
from madkit.core.metrics_log import disk_problem
from madkit.core.workspace import Workspace
from madkit.tasks.data import TaskData, check_task_name, open_task
from madkit.tasks.id_lists import labelled_examples
from madkit.tasks.shots import parse_shots
from madkit.teachers.adapter import FILE, SIDES, write_adapter_bytes
from madkit.teachers.interface import Teacher
from madkit.teachers.known import parse_teacher_name
from madkit.teachers.load import load_teacher

DEFAULT_SHOTS = "1pct"


@dataclass(frozen=True, slots=True)
class AdaptResult:
    """A run that is complete: its folder and its manifest. `skipped`: it had been complete before."""

    path: Path
    skipped: bool
    manifest: dict[str, Any]


def adapt(
    workspace: Workspace,
    *,
    teacher: str,
    task: str,
    shots: str = DEFAULT_SHOTS,
    seed: int = 0,
    config: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    weights: Path | None = None,
    device: str = "auto",
    name: str | None = None,
    threads: int = 0,
    part: str = "auto",
) -> AdaptResult:
    """Adapt one teacher, or find it adapted.

    Args:
        workspace: where data is read and the run is written.
        teacher: see :func:`madkit.teachers.load.load_teacher`.
        task: "vcr", "snli-ve", "vqa", or the name of an imported data set.
        shots: "1pct", "200", "full", "list:NAME": the same questions as a distillation's of equal seed.
        seed: of the subset, the order of items, new matrices and dropout.
        config: a YAML file with keys of `AdaptConfig`.
        overrides: dotted keys of `AdaptConfig` to values.
        weights: weight file or folder for the teacher.
        device: "auto", "cpu" or "cuda".
        name: of the run; None: from what it is.
        threads: compute threads of torch; 0 leaves torch's own choice.
        part: which part of the embedded benchmark, see `open_task`.

    Raises:
        UsageProblem, ConfigError: names or values that cannot be meant.
        NotFoundError, DataError: no weights or no data, or damaged ones.
        RunError: the loss is not a number, the disk is full, another process adapts this run.
        StoppedResumable, KeyboardInterrupt: stopped by a signal after a checkpoint.
    """
    _refuse_several_processes()
    task = check_task_name(workspace, task)
    shots = str(parse_shots(shots))
    settings = load_adapt_config(config, dict(overrides or {}))
    parse_teacher_name(teacher)
    accelerator = _accelerator(device, settings.precision)
    if threads:
        torch.set_num_threads(threads)
    data = open_task(workspace, task, part=part)
    loaded = load_teacher(teacher, weights=weights, device=str(accelerator.device), dtype=torch.float32)
    return _Run(workspace, data, loaded, shots, seed, settings, accelerator, name).go()


class _Run:
    """One run: what its steps share."""

    def __init__(
        self,
        workspace: Workspace,
        data: TaskData,
        teacher: Teacher,
        shots: str,
        seed: int,
        config: AdaptConfig,
        accelerator: Accelerator,
        name: str | None,
    ) -> None:
        if teacher.vision is None or teacher.text is None:
            TrainedPair(teacher, config, seed)  # says what is wrong
        assert teacher.vision is not None
        assert teacher.text is not None
        self.data, self.teacher, self.seed, self.accelerator = data, teacher, seed, accelerator
        self.vision, self.text = teacher.vision, teacher.text
        examples = labelled_examples(data, shots, seed)
        self.answers = answers_of(examples) if data.spec.kind == "vqa" else {}
        self.items = make_items(data.spec, examples, config.objective, answers=self.answers, seed=seed)
        if len(self.items) < 2:
            raise RunError(f"{shots} of {data.source} is too little to compare.", hint="give more: --shots 5pct")
        self.n_examples = len(examples)
        self.config = resolve(config, len(self.items))
        base = {"vision": str(self.vision.identity["weights"]), "text": str(self.text.identity["weights"])}
        identity = AdaptIdentity(
            teacher=teacher.name,
            base=base,
            task=data.spec.name,
            source=data.source,
            data_revision=data.revision,
            is_mini=data.is_mini,
            shots=shots,
            seed=seed,
            examples=digest_of([example.id for example in examples]),
        )
        self.folder = AdaptFolder(workspace, identity, self.config, name)

    def go(self) -> AdaptResult:
        done = self.folder.complete()
        if done is not None:
            return AdaptResult(self.folder.path, True, done)
        identity, config = self.folder.identity, self.config
        info(
            f"{self.data.source}, {identity.shots}: {self.n_examples} labelled examples, {config.train} of "
            f"{identity.teacher} on {self.accelerator.device} ({self.accelerator.mixed_precision} autocast), seed "
            f"{self.seed}.".replace("(no autocast)", "(float32)")
        )
        with FileLock(self.folder.path / ".lock", error=RunError, what=f"the adaptation {self.folder.name}"):
            self.folder.begin()
            return AdaptResult(self.folder.path, False, self._train())

    def _train(self) -> dict[str, Any]:
        began = time.monotonic()
        config = self.config
        pair = TrainedPair(self.teacher, config, self.seed).to(self.accelerator.device)
        made = make_items(
            self.data.spec, self.data.examples("dev"), config.objective, answers=self.answers, seed=self.seed
        )
        dev = sample(made, config.eval.limit, "dev")
        with Inputs(self.vision, self.text, memory_mb=config.image_memory_mb) as inputs:
            with progress("Reading images and texts", _images(self.items) + _images(dev), "images") as shown:
                items, dev = inputs.check(self.items, shown), inputs.check(dev, shown)
            self._say_unreadable(inputs, items, dev)
            seen = sample(items, config.eval.limit, "train", self.seed)
            vectors = self._vectors(pair, inputs, [*items, *dev])

            def look() -> tuple[Match, Match]:
                size, terms = config.optim.batch_size, config.objective
                return match(pair, vectors, seen, size, terms), match(pair, vectors, dev, size, terms)

            training = Training(self.folder.path, pair, vectors, items, config, self.seed, self.accelerator)
            with progress(f"Adapting {self.folder.identity.teacher}", training.steps, "steps") as shown:
                result = training.run(look, shown)
            touched = {name for name, parameter in pair.trained.items() if training.plain.state.get(parameter)}
            return self._export(pair, result, inputs, touched, len(items), time.monotonic() - began)

    def _vectors(self, pair: TrainedPair, inputs: Inputs, items: Sequence[Item]) -> Vectors:
        for side in (side for side in SIDES if not pair.trains(side)):
            warn(f"Nothing of the {side} side is of the kind that is trained, so it stays as it is.")
        if not pair.frozen_encoders:
            return LiveVectors(pair, inputs)
        info("The encoders stay frozen, so they read everything once.")
        with progress("Encoding", StoredVectors.count(items), "images and texts") as shown, self.accelerator.autocast():
            return StoredVectors(pair, inputs, items, shown)

    def _say_unreadable(self, inputs: Inputs, items: Sequence[Item], dev: Sequence[Item]) -> None:
        if inputs.unreadable:
            first = next(iter(inputs.unreadable.values()))
            warn(f"{len(inputs.unreadable)} images cannot be read and are left out ({first}).")
        if len(items) < 2 or not dev:
            raise DataError(
                "Too few images can be read to compare anything.", hint="put the images back, or import the data again"
            )

    def _export(
        self, pair: TrainedPair, done: Progression, inputs: Inputs, touched: set[str], n_items: int, seconds: float
    ) -> dict[str, Any]:
        kept = next(row for row in done.looks if row["step"] == done.best_step)
        before = done.looks[0]["dev"]
        untouched = done.best_step == 0
        facts: dict[str, Any] = {"untouched": untouched}
        if untouched:
            outcome = "no step was better than the untouched teacher on the development split: its weights are kept"
            (self.folder.path / FILE).unlink(missing_ok=True)
        else:
            outcome = f"the weights of step {done.best_step} are kept"
            facts["adapter"] = self._write_file(pair, touched)
        if pair.new_heads:
            outcome += " (before the first step the new layers into a common space are random)"
        facts |= {
            "outcome": outcome,
            "steps": done.step,
            "kept_step": done.best_step,
            "stopped_early": done.stopped_early,
            "before": before,
            "after": kept["dev"],
            "train": kept["train"],
            "looks": done.looks,
            "items": n_items,
            "examples_used": self.n_examples,
            "windowed_texts": inputs.longer_than(self.text.limit),
            "unreadable": [{"image": image, "error": error} for image, error in inputs.unreadable.items()],
            "seconds": round(seconds, 3),
        }
        manifest = self.folder.finish(facts)
        for path in (self.folder.path / CHECKPOINTS).glob("*.safetensors"):
            path.unlink()  # the outcome is written; these hold the optimiser's moments, which nobody needs any more
        info(f"{outcome[:1].upper()}{outcome[1:]}; {duration(seconds)}.")
        return manifest

    def _write_file(self, pair: TrainedPair, touched: set[str]) -> dict[str, Any]:
        tensors = {name: value for name, value in pair.trained.items() if name in touched and name != LOGIT_SCALE}
        lora = self.config.lora
        scale = lora.alpha / lora.rank if self.config.train == "lora" else 1.0
        logit = float(pair.scale.detach())
        base = self.folder.identity.base
        path = self.folder.path / FILE
        try:
            write_bytes_atomic(path, write_adapter_bytes(tensors, base=base, scale=scale, logit=logit))
        except OSError as error:
            raise disk_problem(error, path) from None
        return {
            "file": FILE,
            "sha256": sha256_file(path),
            "bytes": path.stat().st_size,
            "parameters": sum(value.numel() for value in tensors.values()),
            "tensors": {side: sum(name.startswith(f"{side}/") for name in tensors) for side in SIDES},
            "scale": scale,
            "logit_scale": logit,
            "new_heads": pair.new_heads,
        }


def _images(items: Sequence[Item]) -> int:
    return len({item.image.id for item in items})


def _refuse_several_processes() -> None:
    """Raise RunError in a process that a launcher started beside others, before it waits for them."""
    count = world_size()
    if count > 1:
        raise RunError(
            f"An adaptation runs in one process, not in {count}: its loss sets every image of a batch against every "
            "text, and the batch cannot be shared out.",
            hint="run it without accelerate launch or torchrun; larger batches: --set gradient_checkpointing=true",
        )


def _accelerator(device: str, precision: str) -> Accelerator:
    """An Accelerator for this process.

    Raises:
        UsageProblem: no such device.
        RunError: 16 bits without CUDA.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UsageProblem(f"There is no device named '{device}' to adapt on.", hint="--device auto, cpu or cuda")
    cuda = torch.cuda.is_available() and device != "cpu"
    if device == "cuda" and not cuda:
        raise UsageProblem("This machine has no GPU that PyTorch can use.", hint="--device cpu")
    if precision == "auto":
        native = cuda and torch.cuda.is_bf16_supported(including_emulation=False)  # before Ampere: slower than fp32
        precision = ("bf16" if native else "fp16") if cuda else "fp32"
    if precision != "fp32" and not cuda:
        raise RunError(
            f"Precision {precision} needs a CUDA device, which is not in use here.", hint="--set precision=fp32"
        )
    if AcceleratorState._shared_state:
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run of this process decided otherwise
    if (passes := asked_accumulation()) > 1:
        warn(f"Gradients are not accumulated over {passes} passes, as the launcher asks: optim.batch_size is a step's.")
    # a step is one pass; left to the launcher's variable, Accelerate would divide its gradients
    one = GradientAccumulationPlugin(num_steps=1)
    mixed = "no" if precision == "fp32" else precision
    with job_hidden():
        return Accelerator(mixed_precision=mixed, cpu=not cuda, gradient_accumulation_plugin=one)
