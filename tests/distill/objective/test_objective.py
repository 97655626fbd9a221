"""What is minimised: the forms of the task loss that a run asks for, and the weights of VQA's questions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madkit.distill.batches.micro_batch import BatchMaker
from madkit.distill.batches.soft_targets import SoftTargets
from madkit.distill.objective.objective import Objective, loss_forms
from madkit.distill.pool.joint_objective import JointObjective
from madkit.distill.pool.soft_phase import soft_objective
from madkit.distill.settings.config import DistillConfig, PrePhaseConfig
from madkit.distill.settings.pool_config import PoolConfig
from madkit.mad.weigh import confidence_weights
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


class Weighing(nn.Module):
    """A criterion that weighs examples as any does, and keeps what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.empty(0)

    def forward(self, *_: Any, teacher_confidence: Tensor, student_confidence: Tensor, **told: Any) -> Any:
        self.weights = confidence_weights(
            teacher_confidence, student_confidence, labelled=told["labelled"], probe_threshold=0.5
        )
        return SimpleNamespace(loss=self.weights.mean(), terms={})


def test_a_question_without_a_known_answer_weighs_as_one_without_a_label() -> None:
    """It has no gold target, so the teacher's confidence is that of a best guess, and nothing to set against it."""
    full = [{0: 1.0}, {2: 0.6}, {1: 0.3, 3: 1.0}]
    sure, logits = torch.tensor([0.5, 0.2, 0.4, 0.9, 0.1]), torch.randn(5, 4)

    def weights(scores: list[dict[int, float]]) -> Tensor:
        n = len(scores)
        examples: Any = SimpleNamespace(target=SoftTargets(scores, 4), inputs=lambda _: inputs, n_candidates=1)
        inputs: Any = SimpleNamespace(input_ids=torch.zeros(n, 1), n_candidates=1, text_mask=None, tag_regions=None)
        batch = BatchMaker(examples, 10, confidence=sure[:n])(np.arange(n), 0)
        batch = replace(batch, teacher={})
        out: Any = SimpleNamespace(
            logits=logits[:n], hidden_states=(), text_length=1, region_mask=None, distillation_states=()
        )
        criterion: Any = Weighing()
        Objective(student("vqa"), criterion).distil(criterion, out, batch)
        assert (batch.labelled is None) == all(scores)
        return criterion.weights

    alone, beside = weights(full), weights([*full, {}, {}])
    assert torch.equal(
        alone, confidence_weights(sure[:3], (logits[:3].softmax(-1) * SoftTargets(full, 4).dense()).sum(-1))
    )
    assert torch.allclose(beside, torch.cat([alone, torch.tensor([1.0, 0.0])]))
