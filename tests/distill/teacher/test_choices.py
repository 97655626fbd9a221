"""Tokens that were chosen once give the same loss as choosing in every step, to the last digit, whatever the batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from madkit.cache import choose_cache
from madkit.core.errors import DataError
from madkit.distill.batches.answers import head_for
from madkit.distill.batches.examples import ExampleSet
from madkit.distill.batches.micro_batch import Batch, BatchMaker
from madkit.distill.objective.objective import Objective
from madkit.distill.teacher.criterion import make_criterion
from madkit.distill.teacher.side import TeacherSide
from madkit.mad.chosen import Lookup
from madkit.mad.config import MADConfig
from madkit.mad.targets import TeacherTargets
from madkit.students.load import load_student
from madkit.tasks.data import open_task

BATCHES = [np.asarray(found) for found in ([5, 0, 17, 3], [3, 4, 11], [17, 5, 9, 1, 2], [0])]
CONFIGS = [
    {},
    {"k_text": 2, "k_region": 1, "k_tag": 3},
    {"fraction": 0.4},
    {"tokens": "all"},
    {"tokens": "random"},
    {"tokens": "global"},
    {"candidates": "all"},
    {"tag_targets": False},
    {"relevance": "unrelated", "distance": "smooth-l1"},
    {"distance": "info-nce", "negatives": 5},
    {"affinity_weight": 0.5, "affinity_form": "both"},
]


@pytest.fixture(params=["vcr", "snli-ve", "vqa"])
def loaded(request, workspace, student):
    torch.set_num_threads(1)
    data = open_task(workspace, request.param, part="auto")
    model = load_student(student, head=head_for(data.spec, data.examples("train"))).eval()
    return model, ExampleSet(data.examples("train")[:24], model, data.regions()), choose_cache(workspace, data, None)


def losses_of(objective: Objective, batch: Batch) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """The loss, every term and every gradient of one batch."""
    objective.zero_grad(set_to_none=True)
    out = objective(batch.to("cpu"))
    out.loss.backward()
    assert objective.criterion is not None
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    return {"loss": out.loss.detach(), **out.terms}, gradients


@pytest.mark.parametrize("changes", CONFIGS, ids=lambda changes: "-".join(map(str, changes.values())) or "default")
def test_equal_to_choosing_in_every_step(loaded, changes):
    model, examples, cache = loaded
    config = MADConfig(weighting="uniform", **changes)
    side = TeacherSide(examples, cache, config)
    maker = BatchMaker(examples, 10, teacher=side)
    objective = Objective(model, make_criterion(config, model, side, seed=1))
    for step, indices in enumerate(BATCHES):  # examples come again, in other batches
        batch = maker(indices, step)
        assert isinstance(batch.teacher, TeacherTargets)
        assert batch.teacher.chosen is not None
        whole = side.targets(examples.teacher_rows(indices), indices, batch.inputs)
        assert whole.chosen is None
        want, got = losses_of(objective, replace(batch, teacher=whole)), losses_of(objective, batch)
        assert want[0].keys() == got[0].keys()
        for name, value in want[0].items():
            assert torch.equal(value, got[0][name]), name
        assert all(torch.equal(a, b) for a, b in zip(want[1], got[1], strict=True))


def test_relevance_is_worked_out_once(loaded, monkeypatch):
    _, examples, cache = loaded
    side = TeacherSide(examples, cache, MADConfig(weighting="uniform"))
    maker = BatchMaker(examples, 10, teacher=side)
    first = [maker(indices, 0) for indices in BATCHES]

    def refuse(*_):
        raise AssertionError("asked for all tokens again")

    monkeypatch.setattr(TeacherSide, "targets", refuse)
    for indices, before in zip(BATCHES, first, strict=True):
        again = maker(indices, 1)
        assert isinstance(before.teacher, TeacherTargets)
        assert isinstance(again.teacher, TeacherTargets)
        assert before.teacher.chosen is not None
        assert again.teacher.chosen is not None
        assert again.teacher.chosen.text is not None
        assert before.teacher.chosen.text is not None
        assert torch.equal(again.teacher.chosen.text.index, before.teacher.chosen.text.index)
        assert again.teacher.text_tokens.numel() == again.teacher.regions.numel() == 0


@pytest.mark.parametrize(
    "changes",
    [{"affinity_weight": 1.0, "affinity_form": "sentence", "weight": 0.0}, {"tokens": "global"}],
    ids=["sentence affinity", "globals"],
)
def test_where_no_term_compares_words_there_are_none(loaded, changes):
    """Nor zeros in their place, which a GPU would be sent in every step; the loss is that of any words."""
    model, examples, cache = loaded
    config = MADConfig(weighting="uniform", **changes)
    side = TeacherSide(examples, cache, config)
    objective = Objective(model, make_criterion(config, model, side, seed=1))
    batch = BatchMaker(examples, 10, teacher=side, one_text=True)(BATCHES[0], 0)
    found = batch.teacher
    assert isinstance(found, TeacherTargets)
    assert found.chosen is None
    assert found.text_tokens.numel() == found.text_mask.numel() == 0
    (S, T), Dl = batch.inputs.input_ids.shape, found.text_global.shape[1]
    words = replace(found, text_tokens=torch.zeros(S, T, Dl), text_mask=torch.ones(S, T).bool(), text_content=None)
    want, got = losses_of(objective, replace(batch, teacher=words)), losses_of(objective, batch)
    assert all(torch.equal(value, got[0][name]) for name, value in want[0].items())
    assert all(torch.equal(a, b) for a, b in zip(want[1], got[1], strict=True))


def test_what_was_chosen_for_another_criterion_is_refused(loaded):
    model, examples, cache = loaded
    config = MADConfig(weighting="uniform")
    side = TeacherSide(examples, cache, config)
    batch = BatchMaker(examples, 10, teacher=side)(BATCHES[0], 0)
    other = config.model_copy(update={"k_text": 1})
    with pytest.raises(DataError, match="another configuration"):
        Objective(model, make_criterion(other, model, side, seed=1))(batch)
    if examples.n_candidates > 1:
        with pytest.raises(DataError, match="with labels"):
            Objective(model, make_criterion(config, model, side, seed=1), supervised=False)(batch)


def test_regions_are_looked_up_on_the_way_to_the_device(loaded):
    model, examples, cache = loaded
    config = MADConfig(weighting="uniform")
    side = TeacherSide(examples, cache, config)
    batch = BatchMaker(examples, 10, teacher=side)(BATCHES[0], 0)
    moved = batch.to("cpu")
    for found, kind in ((batch, Lookup), (moved, torch.Tensor)):
        assert isinstance(found.teacher, TeacherTargets)
        assert found.teacher.chosen is not None
        assert found.teacher.chosen.region is not None
        assert isinstance(found.teacher.chosen.region.target, kind)
    objective = Objective(model, make_criterion(config, model, side, seed=1))
    assert torch.equal(objective(moved).loss, objective(batch).loss)
