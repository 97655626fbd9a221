"""Tokens that read along with any student, and are read by none of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from madkit.students.families import FAMILIES, family_of
from madkit.students.heads import HeadSpec
from madkit.students.interface import StudentInputs
from madkit.students.student import Student, StudentIdentity
from madkit.students.tokenizer import SPECIALS, StudentTokenizer

torch.set_num_threads(1)
OF_REGIONS = {"layers": 2, "region_dim": 10}
SIZES: dict[str, dict[str, int]] = {
    "uniter": OF_REGIONS,
    "villa": OF_REGIONS,
    "vl-bert": OF_REGIONS,
    "visualbert": OF_REGIONS,
    "lxmert": {"language_layers": 3, "object_layers": 2, "cross_layers": 2, "region_dim": 10},
    "vilt": {"layers": 2, "image_size": 32, "patch_size": 8},
}
families = pytest.mark.parametrize("family", list(SIZES))
Inputs = Callable[..., StudentInputs]


def network(family: str, shaken: Callable[..., Any]) -> Any:
    found = family_of(family)
    sizes = {"vocab_size": 60, "hidden_size": 32, "heads": 4, "intermediate_size": 48, "max_positions": 24}
    return shaken(found.model(found.config(**sizes, **SIZES[family])))


def batch(inputs: Inputs, family: str, **padding: int) -> StudentInputs:
    dim = 192 if family == "vilt" else 10
    return inputs([9, 6, 7, 5], [3, 2], candidates=2, types=(0, 1), dim=dim, **padding)


def test_every_network_is_asked() -> None:
    assert {family_of(name).model for name in FAMILIES.names()} == {family_of(name).model for name in SIZES}


@families
@torch.no_grad()
def test_nothing_else_knows_of_them(inputs: Inputs, shaken: Callable[..., Any], family: str) -> None:
    """What the student answers with such tokens is what it answers without."""
    model, examples = network(family, shaken), batch(inputs, family)
    plain, read = model(examples), model(examples, distillation_tokens=torch.randn(2, 32))
    assert plain.distillation_states == ()
    close = {"atol": 1e-5, "rtol": 1e-5}  # sums of another length are added in another order
    torch.testing.assert_close(read.pooled, plain.pooled, **close)
    assert len(read.distillation_states) == len(read.states) == len(plain.states)
    for with_them, without in zip(read.states, plain.states, strict=True):
        torch.testing.assert_close(with_them, without, **close)
    assert all(state.shape == (4, 2, 32) for state in read.distillation_states)
    assert not torch.allclose(read.distillation_states[1][:, 0], read.distillation_states[1][:, 1], atol=1e-3)


@families
@torch.no_grad()
def test_they_begin_as_the_twin_of_cls(inputs: Inputs, shaken: Callable[..., Any], family: str) -> None:
    """At every layer, and whatever padding stands between."""
    model = network(family, shaken)
    for examples in (batch(inputs, family), batch(inputs, family, pad_text=4, pad_regions=3)):
        read = model(examples, distillation_tokens=torch.zeros(1, 32))
        for own, state in zip(read.distillation_states, read.states, strict=True):
            torch.testing.assert_close(own[:, 0], state[:, 0], atol=1e-5, rtol=1e-5)


@families
def test_what_they_learn_the_student_learns(inputs: Inputs, shaken: Callable[..., Any], family: str) -> None:
    model, examples = network(family, shaken), batch(inputs, family)
    offsets = torch.zeros(1, 32, requires_grad=True)
    read = model(examples, distillation_tokens=offsets)
    (own,) = torch.autograd.grad(read.states[-1].square().sum(), [offsets], retain_graph=True, allow_unused=True)
    assert own is None or not own.any()  # the student's own states say nothing to the token
    read.distillation_states[-1].square().sum().backward()
    assert offsets.grad is not None
    assert offsets.grad.any()
    words = next(value for name, value in model.named_parameters() if name.endswith("word_embeddings.weight"))
    assert words.grad is not None
    assert words.grad.any()


@families
@torch.no_grad()
def test_a_student_gives_their_states(inputs: Inputs, shaken: Callable[..., Any], family: str) -> None:
    found = family_of(family)
    model = network(family, shaken)
    head = found.make_head(model.config, HeadSpec("multiple-choice")).eval()
    tokenizer = StudentTokenizer.of_words(SPECIALS, lowercase=True)  # nothing is encoded here
    student = Student(model, head, tokenizer, StudentIdentity("tiny", family, "-")).eval()
    examples = batch(inputs, family)
    plain, read = student(examples), student(examples, torch.randn(2, 32))
    torch.testing.assert_close(read.logits, plain.logits, atol=1e-5, rtol=1e-5)
    assert [state.shape for state in read.distillation_states] == [(4, 2, 32)] * (student.layers + 1)
    assert plain.distillation_states == ()
