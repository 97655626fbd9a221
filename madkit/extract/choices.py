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


class ChoiceLog:
    """Prints choices on stderr, one line each, and none twice.

    Attributes:
        latest: the choices of the store at hand.
    """

    def __init__(self) -> None:
        self.latest: tuple[Choice, ...] = ()
        self._said: set[Choice] = set()

    def begin(self, choices: Iterable[Choice] = ()) -> None:
        """Start a store with choices that were made before it."""
        self.latest = tuple(choices)

    def add(self, choices: Iterable[Choice]) -> None:
        """Keep choices, and print those that have not been printed yet."""
        for choice in choices:
            self.latest += (choice,)
            if choice not in self._said:
                self._said.add(choice)
                info(f"  {choice.name}: {choice.value} ({choice.reason})")
