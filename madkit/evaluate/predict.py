"""A trained student at work: examples in, one answer per example out. No teacher, no cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from madkit.core.console import progress
from madkit.core.errors import DataError
from madkit.evaluate.metrics import prediction_row
from madkit.students.inputs import EncodedExample, collate
from madkit.students.load import load_student
from madkit.students.seeing import reader_for

if TYPE_CHECKING:
    from madkit.regions import RegionReader, Regions
    from madkit.students.student import Student
    from madkit.tasks.example import Example
    from madkit.tasks.spec import TaskSpec

TOKEN_BUDGET = 16384
TOP_ANSWERS = 10
# Features kept in memory: detectors give up to 2048 values for each of 100 boxes, so an image can take 800 kB.
_KEPT_BYTES = 512 * 2**20
_BOXES = 100


@torch.inference_mode()
def predict(
    student_folder: Path | str,
    examples: Sequence[Example],
    regions: RegionReader | None,
    *,
    spec: TaskSpec,
    device: str = "auto",
    token_budget: int = TOKEN_BUDGET,
) -> list[dict[str, Any]]:
    """Answer every example with the student of a folder.

    Args:
        student_folder: what `madkit distill` exports as `student/`.
        examples: of one task.
        regions: the features of their images.
        spec: their task, as the data tells it.
        device: a torch device, or "auto" for the GPU where there is one.
        token_budget: padded positions (text and regions, over all sequences) of one batch.

    Returns rows in the order of `examples` (see `metrics.prediction_row`). `prediction` is the index of the candidate
    or class, or the answer (VQA; `logits` then are those of the `top` answers, best first). Logits that are not finite
    are passed on as they are; it is for the caller to refuse them.

    Raises DataError where features are missing or of another width, or the student answers another kind of task.
    """
    student = load_student(student_folder)
    regions = reader_for(student, examples, regions)
    if regions is None:
        raise DataError(
            "The data has no region features, which this student reads.",
            hint=f"add them: madkit data regions add {spec.name} PATH",
        )
    if examples:
        _check(student, spec, regions, student_folder)
    where = _device(device)
    student = student.to(where).eval()
    encoded = [student.encode(example) for example in examples]
    look_up = lru_cache(maxsize=max(256, _KEPT_BYTES // (4 * _BOXES * regions.dim)))(regions.get)
    rows: list[dict[str, Any]] = [{} for _ in examples]
    with progress("Answering", len(examples), "examples") as bar:
        for batch in _batches(encoded, look_up, token_budget):
            chosen = [encoded[index] for index in batch]
            inputs = collate(chosen, [look_up(one.image_id) for one in chosen], pad_id=student.tokenizer.pad_id)
            logits = student(inputs.to(where)).logits.float().cpu()
            for index, values in zip(batch, logits, strict=True):
                rows[index] = _row(student, spec, examples[index], values)
            bar.advance(len(batch))
    return rows


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _check(student: Student, spec: TaskSpec, regions: RegionReader, folder: Path | str) -> None:
    kind = student.head_spec.kind
    if kind != spec.kind:
        raise DataError(f"The student {folder} answers {kind} tasks, but {spec.name} is {spec.kind}.")
    if kind == "classification" and set(student.head_spec.outputs) != set(spec.labels):
        raise DataError(f"The student {folder} has other classes than {spec.name} ({', '.join(spec.labels)}).")
    if student.region_dim != regions.dim:
        raise DataError(
            f"The student {folder} reads region features of {student.region_dim} values; the data has {regions.dim}."
        )


def _batches(encoded: Sequence[EncodedExample], look_up: Any, token_budget: int) -> Iterator[list[int]]:
    """Indices of examples with equally many candidates, sorted by length, at most `token_budget` padded positions."""

    def key(index: int) -> tuple[int, int, str]:
        one = encoded[index]
        return len(one.sequences), one.tokens, one.image_id  # examples about one image together: features are read once

    order = sorted(range(len(encoded)), key=key)
    batch: list[int] = []
    widest = 0
    for index in order:
        one = encoded[index]
        found: Regions = look_up(one.image_id)
        width = max(widest, len(found.features))
        padded = (len(batch) + 1) * len(one.sequences) * (one.tokens + width)  # sorted: `one` is the longest so far
        if batch and (padded > token_budget or len(encoded[batch[0]].sequences) != len(one.sequences)):
            yield batch
            batch, width = [], len(found.features)
        batch.append(index)
        widest = width
    if batch:
        yield batch


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
