"""Several teachers at once: a criterion with heads of its own for each, and the weighted sum of what they say.

L = sum over teachers of a_t L_t. Sums, not means: a teacher that is added leaves what the others say as it was, and a
teacher whose weight is 0 says nothing. docs/method.md has the formula.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from madkit.core.errors import ConfigError, DataError
from madkit.core.registry import suggest
from madkit.mad.criterion import CriterionOutput, MADCriterion
from madkit.mad.targets import TeacherTargets


class SeveralTeachers(nn.Module):
    """One `MADCriterion` for each of several teachers, called like one of them but for `targets`.

    A teacher that reads one modality alone has width 0 on the other side: a criterion made with ``text_dim=0``,
    settings without text terms (:func:`madkit.mad.sides.teachable` makes them) and targets whose text tensors are
    [S, T, 0] and [S, 0]. Teachers are computed in the order of their names, so the order in which they are given
    changes no bit of the loss.

    Args:
        criteria: a criterion per teacher, by the teacher's name.
        weights: a_t, factor of all that a teacher adds to the loss; who is not named has 1.

    Raises:
        ConfigError: no teacher, a weight for a teacher that is not there, a weight below 0, or all of them 0.
    """

    def __init__(self, criteria: Mapping[str, MADCriterion], weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        given = dict(weights or {})
        for name in given:
            if name not in criteria:
                raise ConfigError(
                    f"There is a weight for '{name}', which is none of the teachers.{suggest(name, criteria)}",
                    hint=f"the teachers are {', '.join(sorted(criteria))}.",
                )
        self.names = tuple(sorted(criteria))
        self.weights = tuple(float(given.get(name, 1.0)) for name in self.names)
        if not any(self.weights) or any(weight < 0 for weight in self.weights):
            raise ConfigError(
                "The weights of several teachers must be 0 or more, and at least one above 0.",
                hint="give a teacher that is to be left out weight 0, and another one a weight above it.",
            )
        # a list: names hold dots and slashes, which the names of modules may not
        self.criteria = nn.ModuleList(criteria[name] for name in self.names)

    def criterion(self, name: str) -> MADCriterion:
        """The criterion of one teacher."""
        found = self.criteria[self.names.index(name)]
        assert isinstance(found, MADCriterion)
        return found

    def distillation_tokens(self) -> Tensor | None:
        """[K, H] of the criteria that have one, in the order of their names; None where none has."""
        found = [self.criterion(name).distillation_tokens() for name in self.names]
        tokens = [token for token in found if token is not None]
        return torch.cat(tokens) if tokens else None

    def forward(
        self,
        student_hidden: Sequence[Tensor],
        text_length: int,
        targets: Mapping[str, TeacherTargets],
        *,
        text_mask: Tensor,
        region_mask: Tensor,
        tag_regions: Tensor | None = None,
        query_index: Tensor | None = None,
        global_index: Tensor | None = None,
        label: Tensor | None = None,
        n_candidates: int = 1,
        labelled: Tensor | None = None,
        teacher_confidence: Tensor | Mapping[str, Tensor] | None = None,
        student_confidence: Tensor | None = None,
        step: int = 0,
        progress: float | None = None,
        distillation_states: Sequence[Tensor] = (),
    ) -> CriterionOutput:
        """The summed distillation loss of one batch; the arguments are those of `MADCriterion.forward`, but for two.

        Args:
            student_hidden: per layer [S, T + R, H].
            text_length: T.
            targets: each teacher's side, by its name; a teacher of weight 0 needs none.
            text_mask: [S, T] bool.
            region_mask: [S, R] bool.
            tag_regions: [S, T].
            query_index: [S].
            global_index: [S].
            label: [B].
            n_candidates: C.
            labelled: [B] bool.
            teacher_confidence: [B] c_T of all teachers together, or one by teacher.
            student_confidence: [B] c_S.
            step: training step.
            progress: share of training done.
            distillation_states: per layer [S, K, H] of the tokens of `distillation_tokens`.

        Returns:
            The weighted sum of the losses; terms under ``teacher/term``, each as its own criterion gives it (without
            the teacher's weight); weights [B] as the mean over the teachers that give some, by their weights.

        Raises:
            ConfigError, DataError: as `MADCriterion`; DataError also where a teacher's targets are missing.
        """
        loss = torch.zeros((), device=text_mask.device)
        terms: dict[str, Tensor] = {}
        weights: Tensor | None = None
        total = 0.0
        place = 0
        for name, weight in zip(self.names, self.weights, strict=True):
            criterion, own = self.criterion(name), list[Tensor]()
            if criterion.distillation_token is not None:
                own, place = [state[:, place : place + 1] for state in distillation_states], place + 1
            if weight == 0:
                continue
            if name not in targets:
                raise DataError(
                    f"There are no targets of the teacher '{name}' in this batch, only of "
                    f"{', '.join(sorted(targets)) or 'none'}."
                )
            confidence = teacher_confidence
            if isinstance(confidence, Mapping):
                confidence = confidence.get(name)
            said: CriterionOutput = criterion(
                student_hidden,
                text_length,
                targets[name],
                text_mask=text_mask,
                region_mask=region_mask,
                tag_regions=tag_regions,
                query_index=query_index,
                global_index=global_index,
                label=label,
                n_candidates=n_candidates,
                labelled=labelled,
                teacher_confidence=confidence,
                student_confidence=student_confidence,
                step=step,
                progress=progress,
                distillation_states=own,
            )
            loss = loss + (said.loss if weight == 1 else weight * said.loss)
            terms.update({f"{name}/{term}": value for term, value in said.terms.items()})
            if said.weights is not None:
                share = weight * said.weights
                weights = share if weights is None else weights + share
                total += weight
        return CriterionOutput(loss, terms, None if weights is None else weights / total)
