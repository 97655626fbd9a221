"""What a task's head decides between: candidates, the classes of the task, or the frequent answers of VQA."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from madkit.core.errors import DataError
from madkit.students.heads import HeadSpec
from madkit.tasks.example import Example
from madkit.tasks.spec import TaskSpec

# An answer is a class where it is the most frequent one of at least this many training questions: the rule of the
# published vocabularies of about 3,100 answers.
MIN_QUESTIONS = 9


def head_for(spec: TaskSpec, train: Sequence[Example]) -> HeadSpec:
    """The head of a task. VQA's answers come from the whole train split: they define the task, whatever the shots.

    Raises DataError where no answer is frequent enough.
    """
    if spec.kind == "multiple-choice":
        return HeadSpec("multiple-choice")
    if spec.kind == "classification":
        return HeadSpec("classification", spec.labels)
    return HeadSpec("vqa", answer_vocabulary(train))


def answer_vocabulary(train: Sequence[Example], min_questions: int = MIN_QUESTIONS) -> tuple[str, ...]:
    """Answers that are the most frequent one of at least `min_questions` questions, the most frequent first."""
    counts: Counter[str] = Counter()
    for example in train:
        if example.answers:
            best = max(example.answers.values())
            counts[min(answer for answer, score in example.answers.items() if score == best)] += 1
    kept = [answer for answer, n in counts.items() if n >= min_questions]
    if not kept:
        raise DataError(f"No answer is the most frequent one of {min_questions} or more training questions.")
    return tuple(sorted(kept, key=lambda answer: (-counts[answer], answer)))
