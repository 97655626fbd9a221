"""Checkpoints that are whole or absent, and the journal of metrics that is cut back to them.

A checkpoint is written into a temporary folder beside its place, fsynced and renamed; only then are older ones removed,
so that neither a kill nor a full disk can take the last good one. A damaged one (its digest does not match) is passed
over in favour of the one before.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import shutil
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from madkit.core.errors import MadkitError, RunError
from madkit.core.files import read_json, sha256_file, sync_folder, write_bytes_atomic, write_json_atomic

STATE = "state.pt"
MANIFEST = "checkpoint.json"


def folder_of(root: Path, step: int) -> Path:
    """`<root>/step-NNNNNN`."""
    return root / f"step-{step:06d}"


def disk_problem(error: OSError, path: Path) -> RunError:
    """What to tell a user whose disk refused a write."""
    reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror or error)
    return RunError(
        f"Cannot write {path}: {reason}. The last checkpoint is intact.",
        hint="free some space and run the same command again; it goes on from the last checkpoint.",
    )


def write_checkpoint(root: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write `state` (tensors and plain values) as the checkpoint of `step` and remove all but the last `keep`.

    Raises RunError where the disk refuses; what was there before is then still there.
    """
    target = folder_of(root, step)
    temporary = root / f".{target.name}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        temporary.mkdir(parents=True)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        # through memory: torch turns a full disk into a RuntimeError of its own
        write_bytes_atomic(temporary / STATE, buffer.getbuffer())
        digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
        write_json_atomic(temporary / MANIFEST, {"schema": 1, "step": step, "sha256": digest})
        if target.exists():  # left by a run that was cut back to an earlier one
            shutil.rmtree(target)
        temporary.rename(target)
        sync_folder(root)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise disk_problem(error, target) from None
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in list_checkpoints(root)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def list_checkpoints(root: Path) -> list[Path]:
    """The checkpoint folders under `root`, oldest first."""
    return sorted(folder for folder in root.glob("step-*") if folder.is_dir())


def latest_checkpoint(root: Path, device: torch.device | str = "cpu") -> tuple[int, dict[str, Any]] | None:
    """Step and state of the newest checkpoint that is whole, or None. What a kill left half-written is removed."""
    for rubbish in root.glob(".step-*.tmp"):
        shutil.rmtree(rubbish, ignore_errors=True)
    for folder in reversed(list_checkpoints(root)):
        try:
            manifest = read_json(folder / MANIFEST)
            if sha256_file(folder / STATE) != manifest["sha256"]:
                continue
            state = torch.load(folder / STATE, map_location=device, weights_only=True)
        except (OSError, MadkitError, KeyError, RuntimeError):
            continue
        return int(manifest["step"]), state
    return None


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
