"""The criterion against its formula written as loops, and what must not change its value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from madkit.core.errors import ConfigError, DataError
from madkit.mad.choice import select_for
from madkit.mad.criterion import MADCriterion, last_token, middle_layer
from tests.pretended_cuda import pretended_cuda

torch.set_num_threads(1)
Make = Callable[..., Any]
ARMS: dict[str, dict[str, Any]] = {
    "mad": {"k_text": 2, "k_region": 2, "k_tag": 1},
    "mad-fraction": {"fraction": 0.5, "head": "mlp", "distance": "smooth-l1"},
    "mad-unrelated": {"relevance": "unrelated", "distance": "mse", "layer": (1, -1)},
    "mad-info-nce": {"distance": "info-nce", "weighting": "teacher-only", "candidates": "all"},
    "mad-random": {"tokens": "random", "k_text": 2, "k_region": 1},
    "kd-all": {"tokens": "all", "weighting": "uniform", "global_source": "mean"},
    "kd-global": {"tokens": "global", "weighting": "uniform", "global_source": "query"},
    "kd-global-token": {"tokens": "global", "weighting": "uniform", "global_source": "token"},
    "mad-token": {"global_source": "token", "layer": (1, -1), "head": "mlp"},
    "affinity": {"weight": 0, "affinity_weight": 1.0},
    "affinity-absolute": {
        "weight": 0,
        "affinity_weight": 1.0,
        "affinity_kind": "absolute",
        "affinity_tau": 20.0,
        "affinity_threshold": 0.2,
    },
    "mad-affinity": {"affinity_weight": 0.5, "affinity_form": "both", "k_text": 2, "schedule": "cosine"},
}
arms = pytest.mark.parametrize("arm", list(ARMS))
candidates = pytest.mark.parametrize("C", [1, 4])


def by_loops(criterion: MADCriterion, batch: Any) -> float:
    """Adaptive selection in a shared space, gold candidate, cosine distance, confidence ratio: one token at a time."""
    config, t, i = criterion.config, batch.targets, batch.inputs
    T, C, hidden = i["text_mask"].shape[1], i["n_candidates"], batch.hidden[-1]
    heads = criterion.heads[0]
    raw = [
        min((c_t / c_s) ** config.gamma, config.w_max)
        for c_t, c_s in zip(i["teacher_confidence"].tolist(), i["student_confidence"].tolist(), strict=True)
    ]
    total = 0.0
    for b, weight in enumerate(raw):
        s = b * C + (int(i["label"][b]) if C > 1 else 0)
        image = int(t.image_index[s])

        def cos(a: torch.Tensor, b: torch.Tensor) -> float:
            return float(F.cosine_similarity(a, b, dim=0))

        def best(score: dict[int, float], k: int) -> list[int]:
            return sorted(score, key=score.__getitem__, reverse=True)[:k]

        regions = [r for r in range(t.regions.shape[1]) if t.region_mask[image, r]]
        tags = i["tag_regions"][s].tolist()
        words = [n for n in range(T) if t.text_mask[s, n] and t.text_content[s, n] and tags[n] < 0]
        tagged = [n for n in range(T) if tags[n] in regions]
        score_text = {n: cos(t.text_tokens[s, n], t.image_global[image]) for n in words}
        score_region = {r: cos(t.regions[image, r], t.text_global[s]) for r in regions}
        score_tag = {n: score_region[tags[n]] for n in tagged}
        distances = {
            "global_image": [1 - cos(heads["global_image"](hidden[s, 0]), t.image_global[image])],
            "global_text": [1 - cos(heads["global_text"](hidden[s, 0]), t.text_global[s])],
            "token_text": [
                1 - cos(heads["token_text"](hidden[s, n]), t.text_tokens[s, n]) for n in best(score_text, config.k_text)
            ],
            "token_region": [
                1 - cos(heads["vision"](hidden[s, T + r]), t.regions[image, r])
                for r in best(score_region, config.k_region)
            ],
            "token_tag": [
                1 - cos(heads["vision"](hidden[s, n]), t.regions[image, tags[n]]) for n in best(score_tag, config.k_tag)
            ],
        }
        means = [sum(found) / len(found) for found in distances.values() if found]
        total += weight / (sum(raw) / len(raw)) * sum(means) / len(means)
    return config.weight * total / len(raw)


@candidates
@torch.no_grad()
def test_loss_is_the_formula(make_batch: Make, make_criterion: Make, C: int) -> None:
    criterion, batch = make_criterion(**ARMS["mad"], gamma=0.7, weight=0.3), make_batch(B=5, C=C)
    assert batch.run(criterion).loss.item() == pytest.approx(by_loops(criterion, batch), abs=1e-6)


@arms
@candidates
def test_only_the_student_and_the_heads_learn(make_batch: Make, make_criterion: Make, arm: str, C: int) -> None:
    criterion, batch = make_criterion(**ARMS[arm]), make_batch(C=C)
    teacher = ("text_tokens", "text_global", "regions", "image_global")
    batch = batch.change(**{name: getattr(batch.targets, name).requires_grad_() for name in teacher})
    for states in (*batch.hidden, *batch.readers):
        states.requires_grad_()
    confidence = batch.inputs["student_confidence"].requires_grad_()
    output = batch.run(criterion, progress=0.3)
    assert output.loss.dtype == torch.float32
    assert output.loss.item() > 0
    output.loss.backward()
    for name in teacher:
        assert getattr(batch.targets, name).grad is None
    assert confidence.grad is None
    for name, parameter in criterion.named_parameters():
        if name == "distillation_token":  # learns through the student, which reads with it
            assert any(states.grad is not None and states.grad.any() for states in batch.readers)
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any(), name
    reached = [states.grad for states in batch.hidden if states.grad is not None]
    assert reached or arm == "kd-global-token"
    for grad in reached:
        padding = torch.cat([~batch.inputs["text_mask"], ~batch.inputs["region_mask"]], 1)
        assert not grad[padding].any()
        assert grad.any()
    assert all(not term.requires_grad for term in output.terms.values())


@arms
@candidates
@torch.no_grad()
def test_padding_changes_nothing(make_batch: Make, make_criterion: Make, arm: str, C: int) -> None:
    criterion, batch = make_criterion(**ARMS[arm]), make_batch(C=C)
    plain, padded = batch.run(criterion), batch.pad(text=3, regions=2).run(criterion)
    assert padded.loss.item() == pytest.approx(plain.loss.item(), abs=1e-6)
    assert padded.terms.keys() == plain.terms.keys()
    for name, term in plain.terms.items():
        assert padded.terms[name].item() == pytest.approx(term.item(), abs=1e-6)


@arms
@candidates
@torch.no_grad()
def test_the_order_of_the_batch_changes_nothing(make_batch: Make, make_criterion: Make, arm: str, C: int) -> None:
    criterion, batch = make_criterion(**ARMS[arm]), make_batch(C=C)
    turned = batch.permute(torch.tensor([2, 0, 3, 1]))
    assert turned.run(criterion).loss.item() == pytest.approx(batch.run(criterion).loss.item(), abs=1e-6)


@arms
@candidates
@torch.no_grad()
def test_what_the_teacher_says_nothing_about_adds_nothing(
    make_batch: Make, make_criterion: Make, arm: str, C: int
) -> None:
    """Whatever stands in the targets of an untaught example, the loss is the same, and it has a smaller share."""
    criterion, batch = make_criterion(**ARMS[arm]), make_batch(C=C)
    t = batch.targets
    every = torch.ones(len(t.image_index), dtype=torch.bool)
    plain = batch.run(criterion)
    assert batch.change(taught=every).run(criterion).loss.item() == pytest.approx(plain.loss.item(), abs=1e-7)
    taught = every.clone()
    taught[:C] = False
    zeros = {"text_tokens": t.text_tokens.clone(), "text_global": t.text_global.clone()}
    for values in zeros.values():
        values[:C] = 0
    some = batch.change(taught=taught).run(criterion)
    assert batch.change(taught=taught, **zeros).run(criterion).loss.item() == pytest.approx(some.loss.item(), abs=1e-6)
    assert some.loss.item() != pytest.approx(plain.loss.item(), abs=1e-6)
    assert batch.change(taught=~every).run(criterion).loss.item() == 0


@arms
@torch.no_grad()
def test_half_precision_inputs(make_batch: Make, make_criterion: Make, arm: str) -> None:
    criterion, batch = make_criterion(**ARMS[arm]), make_batch()
    output = batch.halve().run(criterion)
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(batch.run(criterion).loss.item(), rel=0.02)


@arms
@torch.no_grad()
def test_autocast_keeps_the_losses_in_full_precision(make_batch: Make, make_criterion: Make, arm: str) -> None:
    criterion, batch = make_criterion(**ARMS[arm]), make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = batch.run(criterion)
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(batch.run(criterion).loss.item(), rel=0.05)


@arms
def test_no_step_waits_for_the_device(
    make_batch: Make, make_criterion: Make, arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors without values: reading one, or a shape that depends on one, raises."""
    # these lie on the CPU, where values may be read; the test after this one asks the same of a GPU, with this check
    monkeypatch.setattr(MADCriterion, "_check_numbers", lambda self, sure: None)
    criterion, batch = make_criterion(**ARMS[arm]), make_batch(C=4)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = {
            name: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
            for name, value in batch.inputs.items()
        }
        names = ("text_tokens", "text_mask", "text_global", "regions", "region_mask", "image_global", "image_index")
        names += ("text_content", "example_key")
        targets = replace(batch.targets, **{name: mode.from_tensor(getattr(batch.targets, name)) for name in names})
        hidden, readers = ([mode.from_tensor(one) for one in states] for states in (batch.hidden, batch.readers))
        output = criterion(hidden, fake["text_mask"].shape[1], targets, distillation_states=readers, **fake)
    assert output.loss.shape == ()
    with pytest.raises(DataDependentOutputException):
        output.loss.item()


@pytest.mark.parametrize("mixed", [False, True])
@arms
def test_nothing_of_it_stays_behind_when_it_goes_to_a_gpu(
    make_batch: Make, make_criterion: Make, arm: str, mixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors of two devices in one operation raise, a value that is waited for, and what autocast refuses."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    criterion, batch = make_criterion(**ARMS[arm]), make_batch(C=4)
    with pretended_cuda(), torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16, enabled=mixed):
        criterion.to("cuda")
        there = {name: value.to("cuda") if isinstance(value, torch.Tensor) else value
                 for name, value in batch.inputs.items()}  # fmt: skip
        targets = batch.targets.to("cuda")
        hidden, readers = ([one.to("cuda") for one in states] for states in (batch.hidden, batch.readers))
        output = criterion(hidden, there["text_mask"].shape[1], targets, distillation_states=readers, **there)
    assert output.loss.device.type == "cuda"
    assert {value.device.type for value in output.terms.values() if isinstance(value, torch.Tensor)} <= {"cuda"}


@torch.no_grad()
@pytest.mark.parametrize("name", ["label", "labelled", "teacher_confidence", "student_confidence"])
@candidates
def test_what_is_not_one_value_an_example_is_refused(make_batch: Make, make_criterion: Make, C: int, name: str) -> None:
    batch, criterion = make_batch(C=C), make_criterion(**ARMS["mad"])
    values = torch.ones(4, dtype=torch.bool) if name == "labelled" else batch.inputs[name]
    for wrong in (values.unsqueeze(1), values[:1], values.repeat(2), values[0]):
        with pytest.raises(DataError, match=rf"expected {name} as \(4,\), one value an example, and got"):
            batch.run(criterion, **{name: wrong})
    batch.run(criterion, **{name: values})


@torch.no_grad()
def test_a_confidence_that_is_not_a_number_is_named(make_batch: Make, make_criterion: Make) -> None:
    batch = make_batch()
    sure = batch.inputs["teacher_confidence"].clone()
    sure[2] = float("nan")
    for weighting in ("teacher-student", "teacher-only"):
        with pytest.raises(DataError, match="teacher_confidence of example 2 of the batch is not a number"):
            batch.run(make_criterion(weighting=weighting), teacher_confidence=sure)
    assert batch.run(make_criterion(weighting="uniform"), teacher_confidence=sure).loss.isfinite()


@arms
@torch.no_grad()
def test_masks_may_be_as_tokenizers_give_them(make_batch: Make, make_criterion: Make, arm: str) -> None:
    batch, criterion = make_batch(C=2), make_criterion(**ARMS[arm])
    plain = batch.run(criterion)
    for kind in (torch.int64, torch.float32):
        masks = {name: batch.inputs[name].to(kind) for name in ("text_mask", "region_mask")}
        assert torch.equal(batch.run(criterion, **masks).loss, plain.loss)


@torch.no_grad()
def test_labelled_may_be_of_numbers_where_examples_are_not_taught(make_batch: Make, make_criterion: Make) -> None:
    batch, criterion = make_batch(C=1), make_criterion(weighting="teacher-only")
    batch = batch.change(taught=torch.arange(len(batch.targets.text_global)) != 1)
    labelled = torch.arange(len(batch.targets.text_global)) != 0
    plain = batch.run(criterion, labelled=labelled)
    for kind in (torch.float32, torch.int64):
        assert torch.equal(batch.run(criterion, labelled=labelled.to(kind)).loss, plain.loss)


@torch.no_grad()
@pytest.mark.parametrize("C", [1, 4])
def test_whoever_is_not_taught_has_no_share_in_the_mean_of_the_weights(
    make_batch: Make, make_criterion: Make, C: int
) -> None:
    batch, criterion = make_batch(C=C), make_criterion(weighting="teacher-only")
    S, B = len(batch.targets.text_global), len(batch.targets.text_global) // C
    taught = torch.ones(S, dtype=torch.bool)
    taught[:C] = False
    label = torch.zeros(B, dtype=torch.long)
    sure = torch.linspace(0.2, 0.8, B)
    for given in ({"label": label}, {"label": None}):
        found = [
            batch.change(taught=taught).run(
                criterion, **given, teacher_confidence=torch.cat([torch.tensor([first]), sure[1:]])
            )
            for first in (0.0, 0.2, 1.0)
        ]
        assert len({one.loss.item() for one in found}) == 1
        weights = found[0].weights
        assert weights is not None
        torch.testing.assert_close(weights[1:], sure[1:] / sure[1:].mean())


def test_gold_candidate_is_the_default_and_all_are_taught_without_a_label(
    make_batch: Make, make_criterion: Make
) -> None:
    criterion, batch = make_criterion(weighting="uniform"), make_batch(C=4)
    everyone = make_criterion(weighting="uniform", candidates="all")
    T = batch.inputs["text_mask"].shape[1]
    gold = torch.arange(4) * 4 + batch.inputs["label"]
    moved = [states.clone() for states in batch.hidden]
    others = torch.ones(16, dtype=torch.bool).index_fill(0, gold, False)
    moved[-1][others, :T] += 1.0
    changed = replace(batch, hidden=tuple(moved))
    assert changed.run(criterion).loss.item() == batch.run(criterion).loss.item()
    assert changed.run(everyone).loss.item() != batch.run(everyone).loss.item()
    unlabelled = batch.run(criterion, label=None).loss.item()
    assert unlabelled == pytest.approx(batch.run(everyone).loss.item(), abs=1e-7)


@candidates
@torch.no_grad()
def test_a_distillation_token_takes_the_globals_and_nothing_else(
    make_batch: Make, make_criterion: Make, C: int
) -> None:
    """With the state of [CLS] the loss is that of [CLS], term by term; what it holds else moves the global terms."""
    batch, token = make_batch(C=C), make_criterion(global_source="token", weighting="uniform")
    cls = make_criterion(weighting="uniform")
    cls.load_state_dict(token.state_dict(), strict=False)  # the same heads
    first = tuple(states[:, :1] for states in batch.hidden)
    same, plain = batch.run(token, distillation_states=first), batch.run(cls)
    assert same.loss.item() == plain.loss.item()
    assert {name: term.item() for name, term in same.terms.items()} == {
        name: term.item() for name, term in plain.terms.items()
    }
    other = batch.run(token)
    moved = {name for name, term in other.terms.items() if term.item() != plain.terms[name].item()}
    assert moved == {"global_image", "global_text"}
    turned = replace(batch, hidden=tuple(states.clone() for states in batch.hidden))
    turned.hidden[-1][:, 0] += 1.0  # [CLS] itself is left to the task
    assert turned.run(token).loss.item() == other.loss.item()
    assert turned.run(cls).loss.item() != plain.loss.item()


def test_a_distillation_token_is_there_when_it_is_asked_for(make_batch: Make, make_criterion: Make) -> None:
    asked, batch = make_criterion(global_source="token"), make_batch()
    tokens = asked.distillation_tokens()
    assert tokens is not None
    assert tokens.shape == (1, 8)
    assert not tokens.any()
    nothing = make_criterion(global_source="token", global_image_weight=0, global_text_weight=0)
    for without in (make_criterion(), nothing):
        assert without.distillation_tokens() is None
        assert "distillation_token" not in dict(without.named_parameters())
        batch.run(without, distillation_states=())
    with pytest.raises(ConfigError, match="states of the distillation token at every layer of the student, 4 "):
        batch.run(asked, distillation_states=())
    with pytest.raises(DataError, match=r"distillation token's states as \(4, 1, 8\), and got \(4, 2, 8\)"):
        batch.run(asked, distillation_states=[state.expand(-1, 2, -1) for state in batch.readers])


@torch.no_grad()
def test_unlabelled_members(make_batch: Make, make_criterion: Make) -> None:
    batch, criterion = make_batch(C=4), make_criterion(probe_threshold=0.5)
    label = torch.tensor([1, -1, 2, 0])
    weights = batch.run(criterion, label=label, teacher_confidence=torch.tensor([0.5, 0.9, 0.5, 0.5])).weights
    assert weights is not None
    assert weights[1].item() == 1.0
    assert weights[label >= 0].mean().item() == pytest.approx(1.0)
    # Without a gold candidate there is no sequence to teach: such an example adds nothing.
    before = batch.run(criterion, label=label).loss.item()
    batch.hidden[-1][4:8] += 1.0
    assert batch.run(criterion, label=label).loss.item() == before
    below = batch.run(criterion, label=None, labelled=torch.zeros(4).bool(), teacher_confidence=torch.full((4,), 0.4))
    assert below.loss.item() == 0.0


@torch.no_grad()
def test_weights_scale_what_each_example_adds(make_batch: Make, make_criterion: Make) -> None:
    batch, criterion = make_batch(), make_criterion(weighting="teacher-only")
    sure_of_one = batch.run(criterion, teacher_confidence=torch.tensor([0.0, 1.0, 0.0, 0.0]))
    assert sure_of_one.weights is not None
    assert sure_of_one.weights.tolist() == [0.0, 4.0, 0.0, 0.0]
    uniform = make_criterion(weighting="uniform")
    alone = batch.permute(torch.tensor([1])).run(uniform)
    assert sure_of_one.loss.item() == pytest.approx(alone.loss.item(), abs=1e-6)


@torch.no_grad()
def test_tags_take_their_regions_embedding_and_leave_the_text_term(make_batch: Make, make_criterion: Make) -> None:
    batch = make_batch()
    tags = batch.inputs["tag_regions"]
    assert (tags >= 0).any()
    on, off = make_criterion(weighting="uniform", tokens="all"), make_criterion(weighting="uniform", tag_targets=False)
    assert "token_tag" in batch.run(on).terms
    assert "token_tag" not in batch.run(off).terms
    assert "token_tag" not in batch.run(on, tag_regions=None).terms
    changed = batch.change(text_tokens=batch.targets.text_tokens.masked_fill((tags >= 0).unsqueeze(-1), 9.0))
    assert torch.equal(changed.run(on).terms["token_text"], batch.run(on).terms["token_text"])
    none = batch.run(on, tag_regions=torch.full_like(tags, -1))
    absent = batch.run(on, tag_regions=None)
    assert none.loss.item() == pytest.approx(absent.loss.item(), abs=1e-7)  # a task without tags loses nothing


@torch.no_grad()
def test_several_layers_have_heads_of_their_own(make_batch: Make, make_criterion: Make) -> None:
    batch, criterion = make_batch(), make_criterion(layer=(1, -1), weighting="uniform")
    assert len(criterion.heads) == 2
    output = batch.run(criterion)
    assert {"token_text@1", "token_text@-1"} <= set(output.terms)
    before = output.loss.item()
    batch.hidden[2].add_(1.0)
    assert batch.run(criterion).loss.item() == before
    batch.hidden[1].mul_(-1.0)
    assert batch.run(criterion).loss.item() != before


@torch.no_grad()
def test_the_global_state_can_be_another_token(make_batch: Make, make_criterion: Make) -> None:
    batch, criterion = make_batch(), make_criterion(**ARMS["kd-global"])
    where = last_token(batch.inputs["text_mask"])
    assert torch.equal(batch.run(criterion, query_index=where).loss, batch.run(criterion).loss)
    cls = make_criterion(tokens="global", weighting="uniform")
    assert batch.run(cls, global_index=where).loss.item() == pytest.approx(batch.run(criterion).loss.item(), abs=1e-7)
    assert batch.run(cls).loss.item() != batch.run(criterion).loss.item()


@torch.no_grad()
def test_random_selection_follows_example_and_step(make_batch: Make, make_criterion: Make) -> None:
    batch, criterion = make_batch(T=12), make_criterion(tokens="random", k_text=1, k_region=1, weighting="uniform")
    losses = {batch.run(criterion, step=step).loss.item() for step in (1, 1, 2, 3)}
    assert len(losses) == 3
    with pytest.raises(ConfigError, match="names each example"):
        batch.change(example_key=None).run(criterion)


@torch.no_grad()
def test_schedule_scales_lambda_and_affinity_only_if_told(make_batch: Make, make_criterion: Make) -> None:
    batch = make_batch()
    token = {"weighting": "uniform", "schedule": "linear"}
    whole = batch.run(make_criterion(**token)).loss.item()
    assert batch.run(make_criterion(**token), progress=0.75).loss.item() == pytest.approx(whole / 4)
    affinity = {"weight": 0, "affinity_weight": 2.0, "schedule": "linear"}
    full = batch.run(make_criterion(**affinity)).loss.item()
    assert batch.run(make_criterion(**affinity), progress=0.75).loss.item() == full
    scheduled = make_criterion(**affinity, affinity_scheduled=True)
    assert batch.run(scheduled, progress=0.75).loss.item() == pytest.approx(full / 4)


@torch.no_grad()
def test_affinity_reads_the_middle_layer_at_the_last_text_token(make_batch: Make, make_criterion: Make) -> None:
    assert (middle_layer(4), middle_layer(13)) == (2, 6)
    batch, criterion = make_batch(), make_criterion(**ARMS["affinity"])
    value = batch.run(criterion).loss.item()
    for layer in (0, 1, 3):
        batch.hidden[layer].mul_(-1.0)
    assert batch.run(criterion).loss.item() == value
    where = last_token(batch.inputs["text_mask"])
    assert batch.run(criterion, query_index=where).loss.item() == value
    batch.hidden[2][torch.arange(4), where] *= -1.0
    assert batch.run(criterion).loss.item() != value


@torch.no_grad()
def test_affinity_words_are_content_words_without_tags(make_batch: Make, make_criterion: Make) -> None:
    batch = make_batch()
    criterion = make_criterion(weight=0, affinity_weight=1, affinity_form="word", fraction=1.0)
    asked = batch.targets.selectable_text & (batch.inputs["tag_regions"] < 0)
    before = batch.run(criterion).loss.item()
    batch.hidden[2][:, : asked.shape[1]][~asked] += 1.0
    assert batch.run(criterion).loss.item() == before
    batch.hidden[2][:, : asked.shape[1]][asked] += 1.0
    assert batch.run(criterion).loss.item() != before


@torch.no_grad()
def test_reports_show_what_is_taught(make_batch: Make, make_criterion: Make) -> None:
    batch, criterion = make_batch(T=9), make_criterion(**ARMS["mad"], weighting="uniform", tag_weight=0)
    masks = {name: batch.inputs[name] for name in ("text_mask", "region_mask", "tag_regions")}
    chosen = select_for(criterion.config, batch.targets, **masks)
    taught = torch.cat([chosen.text, chosen.regions], 1)
    assert 0 < int(taught.sum()) < taught.numel()
    assert int(chosen.text.sum(1).max()) <= 2
    before = batch.run(criterion).loss.item()
    taught[:, 0] = True  # the global state
    batch.hidden[-1][~taught] += 1.0
    assert batch.run(criterion).loss.item() == before


@torch.no_grad()
def test_a_batch_without_regions(make_batch: Make, make_criterion: Make) -> None:
    batch = make_batch(R=4)
    none = replace(
        batch.change(regions=batch.targets.regions[:, :0], region_mask=batch.targets.region_mask[:, :0]),
        hidden=tuple(states[:, :-4] for states in batch.hidden),
    )
    criterion = make_criterion(affinity_weight=1.0, weighting="uniform")
    output = none.run(criterion, region_mask=batch.inputs["region_mask"][:, :0])
    assert output.loss.isfinite()
    assert output.terms["token_region"].item() == 0.0
    assert output.terms["affinity_sentence"].item() == 0.0


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ({}, {"teacher_confidence": None}, "teacher's confidence"),
        ({}, {"student_confidence": None}, "student's confidence"),
        ({"layer": 9}, {}, "3 layers, so there is no layer 9"),
        ({"weight": 0, "affinity_weight": 1, "affinity_layer": -5}, {}, "no layer -5"),
    ],
)
def test_what_is_missing_is_named(
    make_batch: Make, make_criterion: Make, config: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_batch().run(make_criterion(**config), **change)
    assert caught.value.hint


def test_unrelated_teachers_cannot_give_an_affinity(make_batch: Make, make_criterion: Make) -> None:
    batch = make_batch().change(shared_space=False)
    with pytest.raises(ConfigError, match="do not share a space"):
        batch.run(make_criterion(**ARMS["affinity"]))
    with pytest.raises(ConfigError, match="relevance: shared"):
        batch.run(make_criterion(relevance="shared"))
    assert batch.run(make_criterion()).loss.isfinite()


def test_standardised_targets_need_statistics(make_batch: Make, make_criterion: Make) -> None:
    batch = make_batch().change(text_stats=None, vision_stats=None)
    with pytest.raises(ConfigError, match="no channel statistics"):
        batch.run(make_criterion(distance="mse"))
    assert batch.run(make_criterion(distance="mse", standardise="never")).loss.isfinite()


def test_shapes_that_do_not_fit(make_batch: Make, make_criterion: Make) -> None:
    batch, criterion = make_batch(), make_criterion()
    with pytest.raises(DataError, match="hidden states"):
        criterion(batch.hidden, 3, batch.targets, **{**batch.inputs, "text_mask": batch.inputs["text_mask"][:, :3]})
    with pytest.raises(DataError, match="text targets"):
        batch.change(text_tokens=batch.targets.text_tokens[:, :-1]).run(criterion)
    with pytest.raises(DataError, match="3 candidates"):
        batch.run(criterion, n_candidates=3)


def test_targets_move_together(make_batch: Make) -> None:
    moved = make_batch().targets.to("meta")
    assert {value.device.type for value in (moved.text_tokens, moved.regions, moved.example_key)} == {"meta"}
    assert moved.text_stats is not None
    assert moved.text_stats.mean.device.type == "meta"
    assert moved.shared_space
    whole = make_batch().targets
    assert whole.to("cpu") is whole  # a step on a CPU pays nothing for what is there
    mixed = replace(whole, regions=whole.regions.to("meta")).to("meta")
    assert {value.device.type for value in (mixed.text_tokens, mixed.regions, mixed.image_index)} == {"meta"}


def test_standardisation() -> None:
    from madkit.mad.targets import ChannelStats

    tokens = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 5.0, 0.0]) + 3.0
    stats = ChannelStats(tokens.mean(0), tokens.var(0, correction=0))
    scaled = stats.standardise(tokens.half())
    torch.testing.assert_close(scaled[:, :2].mean(0), torch.zeros(2), atol=0.01, rtol=0)
    torch.testing.assert_close(scaled[:, :2].std(0), torch.ones(2), atol=0.01, rtol=0)
    assert scaled[:, 2].abs().max() < 1.0  # a channel that never varies is not blown up
