"""Checkpoints that are whole or absent.

A checkpoint is written into a temporary folder beside its place, fsynced and renamed; only then are older ones removed,
so that neither a kill nor a full disk can take the last good one. A damaged one (its digest does not match) is passed
over in favour of the one before.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch

from madkit.core.console import warn
from madkit.core.errors import MadkitError, RunError
from madkit.core.files import read_json, sha256_file, sync_folder, write_bytes_atomic, write_json_atomic
from madkit.core.metrics_log import disk_problem

STATE = "state.pt"
MANIFEST = "checkpoint.json"


def folder_of(root: Path, step: int) -> Path:
    """`<root>/step-NNNNNN`."""
    return root / f"step-{step:06d}"


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


def latest_checkpoint(root: Path) -> tuple[int, dict[str, Any]] | None:
    """Step and state (on the CPU) of the newest checkpoint that is whole, or None.

    What a kill left half-written is removed; one that cannot be read is passed over with a warning.
    """
    for rubbish in root.glob(".step-*.tmp"):
        shutil.rmtree(rubbish, ignore_errors=True)
    for folder in reversed(list_checkpoints(root)):
        try:
            manifest = read_json(folder / MANIFEST)
            if sha256_file(folder / STATE) != manifest["sha256"]:
                raise RunError("its digest does not match.")
            state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        except (OSError, MadkitError, KeyError, RuntimeError) as error:
            warn(f"The checkpoint {folder} is damaged and passed over: {error}")
            continue
        return int(manifest["step"]), state
    return None
