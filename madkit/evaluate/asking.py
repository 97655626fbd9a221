"""A trained student asked about a user's own images: bare lines in, answers with probabilities out, no import, no
teacher. `madkit.predict` is the function below.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from madkit.core.console import progress
from madkit.core.devices import device_of
from madkit.core.errors import DataError, MadkitError
from madkit.core.files import FileLock, digest_of, sha256_file
from madkit.core.interrupts import StopSignals
from madkit.evaluate.partial_answers import PartialAnswers
from madkit.evaluate.predict import Answering, check_student, in_bf16
from madkit.evaluate.question_sight import check_all_are_seen, sight_of, stamp
from madkit.evaluate.questions import Question, Questions
from madkit.students.load import WEIGHTS, load_student, student_folder

if TYPE_CHECKING:
    from madkit.students.student import Student
    from madkit.tasks.spec import TaskSpec

_AT_ONCE = 2048  # questions that are sorted by length together


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A question that could not be answered: where it stands, its id, and why."""

    where: str
    id: str
    problem: str


@dataclass(slots=True)
class Told:
    """What a student answered: a row for each question in their order, what was left out, and how many of the rows an
    earlier, interrupted call had left.

    A row: `id`; `prediction`, a class by name, a choice by number from 0, or an answer; `probability` of it;
    `scores`, of every class by name, of every choice in their order, or of the ten best answers by name.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    resumed: int = 0


def predict(
    student: Student | str | Path,
    questions: Path | str | Iterable[Mapping[str, Any]],
    *,
    images: Path | str | None = None,
    regions: Path | str | Sequence[Path | str] = (),
    regions_format: str | None = None,
    split: str | None = None,
    allow_missing: bool = False,
    raw: bool = False,
    device: str = "auto",
    precision: str = "auto",
    keep: Path | str | None = None,
) -> Told:
    """Ask a trained student about images of one's own.

    Args:
        student: its folder, `ORG/NAME` on the Hugging Face hub, or what `load_student` gave.
        questions: a JSONL file of docs/custom.md (labels are not needed), or such rows.
        images: folder or zip of the images; None: the file's folder, or `images` in it.
        regions: files or folders of region features, together those of all images; "pixels" for small pictures of the
            boxes; a token cache's folder for students that see with a teacher's tokens. Students of pixels need none.
        regions_format: layout of the files; None: found out.
        split: ask the lines of this split alone.
        allow_missing: leave out questions whose images or features are absent or cannot be read.
        raw: the student's scores as they are, in place of softmax probabilities.
        device: a torch device, or "auto" for the GPU where there is one.
        precision: "fp32", "bf16", or "auto": bf16 on a GPU that has it.
        keep: a file; what is answered is kept beside it (`KEEP.partial`) until it is whole, so that the next call goes
            on where this one was interrupted. Whoever writes the file removes that one.

    Raises:
        NotFoundError, UsageProblem: no such student, file, folder, split or device; no features where some are needed.
        DataError: a line that breaks the format, an image or features that are absent or broken, answers that are not
            finite; each with file and line.
    """
    asked = Asking(
        student, questions, images=images, regions=regions, regions_format=regions_format, split=split,
        allow_missing=allow_missing, device=device, precision=precision, keep=keep,
    )  # fmt: skip
    told = Told()
    with asked:
        told.rows = [row_of(row, asked.spec, raw=raw) for row in asked.answers()]
        told.left_out, told.resumed = asked.left_out, asked.resumed
    return told


class Asking(ExitStack):
    """The same in steps: everything is checked when it is made; `answers` gives raw rows as they come."""

    def __init__(
        self,
        student: Student | str | Path,
        questions: Path | str | Iterable[Mapping[str, Any]],
        *,
        images: Path | str | None = None,
        regions: Path | str | Sequence[Path | str] = (),
        regions_format: str | None = None,
        split: str | None = None,
        allow_missing: bool = False,
        device: str = "auto",
        precision: str = "auto",
        keep: Path | str | None = None,
    ) -> None:
        super().__init__()
        in_bf16(precision, device_of(device))  # what cannot be had is said before anything is read
        if keep is not None:
            Path(keep).parent.mkdir(parents=True, exist_ok=True)
        folder = student_folder(student) if isinstance(student, str | Path) else None
        loaded = student if not isinstance(student, str | Path) else load_student(folder or student)
        self.name = str(student) if isinstance(student, str | Path) else loaded.identity.name
        self.left_out: list[LeftOut] = []
        self.resumed = 0
        self._allow = allow_missing
        self._questions = Questions(questions, loaded.head_spec, None if images is None else Path(images), split)
        self.spec: TaskSpec = self._questions.spec
        self._survey = self._questions.survey()
        paths = [regions] if isinstance(regions, str | Path) else list(regions)
        with ExitStack() as stack:
            sight = stack.enter_context(sight_of(loaded, folder, self._survey, paths, regions_format))
            self._missing, self._reads_images = sight.missing, sight.reads_images
            check_student(loaded, self.spec, sight.reader, self.name)
            check_all_are_seen(sight, self._survey, allow_missing=allow_missing)
            self._answering = Answering(loaded, sight.reader, self.spec, device=device, precision=precision)
            self._journal: PartialAnswers | None = None
            if keep is not None:
                target = Path(keep)
                stack.enter_context(FileLock(target.with_name(f".{target.name}.lock"), what=f"the file {target}"))
                self._journal = PartialAnswers(target, self._known_by(loaded, folder, sight.known_by))
            self.push(stack.pop_all().__exit__)

    def answers(self) -> Iterator[dict[str, Any]]:
        """Rows of `metrics.prediction_row` in the order of the questions; those left out are listed in `left_out`.

        SIGTERM and Ctrl-C end it after a batch, where what was answered is kept.

        Raises DataError as `predict` does.
        """
        rest = iter(self._questions)
        stop = self.enter_context(StopSignals()) if self._journal is not None else None
        with progress("Answering", self._survey.count, "questions") as bar:
            while chunk := list(islice(rest, _AT_ONCE)):
                keys = [self._key(question) for question in chunk] if self._journal is not None else []
                rows = self._before(keys)
                self.resumed += len(rows)
                bar.advance(len(rows))
                lost: dict[int, str] = {}
                todo = [number for number in range(len(chunk)) if number not in rows]
                for number in todo:
                    why = self._missing.get(chunk[number].example.image.id)
                    if why is not None:
                        lost[number] = why
                todo = [number for number in todo if number not in lost]

                def unseen(index: int, error: MadkitError, asked: list[int] = todo, to: dict[int, str] = lost) -> None:
                    to[asked[index]] = error.message.rstrip(".")

                examples = [chunk[number].example for number in todo]
                for batch, found in self._answering.batches(examples, unseen=unseen):
                    numbers = [todo[index] for index in batch]
                    for number, row in zip(numbers, found, strict=True):
                        _check_finite(row, chunk[number], self.name)
                        rows[number] = row
                    if self._journal is not None:
                        self._journal.add([keys[number] for number in numbers], found)
                    bar.advance(len(batch))
                    self._refuse(chunk, lost)
                    if stop is not None and stop.requested:
                        raise stop.error(how="after this batch")
                self._refuse(chunk, lost)
                self.left_out += [
                    LeftOut(str(chunk[number].place), chunk[number].example.id, lost[number]) for number in sorted(lost)
                ]
                yield from (rows[number] for number in sorted(rows))
        if len(self.left_out) == self._survey.count:
            raise DataError(
                f"No question could be answered; the first, {self.left_out[0].where}: {self.left_out[0].problem}.",
                hint="check --images and --regions",
            )

    def done(self) -> None:
        """Remove what was kept: the file is whole."""
        if self._journal is not None:
            self._journal.done()

    def _known_by(self, student: Student, folder: Path | None, sight: list[Any]) -> dict[str, Any]:
        return {
            "student": _weights_of(student) if folder is None else sha256_file(folder / WEIGHTS),
            "outputs": student.head_spec.as_dict(),
            "images": str(self._questions.root.absolute()),
            "sight": sight,
            "precision": self._answering.precision,
        }

    def _key(self, question: Question) -> str:
        """What an answer is kept by: all that the line says and, where the student reads images, which file it was."""
        if not self._reads_images:
            return question.digest
        return digest_of([question.digest, stamp(question.example.image.path)])

    def _before(self, keys: Sequence[str]) -> dict[int, dict[str, Any]]:
        """What an earlier call answered of these questions, by their numbers."""
        known = {} if self._journal is None else self._journal.rows
        return {number: known[key] for number, key in enumerate(keys) if key in known}

    def _refuse(self, chunk: Sequence[Question], lost: Mapping[int, str]) -> None:
        """Raise for the first question whose image turned out to be broken, unless such may be left out."""
        if lost and not self._allow:
            number = min(lost)
            raise DataError(
                f"{chunk[number].place}: {lost[number]}.",
                hint="mend the file, or leave such questions out: --allow-missing",
            )


def _weights_of(student: Student) -> str:
    """Digest of a student's weights as they are in memory, where it may have been trained on."""
    found = hashlib.sha256()
    for name, value in sorted(student.state_dict().items()):
        found.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _check_finite(row: Mapping[str, Any], question: Question, name: str) -> None:
    if not all(math.isfinite(value) for value in row["logits"]):
        raise DataError(
            f"{question.place}: the scores of the student {name} are NaN or infinite.",
            hint="give the features that it learnt with; madkit export tells whether its weights are broken",
        )


def row_of(row: Mapping[str, Any], spec: TaskSpec, *, raw: bool = False) -> dict[str, Any]:
    """A row of answers as a user reads it (see `Told`)."""
    logits: list[float] = row["logits"]
    if spec.kind == "vqa":  # of all answers the ten best are kept, and the probability of the first
        sure, names = float(row["confidence"]), row["top"]
        chances = [sure * math.exp(value - logits[0]) for value in logits]
        prediction: str | int = row["prediction"]
    else:
        powers = [math.exp(value - max(logits)) for value in logits]
        chances = [value / sum(powers) for value in powers]
        sure, names = chances[int(row["prediction"])], spec.labels
        prediction = spec.labels[int(row["prediction"])] if spec.labels else int(row["prediction"])
    values = list(logits) if raw else [round(chance, 6) for chance in chances]
    return {
        "id": row["id"],
        "prediction": prediction,
        "probability": round(sure, 6),
        "scores": dict(zip(names, values, strict=True)) if names else values,
    }
