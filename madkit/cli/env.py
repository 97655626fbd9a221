"""``madkit env``: versions and hardware in one block."""

from __future__ import annotations

from madkit.cli.options import JsonOption
from madkit.cli.output import emit


def env(json_: JsonOption = False) -> None:
    """Print versions and hardware, ready to paste into an issue. Nothing is sent anywhere."""
    from madkit.core.environment import environment

    facts = environment()

    def human() -> None:
        width = max(map(len, facts))
        print("```")
        for name, value in facts.items():
            print(f"{name:<{width}}  {'-' if value is None else value}")
        print("```")

    emit(facts, json_, human)
