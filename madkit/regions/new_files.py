"""Files and folders that appear under their names when everything is in them."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from madkit.core.errors import UsageProblem
from madkit.core.files import sync_folder


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends well, and is removed when it does not.

    Raises UsageProblem where `target` is there already and not an empty folder.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UsageProblem(f"{target} exists already.", hint="delete it, or give another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        temporary.replace(target)  # onto an empty folder too, but never onto a full one
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(target.parent)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """The path of a temporary file that becomes `target` when the block ends well, and is removed when it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(target.parent)
