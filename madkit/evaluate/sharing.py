"""Several processes that answer one grid: the run-suites without a result are dealt out, and every row is written once.

What the processes tell each other is the list of run-suites, and who failed at what (`core.job`). The table is the
first process's alone, made from the answers on disk, so that it is the table of one process to the last digit.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from madkit.core.console import counted, info, progress
from madkit.core.errors import MadkitError
from madkit.core.interrupts import StopSignals
from madkit.core.job import Job
from madkit.evaluate.cells import Cell, Scorer, is_answered
from madkit.evaluate.contents import student_digest
from madkit.evaluate.grid import Problem
from madkit.evaluate.scorer import StudentScorer
from madkit.evaluate.stage import Plan, plan_of, scored

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace
    from madkit.evaluate.vqa_metric import VqaRule


def answer_together(
    ranks: Job,
    workspace: Workspace,
    protocol: str,
    *,
    device: str = "auto",
    precision: str = "auto",
    vqa_rule: VqaRule = "current",
    scorer: Scorer | None = None,
) -> dict[str, Problem]:
    """Answer what a protocol asks for and the workspace lacks, this process its share; return when all have.

    Arguments but `ranks` are those of `stage.evaluate`, which the first process calls next.

    Returns:
        By their keys, the run-suites that failed, in all processes: `failed` of `stage.evaluate`.

    Raises:
        MadkitError: see `stage.evaluate`; in the first process, where the others end (`Job.together`).
    """
    students = scorer or StudentScorer(device, precision)

    def planned() -> tuple[Plan, list[Cell]]:
        if isinstance(students, StudentScorer):
            students.check()
        plan = plan_of(workspace, protocol)
        return plan, _unanswered(plan, students) if ranks.first else []

    plan, todo = ranks.together(planned)
    # the first one's list: another process would look again, and by then some may be answered
    keys = ranks.gather([cell.key for cell in todo])[0]
    cells = {cell.key: cell for cell in plan.cells}
    share = [cells[key] for key in keys[ranks.number :: ranks.count]]
    if keys:
        info(f"{counted(len(keys), 'run-suites')} to answer in {ranks.count} processes.")

    def answered() -> dict[str, Problem]:
        problems = {}
        digests = lru_cache(maxsize=None)(student_digest)
        with StopSignals() as stop, progress("Evaluating", len(share), "run-suites of this process") as bar:
            for cell in share:
                if stop.requested:
                    raise stop.error()
                bar.update(cell.place)
                found = scored(workspace, plan, cell, students, vqa_rule, digests)
                if isinstance(found, Problem):
                    problems[cell.key] = found
                bar.advance()
        return problems

    problems = ranks.together(answered)
    return {key: problem for one in ranks.gather(problems) for key, problem in one.items()}


def _unanswered(plan: Plan, scorer: Scorer) -> list[Cell]:
    """The cells in which a student has to run, suite by suite, so that every process gets as many of each."""
    digests = lru_cache(maxsize=None)(student_digest)
    todo: list[Cell] = []
    for cell in plan.cells:
        try:
            if is_answered(cell, digests(cell.run.path), plan.data[cell.run.table], scorer):
                continue
        except MadkitError:
            pass  # whoever tries it says what is wrong
        todo.append(cell)
    suites = list(dict.fromkeys(cell.suite for cell in todo))
    return sorted(todo, key=lambda cell: suites.index(cell.suite))
