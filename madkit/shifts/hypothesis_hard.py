"""SNLI-VE without what the hypotheses give away: the suites test-hypothesis-hard and test-hypothesis-easy.

A classifier that sees the hypothesis alone is trained on the train split. The test pairs that it gets wrong are the
hard suite, the others the easy one; the same is listed for the development split. Neither split is trained on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from madkit.core.console import info, warn
from madkit.core.errors import DataError
from madkit.core.files import write_text_atomic
from madkit.core.seeds import permutation
from madkit.core.workspace import Workspace
from madkit.shifts.interface import Made, ShiftOptions
from madkit.tasks.data import TaskData
from madkit.tasks.example import Example
from madkit.tasks.suites import finished_suite, write_suite

if TYPE_CHECKING:
    from madkit.shifts.hypothesis_classifier import Fitted, Settings

HARD, EASY = "test-hypothesis-hard", "test-hypothesis-easy"
_VERSION = 1
_ABOUT = {
    HARD: "the test pairs that a classifier of the hypothesis alone gets wrong",
    EASY: "the test pairs that a classifier of the hypothesis alone gets right, the rest of test-hypothesis-hard",
}


def build(workspace: Workspace, data: TaskData, options: ShiftOptions) -> list[Made]:
    """Train the classifier and make both suites; finished ones are found and not made again.

    The folder of each suite holds `pair-ids.txt`, one pairID on each line, and `pair-ids-dev.txt`, the same for the
    development split. The classifier trains on one CPU thread whatever `options` say of devices: it takes a minute, and
    the suites are the same on every machine.

    Raises DataError for data without labels, and where the classifier gets nothing right or nothing wrong.
    """
    from madkit.shifts.hypothesis_classifier import Settings

    pairs = len(data.examples("train"))
    settings = Settings.for_size(min(options.limit or pairs, pairs))
    if options.epochs is not None:
        settings = replace(settings, epochs=options.epochs)
    recipe = {
        "shift": "hypothesis-hard",
        "version": _VERSION,
        "split": "test",
        "seed": options.seed,
        "limit": options.limit,
        "settings": settings.to_dict(),
    }
    homes = {suite: finished_suite(data, suite, recipe) for suite in (HARD, EASY)}
    found = [
        Made("suite", suite, home, data.about(suite)["made_by"]["counts"])
        for suite, home in homes.items()
        if home is not None and suite in data.suites()
    ]
    if len(found) == len(homes):
        info(f"{HARD} and {EASY} of {data.source} are there already; nothing to make.")
        return found
    return _make(data, options, settings, recipe)


def _make(data: TaskData, options: ShiftOptions, settings: Settings, recipe: dict[str, Any]) -> list[Made]:
    from madkit.shifts.hypothesis_classifier import fit

    names = data.spec.labels
    train = _Split.of(data, "train")
    if options.limit and options.limit < len(train.texts):
        train = train.part(permutation(len(train.texts), "hypothesis-only limit", options.seed)[: options.limit])
    dev, test = _Split.of(data, "dev"), _Split.of(data, "test")
    fitted = fit(
        train.texts, train.labels, dev.texts, dev.labels, n_labels=len(names), seed=options.seed, settings=settings
    )
    right = {"dev": dev.right(fitted), "test": test.right(fitted)}
    facts = _facts(names, train, test, fitted, right["test"])
    _say(facts, len(test.texts))
    if len(set(right["test"])) < 2:
        raise DataError(
            f"The classifier of the hypothesis alone gets {'all' if right['test'][0] else 'none'} of the "
            f"{len(test.texts):,} test pairs of {data.source} right, so one of the two suites would be empty.",
            hint="try another seed: --seed 1",
        )
    made = []
    examples = data.examples("test")
    for suite, wanted in ((HARD, False), (EASY, True)):
        rows = [row for row, is_right in enumerate(right["test"]) if is_right == wanted]
        counts = _counts(names, [test.labels[row] for row in rows], len(test.texts))
        dev_rows = [row for row, is_right in enumerate(right["dev"]) if is_right == wanted]
        ids = {
            "pair-ids.txt": [test.ids[row] for row in rows],
            "pair-ids-dev.txt": [dev.ids[row] for row in dev_rows],
        }
        home = _write(data, suite, [examples[row] for row in rows], {**recipe, **facts, "counts": counts}, ids)
        made.append(Made("suite", suite, home, counts))
    return made


def _write(
    data: TaskData, suite: str, examples: list[Example], made_by: dict[str, Any], ids: dict[str, list[str]]
) -> Path:
    with TemporaryDirectory() as scratch:
        files = {}
        for name, lines in ids.items():
            files[name] = Path(scratch) / name
            write_text_atomic(files[name], "".join(f"{line}\n" for line in lines))
        return write_suite(data, suite, examples, made_by=made_by, about=_ABOUT[suite], files=files)


@dataclass(slots=True)
class _Split:
    """Columns of one split: pairIDs, hypotheses and labels."""

    ids: list[str]
    texts: list[str]
    labels: list[int]

    @classmethod
    def of(cls, data: TaskData, split: str) -> _Split:
        """Read a split. Raises NotFoundError where there is none, DataError for a pair without label."""
        columns = cls([], [], [])
        for example in data.examples(split):
            if example.label is None:
                raise DataError(
                    f"The pair {example.id!r} of the {split} split of {data.source} has no label.",
                    hint="the suite is made from labelled pairs: import the owners' files again",
                )
            columns.ids.append(example.id)
            columns.texts.append(example.context[0].text)
            columns.labels.append(example.label)
        return columns

    def part(self, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> _Split:
        """Some rows, in the given order."""
        chosen = rows.tolist()
        return _Split(
            [self.ids[row] for row in chosen],
            [self.texts[row] for row in chosen],
            [self.labels[row] for row in chosen],
        )

    def right(self, fitted: Fitted) -> list[bool]:
        """Whether the classifier gets each pair right."""
        guessed = fitted.predict(self.texts).tolist()
        return [guess == label for guess, label in zip(guessed, self.labels, strict=True)]


def _facts(names: Sequence[str], train: _Split, test: _Split, fitted: Fitted, right: Sequence[bool]) -> dict[str, Any]:
    """What is published about the classifier: accuracies in percent, and what is expected of one that knows nothing."""
    share = max(Counter(test.labels).values()) / len(right)
    accuracy = sum(right) / len(right)
    margin = 2 * math.sqrt(share * (1 - share) / len(right))
    per_label = {
        name: _percent([is_right for is_right, label in zip(right, test.labels, strict=True) if label == index])
        for index, name in enumerate(names)
        if index in test.labels
    }
    return {
        "train pairs": len(train.texts),
        "chosen on dev": {"rate": fitted.rate, "epoch": fitted.epoch},
        "tried": fitted.tried,
        "accuracy": {"dev": round(100 * fitted.dev_accuracy, 2), "test": round(100 * accuracy, 2)},
        "test accuracy by label": per_label,
        "most frequent label of test": round(100 * share, 2),
        "at chance": accuracy <= share + margin,
    }


def _percent(right: Sequence[bool]) -> float:
    return round(100 * sum(right) / len(right), 2)


def _counts(names: Sequence[str], labels: Sequence[int], total: int) -> dict[str, int]:
    by_label = Counter(labels)
    return {
        "pairs": len(labels),
        "pairs of the test split": total,
        **{name: by_label[index] for index, name in enumerate(names)},
    }


def _say(facts: dict[str, Any], n: int) -> None:
    accuracy, majority = facts["accuracy"]["test"], facts["most frequent label of test"]
    message = (
        f"From the hypothesis alone: {accuracy:.1f} % of {n:,} test pairs right "
        f"(always the most frequent label: {majority:.1f} %)."
    )
    if facts["at chance"]:
        warn(f"{message} That is chance: the hypotheses give nothing away, so hard and easy differ by luck alone.")
    else:
        info(message)
