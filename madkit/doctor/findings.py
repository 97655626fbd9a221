"""What a check found: pass, warn or fail, and how to mend it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """How a check ended. A warning is something that works, but slower, smaller or not everywhere."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        group: what was looked at, such as "versions".
        name: the thing, such as "torch".
        status: how it is.
        detail: a clause for people.
        mend: the command to type, or what to change; empty for PASS.
    """

    group: str
    name: str
    status: Status
    detail: str
    mend: str = ""

    def as_row(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "status": self.status.value}


def passed(group: str, name: str, detail: str) -> Finding:
    """A finding with nothing to mend."""
    return Finding(group, name, Status.PASS, detail)


def warned(group: str, name: str, detail: str, mend: str) -> Finding:
    """A finding that costs something."""
    return Finding(group, name, Status.WARN, detail, mend)


def failed(group: str, name: str, detail: str, mend: str) -> Finding:
    """A finding that keeps something from working."""
    return Finding(group, name, Status.FAIL, detail, mend)


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """Number of findings by status, all three named."""
    found = Counter(finding.status for finding in findings)
    return {status.value: found[status] for status in Status}


def first_line(error: BaseException) -> str:
    """The first line of an error's text without its full stop, or the name of its class."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return (line or type(error).__name__).rstrip(".")
