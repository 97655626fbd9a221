"""What a task's head decides between: candidates, the classes of the task, or the frequent answers of VQA."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from madkit.core.errors import UsageProblem
from madkit.students.heads import HeadSpec
from madkit.tasks.answer_vocabulary import MIN_QUESTIONS, answer_vocabulary, read_answer_file
from madkit.tasks.example import Example
from madkit.tasks.spec import TaskSpec


def head_for(
    spec: TaskSpec, train: Iterable[Example], *, answers: Path | None = None, min_questions: int = MIN_QUESTIONS
) -> HeadSpec:
    """The head of a task. VQA's answers come from the whole train split: they define the task, whatever the shots.

    Args:
        spec: the task.
        train: the train split, read for VQA only.
        answers: a file with VQA's answers in the order of the outputs, in place of those found in `train`
            (`read_answer_file` lists the formats): a published head fits no other list.
        min_questions: of how many questions an answer has to be the main one.

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
    # The most frequent answer first: runs of earlier versions, whose heads had this order, stay comparable.
    return HeadSpec("vqa", answer_vocabulary(train, min_questions=min_questions, order="frequency"))
