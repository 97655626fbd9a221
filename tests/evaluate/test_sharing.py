"""One grid in several processes: real ones on CPUs (gloo), and the share of one of them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from madkit.core.files import read_json, read_jsonl
from madkit.core.job import Job
from madkit.core.workspace import Workspace
from madkit.evaluate.grid import Problem
from madkit.evaluate.sharing import answer_together
from madkit.evaluate.stage import evaluate


def second_run(tiny, tag: str, **student):
    """Another seed's run beside the tiny one, its student changed by `student`."""
    folder = tiny.run.with_name(tiny.run.name.replace("s0-01234567", f"s1-{tag}"))
    shutil.copytree(tiny.run, folder)
    manifest = read_json(folder / "manifest.json")
    (folder / "manifest.json").write_text(json.dumps({**manifest, "seed": 1, **student}))
    return folder


LAUNCHERS = {
    "forked": [str(Path(__file__).with_name("forks.py")), "2"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "-m", "madkit"],
}


@pytest.mark.parametrize("launcher", ["forked", pytest.param("accelerate", marks=pytest.mark.slow)])
@pytest.mark.parametrize("tiny", ["snli-ve"], indirect=True)
def test_two_processes_write_what_one_writes_and_one_speaks(tiny, tmp_path, launcher):
    root = tmp_path / "alone"
    shutil.copytree(tiny.workspace.root, root, symlinks=True, ignore=shutil.ignore_patterns("predictions", "*.jsonl"))
    tiny = replace(tiny, workspace=Workspace.at(root), run=root / tiny.run.relative_to(tiny.workspace.root))
    second_run(tiny, "11111111")
    broken = second_run(tiny, "22222222", seed=2)
    (broken / "student" / "model.safetensors").write_bytes(b"torn")
    protocol = tmp_path / "two.yaml"
    protocol.write_text("suites: [test, dev]\nresamples: 100\n")
    shared = tmp_path / "shared"
    shutil.copytree(tiny.workspace.root, shared, symlinks=True)
    results = evaluate(tiny.workspace, str(protocol))

    command = ["evaluate", "--protocol", str(protocol), "--device", "cpu", "--json", "--workspace", str(shared)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = {"ACCELERATE_MAIN_PROCESS_PORT": str(free.getsockname()[1]), "MASTER_PORT": str(free.getsockname()[1])}
    done = subprocess.run(
        [sys.executable, *LAUNCHERS[launcher], *command],
        capture_output=True, text=True, timeout=300, env={**os.environ, **port, "MADKIT_DEBUG": "0"},
    )  # fmt: skip
    document = json.loads(done.stdout)  # one document: one process prints
    assert done.stderr.count("6 run-suites to answer in 2 processes") == 1
    told = {**results.document(), **{key: document[key] for key in ("created", "environment")}}
    expected = json.dumps(told).replace(str(tiny.workspace.root), str(shared))
    assert {key: document[key] for key in told} == json.loads(expected)
    assert [problem["where"] for problem in document["problems"]] == [
        f"{broken.name} on {name}" for name in ("test", "dev")
    ]
    for run in results.runs:
        here, there = tiny.workspace.root / run["path"], shared / run["path"]
        rows, other = (
            read_jsonl(place / "results.jsonl") if (place / "results.jsonl").exists() else [] for place in (here, there)
        )
        same = [sorted(({**row, "seconds": 0} for row in one), key=lambda row: row["suite"]) for one in (rows, other)]
        assert same[0] == same[1]
        assert len(rows) == (0 if here.name == broken.name else 2)
        for row in rows:
            file = f"predictions/{row['suite']}.jsonl"
            assert (here / file).read_bytes() == (there / file).read_bytes()


class Talk(Job):
    """The first of two processes, which hears what a test says that the other one tells."""

    def __init__(self, number, *others):
        self.number, self.count, self.others = number, 2, list(others)

    def gather(self, value):
        other = self.others.pop(0)
        other = value if other is Ellipsis else other
        return [value, other] if self.number == 0 else [other, value]


def test_a_process_answers_its_share_and_hears_of_the_others_problems(made_up):
    made_up.add_data("snli-ve", "mini-snli-ve")
    folders = [made_up.add_run("finetune", seed) for seed in range(3)]
    key = f"mini-snli-ve/{folders[1].name}/test"
    problem = Problem("there", "broken")
    first = Talk(0, None, [], None, {key: problem})
    assert answer_together(first, made_up.workspace, "smoke", scorer=made_up.scorer) == {key: problem}
    assert made_up.scored == [(folders[0].name, "test"), (folders[2].name, "test")]
    results = made_up.evaluate("smoke", failed={key: problem})
    assert results.problems == (problem.as_dict(),)
    assert len(made_up.scored) == 2
    assert results.rows[0].seeds == (0, 2)


def test_what_is_answered_is_dealt_to_nobody(made_up):
    made_up.add_data("snli-ve", "mini-snli-ve")
    for seed in range(3):
        made_up.add_run("finetune", seed)
    made_up.evaluate("smoke")
    assert answer_together(Talk(0, None, [], None, {}), made_up.workspace, "full", scorer=made_up.scorer) == {}
    assert made_up.scored[3:] == [(made_up.scored[0][0], "test-rendering"), (made_up.scored[2][0], "test-rendering")]
