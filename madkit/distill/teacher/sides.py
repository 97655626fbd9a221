"""Several teachers' sides of a training set: banks and targets of each, one criterion, and the probe's features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from madkit.distill.batches.examples import ExampleSet, TeacherRows
from madkit.distill.batches.order import Indices
from madkit.distill.teacher.bank_room import Room
from madkit.distill.teacher.criterion import Criterion, make_criterion
from madkit.distill.teacher.side import TeacherSide
from madkit.distill.teacher.teachers import Teachers
from madkit.mad.config import MADConfig
from madkit.mad.probe import probe_features
from madkit.mad.several import SeveralTeachers
from madkit.mad.targets import TeacherTargets
from madkit.mad.weigh import zero_shot_confidence
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
        room: what is held of them, and where; None: one of their own.
    """

    def __init__(
        self,
        examples: ExampleSet,
        teachers: Teachers,
        shares: Mapping[str, MADConfig],
        *,
        threads: int = 2,
        permute_seed: int | None = None,
        room: Room | None = None,
    ) -> None:
        self.examples = examples
        self.shares = dict(shares)
        room = Room() if room is None else room
        self.members = {
            member.name: TeacherSide(
                examples,
                member.cache,
                shares[member.name],
                threads=threads,
                permute_seed=permute_seed,
                whole=False,
                room=room,
            )
            for member in teachers
            if member.name in shares
        }
        self.weights = {member.name: member.weight for member in teachers if member.name in shares}

    def targets(self, rows: TeacherRows, indices: Indices, inputs: StudentInputs) -> dict[str, TeacherTargets]:
        """Each teacher's side of a batch whose student tensors are `inputs`, by name."""
        return {name: side.targets(rows, indices, inputs) for name, side in self.members.items()}

    def chosen(
        self, rows: TeacherRows, indices: Indices, inputs: StudentInputs, *, label: Tensor | None, step: int
    ) -> dict[str, TeacherTargets]:
        """The same with the token parts chosen already (`TeacherSide.chosen`)."""
        return {name: side.chosen(rows, indices, inputs, label=label, step=step) for name, side in self.members.items()}

    @property
    def reads(self) -> bool:
        """Whether vectors are read from a cache when a batch asks for them."""
        return any(side.reads for side in self.members.values())

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


AnySide = TeacherSide | TeacherSides


def side_of(
    examples: ExampleSet,
    teachers: Teachers,
    config: MADConfig,
    *,
    own: bool = True,
    also: Sequence[MADConfig] = (),
    threads: int = 2,
    permute_seed: int | None = None,
    room: Room | None = None,
) -> AnySide:
    """What the teachers of a run say of a set of examples, as far as `config` compares it.

    Args:
        examples: the set.
        teachers: one teacher, or several.
        config: the settings of a phase.
        own: whether the teachers' own settings apply (`Teachers.shares`).
        also: settings that one teacher's vectors must serve, too; several teachers need a side for each.
        threads: readers.
        permute_seed: control: every image is given the tokens of another one.
        room: what is held, and where; None: one of its own.

    Raises:
        CacheError: images or texts are missing; the hint is the command that extracts them.
        ConfigError: terms that nobody of the teachers can teach.
    """
    if teachers.one:
        cache = teachers.members[0].cache
        return TeacherSide(examples, cache, config, threads=threads, permute_seed=permute_seed, also=also, room=room)
    shares = teachers.shares(config, own=own)
    if not shares:
        raise teachers.none_can(config)
    return TeacherSides(examples, teachers, shares, threads=threads, permute_seed=permute_seed, room=room)


def criterion_of(side: AnySide, config: MADConfig, student: Student, seed: int) -> Criterion:
    """The criterion for a student and what `side_of` gave for `config`, its heads drawn from the seed alone."""
    if isinstance(side, TeacherSides):
        return side.criterion(student, seed)
    return make_criterion(config, student, side, seed)


def asked_side(
    side: AnySide, examples: ExampleSet, teachers: Teachers, *, threads: int, permute_seed: int | None, room: Room
) -> AnySide:
    """Whom confidence comes from: `side`, or another where some teacher is asked through another cache."""
    if teachers.asked is None:
        return side
    asked = Teachers(replace(member, cache=member.asked or member.cache, asked=None) for member in teachers)
    globals_only = MADConfig(tokens="global", weighting="uniform")
    return side_of(examples, asked, globals_only, own=False, threads=threads, permute_seed=permute_seed, room=room)


def known_to(side: AnySide) -> Tensor:
    """[n] bool: examples of the set of whose every sequence all teachers say something."""
    if isinstance(side, TeacherSide):
        return side.taught
    return torch.stack([member.taught for member in side.members.values()]).all(0)


def probe_features_of(side: AnySide, rows: TeacherRows, n_candidates: int) -> Tensor:
    """Features [n, F] or [n, C, F] for the confidence probe, of all teachers together.

    Side by side stand the features of every teacher that reads both modalities. Teachers of images alone and of texts
    alone make one pair together, as they would in one cache; where only one of the two kinds is there, its globals
    stand alone, for products of vectors of two spaces say little.

    Args:
        side: what the teachers say of a set.
        rows: rows of n examples (`ExampleSet.teacher_rows`).
        n_candidates: C.
    """

    def globals_of(one: TeacherSide) -> tuple[Tensor, Tensor]:
        text = one.text_globals(rows.texts)
        return one.images.globals[rows.images], text.view(len(rows.images), n_candidates, text.shape[-1])

    parts, images, texts = [], [], []
    for one in [side] if isinstance(side, TeacherSide) else [side.members[name] for name in sorted(side.members)]:
        image, text = globals_of(one)
        if image.shape[-1] and text.shape[-1]:
            parts.append(probe_features(image, text if n_candidates > 1 else text.squeeze(1)))
        elif image.shape[-1]:
            images.append(_unit(image))
        else:
            texts.append(_unit(text))
    if images or texts:
        n = len(rows.images)
        vision = torch.cat(images, -1) if images else torch.zeros(n, 0)
        words = torch.cat(texts, -1) if texts else torch.zeros(n, n_candidates, 0)
        parts.append(probe_features(vision, words if n_candidates > 1 else words.squeeze(1)))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def zero_shot_of(side: AnySide, rows: TeacherRows, target: Tensor) -> Tensor | None:
    """Zero-shot confidence [n] of the teachers with one space for both modalities, the mean of several; else None.

    Args:
        side: what the teachers say of a set.
        rows: rows of n examples with candidates.
        target: [n] gold candidates.
    """
    found = []
    for one in [side] if isinstance(side, TeacherSide) else side.members.values():
        if one.shared_space:
            image = one.images.globals[rows.images]
            last = (rows.texts >= 0).sum(1) - 1  # the candidate is the last text of its sequence
            candidate = one.texts.globals[rows.texts.gather(1, last[:, None]).squeeze(1)].view(
                len(image), -1, image.shape[1]
            )
            found.append(zero_shot_confidence(image, candidate, target, logit_scale=one.logit_scale))
    if len(found) < 2:
        return found[0] if found else None
    return torch.stack(found).mean(0)


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.float(), dim=-1)
