"""Going on with a store that was begun before: with its shard sizes, whatever is asked for now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from madkit.cache.journal import journal_files, journalled_units, nothing_says_how
from madkit.cache.layout import MANIFEST, PLAN
from madkit.cache.plan import StorePlan, plan_in, unit_of_file
from madkit.cache.reader import Place, read_document
from madkit.cache.remote import RemoteStore
from madkit.cache.remote_copy import remote_units
from madkit.core.errors import CacheError, DataError


def begun_with(place: Place) -> Mapping[str, Any] | None:
    """Return the plan that a store was begun with; None where nothing was begun.

    Where the plan is damaged, or missing as in a store of another program, the manifest says the same.

    Raises:
        CacheError: there are a plan, a manifest or finished units, and nothing says in which sizes they were written.
    """
    damaged = None
    for name in (PLAN, MANIFEST):
        try:
            found = read_document(place, name)
        except DataError as error:
            damaged = damaged or error.message
            continue
        if isinstance(found, dict):
            return plan_in(found)
        if found is not None:
            damaged = damaged or f"{place}/{name} is not a JSON object."
    if damaged is not None:
        raise CacheError(damaged, hint=f"remove it: madkit cache prune --store {place.name} --yes")
    if isinstance(place, RemoteStore):
        units = bool(remote_units(place))
    else:
        units = any(path.stat().st_size for path in journal_files(place))
    if units:
        raise nothing_says_how(place)
    return None


def has_plan(folder: Path) -> bool:
    """Whether a store's plan is there and can be read."""
    try:
        return isinstance(read_document(folder, PLAN), dict)
    except DataError:
        return False


def resumed_plan(plan: StorePlan, old: Mapping[str, Any], place: Place) -> StorePlan:
    """Return the plan with the shard sizes and facts of the one that a store was begun with.

    Args:
        plan: what is to be written now.
        old: what the store was begun with (:func:`begun_with`).
        place: the store's, for the message.

    Raises:
        CacheError: the store was begun with other items.
    """
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
            f"The cache {place} was begun with other images or texts under the same key.",
            hint=f"remove it and extract again: madkit cache prune --store {place.name} --yes",
        )
    return sizes


def units_there(place: Place) -> set[tuple[str, int]]:
    """Return the units that a writer would find done, as far as their files have their sizes.

    Raises:
        CacheError: the journal cannot be read, and the store is not complete.
    """
    if isinstance(place, RemoteStore):
        manifest = usable_manifest(place)
        return remote_units(place) if manifest is None else _units_of(manifest)
    manifest = manifest_for_journal(place)
    return journalled_units(place) if manifest is None else _units_of(manifest)


def manifest_for_journal(folder: Path) -> Mapping[str, Any] | None:
    """Return the manifest where it has to speak for the journal, which is missing or damaged; None where it has not.

    Raises:
        CacheError: the journal cannot be read, and the store is not complete.
    """
    try:
        return None if journalled_units(folder) else usable_manifest(folder)
    except CacheError:
        manifest = usable_manifest(folder)
        if manifest is None:
            raise
        return manifest


def usable_manifest(place: Place) -> Mapping[str, Any] | None:
    """Return a store's manifest if it lists files; None where there is none, or it is damaged."""
    try:
        manifest = read_document(place, MANIFEST)
    except DataError:
        return None
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) else None


def _units_of(manifest: Mapping[str, Any]) -> set[tuple[str, int]]:
    return {unit for name in manifest["files"] if (unit := unit_of_file(name)) is not None}
