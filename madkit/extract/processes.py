"""Several processes of one job that fill one store: who does what, and how all of them end together.

Started by ``accelerate launch`` or ``torchrun``, processes find each other by the launcher's environment variables.
They speak through a gloo group on the host, whatever device they compute on: a few messages per store. What one of them
fails at is told to all, and the first one alone speaks to the user.
"""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from madkit.core.console import warn
from madkit.core.errors import MadkitError, RunError, StoppedResumable
from madkit.extract.options import resolve_device

T = TypeVar("T")
K = TypeVar("K")
PATIENCE = timedelta(days=30)
"""How long a process waits for the slowest one; a dead one is noticed at once, for its connection closes."""


class Processes:
    """This process among those of its job. Use as a context manager; without a launcher it is the only one.

    Attributes:
        number: 0 for the first process, which plans, completes and reports.
        count: how many there are.
    """

    def __init__(self, *, alone: bool = False) -> None:
        launched = not alone and all(
            name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        )
        self.number = int(os.environ["RANK"]) if launched else 0
        self.count = int(os.environ["WORLD_SIZE"]) if launched else 1
        self._group: Any = None
        self._own_group = False
        self._failure: BaseException | None = None

    @classmethod
    def alone(cls) -> Processes:
        """Return the only process of a job, whatever has launched it."""
        return cls(alone=True)

    @property
    def first(self) -> bool:
        """Whether this is the process that plans, completes and reports."""
        return self.number == 0

    def __enter__(self) -> Processes:
        if "RANK" not in os.environ and "MASTER_ADDR" in os.environ and _told_to_use_cpu():
            warn(
                "Accelerate starts a single process where it is given --cpu. For several: "
                "accelerate launch --multi_gpu --num_processes N -m madkit extract --device cpu ..."
            )
        if self.count > 1:
            self._own_group = not dist.is_initialized()  # a program may have one, on GPUs perhaps
            if self._own_group:
                dist.init_process_group("gloo")
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._own_group:
            dist.destroy_process_group()
        failure = self._failure
        if error is not None and failure is not None and not self.first and failure in {error, error.__cause__}:
            raise SystemExit(_exit_code(error)) from None  # the first process says why

    def device(self, name: str) -> tuple[str, str]:
        """Return the torch device of this process for ``--device`` and the reason, as :func:`resolve_device`."""
        if name == "auto" and _told_to_use_cpu():
            return "cpu", "as Accelerate was told"
        device, reason = resolve_device(name)
        if self.count > 1 and device == "cuda":
            number = int(os.environ.get("LOCAL_RANK", self.number)) % torch.cuda.device_count()
            torch.cuda.set_device(number)
            return f"cuda:{number}", f"{reason}, one for each process"
        return device, reason

    def deal(self, units: Mapping[K, Sequence[int]]) -> dict[K, list[int]]:
        """Return this process's share of the units of some parts: every n-th, the parts one after the other.

        Units hold equally many items, and processes of a job run on devices of one kind, so that dealing in advance
        costs a unit of waiting at most, needs nobody to ask, and lets every process decode ahead across its units.
        """
        share: dict[K, list[int]] = {}
        dealt = 0
        for part, numbers in units.items():
            share[part] = list(numbers[(self.number - dealt) % self.count :: self.count])
            dealt += len(numbers)
        return share

    def together(self, phase: Callable[[], T]) -> T:
        """Run ``phase`` here while the others run theirs, and wait for all. Where one fails, all raise its failure.

        Raises:
            BaseException: what ``phase`` raised, here or elsewhere; an error comes before a mere stop.
            RunError: another process has died.
        """
        if self.count == 1:
            return phase()
        value, failure = None, None
        try:
            value = phase()
        except BaseException as error:
            failure = error
        failures = [error for error in self._gather(_sendable(failure, self.number)) if error is not None]
        if failures:
            chosen = min(failures, key=lambda error: _exit_code(error) in (75, 130))
            if failure is not None and _exit_code(failure) == _exit_code(chosen) and self.first:
                chosen = failure  # with its own traceback
            self._failure = chosen
            raise chosen
        return value  # type: ignore[return-value]  # no failure: the phase has returned

    def one_after_another(self, phase: Callable[[], T]) -> T:
        """Run ``phase`` in the first process, then in the others: what it makes on disk, the others find."""
        value = self.together(phase if self.first else lambda: None)
        rest = self.together(phase if not self.first else lambda: None)
        found = value if self.first else rest
        assert found is not None
        return found

    def share(self, value: T | None) -> T:
        """Return what the first process gives as ``value``; the others give None."""
        if self.count > 1:
            values = [value]
            self._speak(lambda: dist.broadcast_object_list(values, src=0, group=self._group))
            value = values[0]
        assert value is not None
        return value

    def _gather(self, value: BaseException | None) -> list[BaseException | None]:
        found: list[BaseException | None] = [None] * self.count
        self._speak(lambda: dist.all_gather_object(found, value, group=self._group))
        return found

    def _speak(self, act: Callable[[], None]) -> None:
        try:
            act()
        except RuntimeError:  # each says so that is left: the first one may be the one that is gone
            raise RunError(
                "Another process of this job has ended.",
                hint="run the same command again, with as many processes as you like: finished shards are kept.",
            ) from None


def _told_to_use_cpu() -> bool:
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 130
    return error.exit_code if isinstance(error, MadkitError) else 1


def _sendable(error: BaseException | None, number: int) -> BaseException | None:
    """Return the failure in a form that another process can raise."""
    if error is None or number == 0 or isinstance(error, KeyboardInterrupt | StoppedResumable):
        return error if _can_be_sent(error) else RuntimeError(f"{type(error).__name__}: {error}")
    sent = error if _can_be_sent(error) else RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note(f"In process {number} of the job:\n{''.join(traceback.format_exception(error))}")
    return sent


def _can_be_sent(error: BaseException | None) -> bool:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  what has just been made here
    except Exception:
        return False
    return True
