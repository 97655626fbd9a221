"""Task losses against torch's own, and what the two forms of VQA's do with unanswerable questions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from madkit.core.errors import DataError
from madkit.students.heads import HeadSpec, LossForms, gold_probability, task_loss
from madkit.students.load import load_student, save_student
from madkit.students.start import new_student


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
    assert torch.allclose(task_loss("vqa", logits, scores, LossForms(vqa="softmax")), wanted, atol=1e-6)
    kl = F.kl_div(logits.log_softmax(1), shares, reduction="none").sum(1)  # VisualBERT's: the same up to a constant
    difference = task_loss("vqa", logits, scores, LossForms(vqa="softmax")) - kl
    assert torch.allclose(difference, -(shares * shares.log()).sum(1), atol=1e-5)


def test_a_question_without_known_answer_teaches_nothing_under_softmax() -> None:
    logits = torch.randn(2, 7, requires_grad=True)
    task_loss("vqa", logits, torch.zeros(2, 7), LossForms(vqa="softmax")).sum().backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_binary_choices_are_classes_of_candidates_one_by_one() -> None:
    """UNITER makes every candidate an example of its own, with two classes."""
    pairs, target = torch.randn(3, 4, 2), torch.tensor([1, 0, 3])
    right = torch.zeros(3, 4, dtype=torch.long)
    right[torch.arange(3), target] = 1
    wanted = F.cross_entropy(pairs.view(12, 2), right.view(12), reduction="sum")
    loss = task_loss("multiple-choice", pairs[..., 1], target, LossForms(choice="binary"), pairs=pairs)
    assert loss.shape == (3,)
    assert torch.allclose(loss.sum(), wanted)
    with pytest.raises(ValueError, match="two outputs"):
        task_loss("multiple-choice", pairs[..., 1], target, LossForms(choice="binary"))


def test_sigmoid_choices_and_classes_are_yes_or_no_each() -> None:
    logits, target = torch.randn(3, 4), torch.tensor([1, 0, 3])
    wanted = F.binary_cross_entropy_with_logits(logits, F.one_hot(target, 4).float(), reduction="none").sum(1)
    assert torch.allclose(task_loss("multiple-choice", logits, target, LossForms(choice="sigmoid")), wanted)
    assert torch.allclose(task_loss("classification", logits, target, LossForms(classes="bce")), wanted)


def test_choices_can_cost_their_mean_as_their_authors_have_it() -> None:
    """VL-BERT and UNITER leave the mean over all candidates of a batch to torch."""
    logits, pairs, target = torch.randn(3, 4), torch.randn(3, 4, 2), torch.tensor([1, 0, 3])
    right = F.one_hot(target, 4)
    sigmoid = LossForms(choice="sigmoid", choice_mean=True)
    found = task_loss("multiple-choice", logits, target, sigmoid).mean()
    assert torch.allclose(found, F.binary_cross_entropy_with_logits(logits, right.float()))
    binary = LossForms(choice="binary", choice_mean=True)
    found = task_loss("multiple-choice", pairs[..., 1], target, binary, pairs=pairs).mean()
    assert torch.allclose(found, F.cross_entropy(pairs.view(12, 2), right.view(12)))
    # classes are no candidates: UNITER sums over them
    bce = LossForms(classes="bce", choice_mean=True)
    found = task_loss("classification", logits, target, bce).mean()
    assert torch.allclose(found, 4 * F.binary_cross_entropy_with_logits(logits, right.float()))


def test_a_binary_head_survives_its_file(inputs, tmp_path) -> None:
    student = load_student("mini-uniter", head=HeadSpec("multiple-choice", binary=True))
    save_student(student, tmp_path)
    again = load_student(tmp_path)
    assert again.head_spec == student.head_spec
    out = again(inputs([6, 5, 7, 4], [3, 2], dim=768, candidates=2))
    assert out.logits.shape == (2, 2)
    assert out.pair_logits is not None
    assert torch.equal(out.logits, out.pair_logits[..., 1])
    assert out.text_states().shape == (4, 7, 128)
    assert out.region_states(0).shape == (4, 3, 128)


def test_inputs_of_another_student_are_refused(inputs) -> None:
    student = load_student("mini-uniter", head=HeadSpec("multiple-choice"))
    batch = inputs([6], [3], dim=10)
    with pytest.raises(DataError, match="reads region features of 768 values; these have 10"):
        student(batch)
    long = inputs([65], [3], dim=768)
    with pytest.raises(DataError, match="A sequence has 65 text tokens; the student mini-uniter has positions for 64"):
        student(long)
    student(replace(long, input_ids=long.input_ids[:, :64], token_type_ids=long.token_type_ids[:, :64],
                    text_mask=long.text_mask[:, :64], tag_regions=long.tag_regions[:, :64]))  # fmt: skip


@pytest.mark.parametrize("name", ["mini-uniter", "mini-vl-bert", "mini-visualbert", "mini-lxmert"])
def test_under_autocast_the_head_keeps_single_precision(name: str, inputs) -> None:
    """In bfloat16 candidates whose scores are near would have one score, and the first would be the answer."""
    student = new_student(name, head=HeadSpec("multiple-choice")).student.eval()
    batch = inputs([6, 5, 7, 4], [3, 2], dim=student.region_dim, candidates=2, types=(0, 1))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        near = student(batch).logits
        assert torch.is_autocast_enabled("cpu")
    with torch.inference_mode():
        exact = student(batch).logits
    assert near.dtype == exact.dtype == torch.float32
    assert (near.bfloat16().float() != near).any(), "rounded to eight bits"
    assert 0 < (near - exact).abs().max() < 0.05
