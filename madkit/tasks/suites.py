"""Test suites that are added to a data set after its import: each a folder with a manifest of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from madkit.core.errors import DataError, UsageProblem
from madkit.core.files import FileLock, digest_of, write_json_atomic
from madkit.core.folders import replacing
from madkit.tasks.data import MANIFEST, SCHEMA, SUITES, TaskData
from madkit.tasks.example import Example
from madkit.tasks.index.images import ImageTable
from madkit.tasks.index.writer import ExampleWriter


def suite_folder(data: TaskData, suite: str) -> Path:
    """Where a suite of a data set lies, or would lie."""
    return data.root / SUITES / suite


def write_suite(
    data: TaskData,
    suite: str,
    examples: Iterable[Example],
    *,
    made_by: Mapping[str, Any],
    about: str,
    images_of: str | None = None,
    images_root: Path | None = None,
    labelled: bool = True,
    files: Mapping[str, Path] | None = None,
) -> Path:
    """Write a suite and return its folder; one of the same name is replaced in one step.

    Args:
        data: the data set that it belongs to.
        suite: its name, "test-...".
        examples: in the order in which they are to be scored.
        made_by: everything needed to make it again: method, settings, seed, what it was made from.
        about: one sentence for listings.
        images_of: the data set that the images came with, where they are not this one's; it may have region features.
        images_root: what the paths of such images are stored relative to.
        labelled: whether the labels are known.
        files: further files to keep in the suite's folder, by name (lists of ids, scores).

    The data set's revision does not change: results on other suites stay valid.

    Raises UsageProblem for a name that a split has, DataError for a suite without examples.
    """
    if not suite.startswith("test-") or suite in data.manifest["splits"]:
        raise UsageProblem(f"A suite cannot be named {suite!r}.", hint="suites are named test-SOMETHING")
    home = suite_folder(data, suite)
    with FileLock(home.with_name(f".{suite}.lock"), what=f"the suite {suite}"), replacing(home) as folder:
        root = images_root or data.image_root()
        images = ImageTable(root)
        writer = ExampleWriter(folder, "examples", images)
        for example in examples:
            writer.add(example)
        if not writer.count:
            raise DataError(f"The suite {suite} of {data.source} would have no examples.")
        digest = writer.write()
        images.write(folder)
        for name, path in (files or {}).items():
            shutil.copyfile(path, folder / name)
        manifest = {
            "schema": SCHEMA,
            "suite": suite,
            "of": data.source,
            "parent_revision": data.revision,
            "revision": digest_of([data.source, suite, digest]),
            "about": about,
            "examples": writer.count,
            "questions": writer.questions,
            "images": len(writer.image_rows),
            "labelled": labelled,
            "balance": dict(sorted(writer.balance.items())),
            # without these, the images are the data set's own, wherever it is imported from
            **({} if images_of is None else {"images_of": images_of, "images_root": str(root)}),
            "made_by": dict(made_by),
        }
        write_json_atomic(folder / MANIFEST, manifest)
    return home


def finished_suite(data: TaskData, suite: str, made_by: Mapping[str, Any]) -> Path | None:
    """The folder of a suite that was made in just this way from this revision, None where it has to be made."""
    from madkit.core.errors import MadkitError
    from madkit.core.files import canonical_json, read_json

    home = suite_folder(data, suite)
    try:
        manifest = read_json(home / MANIFEST)
    except MadkitError:
        return None
    if not isinstance(manifest, dict) or manifest.get("parent_revision") != data.revision:
        return None
    held = manifest.get("made_by")
    if not isinstance(held, dict):
        return None
    same = {key: held.get(key) for key in made_by}
    return home if canonical_json(same) == canonical_json(dict(made_by)) else None
