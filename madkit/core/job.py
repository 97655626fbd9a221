"""Several processes of one job: who this one is, what they tell each other, and how all of them end together.

Started by ``accelerate launch`` or ``torchrun``, on one machine or several, processes find each other by the launcher's
environment variables. They speak through a gloo group on the host, whatever device they compute on: a few messages per
phase. What one of them fails at is told to all, and the first one alone speaks to the user.
"""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

from madkit.core.console import stdout_clear, warn
from madkit.core.errors import MadkitError, RunError, StoppedResumable
from madkit.core.launcher import launched, rank, world_size

T = TypeVar("T")
PATIENCE = timedelta(days=30)
"""How long a process waits for the slowest one; a dead one is noticed at once, for its connection closes."""

INTERRUPTED = 130
_STOPS = (StoppedResumable.exit_code, INTERRUPTED)


class Job:
    """This process among those of its job. Use as a context manager; without a launcher it is the only one.

    Args:
        command: name of the command that runs, for what is said of launching it.
        alone: whether it is the only process of its job, whatever has launched it.

    Attributes:
        number: 0 for the first process, which reports.
        count: how many there are.
    """

    def __init__(self, command: str = "COMMAND", *, alone: bool = False) -> None:
        self.number, self.count = (0, 1) if alone else (rank(), world_size())
        self._command = command
        self._group: Any = None
        self._own_group = False
        self._failure: BaseException | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that reports."""
        return self.number == 0

    def __enter__(self) -> Self:
        if not launched() and "MASTER_ADDR" in os.environ and told_to_use_cpu():
            warn(
                "Accelerate starts a single process where it is given --cpu. For several: "
                f"accelerate launch --multi_gpu --num_processes N -m madkit {self._command} --device cpu ..."
            )
        if self.count > 1:
            import torch.distributed as dist

            self._own_group = not dist.is_initialized()  # a program may have one, on GPUs perhaps
            with stdout_clear():
                if self._own_group:
                    dist.init_process_group("gloo", timeout=PATIENCE)
                self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._own_group:
            import torch.distributed as dist

            dist.destroy_process_group()
        failure = self._failure
        if error is not None and failure is not None and not self.first and failure in {error, error.__cause__}:
            raise SystemExit(_exit_code(error)) from None  # the first process says why

    def together(self, phase: Callable[[], T]) -> T:
        """Run ``phase`` here while the others run theirs, and wait for all. Where one fails, all raise its failure.

        Processes but the first leave the job's context without a word, with the failure's exit code.

        Raises:
            BaseException: what ``phase`` raised, here or elsewhere; an error comes before a mere stop.
            StoppedResumable: in the first process, another one was interrupted.
            RunError: another process has died.
        """
        if self.count == 1:
            return phase()
        value, failure = None, None
        try:
            value = phase()
        except BaseException as error:
            failure = error
        told = self.gather(_sendable(failure, self.number))
        failures = [(error, number) for number, error in enumerate(told) if error is not None]
        if not failures:
            return value  # type: ignore[return-value]  # no failure: the phase has returned
        chosen, number = min(failures, key=lambda one: _exit_code(one[0]) in _STOPS)
        if self.first:
            chosen = self._own_words(chosen, number, failure)
        self._failure = chosen
        raise chosen

    def _own_words(self, chosen: BaseException, number: int, failure: BaseException | None) -> BaseException:
        """What the first process says of the chosen failure: its own, with its traceback, where that is of its kind."""
        if failure is not None and _exit_code(failure) == _exit_code(chosen):
            return failure
        if isinstance(chosen, KeyboardInterrupt):
            return StoppedResumable("Another process was asked to stop.", hint="run the same command again")
        if _exit_code(chosen) not in _STOPS:
            warn(f"Process {number} of the job failed.")
        return chosen

    def one_after_another(self, phase: Callable[[], T]) -> T:
        """Run ``phase`` in the first process, then in the others: what it makes on disk, the others find."""
        value = self.together(phase if self.first else lambda: None)
        rest = self.together(phase if not self.first else lambda: None)
        found = value if self.first else rest
        assert found is not None
        return found

    def gather(self, value: T) -> list[T]:
        """What every process gives, in their order. Raises RunError where one of them has died."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        _speak(lambda: dist.all_gather_object(found, value, group=self._group))
        return found

    def share(self, value: T | None) -> T:
        """Return what the first process gives as ``value``; the others give None. Raises as `gather`."""
        if self.count > 1:
            import torch.distributed as dist

            values = [value]
            _speak(lambda: dist.broadcast_object_list(values, src=0, group=self._group))
            value = values[0]
        assert value is not None
        return value


def told_to_use_cpu() -> bool:
    """Whether ``accelerate launch --cpu`` has started this process."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def _speak(act: Callable[[], None]) -> None:
    try:
        act()
    except RuntimeError:  # each says so that is left: the first one may be the one that is gone
        raise RunError(
            "Another process of this job has ended.",
            hint="run the same command again, with as many processes as you like: what is finished is kept.",
        ) from None


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return error.exit_code if isinstance(error, MadkitError) else 1


def _sendable(error: BaseException | None, number: int) -> BaseException | None:
    """Return the failure in a form that another process can raise, with its traceback as a note."""
    sent = error if _can_be_sent(error) else RuntimeError(f"{type(error).__name__}: {error}")
    if error is None or number == 0 or isinstance(error, KeyboardInterrupt | StoppedResumable):
        return sent
    assert sent is not None
    sent.add_note(f"In process {number} of the job:\n{''.join(traceback.format_exception(error))}")
    return sent


def _can_be_sent(error: BaseException | None) -> bool:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  what has just been made here
    except Exception:
        return False
    return True
