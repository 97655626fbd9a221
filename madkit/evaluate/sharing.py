"""Several processes that answer one grid: the run-suites without a result are dealt out, and every row is written once.

Started by `accelerate launch` or `torchrun`, on one machine or several. What the processes tell each other goes through
Accelerate, on the host, whatever device they compute on: the list of run-suites, and who failed at what. The table is
the first process's alone, made from the answers on disk, so that it is the table of one process to the last digit.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from madkit.core.console import info, progress, warn
from madkit.core.errors import MadkitError, RunError, StoppedResumable
from madkit.core.interrupts import StopSignals
from madkit.evaluate.cells import Cell, Scorer, is_answered
from madkit.evaluate.contents import student_digest
from madkit.evaluate.grid import Problem
from madkit.evaluate.scorer import StudentScorer
from madkit.evaluate.stage import Plan, plan_of, scored

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace
    from madkit.evaluate.vqa_metric import VqaRule

T = TypeVar("T")
PATIENCE = timedelta(days=30)  # for the slowest; a dead process is noticed at once, for its connection closes
INTERRUPTED = 130
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Ranks:
    """This process among those of its job. Use as a context manager; without a launcher it is the only one.

    Attributes:
        number: 0 for the first process, which reports.
        count: how many there are.
    """

    def __init__(self) -> None:
        launched = all(name in os.environ for name in _LAUNCHED)  # some clusters set one of them for everybody
        self.count = int(os.environ["WORLD_SIZE"]) if launched else 1
        self.number = int(os.environ["RANK"]) if launched else 0
        self._own_group = False

    @property
    def first(self) -> bool:
        """Whether this process reports."""
        return self.number == 0

    def __enter__(self) -> Ranks:
        if self.count == 1:
            if "RANK" not in os.environ and os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
                warn(
                    "Accelerate starts a single process where it is given --cpu. For several: "
                    "accelerate launch --multi_gpu --num_processes N -m madkit evaluate --device cpu ..."
                )
            return self
        import torch.distributed as dist
        from accelerate import PartialState

        self._own_group = not dist.is_initialized()  # a program may have one
        PartialState(cpu=True, timeout=PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._own_group:
            from accelerate import PartialState

            PartialState().destroy_process_group()
            PartialState._reset_state()

    def gather(self, value: Any) -> list[Any]:
        """What every process gives, in their order. Raises RunError where one of them has died."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        try:
            return list(gather_object([value]))
        except RuntimeError:
            raise RunError(
                "Another process of this job has ended.", hint="run the same command again; what is answered is kept"
            ) from None

    def together(self, phase: Callable[[], T]) -> T:
        """Run `phase` here while the others run theirs, and wait for all.

        Where one fails, all end: the first process with an error that says so, the others without a word.

        Raises:
            BaseException: what `phase` raised in this process, if it is the first one.
            RunError, StoppedResumable: another process failed, or was asked to stop.
            SystemExit: in the others.
        """
        if self.count == 1:
            return phase()
        value, failure = None, None
        try:
            value = phase()
        except BaseException as error:
            failure = error
        failures = [one for one in self.gather(_told(failure, self.number)) if one is not None]
        if not failures:
            return value  # type: ignore[return-value]  # no failure: the phase has returned
        number, code, text = min(failures, key=lambda one: one[1] in (StoppedResumable.exit_code, INTERRUPTED))
        if not self.first:
            raise SystemExit(code)
        if failure is not None and _code(failure) == code:
            raise failure
        if code in (StoppedResumable.exit_code, INTERRUPTED):
            raise StoppedResumable("Another process was asked to stop.", hint="run the same command again")
        raise RunError(f"Process {number} of the job failed: {text}")


def _code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return error.exit_code if isinstance(error, MadkitError) else 1


def _told(failure: BaseException | None, number: int) -> tuple[int, int, str] | None:
    if failure is None:
        return None
    text = failure.message if isinstance(failure, MadkitError) else f"{type(failure).__name__}: {failure}"
    return number, _code(failure), text


def answer_together(
    ranks: Ranks,
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
        MadkitError: see `stage.evaluate`; in the first process, where the others end (`Ranks.together`).
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
        info(f"{len(keys)} run-suites to answer in {ranks.count} processes.")

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
