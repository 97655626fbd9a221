"""Where a teacher's cosines of sentences and regions mean "yes": measured, as every teacher has its own scale.

A CLIP model's cosines of matching pairs may lie at 0.25 and of others at 0.15, another's at 0.5 and 0.0. Absolute
affinity needs to know; relative affinity needs not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from madkit.core.errors import DataError
from madkit.mad.affinity import cosines
from madkit.mad.config import MADConfig

SPREAD = 5.0  # tau * (standard deviation of the cosines)
QUANTILE = 0.95  # share of the sentences that are about no region of another image


@torch.no_grad()
def calibrated(
    config: MADConfig, text: Tensor, regions: Tensor, region_mask: Tensor, image: Tensor | None = None
) -> MADConfig:
    """`config` with `affinity_tau` and `affinity_threshold` as numbers, the open ones measured.

    tau is 5 over the standard deviation of the cosines between sentences and the regions of their own images. The
    threshold is the cosine that the best region of *another* image reaches for 5 % of the sentences: what lies above it
    is hardly there by chance.

    Args:
        config: settings; returned as they are where nothing is open or needed.
        text: [N, D] sentences.
        regions: [N, R, D] regions of each sentence's image.
        region_mask: [N, R] bool.
        image: [N] number of each sentence's image, so that one image is never taken for another; None: all differ.

    Raises:
        DataError: fewer than two images with regions, so that nothing can be measured.
    """
    open_ = config.affinity_tau is None or config.affinity_threshold is None
    if config.affinity_weight == 0 or config.affinity_kind == "relative" or not open_:
        return config
    known = region_mask.any(1)
    text, regions, region_mask = text[known], regions[known], region_mask[known]
    number = torch.arange(len(known))[known] if image is None else image[known]
    other = _others(number)
    if other is None:
        raise DataError("Absolute affinity is calibrated on two images with regions at least, and there are fewer.")
    own = cosines(text.unsqueeze(1), regions).squeeze(1)
    spread = float(own[region_mask].std())
    elsewhere = cosines(text.unsqueeze(1), regions[other]).squeeze(1).masked_fill(~region_mask[other], -1.0).amax(1)
    tau = min(max(SPREAD / max(spread, 1e-6), 1.0), 1000.0)
    threshold = float(torch.quantile(elsewhere, QUANTILE))
    return config.model_copy(
        update={
            "affinity_tau": round(tau, 4) if config.affinity_tau is None else config.affinity_tau,
            "affinity_threshold": round(threshold, 4)
            if config.affinity_threshold is None
            else config.affinity_threshold,
        }
    )


def _others(number: Tensor) -> Tensor | None:
    """For each row a row of another image, far away in the order; None where there is one image only."""
    n = len(number)
    if n < 2 or bool((number == number[0]).all()):
        return None
    rows = torch.arange(n)
    other = (rows + n // 2) % n
    while bool((same := number[other] == number).any()):
        other = torch.where(same, (other + 1) % n, other)
    return other
