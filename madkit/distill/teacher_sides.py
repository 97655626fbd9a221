"""Several teachers' sides of a training set: banks and targets of each, one criterion, and the probe's features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from madkit.distill.examples import ExampleSet, TeacherRows
from madkit.distill.objective import TeacherSide, make_criterion
from madkit.distill.order import Indices
from madkit.distill.teachers import Teachers
from madkit.mad.config import MADConfig
from madkit.mad.probe import probe_features
from madkit.mad.several import SeveralTeachers
from madkit.mad.targets import TeacherTargets
from madkit.students.interface import StudentInputs
from madkit.students.student import Student


class TeacherSides:
    """What several teachers say of a set of examples: a `TeacherSide` each, which reads what its terms need.

    Args:
        examples: the set.
        teachers: the teachers.
        shares: what each of them teaches (`Teachers.shares`); who is not in it is not read.
        threads: readers.
        permute_seed: control: every image is given the tokens of another one, the same one by all teachers where their
            caches have the same images.
    """

    def __init__(
        self,
        examples: ExampleSet,
        teachers: Teachers,
        shares: Mapping[str, MADConfig],
        *,
        threads: int = 2,
        permute_seed: int | None = None,
    ) -> None:
        self.examples = examples
        self.shares = dict(shares)
        self.members = {
            member.name: TeacherSide(
                examples, member.cache, shares[member.name], threads=threads, permute_seed=permute_seed, whole=False
            )
            for member in teachers
            if member.name in shares
        }
        self.weights = {member.name: member.weight for member in teachers if member.name in shares}
        self.scales = {member.name: member.cache.logit_scale for member in teachers if member.name in shares}

    def targets(self, rows: TeacherRows, indices: Indices, inputs: StudentInputs) -> dict[str, TeacherTargets]:
        """Each teacher's side of a batch whose student tensors are `inputs`, by name."""
        return {name: side.targets(rows, indices, inputs) for name, side in self.members.items()}

    @property
    def untaught(self) -> int:
        """Examples that no teacher says anything about, because the caches lack their images or texts."""
        taught = torch.zeros(len(self.examples), dtype=torch.bool)
        for side in self.members.values():
            taught |= side.taught
        return int((~taught).sum())

    def criterion(self, student: Student, seed: int) -> SeveralTeachers:
        """A criterion with heads for every teacher.

        Each teacher's heads are drawn as if it were alone, so a teacher that is added or taken away changes nothing of
        what the others begin with.
        """
        criteria = {name: make_criterion(self.shares[name], student, side, seed) for name, side in self.members.items()}
        return SeveralTeachers(criteria, self.weights)

    def probe_features(self, rows: TeacherRows, n_candidates: int) -> Tensor:
        """Features [n, F] or [n, C, F] of all teachers together, for the confidence probe.

        Side by side stand the features of every teacher that reads both modalities. Teachers of images alone and of
        texts alone make one pair together, as they would in one cache; where only one of the two kinds is there, its
        globals stand alone, for products of vectors of two spaces say little.

        Args:
            rows: rows of n examples (`ExampleSet.teacher_rows`).
            n_candidates: C.
        """
        parts, images, texts = [], [], []
        for name in sorted(self.members):
            side = self.members[name]
            image, text = side.images.globals[rows.images], side.text_globals(rows.texts)
            if n_candidates > 1:
                text = text.view(len(image), n_candidates, -1)
            if image.shape[-1] and text.shape[-1]:
                parts.append(probe_features(image, text))
            elif image.shape[-1]:
                images.append(_unit(image))
            else:
                texts.append(_unit(text))
        n = len(rows.images)
        vision = torch.cat(images, -1) if images else torch.zeros(n, 0)
        words = torch.cat(texts, -1) if texts else torch.zeros(*((n,) if n_candidates == 1 else (n, n_candidates)), 0)
        if images or texts:
            parts.append(probe_features(vision, words))
        return torch.cat(parts, -1)

    def shared_spaces(self) -> list[str]:
        """Teachers whose images and texts can be compared, for zero-shot confidence."""
        return [name for name, side in self.members.items() if side.shared_space]


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.float(), dim=-1)
