"""The teachers that have a short name, with facts to list without loading anything.

``open_clip:ARCH/TAG``, ``hf:ORG/NAME``, ``timm:NAME`` and ``local:PATH`` reach everything else, and ``VISION+TEXT``
joins two. The facts of the aliases are stated here and a test compares them with the models that the libraries build,
so that ``madkit teachers list`` needs no heavy import and no network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from madkit.core.errors import UsageProblem
from madkit.core.registry import suggest


@dataclass(frozen=True, slots=True)
class KnownTeacher:
    """A teacher with a short name.

    Attributes:
        name: the alias.
        target: what it stands for: ``mini``, ``open_clip:ARCH/TAG`` or ``hf:ORG/NAME``.
        dim: width of tokens and global vectors.
        image_size: side of the square input image in pixels; None without a vision side.
        image_tokens: patch tokens per image.
        context_length: longest text in tokens, special ones included; None without a text side.
        parameters_m: parameters in millions, vision and text together.
        licence: licence of the weights, where its publisher states one.
        note: one line for people.
        gflops_image: billions of floating point operations per image (a multiplication with addition counts two).
        gflops_text: the same for a text of ``context_length`` tokens.
        config: for ``hf:`` targets the configuration in short: values that differ from the library's defaults.
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
    gflops_image: float | None = None
    gflops_text: float | None = None
    config: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def sides(self) -> str:
        """What it reads: ``vision``, ``text``, or ``pair`` for both."""
        if self.image_size and self.context_length:
            return "pair"
        return "vision" if self.image_size else "text"

    def as_row(self) -> dict[str, Any]:
        """Return the facts as plain values, with the bytes that one image or text token takes in a float16 cache."""
        names = [name for name in self.__dataclass_fields__ if name != "config"]
        row: dict[str, Any] = {name: getattr(self, name) for name in names}
        known = self.dim is not None and self.image_tokens is not None
        row["bytes_per_image"] = (self.image_tokens or 0) * (self.dim or 0) * 2 if known else None
        row["bytes_per_text_token"] = self.dim * 2 if self.dim and self.context_length else None
        return row


# name, architecture and tag, dim, pixels, tokens, millions of parameters, GFLOPs of image and text, note; all MIT
_CLIPS = (
    ("clip-vit-b32", "ViT-B-32/openai", 512, 224, 49, 151.3, 8.8, 6.0, "OpenAI CLIP ViT-B/32"),
    ("clip-vit-b16", "ViT-B-16/openai", 512, 224, 196, 149.6, 35.1, 6.0, "OpenAI CLIP ViT-B/16"),
    ("clip-vit-l14", "ViT-L-14/openai", 768, 224, 256, 427.6, 162.0, 13.3, "OpenAI CLIP ViT-L/14, the reference"),
    ("clip-vit-l14-336", "ViT-L-14-336/openai", 768, 336, 576, 427.9, 381.9, 13.3, "OpenAI CLIP ViT-L/14, 336 pixels"),
    ("clip-vit-h14", "ViT-H-14/laion2b_s32b_b79k", 1024, 224, 256, 986.1, 334.6, 47.1, "LAION-2B CLIP ViT-H/14"),
)

_DINO = {"model_type": "dinov2", "image_size": 518, "patch_size": 14}
_ROBERTA = {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_TRANSFORMERS = (
    KnownTeacher(
        "siglip2-b16",
        "hf:google/siglip2-base-patch16-224",
        *(768, 224, 196, 64, 375.2, "Apache-2.0", "SigLIP 2 ViT-B/16, image and multilingual text"),
        gflops_image=35.4,
        gflops_text=11.0,
        config={"model_type": "siglip", "text_config": {"vocab_size": 256000}},
    ),
    KnownTeacher(
        "siglip-b16",
        "hf:google/siglip-base-patch16-224",
        *(768, 224, 196, 64, 203.2, "Apache-2.0", "SigLIP ViT-B/16, image and text"),
        gflops_image=35.4,
        gflops_text=11.0,
        config={"model_type": "siglip"},
    ),
    KnownTeacher(
        "dinov2-vit-b14",
        "hf:facebook/dinov2-base",
        *(768, 224, 256, None, 86.6, "Apache-2.0", "DINOv2 ViT-B/14, images only"),
        gflops_image=46.3,
        config=_DINO,
    ),
    KnownTeacher(
        "dinov2-vit-l14",
        "hf:facebook/dinov2-large",
        *(1024, 224, 256, None, 304.4, "Apache-2.0", "DINOv2 ViT-L/14, images only"),
        gflops_image=162.0,
        config={**_DINO, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    ),
    KnownTeacher(
        "roberta-base",
        "hf:FacebookAI/roberta-base",
        *(768, None, None, 512, 124.6, "MIT", "RoBERTa base, texts only"),
        gflops_text=96.6,
        config=_ROBERTA,
    ),
    KnownTeacher(
        "roberta-large",
        "hf:FacebookAI/roberta-large",
        *(1024, None, None, 512, 355.4, "MIT", "RoBERTa large, texts only"),
        gflops_text=335.0,
        config={**_ROBERTA, **_LARGE},
    ),
    KnownTeacher(
        "xlm-roberta-base",
        "hf:FacebookAI/xlm-roberta-base",
        *(768, None, None, 512, 278.0, "MIT", "XLM-R base, 100 languages, texts only"),
        gflops_text=96.6,
        config={**_ROBERTA, "model_type": "xlm-roberta", "vocab_size": 250002},
    ),
    KnownTeacher(
        "modernbert-base",
        "hf:answerdotai/ModernBERT-base",
        *(768, None, None, 8192, 149.0, "Apache-2.0", "ModernBERT base, long texts only"),
        gflops_text=6342.6,
        config={"model_type": "modernbert"},
    ),
    KnownTeacher(
        "mpnet-base",
        "hf:sentence-transformers/all-mpnet-base-v2",
        *(768, None, None, 384, 109.5, "Apache-2.0", "MPNet sentence encoder, texts only"),
        gflops_text=70.7,
        config={"model_type": "mpnet", "vocab_size": 30527, "max_position_embeddings": 514},
    ),
    KnownTeacher(
        "e5-base",
        "hf:intfloat/e5-base-v2",
        *(768, None, None, 512, 109.5, "MIT", "E5 v2 base sentence encoder, texts only"),
        gflops_text=96.6,
        config={"model_type": "bert"},
    ),
    KnownTeacher(
        "bge-base",
        "hf:BAAI/bge-base-en-v1.5",
        *(768, None, None, 512, 109.5, "MIT", "BGE 1.5 base sentence encoder, texts only"),
        gflops_text=96.6,
        config={"model_type": "bert"},
    ),
    KnownTeacher(
        "bert-base",
        "hf:google-bert/bert-base-uncased",
        *(768, None, None, 512, 109.5, "Apache-2.0", "BERT base uncased, texts only"),
        gflops_text=96.6,
        config={"model_type": "bert"},
    ),
    KnownTeacher(
        "minilm-l6",
        "hf:sentence-transformers/all-MiniLM-L6-v2",
        *(384, None, None, 256, 22.7, "Apache-2.0", "MiniLM sentence encoder of 6 layers, texts only"),
        gflops_text=6.0,
        config={"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
    ),
    KnownTeacher(
        "deberta-v3-base",
        "hf:microsoft/deberta-v3-base",
        *(768, None, None, 512, 183.8, "MIT", "DeBERTa v3 base, texts only"),
        gflops_text=120.8,
        config={
            "model_type": "deberta-v2",
            "vocab_size": 128100,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "type_vocab_size": 0,
            "relative_attention": True,
            "position_buckets": 256,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "max_relative_positions": -1,
        },
    ),
)

KNOWN: dict[str, KnownTeacher] = {
    "mini": KnownTeacher(
        *("mini", "mini", None, None, None, None, None, "Apache-2.0", "embedded pair for the embedded benchmark"),
        gflops_image=0.068,
        gflops_text=0.05,
    ),
    **{
        name: KnownTeacher(name, f"open_clip:{arch}", dim, size, tokens, 77, millions, "MIT", note, image, text)
        for name, arch, dim, size, tokens, millions, image, text, note in _CLIPS
    },
    **{known.name: known for known in _TRANSFORMERS},
}

SCHEMES = ("open_clip:", "hf:", "timm:", "local:")
_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


@dataclass(frozen=True, slots=True)
class TeacherName:
    """A parsed teacher name.

    Attributes:
        canonical: the name that manifests carry: the alias where there is one.
        scheme: ``mini``, ``open_clip``, ``hf``, ``timm``, ``local``, or ``joined`` for VISION+TEXT.
        rest: architecture for ``open_clip``, ORG/NAME or path for ``hf``, model for ``timm``, path for ``local``.
        tag: open_clip's pretrained tag or the hub's revision, or None.
        parts: the two names of a ``joined`` one.
    """

    canonical: str
    scheme: str
    rest: str
    tag: str | None = None
    parts: tuple[TeacherName, TeacherName] | None = None

    @property
    def slug(self) -> str:
        """The name with nothing that a folder name cannot hold."""
        if self.parts is not None:
            return "-".join(part.slug for part in self.parts)
        path = self.scheme == "local" or (self.scheme == "hf" and self.rest.startswith(("/", ".", "~")))
        plain = f"{self.scheme}-" + self.rest.rstrip("/").rpartition("/")[2] if path else self.canonical
        return re.sub(r"[^a-z0-9._]+", "-", plain.lower()).strip("-.")


def canonical_name(name: str) -> str:
    """Return the alias of a known target (``open_clip:ViT-L-14/openai`` is ``clip-vit-l14``), else the name itself."""
    return next((known.name for known in KNOWN.values() if known.target == name), name)


def parse_teacher_name(name: str) -> TeacherName:
    """Split a teacher name into what it stands for.

    Raises:
        UsageProblem: it is neither an alias nor of one of the schemes, nor two of these joined by ``+``.
    """
    joined = _parse_joined(name)
    found = joined if joined is not None else _parse_single(name)
    if found is not None:
        return found
    # In VISION+TEXT the half that is wrong is the one to speak of.
    halves = name.split("+") if name.count("+") == 1 and all(name.split("+")) else [name]
    wrong = next((half for half in halves if _parse_single(half) is None), name)
    raise UsageProblem(
        f"There is no teacher named '{wrong}'.{suggest(wrong, KNOWN)}",
        hint=f"use one of {', '.join(KNOWN)}, or open_clip:ARCH/TAG, hf:ORG/NAME, timm:NAME, local:PATH, or "
        "VISION+TEXT (see: madkit teachers list)",
    )


def _parse_joined(name: str) -> TeacherName | None:
    """Parse VISION+TEXT, at the first plus sign with a teacher's name on both sides: paths may hold some, too."""
    for place in (i for i, character in enumerate(name) if character == "+"):
        vision, text = _parse_single(name[:place]), _parse_single(name[place + 1 :])
        if vision is not None and text is not None:
            if vision == text:  # both halves of one pair are that pair
                return vision
            return TeacherName(f"{vision.canonical}+{text.canonical}", "joined", "", parts=(vision, text))
    return None


def _parse_single(name: str) -> TeacherName | None:
    if name in KNOWN:
        target = KNOWN[name].target
        if target == "mini":
            return TeacherName("mini", "mini", "")
        scheme, _, rest = target.partition(":")
        if scheme == "hf":
            return TeacherName(name, "hf", rest)
        arch, _, tag = rest.rpartition("/")
        return TeacherName(name, "open_clip", arch, tag)
    scheme, _, rest = name.partition(":")
    if scheme == "open_clip":
        arch, slash, tag = rest.partition("/")
        if arch and (tag or not slash):
            return TeacherName(canonical_name(name), "open_clip", arch, tag or None)
    if scheme == "hf":
        if rest.startswith(("/", "./", "../", "~")):
            return TeacherName(name, "hf", rest)
        hub = _HUB_NAME.fullmatch(rest)
        if hub is not None:
            return TeacherName(canonical_name(name), "hf", hub[1], hub[2])
    if scheme == "timm" and re.fullmatch(r"(timm/)?[\w.-]+", rest):
        rest = rest.removeprefix("timm/")
        return TeacherName(f"timm:{rest}", "timm", rest)
    if scheme == "local" and rest:
        return TeacherName(name, "local", rest)
    return None
