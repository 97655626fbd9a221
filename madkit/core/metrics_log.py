"""The journal of a training, which is cut back to the checkpoint that it goes on from."""

from __future__ import annotations

import contextlib
import errno
import json
from pathlib import Path
from types import TracebackType
from typing import Any

from madkit.core.errors import RunError
from madkit.core.files import write_bytes_atomic


def disk_problem(error: OSError, path: Path) -> RunError:
    """What to tell a user whose disk refused a write."""
    reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror or error)
    return RunError(
        f"Cannot write {path}: {reason}. The last checkpoint is intact.",
        hint="free some space and run the same command again; it goes on from the last checkpoint.",
    )


class MetricsLog:
    """`metrics.jsonl`: one JSON object per line, flushed at once, so that a kill tears the last line at most."""

    def __init__(self, path: Path, *, after_step: int) -> None:
        """Open the journal for appending, without the lines of steps beyond `after_step` (steps count from 1)."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept: list[bytes] = []
        if path.exists():
            for line in path.read_bytes().split(b"\n")[:-1]:
                with contextlib.suppress(ValueError, KeyError):
                    if int(json.loads(line)["step"]) <= after_step:
                        kept.append(line + b"\n")
        write_bytes_atomic(path, b"".join(kept))
        self._file = path.open("ab", buffering=0)

    def write(self, row: dict[str, Any]) -> None:
        """Append `row`. Raises RunError where the disk refuses."""
        try:
            self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        except OSError as error:
            raise disk_problem(error, self.path) from None

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
