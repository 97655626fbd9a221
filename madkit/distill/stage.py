"""One run from its names to its folder: data, subset, student, cache, pre-phase, training, export."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from madkit.cache import TokenCache, choose_cache
from madkit.core.console import info, progress, warn
from madkit.core.errors import RunError, UsageProblem
from madkit.core.files import FileLock, digest_of, read_jsonl, sha256_file, write_json_atomic, write_text_atomic
from madkit.core.seeds import derive_seed
from madkit.core.workspace import Workspace
from madkit.distill.batches.answers import head_for
from madkit.distill.batches.effective_batch import EffectiveBatch, effective_batch
from madkit.distill.batches.examples import ExampleSet
from madkit.distill.batches.sight import Start, beginning, kept_start, regions_seen, sees_with, sight_of
from madkit.distill.loop.checkpoint import list_checkpoints
from madkit.distill.loop.development import Development, sample_questions
from madkit.distill.loop.loop import Look, LoopResult, make_accelerator, run_loop
from madkit.distill.loop.plan import loop_settings, training_order
from madkit.distill.loop.trackers import Trackers, check_trackers
from madkit.distill.loop.weight_mean import weight_means
from madkit.distill.objective.objective import is_fresh
from madkit.distill.pool.joint_pool import Pool, encode_together, gather_pool
from madkit.distill.pool.pre_phase import PrePhaseResult, pre_phase
from madkit.distill.pool.soft_phase import with_soft_phase
from madkit.distill.runs.compute import check_code, parameter_count, settle_threads
from madkit.distill.runs.folder import RunBusy, RunFolder, RunIdentity
from madkit.distill.runs.summary import summary_text
from madkit.distill.settings.arms import load_arm
from madkit.distill.settings.config import DistillConfig, resolve
from madkit.distill.settings.recipes import PAPER, load_recipe
from madkit.distill.teacher.run_teachers import Named, check_phases, name_teachers, open_teachers, with_teachers
from madkit.distill.teacher.teachers import teacher_name
from madkit.distill.teaching import make_teaching
from madkit.students.heads import HeadSpec
from madkit.students.load import load_student, save_student, student_folder
from madkit.students.start import check_start
from madkit.students.student import Student
from madkit.tasks.data import TaskData, check_task_name, open_task
from madkit.tasks.example import Example
from madkit.tasks.id_lists import labelled_examples
from madkit.tasks.shots import parse_shots

DEFAULT_SHOTS = "1pct"
DEFAULT_ARM = "mad"
MINI_STUDENT = "mini-uniter"


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
    # names are checked before anything is built or read
    task = check_task_name(workspace, task)
    shots = str(parse_shots(shots))
    config = load_arm(arm, config_overrides)
    check_trackers(config.trackers)
    student = kept_start(workspace, student)
    check_start(str(student or MINI_STUDENT), init)
    if recipe is not None and recipe != PAPER:
        load_recipe(recipe)
    before = torch.get_num_threads()
    accelerator = make_accelerator(config.precision)
    with accelerator.main_process_first():  # the embedded benchmark is built by one process
        data = open_task(workspace, task, part=part)
    if student is None:
        if not data.is_mini:
            raise UsageProblem(
                f"{data.source} is not the embedded benchmark, so a student has to be named.",
                hint=f"add --student NAME or FOLDER; --student {MINI_STUDENT} is there to try things out",
            )
        student = MINI_STUDENT
    if recipe is not None:
        found = load_recipe(recipe, student=str(student), task=data.spec.name)
        config = load_arm(arm, config_overrides, below=found.settings)
        info(
            f"Recipe {found.recipe}: {found.published} (about {found.batch.samples:,} examples or "
            f"{found.batch.tokens:,} tokens a step)."
        )
    labelled = labelled_examples(data, shots, seed)
    named = name_teachers(
        workspace, data, teacher, config, labelled, sees=sees_with(str(student)) == "teacher", shots=shots, seed=seed
    )
    with accelerator.main_process_first():  # its first weights are put together by one process
        start = beginning(workspace, str(student), init, data, named.first.store, config.visual_input)
    run = _Run(workspace, data, shots, labelled, start, named, seed, config, threads or 2, accelerator)
    try:
        return run.go(threads)
    finally:
        run.close()
        torch.set_num_threads(before)


class _Run:
    """One run: what its steps share."""

    def __init__(
        self,
        workspace: Workspace,
        data: TaskData,
        shots: str,
        labelled: Sequence[Example],
        start: Start,
        named: Named,
        seed: int,
        config: DistillConfig,
        threads: int,
        accelerator: Accelerator,
    ) -> None:
        self.workspace = workspace
        self.data = data
        self.seed = seed
        self.threads = threads
        self.student_source = start.source
        self.accelerator = accelerator
        self.train: Sequence[Example] = data.examples("train")
        self.labelled = labelled
        self.named = named
        config = resolve(config, task=data.spec.kind, n_examples=len(self.labelled), seed=seed)
        self.teachers = open_teachers(workspace, data, named, config) if config.needs_cache else None
        self.config = with_teachers(config, self.teachers)
        head = head_for(data.spec, self.train, answers=Path(config.answers) if config.answers else None)
        binary = head.kind == "multiple-choice" and config.choice_loss == "binary"
        self.head: HeadSpec = replace(head, binary=True) if binary else head
        folder = student_folder(start.source)
        self.sight = sight_of(folder)
        self.eyes: TokenCache | None = None
        if self.sight == "teacher":  # the cache of an arm without a teacher, too
            self.eyes = choose_cache(workspace, data, named.first.store)
        known = [] if self.teachers is None else self.teachers.keys
        if self.eyes is not None:  # goes first: evaluation needs it
            known = list(dict.fromkeys([self.eyes.path.name, *known]))
        taught_by = None if self.eyes is None else teacher_name(self.eyes)
        self.identity = RunIdentity(
            task=data.spec.name,
            source=data.source,
            data_revision=data.revision,
            is_mini=data.is_mini,
            student=start.name,
            student_digest=sha256_file(folder / "model.safetensors")[:16],
            arm=self.config.arm,
            shots=shots,
            seed=seed,
            teacher=taught_by if self.teachers is None else self.teachers.label,
            cache_key=", ".join(known) or None,
            examples=digest_of([example.id for example in self.labelled]),
            regions=data.region_digest(),
            confidence_cache=None if self.teachers is None else self.teachers.asked,
        )
        self.folder = RunFolder.of(workspace, self.identity, self.config, data.spec.to_dict())
        self.pre_phase: PrePhaseResult | None = None
        self.untaught = 0
        self.pool: Pool | None = None

    def close(self) -> None:
        """Let go of the caches."""
        for opened in (self.teachers, self.eyes):
            if opened is not None:
                opened.close()

    # -- the way of a run -------------------------------------------------------------------------------------------

    def go(self, threads: int) -> RunResult:
        done = self.folder.complete()
        if done is not None:
            return RunResult(self.folder.path, True, done)
        self._check_room()
        for pick in self.named.told:
            (info if pick.fair else warn)(pick.said)
        for line in check_phases(self.teachers, self.config):
            info(line)
        info(
            f"{self.data.source}, {self.identity.shots}: {len(self.labelled)} labelled examples, arm "
            f"{self.identity.arm}, student {self.identity.student}, seed {self.seed}"
            + (f", teacher{'s' * self.named.several} {self.identity.teacher}" if self.identity.teacher else "")
            + (f" ({self.teachers.lacks})" if self.teachers is not None and self.teachers.lacks else "")
        )
        lock = FileLock(self.folder.path / ".lock", error=RunBusy, what=f"the run {self.folder.path.name}")
        if self.accelerator.is_main_process:
            lock.acquire()
        try:
            begun = self.folder.manifest() if list_checkpoints(self.folder.path / "checkpoints") else None
            check_code(begun)
            size = parameter_count(student_folder(self.student_source) / "model.safetensors")
            threads = settle_threads(threads, size, self.accelerator.device, begun)
            if self.accelerator.is_main_process:
                self.folder.begin({"threads": threads})
            self.accelerator.wait_for_everyone()
            return RunResult(self.folder.path, False, self._train())
        finally:
            lock.release()

    def _check_room(self) -> None:
        smallest = min(self.config.optim.batch_size, len(self.labelled))
        if self.config.optim.token_budget is None and smallest < self.accelerator.num_processes:
            raise RunError(
                f"A batch of {smallest} examples cannot be shared by {self.accelerator.num_processes} processes.",
                hint="use fewer processes, or --set optim.batch_size=...",
            )

    def _student(self) -> Student:
        source: str | Path = self.student_source
        config, soft = self.config, None
        if config.pre_phase is not None and self.teachers is not None:
            config, soft = with_soft_phase(config, self.labelled, self.head, self.teachers, self.train, self.seed)
        if config.pre_phase is not None and self.teachers is not None:
            first = self._load(source, config.pre_phase.dropout, head=self.head)
            self.pre_phase = pre_phase(
                self.workspace, self.data, first, self.teachers, config, self.accelerator,
                threads=self.threads, eyes=self.eyes, soft=soft,
            )  # fmt: skip
            if self.pre_phase.skipped:
                info(f"The pre-phase {self.pre_phase.path.name} had been made.")
            source = self.pre_phase.student
        return self._load(source, config.optim.dropout, head=self.head if soft is None else None)

    def _load(self, source: str | Path, dropout: float | None, *, head: HeadSpec | None = None) -> Student:
        student = load_student(source, head=head, head_seed=derive_seed(self.seed, "head"))
        if dropout is not None:
            set_dropout(student, dropout)
        return student

    def _train(self) -> dict[str, Any]:
        began = time.monotonic()
        config, folder = self.config, self.folder.path
        student = self._student()
        regions = regions_seen(self.sight, self.data, self.eyes)
        dev_examples = sample_questions(self.data.examples("dev"), config.eval.limit)
        pool: Pool | None = None
        if config.pool is not None and self.teachers is not None:
            pool = gather_pool(config, self.train, self.labelled, self.head, self.teachers, seed=self.seed)
        count = len(self.labelled) + len(dev_examples) + (0 if pool is None else len(pool.examples))
        with progress("Encoding", count, "examples") as shown:
            examples, joint = encode_together(
                self.labelled,
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
            self.teachers,
            seed=self.seed,
            threads=self.threads,
            folder=folder,
            joint=joint,
            device=self.accelerator.device,
        )
        self.untaught, objective, self.pool = taught.untaught, taught.objective, pool
        development = Development(self.data.spec, held, config.eval.tokens)
        device = self.accelerator.device

        def look(step: int) -> Look:
            return development.look(student, device)

        settings = loop_settings(config, self.seed)
        order = training_order(config, examples, self.seed)
        batch = effective_batch(order, examples.text_lengths, examples.region_counts, settings.micro_tokens)
        info(f"A step holds {batch}." + ("" if joint is None else f" {joint}"))
        with (
            progress(f"Training {self.identity.arm}, seed {self.seed}", settings.steps, "steps") as shown,
            Trackers(
                config.trackers, folder, asdict(self.identity), config.model_dump(mode="json"), self.accelerator
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
                marks={"tokenizer of the student": student.tokenizer.digest},
                progress=shown,
            )
        manifest: dict[str, Any] = {}
        if self.accelerator.is_main_process:
            manifest = self._export(student, examples, result, time.monotonic() - began, batch)
        self.accelerator.wait_for_everyone()
        return manifest or self.folder.manifest() or {}

    def _export(
        self, student: Student, examples: ExampleSet, result: LoopResult, seconds: float, batch: EffectiveBatch
    ) -> dict[str, Any]:
        folder = self.folder.path
        student.cpu()
        save_student(student, folder / "student")
        if self.head.outputs:
            name = "answers.json" if self.head.kind == "vqa" else "labels.json"
            write_json_atomic(folder / "student" / name, list(self.head.outputs))
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
            "adapted": None if (adapted := self.named.adapted) is None else adapted.as_dict(),
            "teachers": None if self.teachers is None or self.teachers.one else self.teachers.as_rows(),
            "teacher_at_inference": self.sight == "teacher",
            "dev": scores[-1] if scores else {},
        }
        steps = [row for row in read_jsonl(folder / "metrics.jsonl") if "loss" in row]
        write_text_atomic(folder / "summary.md", summary_text(self.identity, self.config, facts, result.looks, steps))
        return self.folder.finish(facts)


def set_dropout(module: nn.Module, rate: float) -> None:
    """Give every dropout of a network the same rate."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = rate
