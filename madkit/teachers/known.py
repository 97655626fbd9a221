"""The teachers that have a short name, with facts to list without loading anything.

``open_clip:ARCH/TAG`` and ``local:PATH`` reach everything else. The facts of the aliases are stated here and a test
compares them with the models that open_clip builds, so that ``madkit teachers list`` needs no heavy import.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from madkit.core.errors import UsageProblem
from madkit.core.registry import suggest


@dataclass(frozen=True, slots=True)
class KnownTeacher:
    """A teacher with a short name.

    Attributes:
        name: the alias.
        target: what it stands for: ``mini`` or ``open_clip:ARCH/TAG``.
        dim: width of tokens and global vectors in the shared space.
        image_size: side of the square input image in pixels.
        image_tokens: patch tokens per image.
        context_length: longest text in tokens, start and end included.
        parameters_m: parameters in millions, vision and text together.
        licence: licence of the weights, where its publisher states one.
        note: one line for people.
    """

    name: str
    target: str
    dim: int | None
    image_size: int | None
    image_tokens: int | None
    context_length: int | None
    parameters_m: float | None
    licence: str
    note: str

    def as_row(self) -> dict[str, Any]:
        """Return the facts as plain values, with the bytes that one image takes in a float16 cache."""
        row = asdict(self)
        known = self.dim is not None and self.image_tokens is not None
        row["bytes_per_image"] = (self.image_tokens or 0) * (self.dim or 0) * 2 if known else None
        return row


_CLIPS = (
    ("clip-vit-b32", "ViT-B-32/openai", 512, 224, 49, 151.3, "MIT", "OpenAI CLIP ViT-B/32"),
    ("clip-vit-b16", "ViT-B-16/openai", 512, 224, 196, 149.6, "MIT", "OpenAI CLIP ViT-B/16"),
    ("clip-vit-l14", "ViT-L-14/openai", 768, 224, 256, 427.6, "MIT", "OpenAI CLIP ViT-L/14, the reference teacher"),
    ("clip-vit-l14-336", "ViT-L-14-336/openai", 768, 336, 576, 427.9, "MIT", "OpenAI CLIP ViT-L/14 at 336 pixels"),
    ("clip-vit-h14", "ViT-H-14/laion2b_s32b_b79k", 1024, 224, 256, 986.1, "MIT", "LAION-2B CLIP ViT-H/14"),
)

KNOWN: dict[str, KnownTeacher] = {
    "mini": KnownTeacher(
        "mini", "mini", None, None, None, None, None, "Apache-2.0", "embedded pair for the embedded benchmark"
    ),
    **{
        name: KnownTeacher(name, f"open_clip:{arch}", dim, size, tokens, 77, millions, licence, note)
        for name, arch, dim, size, tokens, millions, licence, note in _CLIPS
    },
}

SCHEMES = ("open_clip:", "local:")


@dataclass(frozen=True, slots=True)
class TeacherName:
    """A parsed teacher name.

    Attributes:
        canonical: the name that manifests carry: the alias where there is one.
        scheme: ``mini``, ``open_clip`` or ``local``.
        rest: architecture for ``open_clip``, path for ``local``, empty for ``mini``.
        tag: open_clip's pretrained tag, or None.
    """

    canonical: str
    scheme: str
    rest: str
    tag: str | None = None

    @property
    def slug(self) -> str:
        """The name with nothing that a folder name cannot hold."""
        plain = self.canonical if self.scheme != "local" else "local-" + self.rest.rstrip("/").rpartition("/")[2]
        return re.sub(r"[^a-z0-9._]+", "-", plain.lower()).strip("-.")


def canonical_name(name: str) -> str:
    """Return the alias of a known target (``open_clip:ViT-L-14/openai`` is ``clip-vit-l14``), else the name itself."""
    return next((known.name for known in KNOWN.values() if known.target == name), name)


def parse_teacher_name(name: str) -> TeacherName:
    """Split a teacher name into what it stands for.

    Raises:
        UsageProblem: it is neither an alias nor ``open_clip:ARCH[/TAG]`` nor ``local:PATH``.
    """
    if name in KNOWN:
        target = KNOWN[name].target
        if target == "mini":
            return TeacherName("mini", "mini", "")
        arch, _, tag = target.removeprefix("open_clip:").rpartition("/")
        return TeacherName(name, "open_clip", arch, tag)
    if name.startswith("open_clip:"):
        rest = name.removeprefix("open_clip:")
        arch, slash, tag = rest.partition("/")
        if arch and (tag or not slash):
            return TeacherName(canonical_name(name), "open_clip", arch, tag or None)
    if name.startswith("local:") and name != "local:":
        return TeacherName(name, "local", name.removeprefix("local:"))
    raise UsageProblem(
        f"There is no teacher named '{name}'.{suggest(name, KNOWN)}",
        hint=f"use one of {', '.join(KNOWN)}, or open_clip:ARCH/TAG, or local:PATH (see: madkit teachers list)",
    )
