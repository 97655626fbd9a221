"""The pre-phase: distil on the unlabelled pool before any label is read, once for all runs that share it.

Its outcome is an ordinary student without a task head, in ``<workspace>/runs/<source>/pre-phase-<digest12>/``. The
digest covers the student's weights and configuration, the cache, the data's revision and the settings with their seed,
and nothing of the run that asked for it, unless soft labels are learnt (`soft_phase`). Two runs that need the same one
at the same time wait for each other.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from madkit.cache import TokenCache
from madkit.core.console import info, progress
from madkit.core.environment import environment
from madkit.core.files import FileLock, digest_of, read_json, write_json_atomic
from madkit.core.interrupts import StopSignals
from madkit.core.later_keys import without_later
from madkit.core.seeds import derive_seed
from madkit.core.workspace import Workspace
from madkit.distill.batches.examples import ExampleSet
from madkit.distill.batches.micro_batch import BatchMaker
from madkit.distill.batches.order import BucketOrder, PlainOrder
from madkit.distill.batches.sight import regions_seen
from madkit.distill.loop.loop import Look, LoopSettings, StepLoss, run_loop
from madkit.distill.loop.optimizer import OptimizerSettings
from madkit.distill.objective.objective import Objective, is_fresh
from madkit.distill.pool.pool import known_to, split_held_out, unlabelled_pairs
from madkit.distill.pool.soft_labels import ProbeAnswers
from madkit.distill.pool.soft_phase import SoftBatchMaker, SoftPhase, soft_objective, without_schedule
from madkit.distill.runs.folder import MANIFEST, RunBusy
from madkit.distill.settings.config import DistillConfig, PrePhaseConfig
from madkit.distill.teacher.bank_room import Room
from madkit.distill.teacher.criterion import check_tags
from madkit.distill.teacher.sides import criterion_of, side_of
from madkit.distill.teacher.teachers import Teachers
from madkit.students.load import save_student
from madkit.students.setup import Setup
from madkit.students.student import Student
from madkit.tasks.data import TaskData

WAIT_S = 1.0
SETUP_MARK = "configuration of the student"  # what a checkpoint calls it that does not fit any more


@dataclass(frozen=True, slots=True)
class PrePhaseResult:
    """Where the pre-phase's student lies, and whether it had been made before."""

    path: Path
    student: Path
    skipped: bool
    manifest: dict[str, Any]


def pre_phase(
    workspace: Workspace,
    data: TaskData,
    student: Student,
    teachers: Teachers,
    config: DistillConfig,
    accelerator: Accelerator,
    *,
    threads: int,
    eyes: TokenCache | None = None,
    soft: SoftPhase | None = None,
    setup: Setup | None = None,
) -> PrePhaseResult:
    """Make the pre-phase's student, or find it made.

    Args:
        workspace: where it goes.
        data: the task; only its train split is read, and no label of it but those in `soft`.
        student: the pretrained student; changed in place.
        teachers: the teachers; of several those take part who can teach what the phase distils.
        config: resolved configuration with a `pre_phase`.
        accelerator: device, precision and processes.
        threads: readers.
        eyes: the cache that the student sees with, where it sees with a teacher's tokens.
        soft: the run's labelled subset and head, where the phase has soft labels; its student then keeps the head.
        setup: of the student's folder; None: one that ships with madkit.

    Raises:
        CacheError: a cache lacks images or texts of the train split.
        RunError, StoppedResumable, KeyboardInterrupt: see `loop.run_loop`.
    """
    phase = config.pre_phase
    assert phase is not None
    assert phase.seed is not None
    if phase.objective is None:
        teachers = teachers.only(())
    elif not teachers.one:
        teachers = teachers.only(teachers.shares(phase.objective, own=False))
    identity = {
        "student": student.identity.weights,
        "tokenizer": student.tokenizer.digest,
        "cache": teachers.phase_key,
        "source": data.source,
        "revision": data.revision,
        **({} if (regions := data.region_digest()) is None else {"regions": regions}),
        "precision": config.precision,
        "permute_teacher": config.permute_teacher,
        "config": without_later(phase.model_dump(mode="json"), "pre_phase."),
        **({} if soft is None else {"soft_labels": soft.key(config)}),
        **({} if setup is None or setup.own is None else {"student_setup": setup.own}),
    }
    path = workspace.runs / data.source / f"pre-phase-{digest_of(identity)[:12]}"
    main = accelerator.is_main_process
    with _Turn(path, accelerator):
        manifest = _complete(path)
        accelerator.wait_for_everyone()
        if manifest is not None:
            return PrePhaseResult(path, path / "student", True, manifest)
        if main:
            write_json_atomic(path / MANIFEST, {"schema": 1, "kind": "pre-phase", "status": "running", **identity})
        facts = _train(path, data, student, teachers, eyes, config, phase, accelerator, threads, soft, setup)
        manifest = {
            "schema": 1,
            "kind": "pre-phase",
            "status": "complete",
            **identity,
            **facts,
            "environment": environment(),
        }
        if main:
            write_json_atomic(path / MANIFEST, manifest)
        accelerator.wait_for_everyone()
        return PrePhaseResult(path, path / "student", False, manifest)


def _complete(path: Path) -> dict[str, Any] | None:
    if not (path / MANIFEST).exists():
        return None
    manifest = read_json(path / MANIFEST)
    return manifest if isinstance(manifest, dict) and manifest.get("status") == "complete" else None


class _Turn:
    """The folder's lock, waited for: the other process does the very work that this one needs.

    The main process takes it and the others follow. They hear of every attempt: whoever sat in one message until the
    lock is free would be given up after minutes (ten under NCCL), and a pre-phase takes longer.
    """

    def __init__(self, path: Path, accelerator: Accelerator) -> None:
        self._path = path
        self._accelerator = accelerator
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), busy=RunBusy, what=f"the pre-phase {path.name}")

    def __enter__(self) -> None:
        told = False
        with StopSignals() as signals:
            while not self._taken():
                if not told:
                    info(f"Waiting for {self._path.name}, which another process is making.")
                    told = True
                if signals.requested:
                    raise signals.error()
                time.sleep(WAIT_S)

    def _taken(self) -> bool:
        taken = True
        if self._accelerator.is_main_process:
            try:
                self._lock.acquire()
            except RunBusy:
                taken = False
        if self._accelerator.num_processes > 1:
            (taken,) = broadcast_object_list([taken])
        return bool(taken)

    def __exit__(self, *_: object) -> None:
        if self._accelerator.is_main_process:
            self._lock.release()


def _train(
    path: Path,
    data: TaskData,
    student: Student,
    teachers: Teachers,
    eyes: TokenCache | None,
    config: DistillConfig,
    phase: PrePhaseConfig,
    accelerator: Accelerator,
    threads: int,
    soft: SoftPhase | None,
    setup: Setup | None,
) -> dict[str, Any]:
    seed = phase.seed
    assert seed is not None
    began = time.monotonic()
    answers: ProbeAnswers | None = None
    if soft is not None:
        pairs, answers, left_out = soft.answered(config, phase, data.examples("train"))
        size = soft.per_step(phase)
    else:
        size = phase.batch_size
        pairs = unlabelled_pairs(data.examples("train"), draws=phase.steps * size, limit=phase.pool, seed=seed)
        left_out = 0
        for teacher_cache in (member.cache for member in teachers):
            pairs, unknown = known_to(teacher_cache, pairs)
            left_out += unknown
    if left_out:
        info(f"{left_out:,} of {left_out + len(pairs):,} pairs are left out: the cache has no values for their items.")
    train, held = split_held_out(pairs, phase.held_out, seed)
    with progress("Reading the unlabelled pool", len(pairs), "pairs") as shown:
        regions = regions_seen(student.family.visual, data, eyes)
        pool = ExampleSet(train, student, regions, threads=threads, labelled=False, progress=shown)
        rest = ExampleSet(held, student, regions, threads=threads, labelled=False, progress=shown)
    permute = derive_seed(seed, "permute") if config.permute_teacher else None
    room = Room(config.teacher_bank, accelerator.device)
    teacher = held_teacher = criterion = None
    if phase.objective is not None:
        check_tags(phase.objective, pool)
        teacher, held_teacher = (
            side_of(examples, teachers, phase.objective, own=False, threads=threads, permute_seed=permute, room=room)
            for examples in (pool, rest)
        )
        criterion = criterion_of(teacher, phase.objective, student, seed)
    plain = BatchMaker(pool, phase.steps, teacher=teacher, one_text=True)
    held_plain = BatchMaker(rest, 1, teacher=held_teacher, one_text=True)
    objective: Objective
    batches: BatchMaker | SoftBatchMaker
    held_batches: BatchMaker | SoftBatchMaker
    if answers is None or phase.soft_labels is None:
        objective, batches, held_batches = Objective(student, criterion, supervised=False), plain, held_plain
    else:
        objective = soft_objective(student, criterion, config, phase)
        row = {pair.id: place for place, pair in enumerate(pairs)}
        batches, held_batches = (
            SoftBatchMaker(maker, answers, torch.tensor([row[name] for name in maker.examples.ids]), phase.soft_labels)
            for maker in (plain, held_plain)
        )
    order = BucketOrder(rest.lengths.tolist(), rest.sequences.tolist(), phase.micro_tokens, len(rest), "held out")

    def look(step: int) -> Look:
        total, seen = 0.0, 0
        while seen < len(rest):
            indices = order.at(seen)
            batch = without_schedule(held_batches(np.sort(indices), 0))
            out: StepLoss = objective(batch.to(accelerator.device))
            total += float(out.loss) * len(indices)
            seen += len(indices)
        return Look(-total / seen, {"held_out": total / seen, "pairs": seen})

    settings = LoopSettings(
        steps=phase.steps,
        learning_rate=phase.learning_rate,
        warmup=phase.warmup,
        optimizer=OptimizerSettings(betas=phase.betas, weight_decay=phase.weight_decay),
        clip=phase.clip,
        micro_tokens=phase.micro_tokens,
        seed=derive_seed(seed, "pre-phase"),
        checkpoint_every=config.checkpoint.every,
        checkpoint_keep=config.checkpoint.keep,
        look_every=phase.eval_every,
        keep="best",
        patience=phase.patience,
        divergence=config.divergence,
        fresh_rate=1.0 if soft is None else config.optim.head_rate or 1.0,
    )
    with progress("Pre-phase", phase.steps, "steps") as shown:
        result = run_loop(
            path,
            objective,
            PlainOrder(len(pool), size, "pre-phase", seed),
            batches,
            pool.ids,
            pool.lengths,
            pool.sequences,
            settings,
            accelerator,
            look=look,
            fresh=is_fresh,
            marks={} if setup is None else {SETUP_MARK: setup.digest},
            progress=shown,
        )
    if accelerator.is_main_process:
        save_student(student.cpu(), path / "student", with_head=soft is not None)
    accelerator.wait_for_everyone()
    best = next((row["dev"] for row in result.looks if row["step"] == result.kept_step), None)
    return {
        "steps": result.step,
        "kept_step": result.kept_step,
        "stopped_early": result.stopped_early,
        "held_out": best,
        "pairs": len(pool),
        "held_out_pairs": len(rest),
        "pairs_left_out": left_out,
        "images": len(pool.image_ids),
        "seconds": round(time.monotonic() - began, 2),
        "device": str(accelerator.device),
        **({} if answers is None else {"probe": answers.facts}),
    }
