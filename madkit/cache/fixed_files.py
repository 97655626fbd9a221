"""The files of a store that follow from its plan alone: metadata, ids, texts and extents."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from madkit.cache.layout import IMAGE_IDS, TEXTS, group_metadata, same_array, text_extents
from madkit.cache.plan import StorePlan, compact_json
from madkit.cache.shards import pack_chunk


def fixed_files(plan: StorePlan, document: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each, but for the groups of the parts: these tell statistics as well.

    Args:
        plan: the store's plan.
        document: what ``plan.json`` holds.
    """
    yield "zarr.json", compact_json(group_metadata({"madkit": document}))
    for part in plan.parts:
        for spec in plan.arrays(part).values():
            yield f"{spec.name}/zarr.json", compact_json(spec.metadata())
    if "images" in plan.parts:
        yield IMAGE_IDS, compact_json({"ids": list(plan.image_ids), "aliases": dict(plan.image_aliases)})
    if "texts" in plan.parts:
        yield TEXTS, compact_json(list(plan.texts))
    extents = plan.arrays("texts").get("extents")
    if extents is not None and extents.shards:
        yield extents.file(0), pack_chunk(extents, text_extents(plan.lengths, plan.text))


def says_the_same(name: str, found: bytes, wanted: bytes) -> bool:
    """Whether a sound file of another program, or of an earlier version, means what ours would."""
    if found == wanted:
        return True
    if not name.endswith(".json"):
        return False
    try:
        theirs, ours = json.loads(found), json.loads(wanted)
    except ValueError:
        return False
    if ours == theirs:
        return True
    if not name.endswith("zarr.json") or not isinstance(theirs, dict):
        return False
    if ours["node_type"] == "group":  # what a group tells of itself is nobody's layout
        return bool(theirs.get("node_type") == "group")
    return same_array(theirs, ours)
