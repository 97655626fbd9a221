"""Soft labels: nobody scores an image it was fitted on, rationales get no gold answer, losses equal the task's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from madkit.cache import choose_cache
from madkit.core.errors import ConfigError
from madkit.distill.batches.answers import head_for
from madkit.distill.batches.examples import targets_of
from madkit.distill.batches.soft_targets import SoftTargets
from madkit.distill.pool.pool import unlabelled_examples
from madkit.distill.pool.soft_labels import answer_pool, soft_task_loss, tempered
from madkit.distill.settings.pool_config import SoftLabelConfig
from madkit.distill.teacher.probe_reader import ProbeReader
from madkit.mad import probe as probes
from madkit.mad.interaction import WIDTH, interaction_features
from madkit.students.heads import LossForms, task_loss
from madkit.tasks.data import open_task
from madkit.tasks.id_lists import labelled_examples

TASKS = ("vcr", "snli-ve", "vqa")


def asked(workspace, task, config, *, guess=True, shots="10pct"):
    data = open_task(workspace, task, part="auto")
    train = data.examples("train")
    labelled = labelled_examples(data, shots, 1)
    gold = {example.question_id for example in labelled}
    pool = unlabelled_examples(train, draws=60, without=gold, seed=1)
    pool[0] = replace(pool[0], image=labelled[0].image)  # a question of the pool about an image of the subset
    head = head_for(data.spec, train)
    with choose_cache(workspace, data, None) as cache:
        reader = ProbeReader([cache], list(dict.fromkeys(example.image.id for example in (*labelled, *pool))))
        found, answers = answer_pool(
            reader, labelled, targets_of(labelled, head, "normalized"), pool, config,
            outputs=len(head.outputs) if head.kind == "classification" else None, seed=3, guess_contexts=guess,
        )  # fmt: skip
    return labelled, pool, found, answers, reader


@pytest.mark.parametrize("task", TASKS)
def test_nobody_scores_an_image_it_was_fitted_on(workspace, task, monkeypatch):
    """Also where the image of a pool's question stands in the labelled subset with another question."""
    image_of: dict[bytes, str] = {}
    read = ProbeReader.features

    def noted(self, examples, kind):
        features = read(self, examples, kind)
        for example, row in zip(examples, features, strict=True):
            image_of[row.numpy().tobytes()] = example.image.id
        return features

    fit = probes.fit_probe
    scored = set()

    def watched(features, targets, n_classes, **more):
        seen = {image_of[row.numpy().tobytes()] for row in features}
        head = fit(features, targets, n_classes, **more)

        def score(rows):
            images = {image_of[row.numpy().tobytes()] for row in rows}
            assert not images & seen
            scored.update(images)
            return head(rows)

        return score

    monkeypatch.setattr(ProbeReader, "features", noted)
    monkeypatch.setattr(probes, "fit_probe", watched)
    labelled, pool, _, answers, _ = asked(workspace, task, SoftLabelConfig(features="global", folds=3))
    ours = {example.image.id for example in labelled}
    assert ours | {example.image.id for example in pool} <= scored
    assert ours & {example.image.id for example in pool}
    assert ((answers.confidence > 0) & (answers.confidence <= 1)).all()


def test_a_group_of_the_fit_is_scored_by_the_head_that_has_not_seen_it():
    heads = tuple(lambda x, number=number: torch.eye(3)[number].expand(len(x), 3) * 20 for number in range(3))
    probe = probes.CrossFitProbe(heads, torch.tensor([0, 1, 2]), {"a": 0, "b": 1, "c": 2}, (1.0,) * 3, 3)
    found = probe.probabilities(torch.zeros(4, 5), ["b", "new", "a", "c"])
    assert found.argmax(-1).tolist()[0] == 1
    assert found[[0, 2, 3]].amax(-1).min() > 0.99
    assert torch.allclose(found[1], torch.full((3,), 1 / 3), atol=1e-6)


def test_out_of_fold_answers_are_those_of_the_confidence_probe():
    torch.manual_seed(0)
    x, y, groups = torch.randn(40, 6), torch.randint(0, 3, (40,)), [number // 2 for number in range(40)]
    whole = probes.cross_fit_probe(x, y, groups=groups, folds=4, seed=2)
    fitted = probes.fit_cross_probe(x, y, groups=groups, folds=4, seed=2)
    assert torch.equal(fitted.probabilities(x, groups), whole.probabilities)
    assert torch.equal(fitted.fold, whole.fold)


def test_a_rationale_is_asked_with_the_probes_best_answer_or_one_by_lot(workspace):
    config = SoftLabelConfig(features="global", folds=2)
    _, pool, found, answers, _ = asked(workspace, "vcr", config)
    place = {example.id: number for number, example in enumerate(found)}
    changed = 0
    for before, after in zip(pool, found, strict=True):
        if before.subtask != "rationale":
            assert before == after
            continue
        question = next(one for one in found if one.question_id == after.question_id and one.subtask == "answer")
        best = question.candidates[int(answers.shares[place[question.id]].argmax())]
        assert after.context == (*before.context[:-1], best)
        changed += after != before
    assert changed
    _, pool, found, _, _ = asked(workspace, "vcr", config, guess=False)
    assert found == pool


def test_interaction_is_read_where_words_and_patches_share_a_space(workspace):
    _, _, _, answers, reader = asked(workspace, "snli-ve", SoftLabelConfig(folds=2))
    assert reader.kinds == ("global", "interaction")
    assert set(answers.facts["log_loss_out_of_fold"]) == {"global", "interaction", "global+interaction"}
    best = min(answers.facts["log_loss_out_of_fold"].items(), key=lambda item: item[1])
    assert answers.facts["features"] == best[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("madkit.distill.teacher.probe_reader._interacts", lambda cache: False)
        with pytest.raises(ConfigError, match="no teacher here has one space"):
            asked(workspace, "snli-ve", SoftLabelConfig(features="interaction"))


def test_interaction_features_say_what_their_names_say():
    patches, words = torch.eye(4)[:3], torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 2.0]])
    found = interaction_features(words, torch.tensor([0, 3.0, 0, 0]), patches, torch.tensor([1.0, 1, 0, 0]))
    assert found.shape == (WIDTH,)
    # the first word is in the picture, the second is not
    assert torch.allclose(found[:4], torch.tensor([0.5, 0.0, 1.0, 0.5]), atol=1e-5)
    assert torch.allclose(found[4:7], torch.tensor([0.5**1.5, 0.0, 1 / 6]), atol=1e-5)
    assert torch.allclose(found[8:11], torch.tensor([1.0, 1 / 3, 0.5**0.5]), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "forms"),
    [
        ("classification", LossForms(classes="softmax")),
        ("classification", LossForms(classes="bce")),
        ("multiple-choice", LossForms(choice="softmax")),
        ("multiple-choice", LossForms(choice="sigmoid")),
        ("multiple-choice", LossForms(choice="binary")),
        ("multiple-choice", LossForms(choice="sigmoid", choice_mean=True)),
        ("multiple-choice", LossForms(choice="binary", choice_mean=True)),
    ],
)
def test_sure_soft_labels_cost_what_labels_cost(kind, forms):
    torch.manual_seed(1)
    logits, target = torch.randn(6, 4), torch.randint(0, 4, (6,))
    more = {"forms": forms, "pairs": torch.randn(6, 4, 2) if forms.choice == "binary" else None}
    sure = torch.eye(4)[target]
    assert torch.allclose(
        soft_task_loss(kind, logits, sure, **more), task_loss(kind, logits, target, **more), atol=1e-5
    )
    unsure = torch.softmax(torch.randn(6, 4), -1)
    mixed = sum(
        share[:, None] * soft_task_loss(kind, logits, torch.eye(4)[torch.full((6,), place)], **more)[:, None]
        for place, share in enumerate(unsure.T)
    )
    assert torch.allclose(soft_task_loss(kind, logits, unsure, **more), mixed.squeeze(1), atol=1e-4)  # linear in p


def test_temperature_sharpens_and_softens():
    shares = torch.tensor([[0.6, 0.3, 0.1, 0.0]])
    assert torch.equal(tempered(shares, 1.0), shares)
    assert torch.allclose(tempered(shares, 0.5), torch.tensor([[0.36, 0.09, 0.01, 0.0]]) / 0.46, atol=1e-6)
    assert tempered(shares, 4.0)[0, 2] > 0.2


@pytest.mark.parametrize("temperature", [0.25, 0.9999, 1.0, 1.0001, 4.0])
def test_the_kept_answers_of_many_have_the_same_mass_at_every_temperature(temperature):
    shares = torch.tensor([[0.5, 0.2, 0.05, 0.0], [0.0, 0.0, 0.0, 0.0], [0.4, 0.3, 0.2, 0.1]])
    found = tempered(shares, temperature)
    assert torch.allclose(found.sum(1), shares.sum(1), atol=1e-6)
    if abs(temperature - 1) < 0.001:
        assert torch.allclose(found, shares, atol=1e-3)  # 1 is the limit of the formula


def test_the_best_answers_are_kept_as_soft_targets():
    targets = SoftTargets.of_rows(torch.tensor([[3, 0], [1, 2]]), torch.tensor([[0.5, 0.25], [0.75, 0.125]]), 5)
    assert len(targets) == 2
    assert targets.dense().tolist() == [[0.25, 0, 0, 0.5, 0], [0, 0.75, 0.125, 0, 0]]
    assert targets[torch.tensor([1, 0, 1])].sum(1).tolist() == [0.875, 0.75, 0.875]


def test_rare_answers_of_vqa_are_left_out(workspace, monkeypatch):
    monkeypatch.setattr("madkit.distill.pool.soft_labels._DENSE", 1)
    _, pool, _, answers, _ = asked(workspace, "vqa", SoftLabelConfig(features="global", folds=2, answers=2))
    assert isinstance(answers.shares, SoftTargets)
    dense = answers.shares.dense()
    assert dense.shape[0] == len(pool)
    assert ((dense > 0).sum(1) <= 2).all()
    assert torch.allclose(dense.amax(1), answers.confidence)
