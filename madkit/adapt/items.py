"""From a task's examples to what a contrastive objective compares: an image, texts, and how true each text is of it.

Multiple choice: the question with each of its candidates, of which the gold one is true. Classification with a class
that says "this text is true of the image" (SNLI-VE's entailment): all texts about an image together, true or not as
their labels say. Any other classification: the text with the name of each class behind it. VQA: the question with each
of its answers, as true as its soft score, and answers of other questions of the same type, which are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from madkit.adapt.config import ObjectiveConfig
from madkit.core.errors import ConfigError, DataError
from madkit.core.registry import suggest
from madkit.core.seeds import first_of_permutation
from madkit.tasks.example import Example, ImageRef, Segment
from madkit.tasks.spec import TaskSpec

ENTAILMENT = "entailment"
Answers = Mapping[str, Sequence[str]]
"""Answers by the type of their questions ("yes/no", "number", ...)."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image and texts about it.

    Attributes:
        ids: the examples that it is made of.
        image: the image.
        texts: distinct texts.
        truth: 0..1 for each text.
    """

    ids: tuple[str, ...]
    image: ImageRef
    texts: tuple[str, ...]
    truth: tuple[float, ...]

    @property
    def decides(self) -> bool:
        """Whether the texts include true and false ones, so that choosing among them means something."""
        return max(self.truth) > 0 and min(self.truth) == 0


def make_items(
    spec: TaskSpec, examples: Sequence[Example], config: ObjectiveConfig, *, answers: Answers, seed: int
) -> list[Item]:
    """Items of some labelled examples.

    Args:
        spec: the task.
        examples: with labels.
        config: how texts are made.
        answers: VQA: answers to take wrong ones from (see `answers_of`); none for other tasks.
        seed: of the wrong answers.

    Raises:
        DataError: an example without its label.
        ConfigError: the positive label is no class of the task.
    """
    if spec.kind == "vqa":
        pools = {kind: _Pool(of_kind) for kind, of_kind in answers.items()}
        return [_answers(example, config, pools.get(example.answer_type, _Pool(())), seed) for example in examples]
    if spec.kind == "multiple-choice":
        return [
            _item((example.id,), example.image, _candidates(example, config), _one_hot(example, example.candidates))
            for example in examples
        ]
    positive = positive_class(spec, config)
    if positive is None:
        return [
            _item(
                (example.id,),
                example.image,
                [_joined((*example.context, Segment(label))) for label in spec.labels],
                _one_hot(example, spec.labels),
            )
            for example in examples
        ]
    by_image: dict[str, list[Example]] = {}
    for example in examples:
        by_image.setdefault(example.image.id, []).append(example)
    return [
        _item(
            tuple(example.id for example in group),
            group[0].image,
            [_joined(example.context) for example in group],
            [float(_label(example) == positive) for example in group],
        )
        for group in by_image.values()
    ]


def positive_class(spec: TaskSpec, config: ObjectiveConfig) -> int | None:
    """The class of a text that is true of its image, None where classes are names to put behind the text."""
    if spec.kind != "classification":
        return None
    if config.positive_label is None:
        return spec.labels.index(ENTAILMENT) if ENTAILMENT in spec.labels else None
    if config.positive_label not in spec.labels:
        near = suggest(config.positive_label, spec.labels)
        raise ConfigError(
            f"The task {spec.name} has no class '{config.positive_label}'.{near}",
            hint=f"--set objective.positive_label= one of: {', '.join(spec.labels)}",
        )
    return spec.labels.index(config.positive_label)


def answers_of(examples: Sequence[Example]) -> Answers:
    """The distinct answers of labelled VQA examples by the type of their questions, in order of appearance."""
    found: dict[str, dict[str, None]] = {}
    for example in examples:
        found.setdefault(example.answer_type, {}).update((a, None) for a, score in _scores(example) if score > 0)
    return {kind: list(answers) for kind, answers in found.items()}


class _Pool:
    """The distinct answers of one type of questions: a hundred thousand, perhaps, of which an item takes a few."""

    def __init__(self, answers: Sequence[str]) -> None:
        self._answers = answers
        self._place = {answer: place for place, answer in enumerate(answers)}

    def draw(self, count: int, without: Iterable[str], *name: object) -> list[str]:
        """Up to `count` answers other than those `without`, by `name` alone."""
        left_out = sorted(self._place[answer] for answer in without if answer in self._place)
        drawn = first_of_permutation(count, len(self._answers) - len(left_out), *name).tolist()[:count]
        chosen = []
        for place in drawn:  # counted among the others, so each that is left out before it moves it on
            for out in left_out:
                place += out <= place
            chosen.append(self._answers[place])
        return chosen


def _answers(example: Example, config: ObjectiveConfig, pool: _Pool, seed: int) -> Item:
    right = {answer: score for answer, score in _scores(example) if score > 0}
    # Of the same type, so that the question alone does not tell them from the right ones.
    chosen = [*right, *pool.draw(config.wrong_answers, right, "wrong answers", seed, example.id)]
    segments = [Segment(answer) for answer in chosen]
    texts = [_joined((*example.context, segment) if config.text == "joined" else (segment,)) for segment in segments]
    return _item((example.id,), example.image, texts, [right.get(answer, 0.0) for answer in chosen])


def _scores(example: Example) -> list[tuple[str, float]]:
    if example.answers is None:
        raise DataError(f"The example {example.id} has no answers to learn from.")
    return list(example.answers.items())


def _candidates(example: Example, config: ObjectiveConfig) -> list[str]:
    before = example.context if config.text == "joined" else ()
    return [_joined((*before, candidate)) for candidate in example.candidates]


def _one_hot(example: Example, choices: Sequence[object]) -> list[float]:
    label = _label(example)
    return [float(place == label) for place in range(len(choices))]


def _label(example: Example) -> int:
    if example.label is None:
        raise DataError(f"The example {example.id} has no label to learn from.")
    return example.label


def _joined(segments: Sequence[Segment]) -> str:
    return " ".join(text for segment in segments if (text := segment.text.strip()))


def _item(ids: tuple[str, ...], image: ImageRef, texts: Sequence[str], truth: Sequence[float]) -> Item:
    """One item of distinct texts; a text that stands there twice (candidates that differ in boxes) counts as truer."""
    best: dict[str, float] = {}
    for text, value in zip(texts, truth, strict=True):
        best[text] = max(best.get(text, 0.0), value)
    return Item(ids, image, tuple(best), tuple(best.values()))
