"""One run from its names to its folder: data, subset, student, cache, pre-phase, training, export."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from madkit.core.console import counted, info, progress, warn
from madkit.core.errors import RunError
from madkit.core.files import FileLock, read_jsonl, write_json_atomic, write_text_atomic
from madkit.core.seeds import derive_seed
from madkit.core.workspace import Workspace
from madkit.distill.asked import Asked, ask_for, check_names
from madkit.distill.batches.effective_batch import EffectiveBatch, effective_batch
from madkit.distill.batches.examples import ExampleSet
from madkit.distill.batches.sight import regions_seen
from madkit.distill.loop.checkpoint import list_checkpoints
from madkit.distill.loop.development import Development, sample_questions
from madkit.distill.loop.loop import Look, LoopResult, make_accelerator, run_loop
from madkit.distill.loop.plan import loop_settings, training_order
from madkit.distill.loop.trackers import Trackers
from madkit.distill.loop.weight_mean import weight_means
from madkit.distill.next_commands import next_commands
from madkit.distill.objective.objective import is_fresh
from madkit.distill.pool.joint_pool import Pool, encode_together, gather_pool
from madkit.distill.pool.pre_phase import SETUP_MARK, PrePhaseResult, pre_phase
from madkit.distill.pool.soft_phase import with_soft_phase
from madkit.distill.runs.compute import check_code, parameter_count, settle_threads
from madkit.distill.runs.folder import RunBusy
from madkit.distill.runs.summary import summary_text
from madkit.distill.teacher.run_teachers import check_phases
from madkit.distill.teaching import make_teaching
from madkit.students.heads import HeadSpec
from madkit.students.load import load_student, save_student, student_folder
from madkit.students.student import Student

DEFAULT_SHOTS = "1pct"
DEFAULT_ARM = "mad"


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run that is complete: its folder and its manifest. `skipped`: it had been complete before."""

    path: Path
    skipped: bool
    manifest: dict[str, Any]

    @property
    def dev(self) -> dict[str, Any]:
        """Scores on the development split."""
        return dict(self.manifest.get("dev") or {})


def distill(
    workspace: Workspace,
    *,
    task: str,
    shots: str = DEFAULT_SHOTS,
    arm: str = DEFAULT_ARM,
    student: str | Path | None = None,
    init: str | None = None,
    recipe: str | None = None,
    teacher: str | Sequence[str] | None = None,
    seed: int = 0,
    config_overrides: Mapping[str, Any] | None = None,
    threads: int = 0,
    part: str = "auto",
) -> RunResult:
    """Train one student, or find it trained.

    Args:
        workspace: data, cache and runs.
        task: "vcr", "snli-ve", "vqa", or the name of an imported data set.
        shots: "1pct", "200", "full": how many questions of the train split are labelled.
        arm: name of a shipped arm or path of a YAML file.
        student: name or folder; None: "mini-uniter" where the data is the embedded benchmark.
        init: what a student without weights of its own begins with (`students.start.new_student`).
        recipe: name or path of a paper's settings, which lie below the arm's; "paper" for that of student and task.
        teacher: name of the cache's teacher, or names of several; None: those of the configuration, else the
            workspace's only cache for this data.
        seed: of the subset, the task head, the order of samples and dropout; equal seeds pair the arms.
        config_overrides: dotted keys of `DistillConfig` to values.
        threads: compute threads of torch and readers of files; 0: one for small students, else torch's own choice.
        part: which part of the embedded benchmark, see `open_task`.

    Raises:
        UsageProblem, ConfigError: names or values that cannot be meant, with the nearest ones that can.
        CacheError: no cache, one of other data, or one that lacks images or texts; the hint is the command that mends.
        RunError: the loss is not a number, the disk is full, another process trains this run.
        StoppedResumable, KeyboardInterrupt: stopped by a signal after a checkpoint.
    """
    names = check_names(
        workspace,
        task=task,
        shots=shots,
        arm=arm,
        student=student,
        init=init,
        recipe=recipe,
        overrides=config_overrides,
    )
    before = torch.get_num_threads()
    accelerator = make_accelerator(names.config.precision)
    asked = ask_for(workspace, names, teacher=teacher, seed=seed, part=part, turn=accelerator.main_process_first)
    try:
        return _Run(asked, threads or 2, accelerator).go(threads)
    finally:
        asked.close()
        torch.set_num_threads(before)


class _Run:
    """One run: what its steps share."""

    def __init__(self, asked: Asked, threads: int, accelerator: Accelerator) -> None:
        self.asked = asked
        self.threads = threads
        self.accelerator = accelerator
        self.pre_phase: PrePhaseResult | None = None
        self.untaught = 0
        self.pool: Pool | None = None

    # -- the way of a run -------------------------------------------------------------------------------------------

    def go(self, threads: int) -> RunResult:
        asked = self.asked
        done = asked.folder.complete()
        if done is not None:
            return RunResult(asked.folder.path, True, done)
        self._check_room()
        for pick in asked.named.told:
            (info if pick.fair else warn)(pick.said)
        for line in check_phases(asked.teachers, asked.config):
            info(line)
        info(
            f"{asked.data.source}, {asked.identity.shots}: {len(asked.labelled)} labelled examples, arm "
            f"{asked.identity.arm}, student {asked.identity.student}, seed {asked.seed}"
            + (f", teacher{'s' * asked.named.several} {asked.identity.teacher}" if asked.identity.teacher else "")
            + (f" ({asked.teachers.lacks})" if asked.teachers is not None and asked.teachers.lacks else "")
        )
        lock = FileLock(asked.folder.path / ".lock", busy=RunBusy, what=f"the run {asked.folder.path.name}")
        if self.accelerator.is_main_process:
            lock.acquire()
        try:
            begun = asked.folder.manifest() if list_checkpoints(asked.folder.path / "checkpoints") else None
            check_code(begun)
            size = parameter_count(student_folder(asked.start) / "model.safetensors")
            threads = settle_threads(threads, size, self.accelerator.device, begun)
            if self.accelerator.is_main_process:
                asked.folder.begin({"threads": threads})
            self.accelerator.wait_for_everyone()
            return RunResult(asked.folder.path, False, self._train())
        finally:
            lock.release()

    def _check_room(self) -> None:
        asked = self.asked
        smallest = min(asked.config.optim.batch_size, len(asked.labelled))
        if asked.config.optim.token_budget is None and smallest < self.accelerator.num_processes:
            raise RunError(
                f"A batch of {smallest} examples cannot be shared by {self.accelerator.num_processes} processes.",
                hint="use fewer processes, or --set optim.batch_size=...",
            )

    def _student(self) -> Student:
        asked = self.asked
        source: str | Path = asked.start
        config, soft = asked.config, None
        if config.pre_phase is not None and asked.teachers is not None:
            config, soft = with_soft_phase(config, asked.labelled, asked.head, asked.teachers, asked.train, asked.seed)
        if config.pre_phase is not None and asked.teachers is not None:
            first = self._load(source, config.pre_phase.dropout, head=asked.head)
            self.pre_phase = pre_phase(
                asked.workspace, asked.data, first, asked.teachers, config, self.accelerator,
                threads=self.threads, eyes=asked.eyes, soft=soft, setup=asked.setup,
            )  # fmt: skip
            if self.pre_phase.skipped:
                info(f"The pre-phase {self.pre_phase.path.name} had been made.")
            source = self.pre_phase.student
        return self._load(source, config.optim.dropout, head=asked.head if soft is None else None)

    def _load(self, source: str | Path, dropout: float | None, *, head: HeadSpec | None = None) -> Student:
        asked = self.asked
        student = load_student(source, head=head, head_seed=derive_seed(asked.seed, "head"))
        if dropout is not None:
            set_dropout(student, dropout)
        return student

    def _train(self) -> dict[str, Any]:
        asked = self.asked
        began = time.monotonic()
        config, folder = asked.config, asked.folder.path
        student = self._student()
        regions = regions_seen(asked.sight, asked.data, asked.eyes)
        dev_examples = sample_questions(asked.data.examples("dev"), config.eval.limit)
        pool: Pool | None = None
        if config.pool is not None and asked.teachers is not None:
            pool = gather_pool(config, asked.train, asked.labelled, asked.head, asked.teachers, seed=asked.seed)
        count = len(asked.labelled) + len(dev_examples) + (0 if pool is None else len(pool.examples))
        with progress("Encoding", count, "examples") as shown:
            examples, joint = encode_together(
                asked.labelled,
                pool,
                student,
                regions,
                threads=self.threads,
                answer_match=config.answer_match,
                progress=shown,
            )
            held = ExampleSet(dev_examples, student, regions, threads=self.threads, labelled=False, progress=shown)
        if examples.shortened:
            info(f"{examples.shortened} text tokens did not fit the student and were left out.")
        taught = make_teaching(
            config,
            examples,
            student,
            asked.teachers,
            seed=asked.seed,
            threads=self.threads,
            folder=folder,
            joint=joint,
            device=self.accelerator.device,
        )
        self.untaught, objective, self.pool = taught.untaught, taught.objective, pool
        development = Development(asked.data.spec, held, config.eval.tokens)
        device = self.accelerator.device

        def look(step: int) -> Look:
            return development.look(student, device)

        settings = loop_settings(config, asked.seed)
        order = training_order(config, examples, asked.seed)
        batch = effective_batch(order, examples.text_lengths, examples.region_counts, settings.micro_tokens)
        passes = f"{counted(settings.steps, 'steps')} are {settings.steps * batch.samples / len(examples):,.1f} passes."
        info(f"A step holds {batch}; {passes}" + ("" if joint is None else f" {joint}"))
        with (
            progress(f"Training {asked.identity.arm}, seed {asked.seed}", settings.steps, "steps") as shown,
            Trackers(
                config.trackers, folder, asdict(asked.identity), config.model_dump(mode="json"), self.accelerator
            ) as trackers,
        ):
            result = run_loop(
                folder,
                objective,
                *taught.stream(order),
                settings,
                self.accelerator,
                look=look,
                fresh=is_fresh,
                adversary=taught.adversary(config),
                weights=weight_means(objective, self.accelerator),
                trackers=trackers,
                marks={"tokenizer of the student": student.tokenizer.digest, SETUP_MARK: asked.setup.digest},
                progress=shown,
            )
        manifest: dict[str, Any] = {}
        if self.accelerator.is_main_process:
            manifest = self._export(student, examples, result, time.monotonic() - began, batch)
        self.accelerator.wait_for_everyone()
        return manifest or asked.folder.manifest() or {}

    def _export(
        self, student: Student, examples: ExampleSet, result: LoopResult, seconds: float, batch: EffectiveBatch
    ) -> dict[str, Any]:
        asked = self.asked
        folder = asked.folder.path
        student.cpu()
        save_student(student, folder / "student")
        if asked.head.outputs:
            name = "answers.json" if asked.head.kind == "vqa" else "labels.json"
            write_json_atomic(folder / "student" / name, list(asked.head.outputs))
        scores: list[dict[str, Any]] = [row["dev"] for row in result.looks if row["step"] == result.kept_step]
        facts: dict[str, Any] = {
            "steps": result.step,
            "kept_step": result.kept_step,
            "resumed_from": result.resumed_from,
            "examples_labelled": len(examples),
            "batch": batch.as_row(),
            "examples_without_teacher": self.untaught,
            "pool": None if self.pool is None else self.pool.facts,
            "questions_labelled": len({example.question_id for example in examples.examples}),
            "seconds": round(seconds, 2),
            "device": str(self.accelerator.device),
            "processes": self.accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "stopped_early": result.stopped_early,
            "pre_phase": None if self.pre_phase is None else self.pre_phase.path.name,
            "adapted": None if (adapted := asked.named.facts) is None else adapted.as_dict(),
            "teachers": None if asked.teachers is None or asked.teachers.one else asked.teachers.as_rows(),
            "teacher_at_inference": asked.sight == "teacher",
            "dev": scores[-1] if scores else {},
        }
        steps = [row for row in read_jsonl(folder / "metrics.jsonl") if "loss" in row]
        text = summary_text(asked.identity, asked.config, facts, result.looks, steps, next_commands(asked))
        write_text_atomic(folder / "summary.md", text)
        return asked.folder.finish(facts)


def set_dropout(module: nn.Module, rate: float) -> None:
    """Give every dropout of a network the same rate."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = rate
