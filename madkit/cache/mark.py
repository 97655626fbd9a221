"""What tells a store of madkit from whatever else lies beside it.

Caches may lie in any folder and below any URL, among other people's work, and what is taken for a store can be removed.
So a store is what says that it is one: its manifest or its plan names the format. Where neither can be parsed, as after
a failing disk, the root group of its arrays or the key at the end of its name has to say so as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Literal

from madkit.cache.layout import FORMAT, MANIFEST, PLAN, SCHEMA

Mark = Literal["ours", "another version", "none"]
_KEY_AT_END = re.compile(r".-[0-9a-f]{12}")
_ROOT = "zarr.json"


def mark_of(name: str, read: Callable[[str], bytes | None]) -> Mark:
    """Say whether something is a store of madkit, whatever state it is in.

    Args:
        name: what its folder is called.
        read: returns the content of one of its files, None where there is none.
    """
    damaged = other = False
    for file in (MANIFEST, PLAN):
        data = read(file)
        found = _parsed(data)
        if is_marked(found):
            return "ours" if found["schema"] == SCHEMA else "another version"
        damaged |= data is not None and not isinstance(found, dict)
        other |= isinstance(found, dict)
    if damaged and _KEY_AT_END.fullmatch(name[-14:]):
        return "ours"
    return "ours" if (damaged or other) and _root_is_marked(read) else "none"


def is_marked(document: Any) -> bool:
    """Whether a parsed manifest or plan is one of a store, of whatever version."""
    return isinstance(document, dict) and document.get("format") == FORMAT and "schema" in document


def _root_is_marked(read: Callable[[str], bytes | None]) -> bool:
    group = _parsed(read(_ROOT))
    attributes = group.get("attributes") if isinstance(group, dict) else None
    return isinstance(attributes, dict) and is_marked(attributes.get("madkit"))


def _parsed(data: bytes | None) -> Any:
    try:
        return None if data is None else json.loads(data)
    except (ValueError, RecursionError):
        return None
