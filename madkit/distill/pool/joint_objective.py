"""What a step minimises where a pool stands beside the labelled examples.

L = L_labelled + f(t) (omega L_distilled(pool) + omega_s L_soft(pool)),

each the mean over its own part of the global batch. A micro-batch holds some of both parts; the loop weighs it by its
share of all samples of the step, so each part is scaled by how much more or less of it is here than of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from madkit.distill.batches.micro_batch import Batch, BatchMaker
from madkit.distill.batches.order import Indices
from madkit.distill.loop.contract import StepLoss
from madkit.distill.objective.adversarial import Adversary
from madkit.distill.objective.objective import Objective
from madkit.distill.pool.joint_pool import JointOrder, JointSet
from madkit.distill.pool.soft_labels import soft_task_loss, tempered
from madkit.distill.settings.pool_config import PoolConfig
from madkit.distill.teacher.criterion import Criterion
from madkit.mad.criterion import MADCriterion
from madkit.mad.schedule import schedule_factor
from madkit.students.heads import USUAL_FORMS, LossForms
from madkit.students.student import Student

PREFIX = "pool_"


@dataclass(frozen=True, slots=True)
class JointBatch:
    """A micro-batch with examples of both parts, of one of them at least.

    Attributes:
        labelled: the labelled examples.
        pool: the pool's, without targets.
        shares: [B, K] the probe's probabilities for the pool's examples; None without soft labels.
        counts: [B] bool: which of these count.
        scales: factors on the means over `labelled` and over `pool`.
    """

    labelled: Batch | None
    pool: Batch | None
    shares: Tensor | None
    counts: Tensor | None
    scales: tuple[float, float]

    def to(self, device: torch.device | str) -> JointBatch:
        """The same on another device."""
        return replace(
            self,
            labelled=None if self.labelled is None else self.labelled.to(device),
            pool=None if self.pool is None else self.pool.to(device),
            shares=None if self.shares is None else self.shares.to(device, non_blocking=True),
            counts=None if self.counts is None else self.counts.to(device, non_blocking=True),
        )


class JointBatchMaker:
    """Cuts joint micro-batches: places of a `JointOrder` in, tensors out.

    Args:
        labelled: makes batches of the labelled examples.
        pool: makes batches of the joint set, without targets.
        joint: the set.
        order: whose places are asked for.
        config: the pool's settings.
    """

    def __init__(
        self, labelled: BatchMaker, pool: BatchMaker, joint: JointSet, order: JointOrder, config: PoolConfig
    ) -> None:
        self._labelled = labelled
        self._pool = pool
        self._joint = joint
        self._order = order
        self._config = config

    @property
    def reads(self) -> bool:
        """Whether a micro-batch is worth making ahead of time."""
        return self._labelled.reads or self._pool.reads

    def __call__(self, places: Indices, step: int) -> JointBatch:
        """The micro-batch of `places` in `step`."""
        n = len(self._joint.labelled)
        gold, others = places[places < n], places[places >= n] - n
        n_gold, n_others = self._order.sizes(step)
        whole = (n_gold + n_others) / len(places)
        labelled = self._labelled(gold, step) if len(gold) else None
        pool = self._pool(self._joint.rows[others], step) if len(others) else None
        shares = counts = None
        answers, soft = self._joint.pool.answers, self._config.soft_labels
        if pool is not None and answers is not None:
            rows = torch.from_numpy(others)
            pool = replace(pool, confidence=answers.confidence[rows])
            if soft is not None:
                shares = tempered(answers.shares[rows], soft.temperature)
                counts = answers.confidence[rows] >= soft.threshold
        scales = (whole * len(gold) / n_gold, whole * len(others) / n_others if n_others else 0.0)
        return JointBatch(labelled, pool, shares, counts, scales)


class JointObjective(Objective):
    """An objective that also learns from a pool.

    Args:
        student: the student.
        criterion: the labelled examples' criterion, or None.
        config: the pool's settings.
        distils: whether anything is distilled on the pool.
        pool_criterion: the pool's own criterion; None: `criterion`, with its heads.
        forms: of the task loss, for labels and for soft labels.
    """

    def __init__(
        self,
        student: Student,
        criterion: Criterion | None,
        config: PoolConfig,
        *,
        distils: bool,
        pool_criterion: Criterion | None = None,
        forms: LossForms = USUAL_FORMS,
    ) -> None:
        super().__init__(student, criterion, forms=forms)
        self.pool_criterion = pool_criterion
        self.pool_config = config
        self.distils = distils

    def forward(self, batch: Batch | JointBatch) -> StepLoss:
        """Loss and terms of a micro-batch, scaled as the module's first lines say."""
        if isinstance(batch, Batch):
            return super().forward(batch)
        parts = []
        if batch.labelled is not None:
            parts.append(scaled(super().forward(batch.labelled), batch.scales[0]))
        else:
            self.weigh_nothing()
        if batch.pool is not None:
            parts.append(scaled(self.learn_pool(batch), batch.scales[1]))
        total = (
            parts[0] if len(parts) == 1 else StepLoss(parts[0].loss + parts[1].loss, parts[0].terms | parts[1].terms)
        )
        if len(parts) == 1 and torch.distributed.is_available() and torch.distributed.is_initialized():
            # every process has to touch every head in the pass whose gradients are exchanged
            total = StepLoss(total.loss + self._nothing_of_the_heads(), total.terms)
        return total

    def learn_pool(self, batch: JointBatch) -> StepLoss:
        """What the pool's part of a micro-batch adds, its terms under names of their own. Means over its examples."""
        pool, config = batch.pool, self.pool_config
        assert pool is not None
        progress = None if pool.progress is None else min(1.0, pool.progress / config.until)
        factor = schedule_factor(config.schedule, progress, warmup=config.warmup, final=config.final)
        criterion = self.criterion if self.pool_criterion is None else self.pool_criterion
        distilled = criterion if self.distils else None
        out = self.answer(pool.inputs, distilled)
        loss = torch.zeros((), device=out.logits.device)
        terms: dict[str, Tensor] = {}
        if distilled is not None:
            with by_themselves(distilled):
                found = self.distil(distilled, out, pool)
            loss = loss + factor * config.weight * found.loss
            terms |= {PREFIX + name: value for name, value in found.terms.items()}
        if batch.shares is not None and batch.counts is not None and config.soft_labels is not None:
            kind = self.student.head_spec.kind
            each = soft_task_loss(kind, out.logits, batch.shares, self.forms, pairs=out.pair_logits)
            # the mean over all of the pool's examples, so that a surer probe also has more to say
            soft = torch.where(batch.counts, each, 0.0).mean()
            loss = loss + factor * config.soft_labels.weight * soft
            terms |= {PREFIX + "soft": soft, PREFIX + "kept": batch.counts.float().mean()}
        return StepLoss(loss, terms)

    def weigh_nothing(self) -> None:
        """Take part in what the processes say of their labelled examples' weights, where this share has none.

        Their sums are added before anybody divides, so a process that kept silent would leave the others waiting.
        """
        for module in () if self.criterion is None else self.criterion.modules():
            if isinstance(module, MADCriterion) and module.whole_batch is not None:
                nothing = next(module.parameters()).new_zeros((), dtype=torch.float32)
                module.whole_batch(nothing, nothing)

    def _nothing_of_the_heads(self) -> Tensor:
        heads = [self.student.head, self.criterion, self.pool_criterion]
        values = [parameter.flatten()[0] for head in heads if head is not None for parameter in head.parameters()]
        return 0.0 * torch.stack([value.float() for value in values]).sum()


class JointAdversary:
    """An adversary for the labelled part of each micro-batch; the pool's part is one more, unattacked pass.

    Arguments: the objective, and the adversary made for it.
    """

    def __init__(self, objective: JointObjective, adversary: Adversary) -> None:
        self._objective = objective
        self._adversary = adversary

    def __call__(self, batch: Any) -> Iterator[tuple[StepLoss, bool]]:
        """Yield each pass's loss, and whether the graph of an earlier pass is still needed afterwards."""
        if batch.labelled is not None:
            for found, more in self._adversary(batch.labelled):
                yield scaled(found, batch.scales[0]), more
        else:
            self._objective.weigh_nothing()
        if batch.pool is not None:
            yield scaled(self._objective.learn_pool(batch), batch.scales[1]), False


def scaled(found: StepLoss, factor: float) -> StepLoss:
    """A loss and its terms, multiplied."""
    return StepLoss(found.loss * factor, {name: value * factor for name, value in found.terms.items()})


@contextmanager
def by_themselves(criterion: Criterion) -> Iterator[None]:
    """Let a criterion weigh a batch without asking for, or adding to, the mean weight of the labelled examples."""
    members = [module for module in criterion.modules() if isinstance(module, MADCriterion)]
    asked = [module.whole_batch for module in members]
    for module in members:
        module.whole_batch = None
    try:
        yield
    finally:
        for module, whole in zip(members, asked, strict=True):
            module.whole_batch = whole
