"""Making the masked suites: train the two scorers, score every token of the test split, mask.

Everything that costs time is kept in `suites/masked-scorer-<settings>` of the data set as soon as it is done, so that a
stopped run goes on behind it: the scorer of answers, the scorer of rationales, the scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from madkit.core.console import info, warn
from madkit.core.devices import device_of
from madkit.core.errors import NotFoundError
from madkit.core.files import FileLock, digest_of
from madkit.core.interrupts import StopSignals
from madkit.core.seeds import permutation
from madkit.core.workspace import Workspace
from madkit.shifts.interface import Made, ShiftOptions
from madkit.shifts.masked.losses import token_losses
from madkit.shifts.masked.masks import MASKINGS, Masking, masked_row
from madkit.shifts.masked.scorer import ScorerConfig
from madkit.shifts.masked.scores import losses_of, read_scores, write_scores
from madkit.shifts.masked.sequences import N_CHOICES, PARTS, Part, SequenceBuilder, Sequences
from madkit.shifts.masked.store import StoredScorer, read_scorer, write_scorer
from madkit.shifts.masked.training import is_chance, train_scorer
from madkit.shifts.masked.words import Vocabulary
from madkit.shifts.rows import PlacedRow, examples_of_rows, raw_rows
from madkit.shifts.tag_overlap import tag_overlap
from madkit.tasks.data import SUITES, TaskData
from madkit.tasks.formats.source_lines import many_small_objects
from madkit.tasks.suites import finished_suite, write_suite

SCORES = "shortcut_scores.jsonl"
_VERSION = 1
_SPLIT = "test"
_HELD_OUT = 0.05  # share of the training questions to choose the epoch on, where the data has no development split
_MAX_DEV = 5000  # questions that the epoch is chosen on


def build(workspace: Workspace, data: TaskData, options: ShiftOptions) -> list[Made]:
    """Make test-adv-top-1 and test-keep-top-1, -3, -5 from the data's test split.

    Of the options, `seed`, `limit`, `epochs` and `only_wrong` are part of what the suites are; device and threads are
    not. With `only_wrong`, right choices stay as they are, and the suites' names end in "-wrong".

    Raises:
        NotFoundError: the data has no train or test split.
        UsageProblem: no such device.
        DataError: the owner's files have changed since the import.
    """
    settings = {
        "shift": "masked",
        "version": _VERSION,
        "split": _SPLIT,
        "seed": options.seed,
        "limit": options.limit,
        "epochs": options.epochs,
    }
    todo = []
    made: dict[str, Made] = {}
    for masking in MASKINGS:
        suite = _suite(masking, options)
        home = finished_suite(data, suite, _made_by(settings, masking, options))
        if home is None:
            todo.append(masking)
        else:
            info(f"{suite} of {data.source} is there already; nothing to make.")
            made[suite] = Made("suite", suite, home, data.about(suite)["made_by"]["counts"])
    if todo:
        for split in ("train", _SPLIT):
            if split not in data.splits():
                raise NotFoundError(
                    f"{data.source} has no split {split}; the scorer behind masked suites is trained on train and "
                    "reads test.",
                    hint="import the data with train.jsonl and val.jsonl",
                )
        folder = data.root / SUITES / f"masked-scorer-{digest_of([settings, data.revision])[:8]}"
        with FileLock(folder.with_name(f".{folder.name}.lock"), what=f"the scorer {folder}"), _threads(data, options):
            facts = _prepare(folder, data, options)
            _report(data, facts)
            for masking in todo:
                one = _write(data, folder, masking, settings, facts, options)
                made[one.name] = one
    return [made[_suite(masking, options)] for masking in MASKINGS]


def _suite(masking: Masking, options: ShiftOptions) -> str:
    return f"test-{masking.name}{'-wrong' if options.only_wrong else ''}"


def _made_by(settings: dict[str, Any], masking: Masking, options: ShiftOptions) -> dict[str, Any]:
    return {**settings, "mask": masking.name, "only_wrong": options.only_wrong}


@contextmanager
def _threads(data: TaskData, options: ShiftOptions) -> Iterator[None]:
    """One thread for the small network, unless more are asked for.

    It gains little from a second, and where the machine is busy, threads that wait for each other take many times as
    long as one that waits for nobody.
    """
    before = torch.get_num_threads()
    questions = int(data.about("train")["questions"])
    small = not ScorerConfig.for_questions(min(options.limit or questions, questions)).for_gpu
    torch.set_num_threads(options.threads or (1 if small else before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _prepare(folder: Path, data: TaskData, options: ShiftOptions) -> dict[str, Any]:
    """Train what is not trained yet and write the scores; returns the facts about the scorers."""
    device = device_of(options.device)
    facts: dict[str, Any] = {}
    with StopSignals() as stop:
        losses: dict[str, dict[str, Any]] = {}
        scored = (folder / SCORES).is_file()
        for part in PARTS:
            stored = read_scorer(folder, part, device) or _train(folder, part, data, options, device, stop)
            if stored is not None:
                facts[part] = stored.facts
            if not scored:
                losses[part] = {} if stored is None else _losses(stored, part, data, device, stop)
        if not scored:
            write_scores(folder / SCORES, (row for _, row in raw_rows(data, _SPLIT)), losses)
    return facts


@many_small_objects()
def _train(
    folder: Path, part: Part, data: TaskData, options: ShiftOptions, device: torch.device, stop: StopSignals
) -> StoredScorer | None:
    wanted = _training_questions(data, options)
    config = ScorerConfig.for_questions(len(wanted), options.epochs)
    if config.for_gpu and device.type == "cpu":
        warn(f"{len(wanted):,} questions take hours on a CPU: use --device cuda, or fewer of them with --limit.")
    vocabulary = Vocabulary()
    train = _sequences(part, vocabulary, raw_rows(data, "train", wanted=wanted), config)
    if not len(train.labels):
        return None  # rationales that repeat the answers
    if "dev" in data.splits():
        dev = _sequences(part, vocabulary, islice(raw_rows(data, "dev"), _MAX_DEV))
    else:
        order = permutation(len(train.labels), "masked-held-out", options.seed)
        held = max(1, round(_HELD_OUT * len(order)))
        train, dev = train.subset(np.sort(order[held:])), train.subset(np.sort(order[:held]))
    trained = train_scorer(
        config, train, dev, len(vocabulary), seed=options.seed, device=device, title=part, stop=stop
    )  # fmt: skip
    facts = {
        "accuracy": round(100 * trained.accuracy, 2),
        "chance": 100 / N_CHOICES,
        "at_chance": is_chance(trained.accuracy, len(dev.labels), looks=len(trained.accuracies)),
        "epoch": trained.epoch,
        "accuracies": [round(100 * value, 2) for value in trained.accuracies],
        "train_questions": len(train.labels),
        "dev_questions": len(dev.labels),
        "words": len(vocabulary),
        "config": config.to_dict(),
    }
    stored = StoredScorer(trained.scorer, vocabulary, facts)
    write_scorer(folder, part, stored)
    return stored


def _training_questions(data: TaskData, options: ShiftOptions) -> set[str]:
    questions = sorted({example.question_id for example in data.examples("train")})
    if not options.limit or options.limit >= len(questions):
        return set(questions)
    order = permutation(len(questions), "masked-limit", data.revision, options.seed)
    return {questions[number] for number in order[: options.limit]}


def _sequences(
    part: Part, vocabulary: Vocabulary, rows: Iterable[PlacedRow], grow: ScorerConfig | None = None
) -> Sequences:
    builder = SequenceBuilder(part, vocabulary)
    for _, row in rows:
        builder.add(row)
    return builder.build() if grow is None else builder.build(at_least=grow.min_count, at_most=grow.max_words)


@many_small_objects()
def _losses(
    stored: StoredScorer, part: Part, data: TaskData, device: torch.device, stop: StopSignals
) -> dict[str, list[Any]]:
    """annot_id -> losses of the four choices."""
    sequences = _sequences(part, stored.vocabulary, raw_rows(data, _SPLIT))
    found = token_losses(stored.scorer, sequences, device, title=part, stop=stop)
    return {
        question: found[N_CHOICES * number : N_CHOICES * (number + 1)]
        for number, question in enumerate(sequences.question_ids)
    }


def _report(data: TaskData, facts: dict[str, Any]) -> None:
    for part, one in facts.items():
        right = f"{one['accuracy']:.1f} of 100 development questions right, chance is {one['chance']:.0f}"
        if one["at_chance"]:
            warn(
                f"The text-only scorer of {data.source}'s {part}s is at chance ({right}): the words tell it nothing, "
                "so what it masks is arbitrary."
            )
        else:
            info(f"The text-only scorer of {part}s: {right}.")


def _write(
    data: TaskData,
    folder: Path,
    masking: Masking,
    settings: dict[str, Any],
    facts: dict[str, Any],
    options: ShiftOptions,
) -> Made:
    suite = _suite(masking, options)
    path = folder / SCORES
    scores = read_scores(path)

    def rows() -> Iterator[PlacedRow]:
        for place, row in raw_rows(data, _SPLIT):
            yield place, masked_row(row, losses_of(scores, row, path), masking, only_wrong=options.only_wrong)

    counts = tag_overlap(row for _, row in rows())
    chance = [part for part, one in facts.items() if one["at_chance"]]
    about = masking.about + ("; right choices stay whole" if options.only_wrong else "")
    if chance:
        about += (
            f"; the scorer of {' and '.join(f'{part}s' for part in chance)} is at chance, so its masks mean nothing"
        )
    made_by = {
        **_made_by(settings, masking, options),
        "scorer": facts,
        "scores": f"../{folder.name}/{SCORES}",
        "counts": counts,
    }
    home = write_suite(data, suite, examples_of_rows(data, _SPLIT, rows()), made_by=made_by, about=about)
    return Made("suite", suite, home, counts)
