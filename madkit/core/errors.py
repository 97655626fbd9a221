"""Failures that a user can act on.

Every expected failure is a :class:`MadkitError`: one sentence that names the cause, and a hint with the next command to
type. The command line prints both without a traceback and exits with the class's ``exit_code``:

A name that is none of those madkit can list (a task, split, student, teacher, arm, recipe, protocol, a choice) is wrong
usage; a file, run, cache or repository that is not there is a failure, and so is a configuration.

==== =====================================================
code meaning
==== =====================================================
0    done
1    expected failure
2    wrong usage (also what Typer itself uses)
3    a verification found something wrong
75   stopped by a signal, resumable (EX_TEMPFAIL of sysexits.h)
130  Ctrl-C
==== =====================================================
"""

from __future__ import annotations

from typing import ClassVar


class MadkitError(Exception):
    """An expected failure.

    Args:
        message: one sentence with the cause, ending in a full stop.
        hint: what to type or change next.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageProblem(MadkitError):
    """An argument that cannot be meant: a name of nothing, an impossible value, options that exclude each other."""

    exit_code = 2


class NotFoundError(MadkitError):
    """A file, folder, cache, run or weight file that does not exist."""


class DataError(MadkitError):
    """A data file whose content breaks its format. The message names file, line and key."""


class CacheError(MadkitError):
    """A token cache that is missing items, belongs to something else, or is damaged."""


class CacheInUse(CacheError):
    """A token cache that another process is writing just now."""


class ConfigError(MadkitError):
    """A configuration with unknown keys or wrong values. The message lists all of them."""


class RunError(MadkitError):
    """A training or evaluation run that cannot go on."""


class VerificationFailed(MadkitError):
    """A check ran to its end and found something wrong."""

    exit_code = 3


class StoppedResumable(MadkitError):
    """Work was stopped by a signal after its state had been saved; the same command goes on from there."""

    exit_code = 75
