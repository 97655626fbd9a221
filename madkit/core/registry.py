"""Names for things that are imported on first use, with near-miss suggestions."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import import_module
from typing import Any, Generic, TypeVar, cast

from madkit.core.errors import UsageProblem

T = TypeVar("T")


def suggest(name: str, names: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest of ``names``, or ``""`` where none is near."""
    known = {known.casefold(): known for known in names}
    near = difflib.get_close_matches(name.casefold(), list(known), n=1, cutoff=0.6)
    return f" Did you mean '{known[near[0]]}'?" if near else ""


class Registry(Generic[T]):
    """A table name -> object of one kind.

    Args:
        kind: what the entries are, in the singular ("teacher"), for messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, str | T] = {}
        self._info: dict[str, dict[str, Any]] = {}

    def register(self, name: str, target: str | T, **info: Any) -> None:
        """Add an entry: an object, or ``"package.module:attribute"`` to import on first use, and facts to list.

        Raises:
            ValueError: the name is taken (a mistake in the code, not of the user).
        """
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._entries[name] = target
        self._info[name] = info

    def get(self, name: str) -> T:
        """Return the entry, importing it where needed (UsageProblem with a suggestion when unknown)."""
        self._check(name)
        target = self._entries[name]
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = cast(T, getattr(import_module(module), attribute))
            self._entries[name] = target
        return target

    def names(self) -> list[str]:
        """List the names in the order of their registration."""
        return list(self._entries)

    def info(self, name: str) -> dict[str, Any]:
        """Return the facts given at registration (UsageProblem with a suggestion when unknown)."""
        self._check(name)
        return dict(self._info[name])

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def _check(self, name: str) -> None:
        if name not in self._entries:
            raise UsageProblem(
                f"There is no {self.kind} '{name}'.{suggest(name, self._entries)}",
                hint=f"one of: {', '.join(self._entries)}." if self._entries else None,
            )
