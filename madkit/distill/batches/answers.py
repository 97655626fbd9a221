"""What a task's head decides between: candidates, the classes of the task, or the frequent answers of VQA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from madkit.core.errors import UsageProblem
from madkit.students.heads import HeadSpec
from madkit.tasks.answer_vocabulary import MIN_QUESTIONS, answer_vocabulary, read_answer_file
from madkit.tasks.example import Example
from madkit.tasks.spec import TASKS, TaskSpec

# Of how many train questions of a user's own data an answer needs one more that has it as the main one: VQA's 9 are
# reached at 9,000, and with fewer than 2,000 every answer counts.
_QUESTIONS_EACH = 1000


def head_for(
    spec: TaskSpec, train: Sequence[Example], *, answers: Path | None = None, min_questions: int | None = None
) -> HeadSpec:
    """The head of a task. VQA's answers come from the whole train split: they define the task, whatever the shots.

    Args:
        spec: the task.
        train: the train split, read for VQA only.
        answers: a file with VQA's answers in the order of the outputs, in place of those found in `train`
            (`read_answer_file` lists the formats): a published head fits no other list.
        min_questions: of how many questions an answer has to be the main one; None: see `least_questions`.

    Raises:
        UsageProblem: `answers` for another task than VQA.
        NotFoundError: there is no file `answers`.
        DataError: no answer is frequent enough, or the file is no list of answers.
    """
    if answers is not None and spec.kind != "vqa":
        raise UsageProblem(f"{spec.title} has no answer list.", hint="leave out the setting 'answers'")
    if spec.kind == "multiple-choice":
        return HeadSpec("multiple-choice")
    if spec.kind == "classification":
        return HeadSpec("classification", spec.labels)
    if answers is not None:
        return HeadSpec("vqa", read_answer_file(answers))
    if min_questions is None:
        min_questions = least_questions(spec, len(train))
    # The most frequent answer first: runs of earlier versions, whose heads had this order, stay comparable.
    return HeadSpec("vqa", answer_vocabulary(train, min_questions=min_questions, order="frequency"))


def least_questions(spec: TaskSpec, questions: int) -> int:
    """Of how many of the train questions an answer has to be the main one: 9 as published, less for small own data."""
    return MIN_QUESTIONS if spec.name in TASKS else min(MIN_QUESTIONS, max(1, questions // _QUESTIONS_EACH))
