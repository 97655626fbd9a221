"""Soft labels before fine-tuning: whose they are, that no label of the pool is read, and what goes on from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from madkit.core.errors import ConfigError
from madkit.core.files import digest_of, read_json, read_jsonl
from madkit.core.later_keys import without_later
from madkit.distill import asked, stage
from madkit.distill.settings.arms import load_arm
from madkit.students.load import load_student
from madkit.tasks.data import TaskData, open_task
from madkit.tasks.id_lists import labelled_examples

OWN = str(Path(__file__).parents[1] / "own.yaml")
SOFT = {
    "pre_phase.steps": 3, "pre_phase.batch_size": 12, "pre_phase.eval_every": 2, "pre_phase.soft_labels.folds": 2,
    "pre_phase.soft_labels.features": "global", "pre_phase.objective": None, "optim.steps": 2, "optim.batch_size": 4,
    "eval.limit": 4,
}  # fmt: skip


def train(workspace, student, *, task="snli-ve", shots="10pct", seed=1, arm=OWN, **more):
    """The run's result and its pre-phase's folder."""
    torch.set_num_threads(1)
    result = stage.distill(
        workspace, task=task, shots=shots, arm=arm, student=student, seed=seed, config_overrides={**SOFT, **more},
        threads=1, part="auto",
    )  # fmt: skip
    name = result.manifest["pre_phase"]
    return result, None if name is None else result.path.parent / name


def steps(folder) -> list[dict]:
    return [row for row in read_jsonl(folder / "metrics.jsonl") if "loss" in row]


@pytest.mark.parametrize("task", ["vcr", "vqa"])
def test_the_pool_is_learnt_before_the_labels_and_no_label_of_it_is_read(
    workspace, elsewhere, student, monkeypatch, task
):
    data = open_task(workspace, task, part="auto")
    subset, whole = labelled_examples(data, "10pct", 1), data.examples("train")
    known = {example.question_id for example in subset}
    # answers of the head are the task's; the rest of the train split then says nothing of its labels
    head = asked.head_for(data.spec, whole)
    monkeypatch.setattr(asked, "head_for", lambda *_, **more: head)
    result, phase = train(workspace, student, task=task)
    rows = steps(phase)
    assert len(rows) == 3
    for row in rows:
        assert set(row["terms"]) == {"pool_soft", "pool_kept"}
        assert row["terms"]["pool_kept"] == 1
        assert row["loss"] == pytest.approx(row["terms"]["pool_soft"], abs=1e-6)
        assert row["n"] == (3 if task == "vcr" else 12)
    assert read_json(phase / "manifest.json")["probe"]["folds"] == 2
    assert all(set(row["terms"]) == {"task"} for row in steps(result.path))

    def blank(example):
        context = example.context
        if example.subtask == "rationale":  # names the right answer
            context = (*context[:-1], replace(context[-1], text=context[0].text))
        gone = replace(example, label=None, answers=None, annotations=(), main_answer="", context=context)
        return example if example.question_id in known else gone

    other = [blank(example) for example in whole]
    assert other != list(whole)
    read = TaskData.examples
    monkeypatch.setattr(TaskData, "examples", lambda self, split: other if split == "train" else read(self, split))
    monkeypatch.setattr(asked, "labelled_examples", lambda *_: subset)
    _, again = train(elsewhere, student, task=task)
    assert again.name == phase.name
    assert (again / "metrics.jsonl").read_bytes() == (phase / "metrics.jsonl").read_bytes()


def test_it_belongs_to_the_labelled_examples_and_its_head_goes_on(workspace, student, monkeypatch):
    begins = []
    load = load_student

    def noted(source, **more):
        begins.append({name: value.clone() for name, value in load(source, **more).state_dict().items()})
        return load(source, **more)

    monkeypatch.setattr(stage, "load_student", noted)
    first, phase = train(workspace, student)
    assert read_json(phase / "manifest.json")["soft_labels"]["examples"] == first.manifest["examples"]
    drawn, begun = begins
    left = load(phase / "student").state_dict()
    assert all(torch.equal(value, left[name]) for name, value in begun.items())
    heads = [name for name in left if name.startswith("head.")]
    assert any(not torch.equal(left[name], drawn[name]) for name in heads)
    monkeypatch.undo()
    # other arms on the same examples share it; other examples, another seed or another head's rate do not
    assert train(workspace, student, arm="mad")[1] == phase
    fixed = {"pre_phase.seed": 1}
    others = [train(workspace, student, shots="20pct")[1], train(workspace, student, seed=2, **fixed)[1]]
    others.append(train(workspace, student, **{"optim.head_rate": 2.0})[1])
    assert len({phase, *others}) == 4


def test_affinity_may_be_learnt_beside_and_unsure_answers_left_out(workspace, student):
    more = {f"pre_phase.objective.{name}": value for name, value in (("weight", 0.0), ("affinity_weight", 1.0))}
    more |= {"pre_phase.soft_labels.threshold": 1.0, "pre_phase.soft_labels.weight": 3.0}
    values = {name: value for name, value in {**SOFT, **more}.items() if name != "pre_phase.objective"}
    result = stage.distill(
        workspace, task="snli-ve", shots="10pct", arm=OWN, student=student, seed=1, config_overrides=values,
        threads=1, part="auto",
    )  # fmt: skip
    rows = steps(result.path.parent / result.manifest["pre_phase"])
    for row in rows:
        assert set(row["terms"]) == {"pool_soft", "pool_kept", "pool_affinity_sentence"}
        assert row["terms"]["pool_kept"] == row["terms"]["pool_soft"] == 0
        assert row["loss"] == pytest.approx(row["terms"]["pool_affinity_sentence"], abs=1e-6)


def test_where_all_is_labelled_there_are_none(workspace, student, capsys):
    soft, phase = train(workspace, student, shots="full")
    assert phase is None
    assert "no soft labels to be learnt before" in capsys.readouterr().err
    plain = {name: value for name, value in SOFT.items() if not name.startswith("pre_phase.")}
    alone = stage.distill(
        workspace, task="snli-ve", shots="full", arm=OWN, student=student, seed=1, config_overrides=plain,
        threads=1, part="auto",
    )  # fmt: skip
    assert steps(soft.path) == steps(alone.path)


def test_phases_without_soft_labels_keep_their_names():
    phase = load_arm("affinity").pre_phase.model_copy(update={"seed": 0})
    values = without_later(phase.model_dump(mode="json"), "pre_phase.")
    assert digest_of(values) == "9d2467e65b3d4a24"  # what it was before there were soft labels


def test_a_phase_that_would_learn_nothing_is_refused():
    with pytest.raises(ConfigError, match="nothing would be learnt"):
        load_arm("affinity", {"pre_phase.objective": None})
