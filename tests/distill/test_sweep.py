from __future__ import annotations

import pytest

from madkit.core.errors import ConfigError, RunError
from madkit.core.workspace import Workspace
from madkit.distill.sweep import RunSpec, run_many
from madkit.distill.worker_process import Plan, WorkerProcess

QUICK = {"optim.steps": 3, "optim.batch_size": 4, "eval.limit": 8}


def test_runs_are_trained_side_by_side_and_failures_named(workspace, student):
    good = [RunSpec("snli-ve", "finetune", "10", seed, str(student), None, QUICK) for seed in (1, 2)]
    bad = RunSpec("snli-ve", "mad", "10", 1, str(student), "clip-vit-b32", QUICK)
    seen = []
    with pytest.raises(RunError) as error:
        run_many(workspace, [good[0], bad, good[1]], processes=2, threads_each=1, on_done=seen.append)
    assert error.value.message.startswith("1 of 3 runs failed: snli-ve mad 10 seed 1: ")
    assert "no token cache of 'clip-vit-b32'" in error.value.message
    assert sorted(report.spec.seed for report in seen) == [1, 2]
    assert all((report.path / "student" / "model.safetensors").is_file() for report in seen)
    (again,) = run_many(workspace, good[:1])
    assert again.skipped
    assert again.path == next(report.path for report in seen if report.spec.seed == 1)
    assert set(again.dev) == {"accuracy", "n"}


def test_a_wrong_spec_is_found_before_any_process_starts(workspace, student):
    spec = RunSpec("snli-ve", "finetune", overrides={"optim.step": 3})
    with pytest.raises(ConfigError, match="Did you mean 'steps'"):
        run_many(workspace, [spec])


def test_a_worker_that_dies_is_an_answer_and_no_hang(tmp_path):
    worker = WorkerProcess(1)
    worker._process.kill()
    worker._process.wait()
    worker.ask(0, RunSpec("vcr", "finetune"), Plan("mini-vcr", 0, 1), Workspace.at(tmp_path), "auto")
    reply = worker.reply()
    assert reply is not None
    assert "ended with code -9" in reply["error"]
    assert not worker.alive
    worker.stop()
