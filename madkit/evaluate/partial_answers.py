"""What has been answered so far, beside the file that it will become: nothing that was computed is lost to a kill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from madkit.core.console import counted, info
from madkit.core.errors import MadkitError
from madkit.core.files import append_jsonl, digest_of, read_jsonl

ENDING = ".partial"


class PartialAnswers:
    """A journal of answers by the digests of their questions, so that it survives an edited file of questions.

    Args:
        path: the file that will hold the answers; the journal lies beside it.
        known_by: what the answers depend on besides the question; answers that depend on something else are not used.
    """

    def __init__(self, path: Path, known_by: Mapping[str, Any]) -> None:
        self.path = path.with_name(f"{path.name}{ENDING}")
        self._identity = {"madkit": "answers", "known_by": digest_of(known_by)}
        self.rows: dict[str, dict[str, Any]] = {}
        self._begun = False
        if not self.path.is_file():
            return
        try:
            first, *others = read_jsonl(self.path) or [{}]
        except MadkitError:
            first, others = {}, []
        if first != self._identity:
            info(f"{self.path.name} holds answers of another student or about other features: it begins anew.")
            self.path.unlink()
            return
        self._begun = True
        self.rows = {row["digest"]: row["row"] for row in others if {"digest", "row"} <= row.keys()}
        were = "was" if len(self.rows) == 1 else "were"
        info(
            f"Going on where it stopped: {counted(len(self.rows), 'questions')} {were} answered before "
            f"({self.path.name})."
        )

    def add(self, digests: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
        """Remember answers, on disk before this returns."""
        lines = [{"digest": digest, "row": row} for digest, row in zip(digests, rows, strict=True)]
        append_jsonl(self.path, *([] if self._begun else [self._identity]), *lines)
        self._begun = True
        self.rows.update(zip(digests, rows, strict=True))

    def done(self) -> None:
        """Remove the journal: the file is there."""
        self.path.unlink(missing_ok=True)
