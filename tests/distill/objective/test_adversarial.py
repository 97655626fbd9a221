"""Adversarial passes against VILLA's step written out by hand, with the perturbation applied in another way."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from madkit.core.errors import ConfigError
from madkit.distill.batches.examples import ExampleSet
from madkit.distill.batches.micro_batch import BatchMaker
from madkit.distill.objective.adversarial import Adversary, symmetric_kl, word_table
from madkit.distill.objective.objective import Objective
from madkit.distill.settings.config import AdversarialConfig
from madkit.distill.stage import distill, set_dropout
from madkit.students.heads import HeadSpec
from madkit.students.interface import StudentOutput
from madkit.students.load import load_student
from madkit.tasks.data import open_task

torch.set_num_threads(1)


@pytest.fixture(params=["vcr", "snli-ve"])
def case(request, workspace, student):
    """An objective without dropout, and a micro-batch of six examples."""
    data = open_task(workspace, request.param, part="tiny")
    head = HeadSpec("multiple-choice") if request.param == "vcr" else HeadSpec("classification", data.spec.labels)
    model = load_student(student, head=head, head_seed=1)
    set_dropout(model, 0.0)
    examples = ExampleSet(list(data.examples("train"))[:6], model, data.regions())
    return Objective(model.train(), None), BatchMaker(examples, 10)(np.arange(6), 0)


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def attack(objective: Objective, batch, config: AdversarialConfig) -> tuple[list[float], list[dict], dict]:
    losses, terms = [], []
    objective.zero_grad()
    for out, more in Adversary(objective, config)(batch):
        out.loss.backward(retain_graph=more)
        losses.append(float(out.loss.detach()))
        terms.append({name: float(value) for name, value in out.terms.items()})
    return losses, terms, gradients(objective)


def by_hand(objective: Objective, batch, config: AdversarialConfig, modalities: tuple[str, ...]):
    """One sum of all losses, differentiated once.

    Words are perturbed by giving every token of the batch a row of its own in the word table; the perturbation's
    gradient is asked of `torch.autograd.grad`, pass by pass.
    """
    student = objective.student
    original = word_table(student)
    inputs = batch.inputs
    S, T = inputs.input_ids.shape
    own = replace(
        inputs,
        image_index=torch.arange(S),
        region_features=inputs.region_features[inputs.image_index],
        region_boxes=inputs.region_boxes[inputs.image_index],
        region_mask=inputs.region_mask[inputs.image_index],
    )
    clean = student(inputs)
    words = torch.zeros(S, T, original.embedding_dim, requires_grad=True)
    pixels = torch.zeros_like(own.region_features, requires_grad=True)
    total, losses = torch.zeros(()), []
    for number in range(config.steps):
        rows = original(inputs.input_ids) + words

        class Own(nn.Module):
            def forward(self, ids: torch.Tensor, rows: torch.Tensor = rows) -> torch.Tensor:
                return rows

        embeddings = student.encoder.embeddings
        embeddings.word_embeddings = Own()
        try:
            out = student(replace(own, region_features=own.region_features + pixels))
        finally:
            embeddings.word_embeddings = original
        p, q = out.logits.softmax(-1), clean.logits.softmax(-1)
        kl = nn.functional.kl_div(q.log(), p, reduction="batchmean") + nn.functional.kl_div(
            p.log(), q, reduction="batchmean"
        )
        loss = (objective.task(out, batch) + config.kl_weight * kl) / config.steps
        total = total + loss
        losses.append(float(loss.detach()))
        if number + 1 < config.steps:
            moved = []
            for name, delta, rate in (("text", words, config.rate_text), ("image", pixels, config.rate_image)):
                if name not in modalities:
                    moved.append(delta)
                    continue
                (g,) = torch.autograd.grad(loss, delta, retain_graph=True)
                length = g.flatten(1).norm(dim=1).clamp_min(1e-8).view(-1, 1, 1)
                moved.append((delta + rate * g / length).detach().requires_grad_())
            words, pixels = moved
    objective.zero_grad()
    total.backward()
    return losses, gradients(objective)


@pytest.mark.parametrize("modality", ["text", "image", "both"])
def test_a_step_is_villas(case, modality):
    objective, batch = case
    config = AdversarialConfig(steps=3, modality=modality, rate_text=0.5, rate_image=2.0)
    modalities = ("text", "image") if modality == "both" else (modality,)
    losses, _, found = attack(objective, batch, config)
    expected_losses, expected = by_hand(copy.deepcopy(objective), batch, config, modalities)
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_the_first_pass_is_clean_and_the_attack_hurts(case):
    objective, batch = case
    losses, terms, _ = attack(objective, batch, AdversarialConfig(steps=3, modality="both", rate_text=1, rate_image=3))
    plain = float(objective(batch).loss.detach())
    assert terms[0]["adversarial_kl"] == pytest.approx(0.0, abs=1e-6)
    assert terms[0]["task"] == pytest.approx(plain / 3, rel=1e-5)
    assert losses[0] < losses[1] < losses[2]


def test_one_modality_after_the_other_counts_both_rounds_once(case):
    objective, batch = case
    losses, terms, _ = attack(objective, batch, AdversarialConfig(steps=2, modality="alternate"))
    assert len(losses) == 4
    plain = float(objective(batch).loss.detach())
    assert terms[0]["task"] == terms[2]["task"] == pytest.approx(plain / 4, rel=1e-5)


def test_a_limit_keeps_the_perturbation_short(case):
    objective, batch = case
    free, _, _ = attack(objective, batch, AdversarialConfig(steps=3, rate_text=2.0))
    held, _, _ = attack(objective, batch, AdversarialConfig(steps=3, rate_text=2.0, max_norm=1e-4))
    assert held[2] == pytest.approx(held[0], rel=1e-2)
    assert free[2] > held[2] * 1.01


def test_binary_heads_average_over_candidates_and_outputs():
    draw = torch.Generator().manual_seed(0)
    one, other = (torch.randn(3, 4, 2, generator=draw) for _ in range(2))
    outputs = [StudentOutput(pair[..., 1], (), 0, torch.zeros(1), pair) for pair in (one, other)]
    p, q = (pair.flatten(0, 1).softmax(-1) for pair in (one, other))
    expected = ((p / q).log() * p).mean() + ((q / p).log() * q).mean()  # over 12 candidates and 2 outputs
    torch.testing.assert_close(symmetric_kl("multiple-choice", *outputs), expected)


def test_a_student_without_a_word_table_is_refused():
    with pytest.raises(ConfigError, match="0 tables named"):
        word_table(nn.Linear(2, 2))


@pytest.mark.parametrize("arm", ["finetune", "mad"])
def test_a_run_composes_with_a_teacher_and_its_accumulation_changes_nothing(workspace, student, arm):
    def run(**settings: object) -> list[float]:
        result = distill(
            workspace,
            task="vcr",
            shots="12",
            arm=arm,
            student=student,
            config_overrides={
                "optim.steps": 2,
                "optim.batch_size": 4,
                "optim.dropout": 0.0,
                "adversarial.modality": "both",
                "adversarial.steps": 2,
                **({"mad.weighting": "uniform"} if arm == "mad" else {}),
                **settings,
            },
            part="tiny",
        )
        lines = (result.path / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert "adversarial_kl" in rows[0]["terms"]
        assert ("token_text" in rows[0]["terms"]) is (arm == "mad")
        return [row["loss"] for row in rows if "loss" in row]

    whole = run()
    assert run(**{"optim.micro_tokens": 200}) == pytest.approx(whole, rel=2e-4)
