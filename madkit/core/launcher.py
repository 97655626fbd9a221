"""Whether a launcher has started this process as one of several, and which one it is.

``accelerate launch`` and ``torchrun`` set all of `VARIABLES`. Some clusters set one or two of them for every program
that they start: that makes no job, and a program that is alone must not take itself for a silent second.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """Whether this process is one of a job's."""
    return all(name in os.environ for name in VARIABLES)


def rank() -> int:
    """Its number in the job; 0 for the first one, which reports, and without a launcher."""
    return int(os.environ["RANK"]) if launched() else 0


def world_size() -> int:
    """How many processes the job has; 1 without a launcher."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def local_world_size() -> int:
    """How many of the job's processes share this machine, where the launcher says; 1 otherwise."""
    said = os.environ.get("LOCAL_WORLD_SIZE", "1") if launched() else "1"
    return max(1, int(said)) if said.isdecimal() else 1


def local_rank() -> int:
    """Its number among those of the job on this machine; its number in the job where the launcher does not say."""
    return int(os.environ.get("LOCAL_RANK", rank())) if launched() else 0


def asked_accumulation() -> int:
    """Over how many passes `accelerate launch` or its configuration would accumulate a step; 1 where nobody says."""
    said = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    return max(1, int(said)) if said.isdecimal() else 1


@contextmanager
def job_hidden() -> Iterator[None]:
    """Take the variables out of the environment for a while: Accelerate joins a job where one of them is set."""
    taken = {name: os.environ.pop(name) for name in (*VARIABLES, "LOCAL_RANK") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)
