"""A trained student at work: examples in, one answer per example out. No teacher, no cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from madkit.core.console import progress
from madkit.core.devices import device_of
from madkit.core.errors import DataError, MadkitError, UsageProblem
from madkit.core.registry import suggest
from madkit.evaluate.metrics import prediction_row
from madkit.students.inputs import EncodedExample, collate
from madkit.students.load import load_student
from madkit.students.seeing import reader_for

if TYPE_CHECKING:
    from madkit.regions import RegionReader
    from madkit.students.student import Student
    from madkit.tasks.example import Example
    from madkit.tasks.spec import TaskSpec

TOKEN_BUDGET = 16384
TOP_ANSWERS = 10
PRECISIONS = ("auto", "fp32", "bf16")
# Features kept in memory: detectors give up to 2048 values for each of 100 boxes, so an image can take 800 kB.
_KEPT_BYTES = 512 * 2**20
_BOXES = 100

Batch = tuple[list[int], list[dict[str, Any]]]


def predict(
    student_folder: Path | str,
    examples: Sequence[Example],
    regions: RegionReader | None,
    *,
    spec: TaskSpec,
    device: str = "auto",
    precision: str = "auto",
    token_budget: int = TOKEN_BUDGET,
) -> list[dict[str, Any]]:
    """Answer every example with the student of a folder.

    Args:
        student_folder: what `madkit distill` exports as `student/`.
        examples: of one task.
        regions: the features of their images.
        spec: their task, as the data tells it.
        device: a torch device, or "auto" for the GPU where there is one.
        precision: "fp32", "bf16" (autocast), or "auto": bf16 on a GPU that has it, fp32 elsewhere.
        token_budget: padded positions (text and regions, over all sequences) of one batch.

    Returns rows in the order of `examples` (see `metrics.prediction_row`). `prediction` is the index of the candidate
    or class, or the answer (VQA; `logits` then are those of the `top` answers, best first). Logits that are not finite
    are passed on as they are; it is for the caller to refuse them.

    Raises:
        DataError: features are missing or of another width, or the student answers another kind of task.
        UsageProblem: no such device or precision.
    """
    student = load_student(student_folder)
    regions = reader_for(student, examples, regions)
    if regions is None:
        raise DataError(
            "The data has no region features, which this student reads.",
            hint=f"add them: madkit data regions add {spec.name} PATH",
        )
    if examples:
        check_student(student, spec, regions, student_folder)
    answering = Answering(student, regions, spec, device=device, precision=precision, token_budget=token_budget)
    rows: list[dict[str, Any]] = [{} for _ in examples]
    with progress("Answering", len(examples), "examples") as bar:
        for batch, answers in answering.batches(examples):
            for index, row in zip(batch, answers, strict=True):
                rows[index] = row
            bar.advance(len(batch))
    return rows


class Answering:
    """A student on its device, and the features that it has read lately.

    Args:
        student: with a head that fits `spec`.
        regions: what it sees of the images.
        spec: the task, whose order of classes the answers have.
        device, precision, token_budget: as for `predict`.
    """

    def __init__(
        self,
        student: Student,
        regions: RegionReader,
        spec: TaskSpec,
        *,
        device: str = "auto",
        precision: str = "auto",
        token_budget: int = TOKEN_BUDGET,
    ) -> None:
        self._device = device_of(device)
        self._bf16 = in_bf16(precision, self._device)
        self._student = student.to(self._device).eval()
        self._spec = spec
        self._budget = token_budget
        self._look_up = lru_cache(maxsize=max(256, _KEPT_BYTES // (4 * _BOXES * regions.dim)))(regions.get)

    @property
    def precision(self) -> str:
        """What it computes in: "fp32" or "bf16"."""
        return "bf16" if self._bf16 else "fp32"

    def batches(
        self, examples: Sequence[Example], *, unseen: Callable[[int, MadkitError], None] | None = None
    ) -> Iterator[Batch]:
        """Answer examples in batches of like length: their indices, and a row of answers each.

        `unseen` is told of an example whose image has no features that can be read, and it is left out; without it
        the error is raised.
        """
        student = self._student
        encoded = [student.encode(example) for example in examples]
        for batch in self._groups(encoded, unseen):
            chosen = [encoded[index] for index in batch]
            inputs = collate(chosen, [self._look_up(one.image_id) for one in chosen], pad_id=student.tokenizer.pad_id)
            with torch.inference_mode(), self._autocast():
                logits = student(inputs.to(self._device)).logits.float().cpu()
            rows = [
                _row(student, self._spec, examples[index], values) for index, values in zip(batch, logits, strict=True)
            ]
            yield batch, rows

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, dtype=torch.bfloat16) if self._bf16 else nullcontext()

    def _groups(
        self, encoded: Sequence[EncodedExample], unseen: Callable[[int, MadkitError], None] | None
    ) -> Iterator[list[int]]:
        """Indices of examples with equally many candidates, sorted by length, at most a budget of padded positions."""

        def key(index: int) -> tuple[int, int, str]:
            one = encoded[index]
            return len(one.sequences), one.tokens, one.image_id  # about one image together: features are read once

        batch: list[int] = []
        widest = 0
        for index in sorted(range(len(encoded)), key=key):
            one = encoded[index]
            try:
                found = self._look_up(one.image_id)
            except MadkitError as error:
                if unseen is None:
                    raise
                unseen(index, error)
                continue
            width = max(widest, len(found.features))
            padded = (len(batch) + 1) * len(one.sequences) * (one.tokens + width)  # sorted: `one` is the longest so far
            if batch and (padded > self._budget or len(encoded[batch[0]].sequences) != len(one.sequences)):
                yield batch
                batch, width = [], len(found.features)
            batch.append(index)
            widest = width
        if batch:
            yield batch


def in_bf16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16. Raises UsageProblem for an unknown precision, with the nearest."""
    if precision not in PRECISIONS:
        raise UsageProblem(
            f"There is no precision '{precision}'.{suggest(precision, PRECISIONS)}",
            hint=f"--precision {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}",
        )
    if precision != "auto":
        return precision == "bf16"
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):  # of several GPUs the one that answers, not the first
        # before Ampere torch emulates it, and counts that as support: slower than fp32, and no nearer
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


_KINDS = {
    "multiple-choice": "one of several candidates",
    "classification": "one of several classes",
    "vqa": "answers from a vocabulary",
}


def check_student(student: Student, spec: TaskSpec, regions: RegionReader, name: Path | str) -> None:
    """Raise DataError where a student answers another kind of task, other classes, or reads features of another width.

    `name` is what the student is called in the message.
    """
    kind = student.head_spec.kind
    if kind != spec.kind:
        raise DataError(
            f"The student {name} answers {_KINDS[kind]}, but {spec.name} asks for {_KINDS[spec.kind]}.",
            hint="name a student that was trained on this kind of task, or data of its own kind",
        )
    if kind == "classification" and set(student.head_spec.outputs) != set(spec.labels):
        raise DataError(f"The student {name} has other classes than {spec.name} ({', '.join(spec.labels)}).")
    if student.region_dim != regions.dim:
        raise DataError(
            f"The student {name} reads region features of {student.region_dim} values; the data has {regions.dim}."
        )


def _row(student: Student, spec: TaskSpec, example: Example, values: torch.Tensor) -> dict[str, Any]:
    head = student.head_spec
    if head.kind == "vqa":
        best = values.topk(min(TOP_ANSWERS, len(values)))  # NaN sorts first, so it cannot hide
        answers = [head.outputs[position] for position in best.indices.tolist()]
        sure = round(float(values.softmax(dim=0).max()), 6)  # the other logits are not kept: told now or never
        return {**prediction_row(example, best.values.tolist(), answers[0]), "top": answers, "confidence": sure}
    if head.kind == "classification":
        values = values[[head.outputs.index(label) for label in spec.labels]]  # the student's order may be another
    return prediction_row(example, values.tolist(), int(values.argmax()))
