"""The teacher's confidence in the gold target, from a small head that never scores an example it was fitted on.

For every task kind and every pair of teachers: a multinomial logistic regression (or a small MLP) on
[v_0, l_0, v_0 * l_0, |v_0 - l_0|], fitted to the labelled subset by K-fold cross-fitting over *groups* (images or
questions), so that two examples of one picture never stand on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from madkit.core.errors import DataError
from madkit.core.seeds import derive_seed, permutation
from madkit.mad.rows import Rows, block_of, blocks, held_of, row_bytes
from madkit.mad.weigh import gold_probability

ProbeKind = Literal["linear", "mlp"]
DEFAULT_L2 = (0.003, 0.03, 0.3, 3.0)
_SOFT_COPIES = 6  # tables [n, K] beside the features while soft targets are fitted: shares, logits, gradients


@dataclass(frozen=True, slots=True)
class CrossFit:
    """Out-of-fold scores of N examples.

    Attributes:
        confidence: [N] float32 probability of the gold target; of the best guess for unlabelled examples.
        probabilities: [N, K] float32 over classes, or [N, C] over candidates.
        fold: [N] long: the part each example is in; it was scored by a head fitted on the other parts.
        l2: per fold, the penalty that was chosen.
    """

    confidence: Tensor
    probabilities: Tensor
    fold: Tensor
    l2: tuple[float, ...]


def probe_features(image_global: Tensor, text_global: Tensor) -> Tensor:
    """[v_0, l_0, v_0 * l_0, |v_0 - l_0|] of L2-normalised globals, times sqrt(width) so that entries are about 1.

    Teachers of different widths are compared after a fixed random projection of both to the smaller width.

    Args:
        image_global: [N, Dv].
        text_global: [N, Dl], or [N, C, Dl] for multiple choice.

    Returns:
        [N, F] or [N, C, F] float32; F = Dv + Dl + 2 min(Dv, Dl).
    """
    v, t = F.normalize(image_global.float(), dim=-1), F.normalize(text_global.float(), dim=-1)
    if t.dim() == 3:
        v = v.unsqueeze(1).expand(-1, t.shape[1], -1)
    a, b = v, t
    if v.shape[-1] != t.shape[-1]:
        width = min(v.shape[-1], t.shape[-1])
        a, b = (F.normalize(x @ _projection(x.shape[-1], width).to(x), dim=-1) for x in (v, t))
    parts = [v * v.shape[-1] ** 0.5, t * t.shape[-1] ** 0.5, a * b * a.shape[-1], (a - b).abs() * a.shape[-1] ** 0.5]
    return torch.cat(parts, -1)


def joined_features(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """`probe_features` of several teachers together.

    Side by side stand the features of every teacher that reads both modalities. Teachers of images alone and of texts
    alone make one pair together, as they would in one cache; where only one of the two kinds is there, its globals
    stand alone, for products of vectors of two spaces say little.

    Args:
        pairs: [N, Dv] and [N, Dl] or [N, C, Dl] of each teacher; a width of 0 for what it does not read.

    Returns:
        [N, F] or [N, C, F] float32.
    """
    whole = [probe_features(image, text) for image, text in pairs if image.shape[-1] and text.shape[-1]]
    images = [F.normalize(image.float(), dim=-1) for image, text in pairs if not text.shape[-1]]
    texts = [F.normalize(text.float(), dim=-1) for image, text in pairs if not image.shape[-1]]
    if images or texts:
        image, text = pairs[0]
        vision = torch.cat(images, -1) if images else image.new_zeros(*image.shape[:-1], 0)
        words = torch.cat(texts, -1) if texts else text.new_zeros(*text.shape[:-1], 0)
        whole.append(probe_features(vision, words))
    return whole[0] if len(whole) == 1 else torch.cat(whole, -1)


def _projection(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed("probe projection", rows, columns))
    drawn = torch.randn(rows, columns, generator=generator)
    return drawn / math.sqrt(columns)


def assign_folds(groups: Sequence[Hashable], folds: int, seed: int) -> Tensor:
    """Fold [N] of each example; equal groups share one, whatever the order of the examples.

    Raises:
        DataError: fewer than two groups, so nothing can be held out.
    """
    names = sorted(set(groups), key=lambda group: derive_seed("probe folds", seed, group))
    if len(names) < 2:
        raise DataError(
            "The confidence probe needs examples of at least two different images.",
            hint="use more shots, or weighting: uniform.",
        )
    folds = min(folds, len(names))
    fold_of = {name: position % folds for position, name in enumerate(names)}
    return torch.tensor([fold_of[group] for group in groups], dtype=torch.long)


def cross_fit_probe(
    features: Tensor,
    targets: Tensor,
    *,
    groups: Sequence[Hashable] | Tensor | None = None,
    n_classes: int | None = None,
    folds: int = 5,
    kind: ProbeKind = "linear",
    l2: float | Sequence[float] = DEFAULT_L2,
    iterations: int = 30,
    fit_limit: int = 20000,
    seed: int = 0,
) -> CrossFit:
    """Out-of-fold confidence of the teacher in each example's gold target.

    Args:
        features: [N, F] for classes and answers; [N, C, F] for multiple choice: one head scores candidates.
        targets: [N] long labels, negative where unlabelled (never fitted, but scored); or [N, K] soft targets (VQA).
        groups: image or question of each example; None: all differ.
        n_classes: K for labels; None: from the labels.
        folds: K of the cross-fitting.
        kind: ``linear`` or ``mlp``.
        l2: penalty on the weights of standardised features; of several, each fit takes the one that does best on a
            part held out of its own examples, scaled to their number.
        iterations: of L-BFGS.
        fit_limit: largest number of examples that one fit reads; fewer where they take more than `rows.HELD_BYTES`.
        seed: of folds, subsampling and the MLP's start.

    Returns:
        `CrossFit`, on the CPU.

    Raises:
        DataError: fewer than two groups, or no labelled examples outside of some fold.
    """
    groups = _names_of(groups, features.shape[0])
    fitted = fit_cross_probe(
        features, targets, groups=groups, n_classes=n_classes, folds=folds, kind=kind, l2=l2, iterations=iterations,
        fit_limit=fit_limit, seed=seed,
    )  # fmt: skip
    probabilities = fitted.probabilities(features, groups)
    confidence = gold_probability(probabilities.clamp_min(1e-30).log(), targets.detach().cpu())
    return CrossFit(confidence, probabilities, fitted.fold, fitted.l2)


@dataclass(frozen=True, slots=True)
class CrossFitProbe:
    """One head per part of the labelled examples, fitted on all the other parts.

    Attributes:
        heads: from features to logits; number k saw no example of fold k.
        fold: [N] long: the fold of each example of the fit.
        fold_of: the fold of each group.
        l2: per head, the penalty that was chosen.
        n_outputs: K classes or answers, or C candidates.
    """

    heads: tuple[Callable[[Tensor], Tensor], ...]
    fold: Tensor
    fold_of: Mapping[Hashable, int]
    l2: tuple[float, ...]
    n_outputs: int

    def probabilities(self, features: Tensor, groups: Sequence[Hashable]) -> Tensor:
        """What the probe says of examples, whether or not they or their groups were in the fit.

        An example of a group of the fit is scored by the one head that has not seen that group; any other by the mean
        of all heads' probabilities, none of which has seen it.

        Args:
            features: [n, F], or [n, C, F] for multiple choice.
            groups: n image or question ids.

        Returns:
            [n, K] float32 over classes or answers, or [n, C] over candidates.
        """
        features = features.detach().float().cpu()
        found = torch.zeros(len(groups), self.n_outputs)
        fold = torch.tensor([self.fold_of.get(group, -1) for group in groups], dtype=torch.long)
        for number, score in enumerate(self.heads):
            rows = torch.nonzero((fold == number) | (fold < 0)).flatten()
            if rows.numel():
                share = torch.where(fold[rows] < 0, 1.0 / len(self.heads), 1.0)
                found[rows] += share.unsqueeze(1) * score(features[rows]).softmax(-1)
        return found


def fit_cross_probe(
    features: Rows,
    targets: Rows,
    *,
    groups: Sequence[Hashable] | Tensor | None = None,
    n_classes: int | None = None,
    folds: int = 5,
    kind: ProbeKind = "linear",
    l2: float | Sequence[float] = DEFAULT_L2,
    iterations: int = 30,
    fit_limit: int = 20000,
    seed: int = 0,
) -> CrossFitProbe:
    """Fit the heads of a cross-fitted probe. Arguments and errors are those of `cross_fit_probe`.

    Neither features nor soft targets need be tensors: rows are read as they are needed (`mad.rows`), and no fit reads
    more of them than `rows.HELD_BYTES` hold.
    """
    if isinstance(features, Tensor):
        features = features.detach().float().cpu()
    if isinstance(targets, Tensor):
        targets = targets.detach().cpu()
    groups = _names_of(groups, features.shape[0])
    fold = assign_folds(groups, folds, seed)
    soft = len(targets.shape) == 2
    read = (targets[rows] for rows in blocks(targets))
    known = torch.cat([one.sum(-1) if soft else one for one in read])  # labels, or sums of soft scores
    labelled = known > 0 if soft else known >= 0
    if len(features.shape) == 3:
        n_classes = features.shape[1]
    elif soft:
        n_classes = targets.shape[1]
    elif n_classes is None:
        n_classes = int(known.max()) + 1
    each = row_bytes(features) + (4 * _SOFT_COPIES * targets.shape[1] if soft else 0)
    fit_limit = min(fit_limit, held_of(each))
    penalties = (float(l2),) if isinstance(l2, (int, float)) else tuple(l2)
    chosen = []
    heads = []
    # No fit starts from another's solution: that one has seen the examples this one will score.
    for held_out in range(int(fold.max()) + 1):
        fit = torch.nonzero(labelled & (fold != held_out)).flatten()
        if fit.numel() == 0:
            raise DataError("The confidence probe has no labelled examples to be fitted on.", hint="use more shots.")
        fit = _subsample(fit, fit_limit, seed, "fit", held_out)
        penalty = penalties[0]
        if len(penalties) > 1:
            penalty = _best_penalty(features, targets, groups, fit, penalties, n_classes, kind, iterations, seed)
        chosen.append(penalty)
        heads.append(
            fit_probe(features[fit], targets[fit], n_classes, kind=kind, l2=penalty, iterations=iterations, seed=seed)
        )
    fold_of = dict(zip(groups, fold.tolist(), strict=True))
    return CrossFitProbe(tuple(heads), fold, fold_of, tuple(chosen), n_classes)


def _names_of(groups: Sequence[Hashable] | Tensor | None, n: int) -> Sequence[Hashable]:
    if groups is None:
        return range(n)
    return groups.tolist() if isinstance(groups, Tensor) else groups


def fit_probe(
    features: Tensor,
    targets: Tensor,
    n_classes: int,
    *,
    kind: ProbeKind = "linear",
    l2: float = 0.03,
    iterations: int = 30,
    standardise: bool = True,
    hidden: int = 64,
    seed: int = 0,
) -> Callable[[Tensor], Tensor]:
    """Fit one head by L-BFGS: minimise mean cross-entropy + l2 / 2 * squared norm of the weights (not of biases).

    Args:
        features: [N, F] or [N, C, F] (one weight vector for all candidates).
        targets: [N] long or [N, K] soft, all labelled.
        n_classes: K; for [N, C, F] it is C.
        kind: ``linear`` or ``mlp`` with one layer of `hidden` GELUs.
        l2: penalty.
        iterations: of L-BFGS with a strong-Wolfe line search.
        standardise: scale features by the mean and deviation over these examples.
        hidden: width of the MLP.
        seed: of the MLP's start (the linear head starts at zero).

    Returns:
        A function from features to logits [n, K] or [n, C].
    """
    width, choice = features.shape[-1], features.dim() == 3
    mean, scale = torch.zeros(width), torch.ones(width)
    if standardise:
        flat = features.reshape(-1, width)
        mean = flat.mean(0)
        scale = _variance(flat, mean).add(1e-8).rsqrt()
    outputs = 1 if choice else n_classes
    weights, biases = _start(kind, width, outputs, hidden, seed)

    def logits(x: Tensor) -> Tensor:
        # Standardisation is folded into the first weights, which spares a copy of all features.
        first = scale.unsqueeze(-1) * weights[0]
        y = x @ first + (biases[0] - mean @ first)
        if kind == "mlp":
            y = F.gelu(y) @ weights[1] + biases[1]
        return y.squeeze(-1) if choice else y

    if targets.dim() == 2:
        targets = targets.float() / targets.float().sum(-1, keepdim=True).clamp_min(1e-12)
    optimiser = torch.optim.LBFGS(
        [*weights, *biases], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe",
        tolerance_grad=1e-6, tolerance_change=1e-9,
    )  # fmt: skip

    def closure() -> Tensor:
        optimiser.zero_grad()
        objective = F.cross_entropy(logits(features), targets)
        objective = objective + 0.5 * l2 * torch.stack([weight.square().sum() for weight in weights]).sum()
        objective.backward()
        return objective

    with torch.enable_grad():
        optimiser.step(closure)
    for parameter in [*weights, *biases]:
        parameter.requires_grad_(False)
    return logits


def _variance(flat: Tensor, mean: Tensor) -> Tensor:
    """Per column; of a large table piece by piece, for what lies between is as large as the table."""
    block = block_of(flat.element_size() * flat.shape[1])
    if len(flat) <= block:
        return (flat - mean).square().mean(0)
    pieces = flat.split(block)
    return torch.stack([(piece - mean).square().sum(0) for piece in pieces]).sum(0) / len(flat)


def _start(kind: ProbeKind, width: int, outputs: int, hidden: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    if kind == "linear":
        weights, biases = [torch.zeros(width, outputs)], [torch.zeros(outputs)]
    else:
        generator = torch.Generator().manual_seed(derive_seed("probe start", seed))
        weights = [
            torch.randn(width, hidden, generator=generator) / width**0.5,
            torch.randn(hidden, outputs, generator=generator) / hidden**0.5,
        ]
        biases = [torch.zeros(hidden), torch.zeros(outputs)]
    for parameter in [*weights, *biases]:
        parameter.requires_grad_(True)
    return weights, biases


_PENALTY_LIMIT = 3000  # examples on which penalties are compared


def _best_penalty(
    features: Rows,
    targets: Rows,
    groups: Sequence[Hashable],
    fit: Tensor,
    penalties: tuple[float, ...],
    n_classes: int,
    kind: ProbeKind,
    iterations: int,
    seed: int,
) -> float:
    """The penalty with the best held-out cross-entropy, inside the examples of one fit."""
    n_fit = fit.numel()
    fit = _subsample(fit, _PENALTY_LIMIT, seed, "penalty", int(fit[0]))
    inner = [groups[row] for row in fit.tolist()]
    if len(set(inner)) < 3:
        return penalties[-1]
    outside = assign_folds(inner, 3, seed + 1) == 0
    train, check = fit[~outside], fit[outside]

    def held_out_loss(penalty: float) -> float:
        score = fit_probe(
            features[train], targets[train], n_classes, kind=kind, l2=penalty, iterations=iterations, seed=seed
        )
        gold = targets[check]
        if gold.dim() == 2:
            gold = gold.float() / gold.float().sum(-1, keepdim=True)
        return float(F.cross_entropy(score(features[check]), gold))

    # One prior on the weights is a penalty that falls as the mean is over more examples.
    return min(penalties, key=held_out_loss) * train.numel() / n_fit


def _subsample(rows: Tensor, limit: int, *seed: object) -> Tensor:
    if rows.numel() <= limit:
        return rows
    kept = torch.from_numpy(permutation(rows.numel(), "probe subsample", *seed)[:limit])
    return rows[kept.sort().values]
