from __future__ import annotations

import json

import pytest

from madkit.cli.main import main
from madkit.core.errors import NotFoundError
from madkit.distill.sweep import sweep
from madkit.evaluate import predict as predict_module
from madkit.evaluate.grid import find_runs, group_runs
from madkit.evaluate.missing import cells_to_train, missing_cells
from madkit.evaluate.protocol import Protocol
from madkit.tasks import data as data_module


def groups_of(made_up, **protocol):
    runs, _, _ = find_runs(made_up.workspace, Protocol(**protocol))
    return group_runs(runs)


def test_missing_cells_span_what_the_workspace_holds(made_up):
    made_up.add_run("finetune", 0)
    made_up.add_run("finetune", 1)
    made_up.add_run("mad", 0)
    (cell,) = missing_cells(groups_of(made_up), Protocol())
    assert (cell.arm, cell.seed, cell.shots, cell.source) == ("mad", 1, "1pct", "mini-snli-ve")


def test_a_baseline_that_was_never_trained_is_missing(made_up):
    made_up.add_run("mad", 3)
    (cell,) = missing_cells(groups_of(made_up), Protocol())
    assert (cell.arm, cell.seed) == ("finetune", 3)


def test_lists_of_the_protocol_say_what_ought_to_be_there(made_up):
    made_up.add_run("finetune", 0)
    wanted = {"arms": ("finetune", "mad"), "seeds": (0, 1), "tasks": ("snli-ve", "vqa")}
    cells = missing_cells(groups_of(made_up, **wanted), Protocol(**wanted))
    assert [(cell.task, cell.arm, cell.seed) for cell in cells] == [
        ("snli-ve", "finetune", 1),
        ("snli-ve", "mad", 0),
        ("snli-ve", "mad", 1),
        ("vqa", None, None),
    ]


def test_students_of_the_protocol_and_whole_grids_without_a_run_are_missing(made_up):
    made_up.add_run("finetune", 0)
    wanted = {"students": ("mini-uniter", "uniter-base"), "arms": ("finetune",), "seeds": (0,), "shots": ("1pct",)}
    (cell,) = missing_cells(groups_of(made_up, **wanted), Protocol(**wanted))
    assert (cell.student, cell.arm, cell.task) == ("uniter-base", "finetune", "snli-ve")
    wanted = {"tasks": ("vqa",), "arms": ("finetune", "mad"), "seeds": (0, 1), "shots": ("1pct",)}
    cells = missing_cells([], Protocol(**wanted))
    assert [(cell.task, cell.student, cell.arm, cell.seed) for cell in cells] == [
        ("vqa", None, "finetune", 0),
        ("vqa", None, "finetune", 1),
        ("vqa", None, "mad", 0),
        ("vqa", None, "mad", 1),
    ]


def test_a_cell_follows_the_runs_of_its_arm_with_as_many_labels(made_up):
    made_up.add_run("mad", 0)
    made_up.add_run("mad", 0, shots="5pct")
    made_up.add_run("mad", 1, shots="5pct")
    made_up.add_run("finetune", 0)
    cells = {(cell.arm, cell.shots, cell.seed): cell for cell in missing_cells(groups_of(made_up), Protocol())}
    assert [run.shots for run in cells["mad", "1pct", 1].like] == ["1pct"]
    assert cells["mad", "1pct", 1].teacher == "mini"
    assert [run.shots for run in cells["finetune", "5pct", 0].like] == ["1pct"]
    other = missing_cells(groups_of(made_up), Protocol(arms=("affinity",), shots=("1pct",), seeds=(0,)))
    assert [(cell.like, cell.teacher) for cell in other] == [((), "mini")]


@pytest.fixture
def trained(made_up, monkeypatch):
    """The made-up workspace, with a training that makes a made-up run of every spec; and the specs it was asked for."""
    asked = []

    def run_many(workspace, specs, **options):
        for spec in specs:
            config = sweep.load_arm(spec.arm, spec.overrides)
            asked.append((spec, config.model_dump(mode="json")))
            config = sweep.resolve(config, task="classification", n_examples=200, seed=spec.seed)
            values = {"config": config.model_dump(mode="json"), "tag": "trained"}
            made_up.add_run(config.arm, spec.seed, shots=spec.shots, **values)

    monkeypatch.setattr(sweep, "run_many", run_many)
    monkeypatch.setattr(data_module, "open_task", lambda *a, **b: made_up.data["mini-snli-ve", "aaaa000011112222"])
    monkeypatch.setattr(predict_module, "predict", lambda *arguments, spec, **_: made_up.scorer(*arguments, spec))
    made_up.add_data("snli-ve", "mini-snli-ve")
    return made_up, asked


def full_config(arm, **overrides):
    config = sweep.load_arm(arm, overrides)
    return sweep.resolve(config, task="classification", n_examples=200, seed=0).model_dump(mode="json")


SPEC = {"spec": {"name": "snli-ve", "title": "t", "kind": "classification", "metric": "accuracy",
                 "metrics": ["accuracy"], "labels": ["contradiction", "entailment", "neutral"]},
        "examples_labelled": 200}  # fmt: skip


def test_missing_cells_are_trained_with_the_settings_of_their_arm_and_stand_in_the_table(trained, tmp_path, capsys):
    made_up, asked = trained
    settings = {"mad.weight": 0.7, "optim.epochs": 30.0}
    for arm, overrides in (("finetune", {}), ("mad", settings)):
        made_up.add_run(arm, 0, config=full_config(arm, **overrides), **SPEC)
    protocol = tmp_path / "mine.yaml"
    protocol.write_text("tasks: [snli-ve]\nshots: [1pct, full]\narms: [finetune, mad]\nseeds: [0, 1]\nsuites: [test]\n")
    where = ["--workspace", str(made_up.workspace.root), "--protocol", str(protocol), "--json"]
    assert main(["evaluate", *where, "--train-missing"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["missing"] == []
    assert {(row["label"], row["shots"], row["n_seeds"]) for row in document["rows"]} == {
        (arm, shots, 2) for arm in ("finetune", "mad") for shots in ("1pct", "full")
    }
    assert len(asked) == 6
    for spec, config in asked:
        assert (spec.task, spec.student) == ("snli-ve", "mini-uniter")
        assert spec.teacher == ("mini" if config["arm"] == "mad" else None)
        assert config["optim"]["steps"] is None  # more labels, more steps: as the rule says
        if config["arm"] == "mad":
            assert (config["mad"]["weight"], config["optim"]["epochs"]) == (0.7, 30.0)
    assert main(["evaluate", *where, "--train-missing"]) == 0
    assert len(asked) == 6  # nothing is missing any more


@pytest.mark.parametrize("steps", [3, None])
def test_a_missing_baseline_trains_as_long_as_what_it_is_compared_with(trained, steps, capsys):
    """A number of steps that somebody gave holds for it, too; one that the rule gives is left to the rule."""
    made_up, asked = trained
    given = {} if steps is None else {"optim.steps": steps}
    made_up.add_run("mad", 0, config=full_config("mad", **given), **SPEC)
    assert main(["evaluate", "--workspace", str(made_up.workspace.root), "--train-missing", "--json"]) == 0
    ((spec, config),) = asked
    assert (spec.arm, spec.seed, config["optim"]["steps"]) == ("finetune", 0, steps)
    assert "was trained for" not in capsys.readouterr().out


def test_an_empty_workspace_is_trained_from_the_protocol_alone(trained, tmp_path, capsys):
    made_up, asked = trained
    protocol = tmp_path / "mine.yaml"
    protocol.write_text(
        "tasks: [snli-ve]\nshots: [200]\narms: [finetune]\nseeds: [3]\nset: {optim.steps: 5}\nsuites: [test]\n"
    )
    where = ["--workspace", str(made_up.workspace.root), "--protocol", str(protocol)]
    assert main(["evaluate", *where, "--train-missing"]) == 0
    ((spec, config),) = asked
    assert (spec.shots, spec.seed, spec.student, config["optim"]["steps"]) == ("200", 3, None, 5)
    assert "finetune" in capsys.readouterr().out


def test_settings_of_a_protocol_are_shared_over_controls_too(trained, tmp_path, capsys):
    made_up, asked = trained
    protocol = tmp_path / "mine.yaml"
    protocol.write_text(
        "tasks: [snli-ve]\nshots: [200]\narms: [finetune, kd-global-permuted, affinity]\nseeds: [3]\n"
        "set: {mad: {weight: 0.3}, optim.steps: 5}\nsuites: [test]\n"
    )
    where = ["--workspace", str(made_up.workspace.root), "--protocol", str(protocol)]
    assert main(["evaluate", *where, "--train-missing"]) == 0
    told = {spec.arm: (config["mad"] and config["mad"]["weight"], config["optim"]["steps"]) for spec, config in asked}
    assert told == {"finetune": (None, 5), "kd-global-permuted": (0.3, 5), "affinity": (None, 5)}
    said = " ".join(capsys.readouterr().err.split())
    assert "mad.weight is not for finetune and affinity, which have no mad: they are trained without it." in said


def test_an_arm_that_nobody_knows_costs_its_own_cells_only(trained, tmp_path, capsys):
    made_up, asked = trained
    made_up.add_run("finetune", 0, config=full_config("finetune"), **SPEC)
    protocol = tmp_path / "mine.yaml"
    protocol.write_text("arms: [finetune, finetun]\nseeds: [0, 1]\n")
    where = ["--workspace", str(made_up.workspace.root), "--protocol", str(protocol), "--json"]
    assert main(["evaluate", *where, "--train-missing"]) == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert len(asked) == 1
    assert "Did you mean 'finetune'" in captured.err
    assert [problem["where"] for problem in document["problems"]] == [
        "mini-snli-ve 1pct finetun seed 0",
        "mini-snli-ve 1pct finetun seed 1",
    ]
    assert document["rows"]


def test_data_that_has_changed_is_not_trained_on_in_its_name(trained, made_up):
    made_up.add_run("finetune", 0, data_revision="bbbb000011112222")
    cells, problems = cells_to_train(made_up.workspace, str(_protocol(made_up, "seeds: [0, 1]")))
    assert cells == []
    assert "revision bbbb000011112222" in problems[0].error


def _protocol(made_up, text):
    path = made_up.workspace.root.parent / "protocol.yaml"
    path.write_text(text)
    return path


def test_without_runs_an_open_protocol_cannot_say_what_to_train(made_up):
    with pytest.raises(NotFoundError, match="leaves open"):
        cells_to_train(made_up.workspace, "full")
    _, problems = cells_to_train(made_up.workspace, str(_protocol(made_up, "tasks: [vqa]")))
    assert "does not say what to train" in problems[0].error
