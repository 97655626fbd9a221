from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from madkit.core.errors import ConfigError, DataError
from madkit.mad.calibrate import calibrated
from madkit.mad.config import MADConfig
from madkit.mad.criterion import MADCriterion

torch.set_num_threads(1)
OPEN = MADConfig(weight=0.0, affinity_weight=1.0, weighting="uniform", affinity_kind="absolute", affinity_tau=None)


def pairs(n: int = 400, R: int = 3, D: int = 24) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sentences, each about the first region of its own image."""
    g = torch.Generator().manual_seed(0)
    regions = torch.randn(n, R, D, generator=g)
    text = regions[:, 0] + torch.randn(n, D, generator=g)
    mask = torch.ones(n, R, dtype=torch.bool)
    mask[::2, -1] = False
    return text, regions, mask


def test_the_scale_is_that_of_the_cosines_and_the_threshold_what_others_reach_by_chance() -> None:
    text, regions, mask = pairs()
    found = calibrated(OPEN, text, regions, mask)
    own = F.cosine_similarity(text[:, None], regions, dim=-1)
    assert found.affinity_tau == pytest.approx(5 / np.std(own[mask].numpy(), ddof=1), abs=1e-3)
    matched, best_of_others = own[:, 0], []
    for i in range(len(text)):
        j = (i + len(text) // 2) % len(text)
        best_of_others.append(F.cosine_similarity(text[i], regions[j][mask[j]], dim=-1).max().item())
    assert found.affinity_threshold == pytest.approx(np.quantile(best_of_others, 0.95), abs=1e-3)
    assert (matched > found.affinity_threshold).float().mean() > 0.9


def test_what_is_given_stays() -> None:
    text, regions, mask = pairs()
    given = OPEN.model_copy(update={"affinity_threshold": 0.3})
    found = calibrated(given, text, regions, mask)
    assert found.affinity_threshold == 0.3
    assert found.affinity_tau is not None
    relative = MADConfig(affinity_weight=1.0)
    assert calibrated(relative, text, regions, mask) is relative


def test_two_sentences_on_one_image_are_never_each_others_chance() -> None:
    text, regions, mask = pairs(8)
    image = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])
    found = calibrated(OPEN, text, regions, mask, image)
    values = [F.cosine_similarity(text[i], regions[7][mask[7]], dim=-1).max().item() for i in range(7)]
    last = F.cosine_similarity(text[7], regions[0:7], dim=-1)
    assert found.affinity_threshold is not None
    assert found.affinity_threshold <= max([*values, last.max().item()])
    with pytest.raises(DataError, match="two images"):
        calibrated(OPEN, text, regions, mask, torch.zeros(8))


def test_a_criterion_refuses_open_values() -> None:
    with pytest.raises(ConfigError, match="affinity_threshold"):
        MADCriterion(OPEN, 8, 24, 24)
    with pytest.raises(ValueError, match="affinity_tau"):
        MADConfig(affinity_weight=1.0, affinity_tau=None)
