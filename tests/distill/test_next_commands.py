"""What a summary suggests is typed into the command line, from another folder."""

from __future__ import annotations

import re
import shlex
import tempfile
from itertools import pairwise
from types import SimpleNamespace

import numpy as np

from madkit import MADConfig
from madkit.cli.main import main
from madkit.core.files import read_json
from madkit.core.workspace import Workspace
from madkit.distill.next_commands import next_commands
from madkit.distill.settings.arms import load_arm, parse_overrides
from madkit.distill.stage import distill

ASKED = {
    "optim.steps": 2, "optim.batch_size": 4, "optim.learning_rate": 3e-5, "eval.limit": 8, "mad.layer": [1, 2],
    "mad.distance": "smooth-l1",
}  # fmt: skip


def suggested(result):
    text = (result.path / "summary.md").read_text(encoding="utf-8")
    block = re.search(r"## Next\n\n```\n(.*?)```", text, flags=re.DOTALL)
    assert block is not None
    return [shlex.split(line, comments=True) for line in block[1].splitlines()]


def test_the_next_seed_is_another_run_of_the_same_arm(workspace, student, tmp_path, monkeypatch):
    first = distill(
        workspace, task="vqa", shots="10pct", arm="mad", student=student, seed=1, config_overrides=ASKED, threads=1,
        teacher="random",
    )  # fmt: skip
    evaluate, again = suggested(first)
    assert evaluate == ["madkit", "evaluate", "--workspace", str(workspace.root)]
    monkeypatch.chdir(tmp_path)
    assert main([*again[1:], "--threads", "1", "--json"]) == 0
    manifests = [read_json(path) for path in workspace.runs.glob("*/*/manifest.json")]
    runs = {one["seed"]: one for one in manifests if one["arm"] == "mad" and one["shots"] == "10pct"}
    assert sorted(runs) == [1, 2]
    assert runs[1]["config"] == runs[2]["config"]
    for name in ("task", "student_digest", "teacher", "cache_key"):
        assert runs[1][name] == runs[2][name]


def test_settings_of_a_library_call_are_written_as_they_are_typed(workspace, student):
    """What `load_arm` takes may not stop a run that is trained: numbers of NumPy, typed settings."""
    rate = np.logspace(-5, -3, 3)[1]
    result = distill(
        workspace, task="vqa", arm="mad", student=student, shots="10pct", threads=1, teacher="random", seed=5,
        config_overrides={
            "optim.steps": np.int64(1), "optim.batch_size": 4, "eval.limit": 8, "optim.learning_rate": rate,
            "optim.betas": np.array([0.9, 0.95]), "mad": MADConfig(k_text=2),
        },
    )  # fmt: skip
    _, again = suggested(result)
    told = parse_overrides([value for option, value in pairwise(again) if option == "--set"])
    assert told["optim.learning_rate"] == float(rate)
    assert told["optim.betas"] == [0.9, 0.95]
    assert load_arm("mad", told).mad == MADConfig(k_text=2)


def test_a_student_that_was_named_is_named_again():
    """The small one, too, which on data of one's own is no default."""
    names = SimpleNamespace(
        task="birds", shots="1pct", arm="mad", student="mini-uniter", init=None, recipe=None, overrides=None
    )
    asked = SimpleNamespace(names=names, teacher=["one", "two"], seed=4, workspace=Workspace.at())
    _, (again, _) = next_commands(asked)
    assert "--student mini-uniter --teacher one --teacher two --seed 5" in again


def test_an_arm_in_a_file_that_will_be_gone_is_not_suggested(workspace, student, tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("arm: mine\n")
    call = {"task": "vqa", "student": student, "shots": "10pct", "threads": 1, "arm": str(tmp_path / "mine.yaml")}
    quick = {"optim.steps": 1, "optim.batch_size": 4, "eval.limit": 8}
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert [words[1] for words in suggested(distill(workspace, **call, config_overrides=quick))] == ["evaluate"]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    both = suggested(distill(workspace, **call, config_overrides=quick, seed=1))
    assert [words[1] for words in both] == ["evaluate", "distill"]


def test_where_a_call_looks_by_itself_is_not_said(workspace, student, tmp_path, monkeypatch):
    (tmp_path / "madkit-workspace").symlink_to(workspace.root.resolve())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MADKIT_CACHE", str(workspace.cache.resolve()))
    result = distill(
        Workspace.at(), task="vqa", arm="finetune", student=student, shots="10pct", threads=1,
        config_overrides={"optim.steps": 1, "optim.batch_size": 4, "eval.limit": 8},
    )  # fmt: skip
    for command in suggested(result):
        assert "--workspace" not in command
        assert "--cache" not in command
