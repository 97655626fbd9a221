"""Going on with a store that was begun before: with its shard sizes, whatever is asked for now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from madkit.cache.journal import journal_files, journalled_units
from madkit.cache.layout import MANIFEST, PLAN
from madkit.cache.plan import StorePlan
from madkit.core.errors import CacheError, DataError, NotFoundError
from madkit.core.files import read_json, write_json_atomic


def resumed_plan(plan: StorePlan, folder: Path) -> StorePlan:
    """Return the plan with the shard sizes and facts of the one that a store was begun with.

    Args:
        plan: what is to be written now.
        folder: the store's, with a plan in it. A damaged one is written anew where the manifest says the same.

    Raises:
        CacheError: the store was begun with other items, or its plan is damaged and the store not complete.
    """
    old = _begun(plan, folder)
    new = plan.document()
    try:
        same = all(old[name] == new[name] for name in ("schema", "key", "items"))
        images, text = plan.images, plan.text
        if "images" in plan.parts:
            views = bool(old["images"].get("views", False))  # older plans have none
            images = replace(images, unit=int(old["images"]["unit"]), views=views)
        if "texts" in plan.parts:
            unit, capacity, rows = (int(old["texts"][name]) for name in ("unit", "capacity", "rows"))
            text = replace(text, unit=unit, capacity=capacity, rows=rows)
        sizes = replace(plan, facts=old["facts"], images=images, text=text)
    except (KeyError, TypeError, ValueError):
        same = False
    if not same:
        raise CacheError(
            f"The cache {folder} was begun with other images or texts under the same key.",
            hint=f"remove it and extract again: madkit cache prune --store {folder.name} --yes",
        )
    return sizes


def without_damaged_journal(folder: Path) -> Mapping[str, Any] | None:
    """Remove a journal that cannot be read where the manifest says the same, and return that manifest.

    None, and nothing is removed, where the journal can be read.

    Raises:
        CacheError: it cannot, and the store is not complete.
    """
    try:
        journalled_units(folder)
        return None
    except CacheError:
        try:
            manifest = _document(folder / MANIFEST)
        except (DataError, NotFoundError):
            manifest = {}
        if not isinstance(manifest.get("files"), dict):
            raise
    for path in journal_files(folder):
        path.unlink()
    return manifest


def _begun(plan: StorePlan, folder: Path) -> Mapping[str, Any]:
    try:
        return _document(folder / PLAN)
    except DataError as damaged:
        try:
            manifest = _document(folder / MANIFEST)
        except (DataError, NotFoundError):
            raise CacheError(
                damaged.message, hint=f"remove it: madkit cache prune --store {folder.name} --yes"
            ) from None
        found = {name: manifest[name] for name in plan.document() if name in manifest}
        write_json_atomic(folder / PLAN, found)
        return found


def _document(path: Path) -> Mapping[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise DataError(f"{path} is not a JSON object.")
    return found
