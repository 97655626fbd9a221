"""What a token store will hold, known before the first encoding: its items, their arrays, and the units of work."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from madkit.cache.layout import FORMAT, SCHEMA, ArraySpec, ImageLayout, TextLayout, store_key
from madkit.core.files import digest_of

Part = Literal["images", "texts"]
PARTS: tuple[Part, ...] = ("images", "texts")
NO_IMAGES = ImageLayout(0, 1, 0, 0, (0, 0))
"""The image part of a store whose teacher reads texts alone."""
NO_TEXTS = TextLayout(0, 1, 0, 0, 0)
"""The text part of a store whose teacher reads images alone."""

_PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class StorePlan:
    """Everything about a store that is known before the first encoding.

    Attributes:
        identity: what the store is of; its digest is the store's key.
        image_ids: one id per row of the image arrays.
        image_aliases: further ids that stand for a row, where several ids name one file.
        texts: one text per row of the text arrays.
        lengths: [texts] tokens of each text.
        images: sizes of the image part; :data:`NO_IMAGES` where the teacher reads none.
        text: sizes of the text part; :data:`NO_TEXTS` where the teacher reads none.
        facts: counts for the manifest, such as texts that were too long.
        absent_texts: what is wrong with each text that has no tokens, by row.
    """

    identity: Mapping[str, Any]
    image_ids: Sequence[str]
    image_aliases: Mapping[str, int]
    texts: Sequence[str]
    lengths: npt.NDArray[np.int64]
    images: ImageLayout
    text: TextLayout
    facts: Mapping[str, Any]
    absent_texts: Mapping[int, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return what ``plan.json`` holds: identity, sizes, and a digest over ids, texts and lengths."""
        sizes = {"images": _sizes(self.images), "texts": _sizes(self.text)}
        return {
            "schema": SCHEMA,
            "format": FORMAT,
            "key": store_key(self.identity),
            "identity": dict(self.identity),
            "items": self._items_digest(),
            **{part: sizes[part] for part in self.parts},
            "facts": dict(self.facts),
        }

    def _items_digest(self) -> str:
        """Digest the JSON of [ids, aliases, texts, lengths], piece by piece: of two million texts it has 200 MB."""
        sha = sha256(b"[")
        for end, part in (
            (b",", self.image_ids),
            (b",", self.image_aliases),
            (b",", self.texts),
            (b"]\n", self.lengths),
        ):
            if isinstance(part, Mapping):
                sha.update(compact_json(dict(part))[:-1] + end)
                continue
            for start in range(0, len(part), _PIECE):
                piece = part[start : start + _PIECE]
                plain = piece.tolist() if isinstance(piece, np.ndarray) else list(piece)
                sha.update((b"," if start else b"[") + compact_json(plain)[1:-2])
            sha.update((b"]" if len(part) else b"[]") + end)
        return sha.hexdigest()[:16]

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that the store has: both, or the one that its teacher reads."""
        there = {"images": self.images.dim, "texts": self.text.dim}
        return tuple(part for part in PARTS if there[part])

    def arrays(self, part: Part) -> dict[str, ArraySpec]:
        """Return the arrays of a part by their last name; none for a part that the store does not have."""
        if part not in self.parts:
            return {}
        return self.images.arrays() if part == "images" else self.text.arrays()

    def units(self, part: Part) -> int:
        """Return the number of units of a part."""
        return self.images.units if part == "images" else self.text.units

    def items(self, part: Part, unit: int) -> range:
        """Return the rows (images or texts) that a unit holds."""
        layout: ImageLayout | TextLayout = self.images if part == "images" else self.text
        return range(unit * layout.unit, min(layout.n, (unit + 1) * layout.unit))

    def token_count(self, part: Part, unit: int) -> int:
        """Return the number of token rows that a unit holds."""
        rows = self.items(part, unit)
        if part == "images":
            return len(rows) * self.images.tokens
        if not self.text.capacity:
            return 0
        return int(self.lengths[rows.start : rows.stop].sum())

    def unit_files(self, part: Part, unit: int) -> set[str]:
        """Return the names of the files that a unit has; one without any token has none of tokens."""
        found: set[str] = set()
        if unit >= self.units(part):
            return found
        for last, spec in self.arrays(part).items():
            ragged = part == "texts" and last in ("tokens", "spans", "scales")
            if last not in ("extents", "statistics") and (not ragged or self.token_count(part, unit)):
                found.add(spec.file(unit))
        return found


def plan_in(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a plan or a manifest, which has the same and more, says of a plan."""
    names = ("schema", "format", "key", "identity", "items", *PARTS, "facts")
    return {name: document[name] for name in names if name in document}


def first_outside(names: Iterable[str]) -> str | None:
    """Return the first name that leads out of the store: by a manifest's names is written and removed."""
    return next((name for name in names if name.startswith("/") or ".." in name.split("/")), None)


def layout_digest(document: Mapping[str, Any]) -> str:
    """Return a digest of what decides which rows a unit has: key, items and sizes of a plan's document."""
    return digest_of({name: document.get(name) for name in ("key", "items", *PARTS)})


def unit_of_file(name: str) -> tuple[Part, int] | None:
    """Return the unit that a file of a store belongs to; None for metadata, ids, texts, extents and statistics."""
    array, found, rest = name.partition("/c/")
    part, _, last = array.partition("/")
    if not found or last in ("extents", "statistics"):
        return None
    return ("images" if part == "images" else "texts"), int(rest.partition("/")[0])


def _sizes(layout: ImageLayout | TextLayout) -> dict[str, Any]:
    """Return a part's sizes; dtype and views are named only where they are not the usual ones."""
    sizes = asdict(layout)
    if sizes["dtype"] == "float16":
        del sizes["dtype"]
    if not sizes.get("views", True):
        del sizes["views"]
    return sizes


def compact_json(document: object) -> bytes:
    """One line of JSON without spaces, with a newline."""
    return (json.dumps(document, allow_nan=False, separators=(",", ":")) + "\n").encode()
