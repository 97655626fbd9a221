"""Trackers through Accelerate: a registered one that writes down what it is told, and TensorBoard where it is there."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from madkit.core.errors import RunError, UsageProblem
from madkit.distill.loop import trackers as module
from madkit.distill.loop.loop import Look, make_accelerator
from madkit.distill.loop.trackers import Trackers, check_trackers, flat
from tests.distill.loop.toy_loop import SETTINGS, Killed, dying_in, train


class Noting(GeneralTracker):
    name = "noting"
    requires_logging_directory = True
    told: ClassVar[list] = []

    def __init__(self, run_name, logging_dir, **settings):
        super().__init__()
        self.place = logging_dir

    def start(self):
        self.told.append(("start", Path(self.place).name))

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.told.append(("config", values))

    def log(self, values, step=None, **settings):
        self.told.append((step, values))

    def finish(self):
        self.told.append(("finish", None))


@pytest.fixture(autouse=True)
def noting():
    Noting.told.clear()
    LOGGER_TYPE_TO_CLASS["noting"] = Noting  # `register_tracker_class` is new in Accelerate 1.15
    yield Noting.told
    LOGGER_TYPE_TO_CLASS.pop("noting")


def tracked(folder, names=("noting",), **more):
    accelerator = make_accelerator("fp32")
    settings = replace(SETTINGS, look_every=8)
    with Trackers(names, folder, {"arm": "mad"}, {"optim": {"steps": 24, "betas": [0.9, 0.98]}}, accelerator) as those:
        train(
            folder, settings=settings, accelerator=accelerator, trackers=those,
            look=lambda step: Look(step, {"accuracy": float(step)}), **more,
        )  # fmt: skip


def test_every_step_is_told_once_with_loss_terms_and_looks(tmp_path, noting):
    tracked(tmp_path)
    assert noting[:2] == [
        ("start", "noting"),
        ("config", {"arm": "mad", "optim.steps": 24, "optim.betas": "[0.9, 0.98]"}),
    ]
    assert noting[-1] == ("finish", None)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [step for step, _ in noting[2:-1]] == [row["step"] for row in rows]
    first = rows[0]
    assert noting[2][1] == {
        "train/loss": first["loss"], "train/lr": first["lr"], "terms/task": first["loss"], "terms/step": 0.0,
    }  # fmt: skip
    assert [values for _, values in noting[2:-1] if "dev/accuracy" in values] == [
        {"dev/accuracy": 8.0}, {"dev/accuracy": 16.0}, {"dev/accuracy": 24.0},
    ]  # fmt: skip


@pytest.mark.parametrize("at", [2, 9, 21])
def test_a_killed_run_tells_no_step_twice_and_leaves_none_out(tmp_path, noting, at):
    tracked(tmp_path / "whole")
    whole = [told for told in noting if isinstance(told[0], int)]
    noting.clear()
    with pytest.raises(Killed):
        tracked(tmp_path / "killed", batch=dying_in(at))
    tracked(tmp_path / "killed")
    assert [told for told in noting if isinstance(told[0], int)] == whole
    tracked(tmp_path / "killed")
    assert len([told for told in noting if isinstance(told[0], int)]) == len(whole)
    assert len([told for told in noting if told[0] == "config"]) == 1


def test_a_kill_between_checkpoint_and_tracker_is_made_good(tmp_path, noting, monkeypatch):
    monkeypatch.setattr(Trackers, "feed", lambda self, step: None)
    with pytest.raises(Killed):
        tracked(tmp_path, batch=dying_in(10))
    monkeypatch.undo()
    noting.clear()
    tracked(tmp_path)
    losses = [step for step, values in noting if isinstance(step, int) and "train/loss" in values]
    assert losses == list(range(1, 25))


def test_a_tracker_that_comes_later_gets_the_whole_run(tmp_path, noting):
    train(tmp_path)
    tracked(tmp_path)
    assert len([step for step, _ in noting if isinstance(step, int)]) == 24


def test_unknown_trackers_and_absent_packages_are_sentences(monkeypatch):
    with pytest.raises(UsageProblem, match=r"no tracker 'tensorbord'\. Did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])
    monkeypatch.setattr(module, "get_available_trackers", list)
    with pytest.raises(RunError, match="'comet_ml' needs a package") as error:
        check_trackers(["comet_ml"])
    assert error.value.hint == "pip install comet-ml"
    check_trackers(["noting"])


def test_weights_and_biases_stay_offline_unless_somebody_says_otherwise(tmp_path, monkeypatch):
    seen = []

    class Fake(Noting):
        requires_logging_directory = False

        def __init__(self, run_name, **settings):
            GeneralTracker.__init__(self)
            self.place = run_name
            seen.append((os.environ.get("WANDB_MODE"), settings))

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Fake)
    monkeypatch.setenv("WANDB_MODE", "online")
    for mode in ("online", "offline"):
        with Trackers(["wandb"], tmp_path / "mini-vcr" / "a.run-s0", {}, {}, make_accelerator("fp32")):
            pass
        assert seen[-1][0] == mode
        monkeypatch.delenv("WANDB_MODE")
    settings = seen[-1][1]
    assert (settings["id"], settings["group"], settings["resume"]) == ("a-run-s0", "mini-vcr", "allow")
    assert settings["dir"].startswith(str(tmp_path))


def test_nested_settings_become_dotted_numbers_and_texts():
    assert flat({"a": {"b": 1, "c": {"d": None}}, "e": [1, "x"]}) == {"a.b": 1, "a.c.d": "null", "e": '[1, "x"]'}


def test_tensorboard_holds_every_step_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert "tensorboard" in {str(getattr(kind, "value", kind)) for kind in get_available_trackers()}
    with pytest.raises(Killed):
        tracked(tmp_path, names=("tensorboard",), batch=dying_in(10))
    tracked(tmp_path, names=("tensorboard",))
    events = EventAccumulator(str(tmp_path / "trackers" / "tensorboard"))
    events.Reload()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert {event.step: event.value for event in events.Scalars("train/loss")} == pytest.approx(losses, rel=1e-6)
    assert len(events.Scalars("train/loss")) == 24
