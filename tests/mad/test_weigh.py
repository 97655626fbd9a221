from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from madkit.mad.weigh import confidence_weights, gold_probability, zero_shot_confidence

torch.set_num_threads(1)
probability = st.floats(0.01, 1.0)


@given(st.lists(st.tuples(probability, probability), min_size=1, max_size=8), st.floats(0, 2), st.floats(0.1, 5))
@settings(max_examples=50, deadline=None)
def test_weights_are_the_formula_with_mean_one(pairs: list[tuple[float, float]], gamma: float, w_max: float) -> None:
    teacher, student = torch.tensor(pairs).unbind(-1)
    got = confidence_weights(teacher, student, gamma=gamma, w_max=w_max)
    raw = [min((t / s) ** gamma, w_max) for t, s in pairs]
    wanted = torch.tensor(raw) * (len(raw) / sum(raw))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got.mean(), torch.tensor(1.0), atol=1e-5, rtol=0)


def test_modes() -> None:
    teacher, student = torch.tensor([0.2, 0.6]), torch.tensor([0.2, 0.3])
    assert confidence_weights(teacher, student, mode="uniform").tolist() == [1.0, 1.0]
    torch.testing.assert_close(confidence_weights(teacher, mode="teacher-only"), torch.tensor([0.5, 1.5]))
    torch.testing.assert_close(
        confidence_weights(teacher, student, mode="teacher-student"), torch.tensor([2 / 3, 4 / 3])
    )
    with pytest.raises(ValueError, match="student's confidence"):
        confidence_weights(teacher, mode="teacher-student")


def test_unlabelled_examples_count_by_the_threshold_and_not_in_the_mean() -> None:
    got = confidence_weights(
        torch.tensor([0.9, 0.3, 0.6, 0.4]),
        mode="teacher-only",
        labelled=torch.tensor([True, True, False, False]),
        probe_threshold=0.5,
    )
    torch.testing.assert_close(got, torch.tensor([1.5, 0.5, 1.0, 0.0]))


def test_nothing_is_infinite_when_the_student_is_sure_of_something_wrong() -> None:
    got = confidence_weights(torch.tensor([0.0, 0.9]), torch.tensor([0.0, 0.0]))
    assert got.tolist() == [0.0, 2.0]
    assert confidence_weights(torch.zeros(3), torch.ones(3)).tolist() == [0.0, 0.0, 0.0]


def test_no_gradient_reaches_the_student_through_its_confidence() -> None:
    student = torch.tensor([0.5, 0.2], requires_grad=True)
    assert not confidence_weights(torch.tensor([0.5, 0.5]), student).requires_grad


def test_gold_probability_of_labels_and_soft_targets() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]]))
    torch.testing.assert_close(gold_probability(logits, torch.tensor([1, -1])), torch.tensor([0.2, 0.6]))
    soft = torch.tensor([[1.0, 0.6, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(gold_probability(logits, soft), torch.tensor([0.7 + 0.6 * 0.2, 0.6]))


def test_zero_shot_is_a_softmax_over_candidates() -> None:
    image = torch.tensor([[2.0, 0.0]])
    text = torch.tensor([[[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]])
    got = zero_shot_confidence(image, text, torch.tensor([0]), logit_scale=2.0)
    e = math.e
    torch.testing.assert_close(got, torch.tensor([e**2 / (e**2 + 1 + e**-2)]))
