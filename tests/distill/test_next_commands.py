"""What a summary suggests is typed into the command line, from another folder."""

from __future__ import annotations

import re
import shlex

from madkit.cli.main import main
from madkit.core.files import read_json
from madkit.core.workspace import Workspace
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
