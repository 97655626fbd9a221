"""What an extraction chose by itself, and why: said once, and kept with the store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from madkit.core.console import info


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice.

    Attributes:
        name: what was chosen, such as ``decoder``.
        value: the outcome.
        reason: why, in a few words.
    """

    name: str
    value: str
    reason: str

    def as_row(self) -> dict[str, str]:
        """Return plain values for JSON."""
        return asdict(self)


def say(choices: Iterable[Choice]) -> None:
    """Print choices on stderr, one line each."""
    for choice in choices:
        info(f"{choice.name}: {choice.value} ({choice.reason})")
