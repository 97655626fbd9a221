"""What the documentation types: the calls in its fenced blocks and in its `inline code`.

A block marked ``text`` is what a program printed: only its lines behind a ``$`` were typed. A comment in front of a
block, ``<!-- not run: why -->``, says why nobody runs it here; it is parsed all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("madkit", "python", "accelerate", "torchrun")
FENCE = re.compile(r"(?:<!-- not run: (?P<why>[^>]*) -->\n+)?^```(?P<language>[^\n]*)\n(?P<body>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its calls, and why they are not run ("" where they can be)."""

    language: str
    body: str
    calls: tuple[str, ...]
    why: str


def blocks(text: str) -> Iterator[Block]:
    for found in FENCE.finditer(text):
        language, body = found["language"].strip(), found["body"]
        lines = body.replace("\\\n", " ").splitlines()
        if language == "text":
            lines = [line for line in lines if line.startswith("$ ")]
        pieces = (piece for line in lines for piece in line.removeprefix("$ ").split("&&"))
        yield Block(
            language, body, tuple(_calls(pieces)) if language in ("", "text", "bash") else (), found["why"] or ""
        )


def fenced_calls(text: str) -> list[str]:
    """The calls of all fenced blocks, in their order."""
    return [call for block in blocks(text) for call in block.calls]


def inline_calls(text: str) -> list[str]:
    """The madkit calls in running text; those of launchers are often named in part there."""
    found = re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```$", "", text))
    return _calls([call for call in found if call.startswith("madkit ")])


def _calls(pieces: Iterator[str] | list[str]) -> list[str]:
    calls = [re.split(r"\s+(?:#|->|>|\|)\s", f"{piece.strip()} ")[0].strip() for piece in pieces]
    calls = [re.sub(r"^(?:[A-Z_]+=\S+ )+", "", call) for call in calls]
    return [call for call in calls if re.match(rf"(?:{'|'.join(PROGRAMS)}) [-a-z./]", call)]
