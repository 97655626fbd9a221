"""Adapted teachers: a file with what an adaptation changed, and a base teacher with it applied.

The file is ``adapter.safetensors`` in the folder of an adaptation run. Its tensors are named
``SIDE/weight/NAME`` (a weight's new value), ``SIDE/lora_a/NAME`` [r, in] and ``SIDE/lora_b/NAME`` [out, r] (their
product, scaled, is added to the weight), and ``SIDE/head/weight`` [D, dim] with ``SIDE/head/bias`` [D] (a linear layer
into a common space, for teachers that had none); SIDE is ``vision`` or ``text``. Its metadata hold one entry,
``madkit``: JSON with the facts of :class:`Adapter`. What a LoRA adds (Hu et al., arXiv 2106.09685, section 4.1) is
merged into the weights once, so that an adapted teacher computes as fast as its base.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from madkit.core.console import info
from madkit.core.errors import DataError, MadkitError, NotFoundError, UsageProblem
from madkit.core.files import digest_of, read_json, sha256_file
from madkit.core.registry import suggest
from madkit.core.workspace import Workspace
from madkit.teachers.interface import Teacher, TextOutput, TextTeacher, TokenizedText, VisionOutput, VisionTeacher
from madkit.teachers.preprocess import Preprocessing
from madkit.teachers.side_modules import side_parameters, text_module, vision_module

FILE = "adapter.safetensors"
MANIFEST = "manifest.json"
SCHEMA = 1
SIDES = ("vision", "text")


@dataclass(frozen=True, slots=True)
class Adapter:
    """What an adaptation run left behind.

    Attributes:
        path: the run's folder.
        teacher: name of the base teacher.
        untouched: the run kept its base as it was, so that there is nothing to apply.
        digest: 64 hex digits over the file; empty where untouched.
        base: digests of the base's weights by side.
        scale: factor on every product of LoRA matrices.
        logit_scale: factor on cosines before a softmax.
        tensors: by their names in the file.
    """

    path: Path
    teacher: str
    untouched: bool
    digest: str = ""
    base: Mapping[str, str] | None = None
    scale: float = 1.0
    logit_scale: float = 1.0
    tensors: Mapping[str, Tensor] | None = None

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name


def adapters_folder(workspace: Workspace) -> Path:
    """Where a workspace keeps its adaptation runs."""
    return workspace.adapters


def find_adapter(folder: Path, run: str) -> Path:
    """Return the folder of an adaptation run.

    Args:
        folder: where a workspace keeps them.
        run: a run's name in there, or the path of a run's folder or of its file.

    Raises:
        NotFoundError: there is none; the message suggests the nearest.
    """
    path = Path(run).expanduser()
    for place in (folder / run, path, path.parent if path.name == FILE else path):
        if (place / MANIFEST).is_file():
            return place
    names = sorted(place.parent.name for place in folder.glob(f"*/{MANIFEST}")) if folder.is_dir() else []
    raise NotFoundError(
        f"There is no adapted teacher '{run}'.{suggest(run, names)}",
        hint=f"one of: {', '.join(names)}" if names else "make one: madkit adapt --teacher NAME --task TASK",
    )


def named_teacher(workspace: Workspace, teacher: str | None, run: str | None) -> tuple[str, Path | None]:
    """Return a teacher's name and the folder of the adaptation that is applied to it, from what a user gave.

    Args:
        workspace: which keeps adaptations.
        teacher: a teacher's name; None takes the one that was adapted.
        run: see :func:`find_adapter`; None for a teacher as it is.

    Raises:
        UsageProblem: neither was given.
        NotFoundError, DataError: see :func:`find_adapter` and :func:`read_adapter`.
    """
    if run is None:
        if teacher is None:
            raise UsageProblem("No teacher was named.", hint="--teacher NAME (see: madkit teachers list)")
        return teacher, None
    path = find_adapter(adapters_folder(workspace), run)
    manifest = _manifest(path)
    if manifest.get("untouched"):
        info(f"The adaptation {path.name} kept {manifest['teacher']} as it was, so there is nothing to apply.")
    if teacher is not None and teacher != manifest["teacher"]:
        info(
            f"The adaptation {path.name} was made of {manifest['teacher']}; "
            f"'{teacher}' will do if its weights are equal."
        )
    return teacher or str(manifest["teacher"]), path


def _manifest(path: Path) -> dict[str, Any]:
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("kind") != "adapter" or "teacher" not in manifest:
        raise DataError(f"{path / MANIFEST} is not the manifest of an adapted teacher.")
    if manifest.get("schema") != SCHEMA:
        raise DataError(
            f"{path / MANIFEST} has schema {manifest.get('schema')!r}, this version of madkit reads {SCHEMA}.",
            hint="adapt the teacher again with this version",
        )
    if manifest.get("status") != "complete":
        raise NotFoundError(
            f"The adaptation {path.name} is not finished.", hint="run the same madkit adapt command again to go on"
        )
    return manifest


def read_adapter(path: Path) -> Adapter:
    """Read the outcome of a run.

    Raises:
        NotFoundError: the run is unfinished, or its file is missing.
        DataError: its files are damaged, or not those of an adaptation.
    """
    manifest = _manifest(path)
    if manifest.get("untouched"):
        return Adapter(path, str(manifest["teacher"]), untouched=True)
    from safetensors import SafetensorError, safe_open

    file = path / FILE
    digest = sha256_file(file)
    if digest != manifest.get("adapter", {}).get("sha256"):
        raise DataError(
            f"{file} is not the file that its manifest describes.", hint=f"remove {path} and adapt the teacher again"
        )
    try:
        with safe_open(file, "pt") as opened:
            facts = json.loads((opened.metadata() or {})["madkit"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        return Adapter(
            path,
            str(manifest["teacher"]),
            untouched=False,
            digest=digest,
            base={side: str(facts["base"][side]) for side in SIDES},
            scale=float(facts["scale"]),
            logit_scale=float(facts["logit_scale"]),
            tensors=tensors,
        )
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{file} is not an adapter of madkit ({error}).") from None


def write_adapter_bytes(tensors: Mapping[str, Tensor], *, base: Mapping[str, str], scale: float, logit: float) -> bytes:
    """Return the content of an adapter file; see the module's description and :class:`Adapter`."""
    from safetensors.torch import save

    facts = {"schema": SCHEMA, "base": dict(base), "scale": scale, "logit_scale": logit}
    plain = {name: value.detach().cpu().contiguous() for name, value in sorted(tensors.items())}
    data: bytes = save(plain, metadata={"madkit": json.dumps(facts, sort_keys=True)})
    return data


def load_adapted(
    name: str, path: Path, *, weights: Path | None = None, device: str = "cpu", dtype: torch.dtype | None = None
) -> Teacher:
    """Load a teacher and apply an adaptation to it. Arguments and errors as for ``load_teacher``, and:

    Raises:
        DataError: the adaptation was made from other weights, or has weights that the teacher lacks.
    """
    from madkit.teachers.load import load_teacher

    adapter = read_adapter(path)
    if adapter.untouched:
        return load_teacher(name, weights=weights, device=device, dtype=dtype)
    # In float32, as it was adapted: a cast comes last.
    teacher = load_teacher(name, weights=weights, device=device, dtype=torch.float32)
    if dtype is None:
        dtype = torch.float16 if torch.device(device).type == "cuda" else torch.float32
    return apply_adapter(teacher, adapter, dtype)


def apply_adapter(teacher: Teacher, adapter: Adapter, dtype: torch.dtype = torch.float32) -> Teacher:
    """Return ``teacher``, loaded in float32, with an adaptation applied to its weights, computing in ``dtype``.

    The teacher's own weights change: it must not be used any more.

    Raises:
        DataError: the adaptation was made from other weights, or has weights that the teacher lacks.
    """
    vision, text = teacher.vision, teacher.text
    if vision is None or text is None or adapter.base is None:
        raise DataError(f"The adapter {adapter.name} belongs to a teacher of images and texts, unlike {teacher.name}.")
    here = {"vision": vision.identity["weights"], "text": text.identity["weights"]}
    other = [side for side in SIDES if here[side] != adapter.base[side]]
    if other:
        raise DataError(
            f"The adapter {adapter.name} was made from other {' and '.join(other)} weights than these of "
            f"'{teacher.name}' ({here[other[0]][:12]}, not {adapter.base[other[0]][:12]}).",
            hint=f"give the weights that it was made from: --teacher {adapter.teacher}, with --weights where needed",
        )
    tensors = dict(adapter.tensors or {})
    heads: dict[str, nn.Linear | None] = {}
    modules = {"vision": vision_module(vision), "text": text_module(text)}
    for side, module in modules.items():
        mine = {key.removeprefix(f"{side}/"): value for key, value in tensors.items() if key.startswith(f"{side}/")}
        heads[side] = _linear(mine, module)
        _merge(side_parameters(module, side), mine, adapter)
    for part in (*modules.values(), *heads.values()):
        if part is not None:
            part.to(dtype=dtype)
    mark = {"name": adapter.name, "digest": adapter.digest[:16]}
    return replace(
        teacher,
        vision=_adapted_vision(vision, heads["vision"], mark),
        text=_adapted_text(text, heads["text"], mark),
        shared_space=teacher.shared_space or heads["vision"] is not None,
        logit_scale=adapter.logit_scale,
        dtype=dtype,
    )


def _linear(tensors: dict[str, Tensor], beside: nn.Module) -> nn.Linear | None:
    weight, bias = tensors.pop("head/weight", None), tensors.pop("head/bias", None)
    if weight is None or bias is None:
        return None
    head = nn.Linear(weight.shape[1], weight.shape[0]).requires_grad_(False)
    head.weight.copy_(weight)
    head.bias.copy_(bias)
    return head.to(next(beside.parameters()).device)


@torch.no_grad()
def _merge(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], adapter: Adapter) -> None:
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        target = parameters.get(name)
        if kind == "lora_b":
            continue
        other = tensors.get(f"lora_b/{name}") if kind == "lora_a" else None
        fits = (
            target is not None
            and (kind != "lora_a" or (other is not None and tuple(target.shape) == (len(other), value.shape[1])))
            and (kind != "weight" or target.shape == value.shape)
        )
        if target is None or not fits or kind not in ("weight", "lora_a"):
            raise DataError(f"{adapter.path / FILE}: the teacher has no weight that '{key}' fits.")
        if other is None:
            target.copy_(value)
        else:
            delta = other.to(target.device, torch.float32) @ value.to(target.device, torch.float32)
            target.add_(delta.to(target.dtype), alpha=adapter.scale)


def _identity(identity: Mapping[str, Any], head: nn.Linear | None, mark: Mapping[str, str]) -> dict[str, Any]:
    # Not a digest over the merged weights: their last bits depend on the machine that merges.
    changed: dict[str, Any] = {"weights": digest_of([identity["weights"], mark["digest"]]), "adapter": dict(mark)}
    if head is not None:
        changed |= {"layer": f"{identity['layer']}+head", "dim": head.out_features}
    return {**identity, **changed}


def _adapted_vision(vision: VisionTeacher, head: nn.Linear | None, mark: Mapping[str, str]) -> VisionTeacher:
    identity = _identity(vision.identity, head, mark)
    if head is not None:
        return ProjectedVision(vision, head, identity)
    vision.identity = identity
    return vision


def _adapted_text(text: TextTeacher, head: nn.Linear | None, mark: Mapping[str, str]) -> TextTeacher:
    identity = _identity(text.identity, head, mark)
    if head is not None:
        return ProjectedText(text, head, identity)
    text.identity = identity
    return text


class ProjectedVision:
    """A vision teacher whose tokens and global vectors go through a linear layer into a common space.

    See :class:`madkit.teachers.interface.VisionTeacher`.
    """

    def __init__(self, base: VisionTeacher, head: nn.Linear, identity: dict[str, Any]) -> None:
        self.base = base
        self.head = head
        self.name = base.name
        self.dim = head.out_features
        self.grid = base.grid
        self.image_size = base.image_size
        self.identity = identity
        self.preprocessing: Preprocessing | None = getattr(base, "preprocessing", None)

    def load_image(self, path: Path) -> Tensor:
        """Read an image file as uint8 [3, H, W] (DataError when it cannot be)."""
        return self.base.load_image(path) if self.preprocessing is None else self.preprocessing.load(path)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> VisionOutput:
        """Encode uint8 [B, 3, H, W]."""
        seen = self.base.encode(images)
        return VisionOutput(self.head(seen.tokens), self.head(seen.global_), seen.grid)


class ProjectedText:
    """A text teacher whose tokens and global vectors go through a linear layer into a common space.

    See :class:`madkit.teachers.interface.TextTeacher`.
    """

    def __init__(self, base: TextTeacher, head: nn.Linear, identity: dict[str, Any]) -> None:
        self.base = base
        self.head = head
        self.name = base.name
        self.dim = head.out_features
        self.context_length = base.context_length
        self.limit = base.limit
        self.full_width = bool(getattr(base, "full_width", False))
        self.identity = identity

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenize without special tokens."""
        return self.base.tokenize(texts)

    def encode(self, texts: Sequence[str]) -> TextOutput:
        """Tokenize and encode."""
        return self.encode_tokenized(self.tokenize(texts))

    @torch.inference_mode()
    def encode_tokenized(self, texts: Sequence[TokenizedText]) -> TextOutput:
        """Encode tokenized texts."""
        read = self.base.encode_tokenized(texts)
        return replace(read, tokens=self.head(read.tokens), global_=self.head(read.global_))


def adapter_mark(identity: Mapping[str, Any]) -> dict[str, str] | None:
    """Return name and digest of the adapter in a store's identity, None for a teacher that was not adapted."""
    for side in SIDES:
        encoder = identity.get(side)
        found = encoder.get("adapter") if isinstance(encoder, Mapping) else None
        if found is not None:
            return {"name": str(found["name"]), "digest": str(found["digest"])}
    return None


def adapter_of_store(folder: Path, identity: Mapping[str, Any]) -> Path | None:
    """Return the run of the adapter that a store was made with, None for a teacher that was not adapted.

    Args:
        folder: where the workspace keeps adapted teachers.
        identity: of the store.

    Raises:
        NotFoundError: it is no longer there, or another one has its name.
    """
    mark = adapter_mark(identity)
    if mark is None:
        return None
    path = folder / mark["name"]
    try:
        digest = read_adapter(path).digest
    except MadkitError as error:
        raise NotFoundError(
            f"The adapter '{mark['name']}' that this cache was made with cannot be read: {error.message}",
            hint=f"put its folder back to {path}, or make it again with madkit adapt",
        ) from None
    if digest[:16] != mark["digest"]:
        raise NotFoundError(
            f"The adapter '{mark['name']}' is not the one that this cache was made with ({digest[:16]}, not "
            f"{mark['digest']}).",
            hint="extract with the present one into a cache of its own: madkit extract --adapter " + mark["name"],
        )
    return path
