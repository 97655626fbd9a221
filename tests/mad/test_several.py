"""Several teachers: the sum of what each says alone, with heads of its own, whatever sides it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from madkit.core.errors import ConfigError, DataError
from madkit.mad.config import MADConfig
from madkit.mad.criterion import MADCriterion
from madkit.mad.several import SeveralTeachers
from madkit.mad.sides import teachable
from madkit.mad.targets import TeacherTargets

torch.set_num_threads(1)
Make = Callable[..., Any]
H, D, WIDE = 8, 6, 10
ARMS: dict[str, dict[str, Any]] = {
    "mad": {"k_text": 2, "k_region": 2, "k_tag": 1},
    "mad-affinity": {"affinity_weight": 0.5, "affinity_form": "both", "k_text": 2},
    "mad-info-nce": {"distance": "info-nce", "weighting": "teacher-only", "candidates": "all", "head": "mlp"},
    "kd-all": {"tokens": "all", "weighting": "uniform", "layer": (1, -1)},
    "kd-global": {"tokens": "global", "weighting": "uniform"},
}
arms = pytest.mark.parametrize("arm", list(ARMS))


def criterion_for(targets: TeacherTargets, seed: int = 0, **config: Any) -> MADCriterion:
    """A criterion for what the teacher of `targets` can teach."""
    widths = targets.image_global.shape[-1], targets.text_global.shape[-1]
    left = teachable(
        MADConfig(**config), images=widths[0] > 0, texts=widths[1] > 0, shared_space=targets.shared_space
    ).config
    assert left is not None
    torch.manual_seed(seed)
    return MADCriterion(left, H, *widths)


def vision_only(targets: TeacherTargets, width: int = WIDE) -> TeacherTargets:
    """Another teacher of the same images, which reads no text."""
    g = torch.Generator().manual_seed(7)
    (S, T), (B, R) = targets.text_mask.shape, targets.region_mask.shape
    return replace(
        targets, shared_space=False, text_stats=None, vision_stats=None,
        text_tokens=torch.zeros(S, T, 0), text_global=torch.zeros(S, 0), text_mask=torch.zeros(S, T).bool(),
        regions=torch.randn(B, R, width, generator=g), image_global=torch.randn(B, width, generator=g),
    )  # fmt: skip


def text_only(targets: TeacherTargets, width: int = WIDE) -> TeacherTargets:
    """Another teacher of the same texts, which sees no image; it cuts no target for every third token."""
    g = torch.Generator().manual_seed(8)
    (S, T), (B, R) = targets.text_mask.shape, targets.region_mask.shape
    return replace(
        targets, shared_space=False, text_stats=None, vision_stats=None,
        text_tokens=torch.randn(S, T, width, generator=g), text_global=torch.randn(S, width, generator=g),
        text_mask=targets.text_mask & (torch.arange(T) % 3 > 0),
        regions=torch.zeros(B, R, 0), image_global=torch.zeros(B, 0),
    )  # fmt: skip


def run(module: Any, batch: Any, targets: Any, **changes: Any) -> Any:
    return module(batch.hidden, batch.inputs["text_mask"].shape[1], targets, **{**batch.inputs, **changes})


@pytest.fixture
def three(make_batch: Make) -> tuple[Any, dict[str, TeacherTargets]]:
    """(batch, targets of a pair, a vision and a text teacher)."""
    batch = make_batch(C=4)
    pair = batch.targets
    return batch, {"clip/b.32": pair, "dino": vision_only(pair), "roberta": text_only(pair)}


@arms
@torch.no_grad()
def test_the_loss_is_the_weighted_sum_of_what_each_says_alone(three: Any, arm: str) -> None:
    batch, targets = three
    alone = {name: criterion_for(one, n, **ARMS[arm]) for n, (name, one) in enumerate(targets.items())}
    weights = {"clip/b.32": 1.0, "dino": 0.5, "roberta": 3.0}
    several = run(SeveralTeachers(alone, weights), batch, targets, progress=0.4)
    said = {name: run(criterion, batch, targets[name], progress=0.4) for name, criterion in alone.items()}
    expected = sum(weights[name] * out.loss.item() for name, out in said.items())
    assert several.loss.item() == pytest.approx(expected, abs=1e-6)
    assert several.terms == {f"{name}/{term}": value for name, out in said.items() for term, value in out.terms.items()}
    terms = {name: {term.partition("@")[0] for term in out.terms} for name, out in said.items()}
    assert "token_text" not in terms["dino"]
    assert not {"token_region", "token_tag", "global_image"} & terms["roberta"]
    assert ("affinity_sentence" in terms["clip/b.32"]) == (arm == "mad-affinity")
    assert not any(term.startswith("affinity") for name in ("dino", "roberta") for term in terms[name])


@arms
@torch.no_grad()
def test_teachers_of_weight_zero_change_no_bit(three: Any, arm: str) -> None:
    batch, targets = three
    criteria = {name: criterion_for(one, **ARMS[arm]) for name, one in targets.items()}
    name = "clip/b.32"
    one = run(criteria[name], batch, targets[name])
    several = SeveralTeachers(criteria, {"dino": 0.0, "roberta": 0.0})
    for given in (targets, {name: targets[name]}):
        out = run(several, batch, given)
        assert torch.equal(out.loss, one.loss)
        assert {term: value.item() for term, value in out.terms.items()} == {
            f"{name}/{term}": value.item() for term, value in one.terms.items()
        }


@arms
@torch.no_grad()
def test_two_halves_of_one_teacher_are_that_teacher(make_batch: Make, arm: str) -> None:
    batch = make_batch(C=4)
    criteria = {name: criterion_for(batch.targets, **ARMS[arm]) for name in "ab"}  # equal heads
    both = run(SeveralTeachers(criteria, {"a": 0.5, "b": 0.5}), batch, dict.fromkeys("ab", batch.targets))
    one = run(criteria["a"], batch, batch.targets)
    assert both.loss.item() == one.loss.item()
    if one.weights is not None:
        assert torch.equal(both.weights, one.weights)


@arms
@torch.no_grad()
def test_the_order_in_which_teachers_are_given_changes_no_bit(three: Any, arm: str) -> None:
    batch, targets = three
    criteria = {name: criterion_for(one, n, **ARMS[arm]) for n, (name, one) in enumerate(targets.items())}
    turned = SeveralTeachers(dict(reversed(criteria.items())))
    there, back = run(SeveralTeachers(criteria), batch, targets), run(turned, batch, dict(reversed(targets.items())))
    assert torch.equal(there.loss, back.loss)
    assert list(there.terms) == list(back.terms)
    assert list(SeveralTeachers(criteria).state_dict()) == list(turned.state_dict())


@torch.no_grad()
def test_every_teacher_has_a_distillation_token_of_its_own(three: Any) -> None:
    """In the order of their names, whoever has none or weight 0 between them."""
    batch, targets = three
    settings = {"clip/b.32": {"global_source": "token"}, "dino": {}, "roberta": {"global_source": "token"}}
    alone = {name: criterion_for(targets[name], n, **settings[name]) for n, name in enumerate(targets)}
    for number, criterion in enumerate(alone.values()):
        if criterion.distillation_token is not None:
            criterion.distillation_token.fill_(number)
    tokens = SeveralTeachers(alone).distillation_tokens()
    assert tokens is not None
    assert tokens[:, 0].tolist() == [0, 2]
    assert SeveralTeachers({"dino": alone["dino"]}).distillation_tokens() is None
    states = [torch.cat([readers, 2 * readers], 1) for readers in batch.readers]
    own = {"clip/b.32": batch.readers, "dino": (), "roberta": [2 * readers for readers in batch.readers]}
    said = {name: run(one, batch, targets[name], distillation_states=own[name]) for name, one in alone.items()}
    for weight in (1.0, 0.0):
        module = SeveralTeachers(alone, {"clip/b.32": weight})
        both = run(module, batch, targets, distillation_states=states)
        parts = [weight * said["clip/b.32"].loss, said["dino"].loss, said["roberta"].loss]
        assert both.loss.item() == pytest.approx(sum(parts).item(), abs=1e-6)
    with pytest.raises(ConfigError, match="states of the distillation token"):
        run(SeveralTeachers(alone), batch, targets)


@arms
def test_gradient_reaches_every_head_and_no_teacher(three: Any, arm: str) -> None:
    batch, targets = three
    tensors = ("text_tokens", "text_global", "regions", "image_global")
    for name, one in targets.items():
        values = {key: getattr(one, key).clone().requires_grad_() for key in tensors}
        targets[name] = replace(one, **values)
    for states in batch.hidden:
        states.requires_grad_()
    several = SeveralTeachers({name: criterion_for(one, **ARMS[arm]) for name, one in targets.items()})
    run(several, batch, targets).loss.backward()
    for name, parameter in several.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert all(getattr(one, key).grad is None for one in targets.values() for key in tensors)
    assert any(states.grad is not None and states.grad.any() for states in batch.hidden)


@torch.no_grad()
def test_one_confidence_for_all_or_one_of_each(three: Any) -> None:
    batch, targets = three
    criteria = {name: criterion_for(one, weighting="teacher-only") for name, one in targets.items()}
    several, (B,) = SeveralTeachers(criteria), batch.inputs["label"].shape
    sure = {name: torch.eye(B)[n] for n, name in enumerate(targets)}
    out = run(several, batch, targets, teacher_confidence=sure)
    for name, confidence in sure.items():
        alone = run(criteria[name], batch, targets[name], teacher_confidence=confidence)
        assert {term: value.item() for term, value in alone.terms.items()} == {
            term.removeprefix(f"{name}/"): value.item() for term, value in out.terms.items() if term.startswith(name)
        }
    torch.testing.assert_close(out.weights, torch.tensor([4.0, 4.0, 4.0, 0.0]) / 3)
    with pytest.raises(ConfigError, match="teacher's confidence"):
        run(several, batch, targets, teacher_confidence={"dino": sure["dino"]})


def test_one_sided_teachers_select_inside_their_own_modality(three: Any) -> None:
    batch, targets = three
    criterion = criterion_for(targets["dino"], k_region=1, weighting="uniform", candidates="all", relevance="shared")
    target = targets["dino"]
    relevance = torch.nn.functional.cosine_similarity(target.regions, target.image_global.unsqueeze(1), dim=-1)
    best = relevance.masked_fill(~target.region_mask, -9.0).argmax(1)
    T, hidden = batch.inputs["text_mask"].shape[1], batch.hidden[-1].requires_grad_()
    run(criterion, batch, target, tag_regions=None).loss.backward()
    for row, image in enumerate(target.image_index.tolist()):
        taught = torch.nonzero(hidden.grad[row, T:].any(-1)).flatten().tolist()
        assert taught == ([int(best[image])] if target.region_mask[image].any() else [])
    assert not hidden.grad[:, 1:T].any()  # of the text the global state alone


def test_a_text_teacher_asks_which_words_carry_the_sentence(three: Any) -> None:
    batch, targets = three
    target = targets["roberta"]
    criterion = criterion_for(target, k_text=1, weighting="uniform", candidates="all", global_text_weight=0)
    relevance = torch.nn.functional.cosine_similarity(target.text_tokens, target.text_global.unsqueeze(1), dim=-1)
    best = relevance.masked_fill(~target.selectable_text, -9.0).argmax(1)
    hidden = batch.hidden[-1].requires_grad_()
    run(criterion, batch, target, tag_regions=None).loss.backward()
    for row, there in enumerate(target.selectable_text.any(1).tolist()):
        assert torch.nonzero(hidden.grad[row].any(-1)).flatten().tolist() == ([int(best[row])] if there else [])


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_teachers_may_speak_to_layers_of_their_own(three: Any, layer: int) -> None:
    batch, targets = three
    for states in batch.hidden:
        states.requires_grad_()
    layers = {"clip/b.32": -1, "dino": layer, "roberta": 2}
    criteria = {name: criterion_for(one, layer=layers[name], weighting="uniform") for name, one in targets.items()}
    run(SeveralTeachers(criteria), batch, targets).loss.backward()
    reached = {place for place, states in enumerate(batch.hidden) if states.grad is not None and states.grad.any()}
    assert reached == {place % len(batch.hidden) for place in layers.values()}


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"a": -1.0}, "0 or more"), ({"a": 0.0, "b": 0.0}, "at least one above 0"), ({"aa": 1.0}, "Did you mean 'a'")],
)
def test_weights_that_cannot_be_meant(make_batch: Make, weights: dict[str, float], message: str) -> None:
    targets = make_batch().targets
    with pytest.raises(ConfigError, match=message) as found:
        SeveralTeachers({name: criterion_for(targets) for name in "ab"}, weights)
    assert found.value.hint


def test_targets_of_every_teacher_are_needed(three: Any) -> None:
    batch, targets = three
    several = SeveralTeachers({name: criterion_for(one) for name, one in targets.items()})
    del targets["dino"]
    with pytest.raises(DataError, match="no targets of the teacher 'dino' in this batch, only of clip"):
        run(several, batch, targets)
