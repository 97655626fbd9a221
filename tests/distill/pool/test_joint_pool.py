"""Whole runs with an unlabelled pool beside the labelled examples: what is learnt, exact resume, no label read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from madkit.core.errors import ConfigError
from madkit.core.files import read_jsonl
from madkit.distill.batches.answers import head_for
from madkit.distill.batches.order import BucketOrder, PlainOrder
from madkit.distill.loop.contract import StepLoss
from madkit.distill.loop.weight_mean import weight_means
from madkit.distill.pool import joint_objective
from madkit.distill.pool.joint_objective import JointBatch, JointObjective
from madkit.distill.pool.joint_pool import JointOrder, encode_together, gather_pool
from madkit.distill.settings.arms import load_arm
from madkit.distill.stage import distill
from madkit.distill.teacher.teachers import Teachers
from madkit.mad.config import MADConfig
from madkit.mad.criterion import MADCriterion
from madkit.students.load import load_student
from madkit.tasks.data import TaskData, open_task
from madkit.tasks.id_lists import labelled_examples
from tests.distill.loop.threaded_ranks import on_ranks

OWN = str(Path(__file__).parents[1] / "own.yaml")
TASKS = ("vcr", "snli-ve", "vqa")
QUICK = {"optim.steps": 3, "optim.batch_size": 4, "eval.limit": 4}
AFFINITY = {"pool.objective.weight": 0.0, "pool.objective.affinity_weight": 1.0}
SOFT = {"pool.soft_labels.weight": 1.0}


def run(workspace, student, settings, *, arm=OWN, task="snli-ve", shots="10pct", seed=1):
    return distill(
        workspace, task=task, shots=shots, arm=arm, student=student, seed=seed, threads=1, part="auto",
        config_overrides={**QUICK, **({"pool.batch_size": 8} if settings else {}), **settings},
    )  # fmt: skip


def steps(result) -> list[dict]:
    return [row for row in read_jsonl(result.path / "metrics.jsonl") if "loss" in row]


def test_the_pool_has_terms_of_its_own_and_adds_them_to_the_loss(workspace, student):
    rows = steps(run(workspace, student, {**AFFINITY, **SOFT, "pool.weight": 0.5, "pool.soft_labels.weight": 2.0}))
    assert all(set(row["terms"]) == {"task", "pool_affinity_sentence", "pool_soft", "pool_kept"} for row in rows)
    for row in rows:
        terms = row["terms"]
        whole = terms["task"] + 0.5 * terms["pool_affinity_sentence"] + 2.0 * terms["pool_soft"]
        assert row["loss"] == pytest.approx(whole, rel=1e-5)
        assert terms["pool_kept"] == 1.0
        assert row["n"] == 4 + 8


def test_the_labelled_batches_are_those_of_a_run_without_a_pool(workspace, student):
    alone, joint = (run(workspace, student, more, task="vcr") for more in ({}, AFFINITY))
    assert steps(alone)[0]["terms"]["task"] == steps(joint)[0]["terms"]["task"]  # with the same dropout
    assert steps(alone)[1]["terms"]["task"] != steps(joint)[1]["terms"]["task"]


def test_the_runs_own_mad_teaches_the_pool_where_the_probe_is_sure(workspace, student):
    for threshold, taught in ((0.0, True), (1.0, False)):
        rows = steps(run(workspace, student, {"pool.weight": 1.0, "mad.probe_threshold": threshold}, arm="mad"))
        found = [abs(row["terms"]["pool_token_region"]) > 0 for row in rows]
        assert found == [taught] * 3
        assert all(abs(row["terms"]["token_region"]) > 0 for row in rows)


@pytest.mark.slow
def test_any_loss_can_be_distilled_on_the_pool(workspace, student):
    objective = {
        "weight": 0.5, "weighting": "uniform", "distance": "info-nce", "head": "mlp", "layer": [1, 2],
        "affinity_weight": 1.0, "affinity_form": "both",
    }  # fmt: skip
    more = {f"pool.objective.{name}": value for name, value in objective.items()}
    rows = steps(run(workspace, student, more, arm="kd-global", task="vcr"))
    kinds = ("global_image", "global_text", "token_text", "token_region", "token_tag")
    wanted = {f"pool_{kind}@{layer}" for kind in kinds for layer in (1, 2)}
    wanted |= {"pool_affinity_sentence", "pool_affinity_word", "task", "global_image", "global_text"}
    assert all(set(row["terms"]) == wanted for row in rows)
    assert all(value > 0 for row in rows for value in row["terms"].values())


def test_factors_rise_fall_and_end(workspace, student):
    more = {**AFFINITY, "pool.schedule": "linear", "pool.until": 0.6, "optim.steps": 5}
    rows = steps(run(workspace, student, more))
    for place, row in enumerate(rows):
        terms = row["terms"]
        assert ("pool_affinity_sentence" in terms) == (place < 3)
        factor = 1 - place / 3
        assert row["loss"] == pytest.approx(terms["task"] + factor * terms.get("pool_affinity_sentence", 0.0), rel=1e-5)
        assert row["n"] == (12 if place < 3 else 4)


@pytest.mark.parametrize("task", [pytest.param("vcr", marks=pytest.mark.slow), "snli-ve"])
def test_micro_batches_add_up_to_the_whole_joint_batch(workspace, elsewhere, student, task):
    settings = {**AFFINITY, **SOFT, "optim.dropout": 0.0, "pool.objective.weight": 0.3}
    settings |= {"pool.objective.weighting": "uniform"}
    whole = steps(run(workspace, student, settings, task=task))
    calls = []
    made = joint_objective.JointBatchMaker.__call__

    def counted(self, places, step):
        calls.append(len(places))
        return made(self, places, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint_objective.JointBatchMaker, "__call__", counted)
        cut = steps(run(elsewhere, student, {**settings, "optim.micro_tokens": 90}, task=task))
    assert len(calls) > 6
    assert [row["ids"] for row in cut] == [row["ids"] for row in whole]
    for a, b in zip(whole, cut, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
        assert b["terms"] == pytest.approx(a["terms"], abs=1e-5)


class Killed(Exception):
    pass


@pytest.mark.parametrize("more", [{}, {"optim.token_budget": 80, "optim.bucket": 16, "pool.until": 0.7}])
def test_a_killed_joint_run_goes_on_bit_for_bit(workspace, elsewhere, student, monkeypatch, more):
    settings = {**AFFINITY, **SOFT, "optim.steps": 5, "checkpoint.every": 2, "optim.micro_tokens": 90, **more}
    whole = run(elsewhere, student, settings, arm="mad")
    made = joint_objective.JointBatchMaker.__call__

    def dying(self, places, step):
        if step == 3:
            raise Killed
        return made(self, places, step)

    with monkeypatch.context() as patch:
        patch.setattr(joint_objective.JointBatchMaker, "__call__", dying)
        with pytest.raises(Killed):
            run(workspace, student, settings, arm="mad")
    torch.manual_seed(99)  # whatever state the new process has
    resumed = run(workspace, student, settings, arm="mad")
    assert resumed.manifest["resumed_from"] == 2
    assert (resumed.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()
    weights = [(one.path / "student" / "model.safetensors").read_bytes() for one in (resumed, whole)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("change", ["others", pytest.param("none", marks=pytest.mark.slow)])
def test_no_label_of_the_pool_is_ever_read(workspace, elsewhere, student, tmp_path, monkeypatch, task, change):
    """Other labels in the pool, or none at all, and every loss stays as it was."""
    data = open_task(workspace, task, part="auto")
    train = list(data.examples("train"))
    known = {example.question_id for example in labelled_examples(data, "10pct", 1)}
    settings = {**SOFT, **AFFINITY}
    if task == "vqa":  # the head's answers are the task's, not the pool's
        path = tmp_path / "answers.json"
        path.write_text(json.dumps(head_for(data.spec, train).outputs))
        settings["answers"] = str(path)
    before = run(elsewhere, student, settings, task=task)

    def changed(example):
        if example.question_id in known:
            return example
        answers = next(
            (one.candidates for one in train if one.question_id == example.question_id and one.subtask == "answer"), ()
        )
        context = example.context
        if example.subtask == "rationale":  # names the right answer, so it is a label, too
            gold = next(place for place, one in enumerate(answers) if one == context[-1])
            context = (*context[:-1], answers[(gold + 1) % len(answers)])
        if change == "none":
            return replace(example, label=None, answers=None, annotations=(), main_answer="", context=context)
        label = None if example.label is None else (example.label + 1) % (4 if example.candidates else 3)
        answers_ = None if example.answers is None else {"something else": 1.0}
        return replace(example, label=label, answers=answers_, main_answer="something else", context=context)

    other = [changed(example) for example in train]
    assert other != train
    subset = labelled_examples(data, "10pct", 1)
    read = TaskData.examples
    monkeypatch.setattr(TaskData, "examples", lambda self, split: other if split == "train" else read(self, split))
    monkeypatch.setattr("madkit.distill.asked.labelled_examples", lambda *_: subset)
    after = run(workspace, student, settings, task=task)
    assert (after.path / "metrics.jsonl").read_bytes() == (before.path / "metrics.jsonl").read_bytes()


def test_where_everything_is_labelled_soft_labels_leave_plain_fine_tuning(workspace, student):
    plain, soft = (run(workspace, student, {}, arm=arm, shots="full") for arm in ("finetune", "soft-labels"))
    assert [row["loss"] for row in steps(soft)] == [row["loss"] for row in steps(plain)]
    assert soft.manifest["pool"] is None
    assert run(workspace, student, SOFT).manifest["pool"]["questions"] == 24


def test_labelled_examples_and_pool_are_held_once(workspace, student):
    data = open_task(workspace, "snli-ve", part="auto")
    labelled = labelled_examples(data, "10pct", 1)
    model = load_student(student, head=head_for(data.spec, data.examples("train")), head_seed=0)
    config = load_arm(OWN, {**QUICK, **AFFINITY, "optim.steps": 100})
    pool = gather_pool(config, data.examples("train"), labelled, model.head_spec, Teachers([]), seed=1)
    assert pool is not None
    examples, joint = encode_together(labelled, pool, model, data.regions(), threads=1, answer_match="normalized")
    assert joint is not None
    assert len(pool.examples) == len(data.examples("train")) == len(joint.examples)
    assert sorted(joint.rows.tolist()) == list(range(len(joint.examples)))
    assert examples.regions is joint.examples.regions
    assert len(examples) == len(labelled) == len(examples.target)
    assert joint.examples.target is None
    assert all(example.label is None for example in pool.examples)
    alone, _ = encode_together(labelled, None, model, data.regions(), threads=1, answer_match="normalized")
    indices = np.arange(5)
    ours, theirs = examples.inputs(indices), alone.inputs(indices)
    assert torch.equal(ours.input_ids, theirs.input_ids)
    assert torch.equal(ours.region_features, theirs.region_features)
    assert torch.equal(examples.target, alone.target)


LENGTHS = np.asarray([5, 9, 4, 7, 8, 3, 6, 5, 5, 9, 12, 11, 10, 9, 8, 7, 6])
# as much of a joint set as an order asks for: 10 labelled rows, a pool of 7
JOINT = SimpleNamespace(
    labelled=range(10),
    rows=np.arange(10, 17),
    pool=SimpleNamespace(facts={"examples_per_step": 3}),
    examples=SimpleNamespace(lengths=LENGTHS),
)


@pytest.mark.parametrize("kind", ["plain", "buckets"])
def test_the_order_is_a_function_of_seed_and_step(kind):
    def labelled():
        if kind == "plain":
            return PlainOrder(10, 4, "order", 5)
        return BucketOrder(LENGTHS[:10].tolist(), [1] * 10, 20, 10, "order", 5)

    order, alone = JointOrder(labelled(), JOINT, until=6, seed=5), labelled()
    consumed, gold_seen, starts = 0, 0, []
    for step in range(9):
        batch = order.at(consumed)
        starts.append(consumed)
        gold, pool = batch[batch < 10], batch[batch >= 10]
        assert gold.tolist() == alone.at(gold_seen).tolist()
        assert len(pool) == (3 if step < 6 else 0)
        assert (np.diff(LENGTHS[pool]) >= 0).all()
        assert order.sizes(step) == (len(gold), len(pool))
        consumed, gold_seen = consumed + len(batch), gold_seen + len(gold)
    for step in (8, 3, 0, 6):  # a new process begins anywhere
        again = JointOrder(labelled(), JOINT, until=6, seed=5)
        assert again.at(starts[step]).tolist() == order.at(starts[step]).tolist()
    seen = np.concatenate([order.at(start)[order.at(start) >= 10] for start in starts[:7]])
    assert sorted(set(seen.tolist())) == list(range(10, 17))
    assert len(set(seen[:6].tolist())) == 6  # an epoch of the pool is without repeats
    with pytest.raises(ValueError, match="no batch begins after 1 samples"):
        order.at(1)


@pytest.mark.slow
def test_attacks_are_on_the_labelled_part(workspace, student):
    rows = steps(run(workspace, student, {**SOFT, "adversarial.steps": 2}))
    assert all({"task", "adversarial_kl", "pool_soft", "pool_kept"} == set(row["terms"]) for row in rows)
    for row in rows:
        terms = row["terms"]
        assert row["loss"] == pytest.approx(
            terms["task"] + 1.5 * terms["adversarial_kl"] + terms["pool_soft"], rel=1e-4
        )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pool.batch_size": 8}, "nothing is learnt from it"),
        ({**AFFINITY, "pool.weight": 0}, "weight is 0"),
        ({"pool.objective.weight": 0.0}, "nothing would be distilled"),
        ({**SOFT, "pool.soft_labels.temprature": 2}, "Did you mean 'temperature'"),
    ],
)
def test_a_pool_that_could_teach_nothing_is_refused(workspace, student, settings, said):
    with pytest.raises(ConfigError, match=said):
        run(workspace, student, settings)


def test_tags_alone_cannot_be_taught_where_there_are_none(workspace, student):
    tags = {"weighting": "uniform", "tokens": "all", "text_weight": 0, "region_weight": 0}
    tags |= {"global_image_weight": 0, "global_text_weight": 0}
    settings = {f"pool.objective.{name}": value for name, value in tags.items()}
    with pytest.raises(ConfigError, match="texts of this data name no boxes"):
        run(workspace, student, settings)
    rows = steps(run(workspace, student, settings, task="vcr"))
    assert all(row["terms"]["pool_token_tag"] > 0 for row in rows)


def test_a_process_whose_share_is_of_the_pool_alone_keeps_nobody_waiting():
    """A batch by tokens may have fewer labelled examples than there are processes."""

    def work(accelerator):
        objective = JointObjective.__new__(JointObjective)
        torch.nn.Module.__init__(objective)
        objective.criterion = MADCriterion(MADConfig(tokens="global", weighting="teacher-only"), 8, 4, 4)
        objective.learn_pool = lambda batch: StepLoss(torch.zeros(()), {})
        (mean,) = weight_means(objective, accelerator)
        mean.open(whole=True)
        if accelerator.is_main_process:
            divisor = mean(torch.tensor(6.0), torch.tensor(4.0))
        else:
            objective(JointBatch(None, object(), None, None, (0.0, 1.0)))
            divisor = None
        mean.close()
        return divisor, mean.state()["running"].tolist()

    (divisor, first), (_, second) = on_ranks(2, work)
    assert float(divisor) == 1.5
    assert first == second == [6.0, 4.0]
