"""A trained student as one file that runs without madkit: a program of `torch.export` (`.pt2`), or the same in ONNX.

The program takes the tensors of `StudentInputs` (all but `n_candidates`) in their order, of any number of sequences,
tokens, images and regions, and gives [S, 1] scores of candidates or [S, K] scores of classes or answers. What the
outputs mean lies in it too, in the extra file `student.json`.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from madkit.core.errors import NotFoundError, RunError, UsageProblem
from madkit.students.interface import StudentInputs
from madkit.students.load import CONFIG, load_student
from madkit.students.onnx_file import SUFFIX as ONNX
from madkit.students.onnx_file import check_packages, onnx_metadata, open_onnx, save_onnx
from madkit.students.student import Student

SUFFIX = ".pt2"
FACTS = "student.json"
TOLERANCE = 1e-4  # of the largest output: what another order of sums may make
# (sequences of an image, tokens, images, regions) on which a file is compared with the student it was made of
_SHAPES = ((2, 9, 2, 3), (1, 5, 1, 7), (1, 14, 3, 1), (4, 11, 2, 5))
NAMES = tuple(field.name for field in fields(StudentInputs) if field.name != "n_candidates")


@dataclass(frozen=True, slots=True)
class Exported:
    """A program that was written, and how far it is from the student at most, relative to the largest output."""

    path: Path
    bytes: int
    difference: float
    outputs: tuple[str, ...]


class PlainStudent(nn.Module):
    """A student with tensors for arguments: outputs of each sequence, [S, 1] scores or [S, K]."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.encoder = student.encoder
        self.head = student.head
        self.binary = student.head_spec.binary

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        text_mask: Tensor,
        image_index: Tensor,
        region_features: Tensor,
        region_boxes: Tensor,
        region_mask: Tensor,
        tag_regions: Tensor,
    ) -> Tensor:
        """See the module."""
        inputs = StudentInputs(
            input_ids, token_type_ids, text_mask, image_index, region_features, region_boxes, region_mask, tag_regions,
            n_candidates=1,
        )  # fmt: skip
        outputs: Tensor = self.head(self.encoder(inputs), inputs)
        return outputs[:, 1:] if self.binary else outputs


def export_student(source: str | Path, path: Path) -> Exported:
    """Write the program of a trained student, and compare what was written with the student.

    The end of the file's name says what is written: `.pt2`, or `.onnx` (its inputs and its one output, `scores`, go by
    their names; a network that reads no tags or types has no such input).

    Raises:
        UsageProblem: `path` ends otherwise, or exists.
        NotFoundError, DataError: as `load_student`, which it is made with.
        RunError: the network cannot be exported, or the file gives other outputs; nothing is left behind then. ONNX
            without the packages that it needs.
    """
    if path.suffix not in (SUFFIX, ONNX):
        raise UsageProblem(f"{path} does not end in {SUFFIX} or {ONNX}.", hint=f"--out {path.with_suffix(SUFFIX)}")
    if path.exists():
        raise UsageProblem(f"{path} exists.", hint="name another file: --out FILE")
    if path.suffix == ONNX:
        check_packages()
    inside = Path(source) / "student"  # of a run's folder
    try:
        student = load_student(inside if (inside / CONFIG).is_file() else source)
    except (NotFoundError, UsageProblem) as error:
        hint = "give a run, or a trained student's folder: madkit students export RUN --out FILE.pt2"
        raise type(error)(error.message, hint=hint) from None
    plain = PlainStudent(student).eval()
    facts = {
        "name": student.identity.name,
        "family": student.identity.family,
        "head": student.head_spec.as_dict(),
        "inputs": list(NAMES),
        "region_dim": student.region_dim,
        "max_text_length": student.max_text_length,
    }
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        try:
            with torch.no_grad():
                program = torch.export.export(
                    plain, _arguments(student, *_SHAPES[0]), dynamic_shapes=_dynamic(student), strict=False
                )
            made: Any
            if path.suffix == ONNX:
                save_onnx(program, temporary, NAMES, (FACTS, json.dumps(facts)))
                made = open_onnx(temporary, NAMES)
            else:
                torch.export.save(program, temporary, extra_files={FACTS: json.dumps(facts)})
                made = read_program(temporary).module()
        except OSError as error:
            raise RunError(f"{path} cannot be written ({error}).", hint="free some space and run it again") from None
        except Exception as error:  # the exporter raises many kinds
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise RunError(f"{student.identity.name} cannot be exported ({first.rstrip('.')}).") from None
        difference = max(_difference(student, plain, made, *shape) for shape in _SHAPES)
        if not difference <= TOLERANCE:
            raise RunError(f"The exported {student.identity.name} differs from the student by {difference:.2g}.")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return Exported(path, path.stat().st_size, difference, student.head_spec.outputs)


def read_facts(path: Path) -> dict[str, Any]:
    """What the outputs of a program mean, as `export_student` wrote it."""
    if path.suffix == ONNX:
        found: dict[str, Any] = json.loads(onnx_metadata(path)[FACTS])
        return found
    extra = {FACTS: ""}
    read_program(path, extra)
    facts: dict[str, Any] = json.loads(extra[FACTS])
    return facts


def read_program(path: Path, extra: dict[str, Any] | None = None) -> torch.export.ExportedProgram:
    """The program in a `.pt2` file; the texts beside it fill `extra`. Raises what `torch.export.load` raises."""
    with warnings.catch_warnings():
        # torch 2.11 reads weights from bytes that nobody writes to, and warns that one must not.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.export.load(path, extra_files=extra)


def _difference(student: Student, plain: PlainStudent, made: Any, *shape: int) -> float:
    arguments = _arguments(student, *shape)
    with torch.no_grad():
        wanted, got = plain(*arguments), made(*arguments)
    return float((wanted - got).abs().max() / wanted.abs().max().clamp_min(1e-12))


def _arguments(student: Student, candidates: int, tokens: int, images: int, regions: int) -> tuple[Tensor, ...]:
    """Made-up inputs with padding and tags in them."""
    generator = torch.Generator().manual_seed(tokens)
    count, tokens = candidates * images, min(tokens, student.max_text_length)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, max(high, low + 1), shape, generator=generator)

    text_mask = torch.arange(tokens) < draw(tokens - 2, tokens + 1, count, 1)
    corners = torch.rand(images, regions, 2, generator=generator) * 0.5
    return (
        draw(0, len(student.tokenizer), count, tokens),
        torch.zeros(count, tokens, dtype=torch.long),
        text_mask,
        torch.arange(images).repeat_interleave(candidates),
        torch.randn(images, regions, student.region_dim, generator=generator),
        torch.cat([corners, corners + 0.3], dim=-1),
        torch.arange(regions) < draw(max(1, regions - 1), regions + 1, images, 1),
        torch.where(text_mask, draw(-1, 1, count, tokens), -1),
    )


def _dynamic(student: Student) -> dict[str, dict[int, Any]]:
    dim = torch.export.Dim
    sequences, images, regions = dim("sequences"), dim("images"), dim("regions")
    tokens = dim("tokens", max=student.max_text_length)
    texts = ("input_ids", "token_type_ids", "text_mask", "tag_regions")
    seen = ("region_features", "region_boxes", "region_mask")
    return {
        **{name: {0: sequences, 1: tokens} for name in texts},
        "image_index": {0: sequences},
        **{name: {0: images, 1: regions} for name in seen},
    }
