"""Task losses against torch's own, and what the two forms of VQA's do with unanswerable questions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from madkit.students.heads import gold_probability, task_loss


def test_choices_and_classes_are_cross_entropy() -> None:
    logits, target = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    wanted = F.cross_entropy(logits, target, reduction="none")
    for kind in ("multiple-choice", "classification"):
        assert torch.allclose(task_loss(kind, logits, target), wanted)
    assert torch.allclose(gold_probability("classification", logits, target), (-wanted).exp())


def test_bce_is_the_mean_times_the_number_of_answers() -> None:
    logits, scores = torch.randn(3, 7), torch.rand(3, 7)
    wanted = F.binary_cross_entropy_with_logits(logits, scores) * 7  # UNITER: mean over all, times the answers
    assert torch.allclose(task_loss("vqa", logits, scores).mean(), wanted)


def test_softmax_takes_scores_as_shares() -> None:
    logits, scores = torch.randn(3, 7), torch.rand(3, 7)
    shares = scores / scores.sum(1, keepdim=True)
    wanted = F.cross_entropy(logits, shares, reduction="none")
    assert torch.allclose(task_loss("vqa", logits, scores, vqa_loss="softmax"), wanted, atol=1e-6)
    kl = F.kl_div(logits.log_softmax(1), shares, reduction="none").sum(1)  # VisualBERT's: the same up to a constant
    difference = task_loss("vqa", logits, scores, vqa_loss="softmax") - kl
    assert torch.allclose(difference, -(shares * shares.log()).sum(1), atol=1e-5)


def test_a_question_without_known_answer_teaches_nothing_under_softmax() -> None:
    logits = torch.randn(2, 7, requires_grad=True)
    task_loss("vqa", logits, torch.zeros(2, 7), vqa_loss="softmax").sum().backward()
    assert logits.grad is not None
    assert not logits.grad.any()
