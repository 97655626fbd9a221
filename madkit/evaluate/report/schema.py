"""The JSON Schema (draft 2020-12) of the results document, made from the dataclasses that write it."""

from __future__ import annotations

from typing import Any

from madkit.evaluate.report.fields import COMMON, ENTRIES, OWN
from madkit.evaluate.results import SCHEMA, Results

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def results_schema() -> dict[str, Any]:
    """The schema: every field of every part with its type and meaning.

    It asks for all fields that this madkit writes and forbids no others, so that a reader of it can read documents to
    come.
    """
    from pydantic import TypeAdapter

    made = TypeAdapter(Results).json_schema(mode="serialization")
    parts: dict[str, dict[str, Any]] = made.pop("$defs")
    whole: dict[str, Any] = {"properties": made["properties"], "required": sorted(made["properties"])}
    whole["properties"]["schema"] = {"const": SCHEMA}
    for name, part in {**parts, "Results": whole}.items():
        _described(name, part)
        part["required"] = list(part["properties"])
        part.pop("title", None)
    return {
        "$schema": DIALECT,
        "title": SCHEMA,
        "description": "Results of madkit evaluate. Scores are in percent, differences in points.",
        "type": "object",
        **whole,
        "$defs": parts,
    }


def meaning(part: str, field: str) -> str:
    """What a field means. Raises KeyError for one that nobody described."""
    return OWN.get(f"{part}.{field}") or COMMON[field]


def _described(name: str, part: dict[str, Any]) -> None:
    """Replace the titles and defaults that pydantic writes by meanings, and describe the entries of plain JSON."""
    for field, about in part["properties"].items():
        about.pop("title", None)
        about.pop("default", None)
        about["description"] = meaning(name, field)
        entries = ENTRIES.get(f"{name}.{field}")
        if entries is None:
            continue
        shape = {
            "type": "object",
            "properties": {key: {"type": kind, "description": said} for key, (kind, said) in entries.items()},
            "required": list(entries),
        }
        if about.get("type") == "array":
            about["items"] = shape
        else:
            about.pop("type", None)
            about.pop("additionalProperties", None)
            about["anyOf"] = [shape, {"type": "null"}]
