"""Scores on the development split while training. Test suites are never opened here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from madkit.distill.batches.examples import ExampleSet
from madkit.distill.batches.order import BucketOrder, Indices
from madkit.distill.loop.loop import Look
from madkit.students.student import Student
from madkit.tasks.answer_vocabulary import positions_of, soft_targets
from madkit.tasks.example import Example
from madkit.tasks.spec import TaskSpec


def sample_questions(examples: Sequence[Example], limit: int) -> list[Example]:
    """The first questions that together have at most `limit` examples, both examples of a question or none; 0: all."""
    if not limit or len(examples) <= limit:
        return list(examples)
    questions: dict[str, list[Example]] = {}
    for example in examples:
        questions.setdefault(example.question_id, []).append(example)
    kept: list[Example] = []
    for group in questions.values():
        if len(kept) + len(group) > limit:
            break
        kept += group
    return kept


class Development:
    """The development split (or a part of it), encoded once.

    Args:
        spec: the task.
        examples: its examples, encoded.
        tokens: padded tokens per forward pass.
    """

    def __init__(self, spec: TaskSpec, examples: ExampleSet, tokens: int) -> None:
        self.spec = spec
        self.examples = examples
        order = BucketOrder(
            examples.lengths.tolist(), examples.sequences.tolist(), tokens, max(1, len(examples)), "development"
        )
        self._batches: list[Indices] = []
        seen = 0
        while seen < len(examples):
            batch = order.at(seen)
            self._batches.append(batch)
            seen += len(batch)

    def predict(self, student: Student, device: torch.device | str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """[n] index of the candidate, class or answer that the student prefers."""
        chosen = np.zeros(len(self.examples), dtype=np.int64)
        for batch in self._batches:
            logits = student(self.examples.inputs(batch).to(device)).logits
            chosen[batch] = logits.argmax(-1).cpu().numpy()
        return chosen

    def look(self, student: Student, device: torch.device | str) -> Look:
        """The headline metric of the task and its parts, in percent."""
        return score(self.spec, self.examples.examples, self.predict(student, device), student.head_spec.outputs)


def score(spec: TaskSpec, examples: Sequence[Example], chosen: Sequence[int] | Any, outputs: Sequence[str]) -> Look:
    """Metrics in percent: accuracy, soft accuracy (VQA), or Q->A, QA->R and Q->AR (VCR)."""
    right: dict[str, list[float]] = {}
    both: dict[str, list[float]] = {}
    positions = positions_of(outputs)
    for example, choice in zip(examples, chosen, strict=True):
        if spec.kind == "vqa":
            value = soft_targets(example, positions).get(int(choice), 0.0)
        else:
            value = float(int(choice) == example.label)
        right.setdefault(example.subtask, []).append(value)
        both.setdefault(example.question_id, []).append(value)
    if not spec.subtasks:
        mean = 100.0 * float(np.mean([value for group in right.values() for value in group]))
        return Look(mean, {spec.metric: round(mean, 3), "n": len(examples)})
    values: dict[str, Any] = {
        spec.metric: 100.0 * float(np.mean([min(group) for group in both.values()])),
        **{
            name: 100.0 * float(np.mean(right[subtask]))
            for name, subtask in zip(spec.metrics[1:], spec.subtasks, strict=True)
            if subtask in right
        },
    }
    # the mean of the subtasks decides: it is far less noisy than the joint metric
    parts = [value for name, value in values.items() if name != spec.metric]
    rounded = {name: round(value, 3) for name, value in values.items()}
    return Look(float(np.mean(parts)), {**rounded, "n": len(both)})
