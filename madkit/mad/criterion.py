"""The distillation criterion: hidden states of any cross-modal student in, one loss and its terms out.

L = lambda * (1/B) sum over examples w * d_example + affinity_weight * (1/S) sum over sequences KL, with d_example the
mean of the example's terms (text, region, tag, global image, global text), each the mean over its selected tokens.
docs/method.md has the formulas and says why each choice was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from madkit.core.errors import ConfigError, DataError
from madkit.mad.affinity import AffinityHead, affinity_loss
from madkit.mad.choice import choose_words, shares_space
from madkit.mad.chosen import choice_key
from madkit.mad.config import MADConfig
from madkit.mad.heads import ProjectionHead
from madkit.mad.schedule import schedule_factor
from madkit.mad.targets import TeacherTargets
from madkit.mad.terms import last_token, take, terms_of
from madkit.mad.token_loss import token_loss
from madkit.mad.weigh import WholeBatch, confidence_weights

__all__ = ["CriterionOutput", "MADConfig", "MADCriterion"]


@dataclass(frozen=True, slots=True)
class CriterionOutput:
    """What one call gives.

    Attributes:
        loss: scalar, to be added to the task loss; lambda, schedule and affinity_weight are in it.
        terms: scalar per term without gradient, before lambda (example weights included), for the metrics file.
        weights: [B] w of each example, without gradient; None where no token term is on.
    """

    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None


class MADCriterion(nn.Module):
    """Multimodal Adaptive Distillation, as this project reads it, with every component switchable.

    It holds the projection heads, so they train with the student and stay out of what is exported. It knows nothing
    of the student's network: any module that gives hidden states with text positions first, then regions, will do.
    Under ``global_source: token`` it also holds a distillation token, which the student has to read with.
    A loop that cuts its batches into parts sets `whole_batch`, so that weights have mean 1 over the batch and not over
    each part.

    Args:
        config: the switches.
        student_dim: H, width of the hidden states.
        vision_dim: Dv, width of the vision teacher's embeddings.
        text_dim: Dl, width of the text teacher's embeddings.
    """

    def __init__(self, config: MADConfig, student_dim: int, vision_dim: int, text_dim: int) -> None:
        super().__init__()
        self.config = config
        self._choice_key = choice_key(config)
        self.whole_batch: WholeBatch | None = None
        self.dims = (student_dim, vision_dim, text_dim)
        # asked for in every step, and each time worked out anew by the settings
        terms = self._term_weights = config.term_weights
        self._layers = (*(config.layers if terms else ()), config.affinity_layer or 0)
        widths = {}
        if "global_image" in terms:
            widths["global_image"] = vision_dim
        if "global_text" in terms:
            widths["global_text"] = text_dim
        if "token_text" in terms:
            widths["token_text"] = text_dim
        if "token_region" in terms or "token_tag" in terms:
            widths["vision"] = vision_dim
        unread = [name for name, width in widths.items() if width == 0]
        if unread:
            side = "texts" if "text" in unread[0] else "images"
            raise ConfigError(
                f"The teacher reads no {side} (its vectors have width 0), and the settings would have them taught.",
                hint="leave out what it cannot teach: CachedTeacher.criterion, or madkit.mad.sides.teachable.",
            )
        self.heads = nn.ModuleList(
            nn.ModuleDict({name: ProjectionHead(student_dim, width, config.head) for name, width in widths.items()})
            for _ in (config.layers if terms else ())
        )
        # 0 is [CLS] itself (`madkit.students.encoder.add_readers`): the token begins as its twin and goes its own way
        self.distillation_token = nn.Parameter(torch.zeros(student_dim)) if config.distillation_token else None
        sentence = config.affinity_weight > 0 and config.affinity_form in ("sentence", "both")
        word = config.affinity_weight > 0 and config.affinity_form in ("word", "both")
        absolute = config.affinity_kind == "absolute"
        if (sentence or word) and absolute and (config.affinity_tau is None or config.affinity_threshold is None):
            raise ConfigError(
                "affinity_kind: absolute needs affinity_tau and affinity_threshold as numbers, and one is open.",
                hint="measure them on pairs of the teacher: madkit.mad.calibrate.calibrated.",
            )
        self.affinity = nn.ModuleDict()
        if sentence:
            self.affinity["sentence"] = AffinityHead(student_dim, config.affinity_dim, absolute=absolute)
        if word:
            self.affinity["word"] = AffinityHead(student_dim, config.affinity_dim, absolute=absolute)

    def distillation_tokens(self) -> Tensor | None:
        """[1, H] for the student's forward pass (``global_source: token``), or None where it needs none."""
        return None if self.distillation_token is None else self.distillation_token.unsqueeze(0)

    def forward(
        self,
        student_hidden: Sequence[Tensor],
        text_length: int,
        targets: TeacherTargets,
        *,
        text_mask: Tensor,
        region_mask: Tensor,
        tag_regions: Tensor | None = None,
        query_index: Tensor | None = None,
        global_index: Tensor | None = None,
        label: Tensor | None = None,
        n_candidates: int = 1,
        labelled: Tensor | None = None,
        teacher_confidence: Tensor | None = None,
        student_confidence: Tensor | None = None,
        step: int = 0,
        progress: float | None = None,
        distillation_states: Sequence[Tensor] = (),
    ) -> CriterionOutput:
        """The distillation loss of one batch of S = B * n_candidates sequences, candidates of one example in a row.

        Args:
            student_hidden: per layer [S, T + R, H], the embedding layer's output first; text first, then regions.
            text_length: T.
            targets: the teacher's side, aligned to the same tokens.
            text_mask: [S, T] real text tokens (special ones included); bool, or 0 and 1 as tokenizers give them.
            region_mask: [S, R] real regions, likewise.
            tag_regions: [S, T] region index of tag tokens, -1 elsewhere.
            query_index: [S] position that asks in sentence affinity; None: the last real text token ([SEP]).
            global_index: [S] position that takes the global embeddings under ``global_source: cls``; None: 0.
            label: [B] gold candidate or class. Multiple choice: negative marks an unlabelled example, which then adds
                no token term under ``candidates: gold``; None teaches all candidates.
            n_candidates: C.
            labelled: [B] bool for the weights; None: ``label >= 0``, or all where there is no label either. With soft
                targets, which are no `label`: those that have one, ``(target > 0).any(-1)``.
            teacher_confidence: [B] c_T (not needed for ``weighting: uniform``).
            student_confidence: [B] c_S (needed for ``weighting: teacher-student``).
            step: training step, which random selection depends on.
            progress: share of training done, for the schedule; None: factor 1.
            distillation_states: per layer [S, 1, H] of the distillation token, for ``global_source: token``.

        Raises:
            ConfigError: the configuration asks for something that the inputs do not give.
            DataError: shapes that do not fit together, or, on the CPU, a teacher's confidence that is not a number.
        """
        config = self.config
        self._check(student_hidden, text_length, targets, text_mask, region_mask, n_candidates)
        self._check_examples(
            text_mask.shape[0] // n_candidates,
            label=label,
            labelled=labelled,
            teacher_confidence=teacher_confidence,
            student_confidence=student_confidence,
        )
        self._check_numbers(teacher_confidence)
        text_mask, region_mask = text_mask.bool(), region_mask.bool()
        self._check_readers(student_hidden, distillation_states)
        if targets.chosen is None or len(self.affinity) > 0:  # what was chosen already needs no mask
            region_mask = region_mask & targets.region_mask[targets.image_index]
        factor = schedule_factor(config.schedule, progress, warmup=config.warmup, final=config.final)
        parts_of_loss: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        weights = None

        if len(self.heads) > 0:
            S = text_mask.shape[0]
            rows, share = self._taught_rows(S, targets, label, n_candidates)
            taught = None if targets.taught is None else targets.taught[rows].view(S // n_candidates, -1).any(1)
            weights = self._weights(
                S // n_candidates, label, labelled, teacher_confidence, student_confidence, targets, taught
            )
            with torch.no_grad():
                parts = terms_of(
                    config, self._term_weights, targets, rows, text_mask=text_mask, region_mask=region_mask,
                    tag_regions=tag_regions, query_index=query_index, global_index=global_index, step=step,
                )  # fmt: skip
                of_each = rows.shape[0] == S and n_candidates > 1
                sequence_weight = weights.repeat_interleave(n_candidates) if of_each else weights
                if not isinstance(share, float) or share != 1.0:
                    sequence_weight = share * sequence_weight
                sequence_weight = sequence_weight / (S // n_candidates)
                if targets.taught is not None:
                    sequence_weight = sequence_weight * targets.taught[rows]
                    parts = [replace(part, valid=part.valid & targets.taught[rows].unsqueeze(1)) for part in parts]
            values = []
            for layer, heads in zip(config.layers, self.heads, strict=True):
                assert isinstance(heads, nn.ModuleDict)
                hidden = student_hidden[layer]
                value, found = token_loss(
                    config, heads, hidden, rows, parts, sequence_weight, text_mask, self._term_weights,
                    None if self.distillation_token is None else distillation_states[layer][:, 0],
                )  # fmt: skip
                values.append(value / len(self.heads) if len(self.heads) > 1 else value)
                suffix = "" if len(self.heads) == 1 else f"@{layer}"
                terms.update({f"{name}{suffix}": term for name, term in found.items()})
            parts_of_loss.append(config.weight * factor * _added(values))

        if len(self.affinity) > 0:
            scale = factor if config.affinity_scheduled else 1.0
            for form, value in self._affinity(
                student_hidden, text_length, targets, text_mask, region_mask, tag_regions, query_index
            ).items():
                terms[f"affinity_{form}"] = value.detach()
                parts_of_loss.append(config.affinity_weight * scale * value)
        return CriterionOutput(_added(parts_of_loss), terms, weights)

    def _taught_rows(
        self, S: int, targets: TeacherTargets, label: Tensor | None, n_candidates: int
    ) -> tuple[Tensor, Tensor | float]:
        """Rows [N] of the sequences that are taught, and the share of its example that each stands for."""
        gold = n_candidates > 1 and self.config.candidates == "gold" and label is not None
        if targets.chosen is not None:
            if gold != targets.chosen.gold:
                raise DataError("The tokens were chosen with labels and are compared without, or the other way round.")
            if targets.chosen.made_for != self._choice_key:
                raise DataError("The tokens were chosen for another configuration than this criterion's.")
            share = 1.0 / n_candidates if label is None or not gold else (label >= 0).float()
            return targets.chosen.sequences, share
        device = targets.image_index.device
        if gold and label is not None:
            base = torch.arange(S // n_candidates, device=device) * n_candidates
            return base + label.clamp(0, n_candidates - 1), (label >= 0).float()
        return torch.arange(S, device=device), 1.0 / n_candidates

    def _weights(
        self,
        B: int,
        label: Tensor | None,
        labelled: Tensor | None,
        teacher: Tensor | None,
        student: Tensor | None,
        targets: TeacherTargets,
        taught: Tensor | None,
    ) -> Tensor:
        config = self.config
        if config.weighting == "uniform":
            return torch.ones(B, device=targets.image_index.device)
        if teacher is None or (student is None and config.weighting == "teacher-student"):
            missing = "the teacher's" if teacher is None else "the student's"
            raise ConfigError(
                f"weighting: {config.weighting} needs {missing} confidence in each example, and none was given.",
                hint="pass it to the criterion, or set weighting: uniform.",
            )
        if labelled is None and label is not None:
            labelled = label >= 0
        labelled = None if labelled is None else labelled.bool()  # as numbers, too
        if taught is not None:  # an example without a term has no share in the mean that divides the others' weights
            labelled = taught if labelled is None else labelled & taught
        return confidence_weights(
            teacher,
            student,
            mode=config.weighting,
            gamma=config.gamma,
            w_max=config.w_max,
            labelled=labelled,
            probe_threshold=config.probe_threshold,
            whole=self.whole_batch,
        )

    def _affinity(
        self,
        student_hidden: Sequence[Tensor],
        T: int,
        targets: TeacherTargets,
        text_mask: Tensor,
        region_mask: Tensor,
        tag_regions: Tensor | None,
        query_index: Tensor | None,
    ) -> dict[str, Tensor]:
        config = self.config
        assert config.affinity_tau is not None
        layer = config.affinity_layer if config.affinity_layer is not None else middle_layer(len(student_hidden))
        hidden = student_hidden[layer]
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        dtype = next(self.affinity.parameters()).dtype
        regions = hidden[:, T:].to(dtype)
        found = {}
        for form, head in self.affinity.items():
            assert isinstance(head, AffinityHead)
            if form == "sentence":
                place = (last_token(text_mask) if query_index is None else query_index).unsqueeze(1)
                text, valid = targets.text_global.unsqueeze(1), None
            else:
                with torch.no_grad():
                    tags = tag_regions if config.tag_targets else None
                    place, valid = choose_words(config, targets, tags)
                    valid = valid & text_mask.gather(1, place)
                text = take(targets.text_tokens, rows.unsqueeze(1), place)
            query = take(hidden, rows.unsqueeze(1), place).to(dtype)
            each = affinity_loss(
                head, query, regions, text, targets.regions, region_mask, tau=config.affinity_tau,
                threshold=config.affinity_threshold or 0.0, image_index=targets.image_index, query_mask=valid,
            )  # fmt: skip
            found[form] = (each if targets.taught is None else torch.where(targets.taught, each, 0.0)).mean()
        return found

    def _check(
        self,
        hidden: Sequence[Tensor],
        T: int,
        targets: TeacherTargets,
        text_mask: Tensor,
        region_mask: Tensor,
        n_candidates: int,
    ) -> None:
        config, (H, Dv, Dl) = self.config, self.dims
        (S, R), B = region_mask.shape, targets.image_global.shape[0]
        expected = [
            ("the student's hidden states", hidden[-1], (S, T + R, H)),
            ("text_mask", text_mask, (S, T)),
            ("the text globals", targets.text_global, (S, Dl)),
            ("the image globals", targets.image_global, (B, Dv)),
        ]
        affinity = len(self.affinity) > 0
        if "word" in self.affinity or (targets.chosen is None and "token_text" in self._term_weights):
            expected.append(("the text targets", targets.text_tokens, (S, T, Dl)))
        if targets.chosen is None or affinity:
            expected.append(("the region targets", targets.regions, (B, R, Dv)))
        for name, given, wanted in expected:
            if given.shape != wanted:
                raise DataError(
                    f"The distillation criterion expected {name} as {wanted}, and got {tuple(given.shape)}."
                )
        if n_candidates < 1 or S % n_candidates != 0:
            raise DataError(f"{S} sequences are no whole number of examples with {n_candidates} candidates each.")
        for layer in self._layers:
            if not -len(hidden) <= layer < len(hidden):
                raise ConfigError(
                    f"The student has {len(hidden) - 1} layers, so there is no layer {layer} to distil into.",
                    hint=f"choose from 0 (embeddings) to {len(hidden) - 1}, or -1 for the last.",
                )
        adaptive = config.tokens == "adaptive" and bool(self._term_weights)
        needs_shared = affinity or (adaptive and shares_space(config, targets))
        if needs_shared and not (targets.shared_space and Dv == Dl):
            raise separate_spaces(affinity)

    def _check_examples(self, B: int, **given: Tensor | None) -> None:
        """Raise DataError unless there is one value an example: another shape would broadcast without a word."""
        for name, values in given.items():
            if values is not None and values.shape != (B,):
                raise DataError(
                    f"The distillation criterion expected {name} as ({B},), one value an example, and got "
                    f"{tuple(values.shape)}.",
                    hint="squeeze(-1) takes off the last side of what gather(1, ...) gives.",
                )

    def _check_numbers(self, sure: Tensor | None) -> None:
        """Raise DataError for a teacher's confidence that is NaN; on a GPU the host would have to wait for the values.

        The student's is NaN where its logits are, which the loss shows in the same step.
        """
        if self.config.weighting == "uniform" or sure is None or sure.device.type != "cpu":
            return
        wrong = torch.nonzero(sure.isnan())
        if len(wrong):
            raise DataError(
                f"teacher_confidence of example {int(wrong[0])} of the batch is not a number.",
                hint="look at the logits or targets that it was worked out from, or set weighting: uniform.",
            )

    def _check_readers(self, hidden: Sequence[Tensor], states: Sequence[Tensor]) -> None:
        if self.distillation_token is None:
            return
        if len(states) != len(hidden):
            raise ConfigError(
                "global_source: token needs the states of the distillation token at every layer of the student, "
                f"{len(hidden)} with the embeddings, and got {len(states)}.",
                hint="pass criterion.distillation_tokens() to the student and its distillation_states to the "
                "criterion, or choose global_source: cls.",
            )
        expected = (hidden[-1].shape[0], 1, hidden[-1].shape[2])
        if states[-1].shape != expected:
            raise DataError(
                f"The distillation criterion expected the distillation token's states as {expected}, and got "
                f"{tuple(states[-1].shape)}."
            )


def _added(values: Sequence[Tensor]) -> Tensor:
    """One after the other."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def separate_spaces(affinity: bool) -> ConfigError:
    """The error for a term that compares text with regions where the teacher's encoders do not share a space."""
    return ConfigError(
        f"{'Affinity distillation' if affinity else 'relevance: shared'} compares text with regions, but this "
        "teacher's two encoders do not share a space.",
        hint="use a CLIP-like teacher, or set affinity_weight: 0 and relevance: unrelated.",
    )


def middle_layer(n_hidden: int) -> int:
    """Index of the middle layer's output among `n_hidden` hidden states (embeddings first): 2 of 3, 6 of 12."""
    return n_hidden // 2
