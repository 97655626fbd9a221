"""The forms of the task loss reach what is minimised: a run's configuration through to the loss of a micro-batch."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madkit.distill.objective.objective import Objective, loss_forms
from madkit.distill.pool.joint_objective import JointObjective
from madkit.distill.pool.soft_phase import soft_objective
from madkit.distill.settings.config import DistillConfig, PrePhaseConfig
from madkit.distill.settings.pool_config import PoolConfig
from madkit.students.heads import LossForms


@dataclass
class Out:
    """What the objective reads of a student's output."""

    logits: Tensor
    pair_logits: Tensor | None = None


def student(kind: str) -> Any:
    model: Any = nn.Identity()
    model.head_spec = SimpleNamespace(kind=kind)
    return model


def test_a_configuration_says_the_forms() -> None:
    config = DistillConfig(choice_loss="sigmoid", class_loss="bce", optim={"vqa_loss": "softmax"})
    assert loss_forms(config) == LossForms(vqa="softmax", choice="sigmoid", classes="bce")
    assert loss_forms(DistillConfig()) == LossForms(DistillConfig().optim.vqa_loss)
    phase = PrePhaseConfig(soft_labels={})
    assert soft_objective(student("vqa"), None, config, phase).forms == loss_forms(config)


@pytest.mark.parametrize(
    ("kind", "forms", "wanted"),
    [
        ("classification", LossForms(), lambda x, y: F.cross_entropy(x, y)),
        (
            "classification",
            LossForms(classes="bce"),
            lambda x, y: F.binary_cross_entropy_with_logits(x, F.one_hot(y, 4).float(), reduction="sum") / len(x),
        ),
        (
            "multiple-choice",
            LossForms(choice="sigmoid"),
            lambda x, y: F.binary_cross_entropy_with_logits(x, F.one_hot(y, 4).float(), reduction="sum") / len(x),
        ),
        ("multiple-choice", LossForms(classes="bce"), lambda x, y: F.cross_entropy(x, y)),
    ],
)
def test_an_objective_takes_the_form_it_is_given(kind: str, forms: LossForms, wanted: Any) -> None:
    logits, target = torch.randn(6, 4), torch.randint(0, 4, (6,))
    batch: Any = SimpleNamespace(target=target)
    out: Any = Out(logits)
    plain = Objective(student(kind), None, forms=forms)
    joint = JointObjective(student(kind), None, PoolConfig(), distils=False, forms=forms)
    assert torch.allclose(plain.task(out, batch), wanted(logits, target))
    assert torch.equal(plain.task(out, batch), joint.task(out, batch))
