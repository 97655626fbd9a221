"""The command in several real processes on CPUs (gloo, through torch.distributed.run), and a change of their number."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from madkit.core.files import read_json, read_jsonl


def launched(processes: int, workspace, student: Path, *more: str) -> list[str]:
    """The command that trains a run in so many processes, with accumulation and without dropout."""
    settings = [
        "optim.steps=16", "optim.batch_size=6", "optim.dropout=0", "optim.micro_tokens=400", "eval.limit=8",
        "eval.every=8", "checkpoint.every=4", "optim.ema=0.9",
    ]  # fmt: skip
    many = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={free_port()}"]
    return [
        sys.executable, *(many if processes > 1 else []), "-m", "madkit", "distill", "--task", "vcr", "--shots", "20",
        "--arm", "mad", "--student", str(student), "--seed", "4", "--threads", "1",
        "--workspace", str(workspace.root), *[part for pair in settings for part in ("--set", pair)], *more,
    ]  # fmt: skip


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def machines(workspaces, student: Path, *more: str) -> list[subprocess.Popen[str]]:
    """The same run on several machines with a process each, all of them this one."""
    port = free_port()
    started = []
    for number, workspace in enumerate(workspaces):
        several = [f"--nnodes={len(workspaces)}", f"--node_rank={number}", "--nproc_per_node=1",
                   "--master_addr=127.0.0.1", f"--master_port={port}"]  # fmt: skip
        python, *rest = launched(1, workspace, student, *more)
        command = [python, "-m", "torch.distributed.run", *several, *rest]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return started


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("development split") == 1  # one process speaks
    assert done.stderr.count("labelled examples, arm") == 1


def journal(workspace) -> list[dict]:
    (path,) = workspace.runs.glob("mini-vcr/*/metrics.jsonl")
    return [row for row in read_jsonl(path) if "loss" in row]


def fresh(workspace, benchmark, place: Path):
    other = type(workspace).at(place)
    other.root.mkdir()
    (other.root / "data").symlink_to(benchmark[0].data)
    (other.root / "cache").symlink_to(benchmark[0].cache)
    return other


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_killed_run_goes_on_with_another_number_of_processes(workspace, benchmark, student, tmp_path, before, after):
    process = subprocess.Popen(launched(before, workspace, student), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while process.poll() is None and time.monotonic() < deadline:
        journals = list(workspace.runs.glob("mini-vcr/*/metrics.jsonl"))
        if journals and journals[0].read_bytes().count(b'"loss"') >= 6:
            break
        time.sleep(0.01)
    assert process.poll() is None
    launcher = psutil.Process(process.pid)
    for one in (launcher, *launcher.children(recursive=True)):  # torchrun's workers have sessions of their own
        one.kill()
    process.wait()
    assert 6 <= len(journal(workspace)) < 16
    run(launched(after, workspace, student))
    calm = fresh(workspace, benchmark, tmp_path / "calm")
    run(launched(1, calm, student))
    moved, still = journal(workspace), journal(calm)
    assert [row["ids"] for row in moved] == [row["ids"] for row in still]
    assert [row["loss"] for row in moved] == pytest.approx([row["loss"] for row in still], abs=1e-5)
    for name in still[0]["terms"]:
        one, other = ([row["terms"].get(name, 0.0) for row in rows] for rows in (moved, still))
        assert one == pytest.approx(other, abs=1e-5), name
    (manifest,) = workspace.runs.glob("mini-vcr/*/manifest.json")
    assert read_json(manifest)["resumed_from"] == 4
    assert read_json(manifest)["processes"] == after


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["mad", "soft labels", "attacked"])
def test_a_joint_pool_is_the_same_on_two_processes(workspace, benchmark, student, tmp_path, pool):
    settings = {
        # accumulated: a share of four labelled and three pool examples does not fit 400 tokens
        "mad": ["pool.weight=1", "pool.batch_size=20"],
        "soft labels": ["pool.weight=0", "pool.batch_size=20", "pool.soft_labels.threshold=0.3"],
        "attacked": ["pool.weight=1", "pool.batch_size=20", "adversarial.steps=2", "optim.micro_tokens=4000"],
    }[pool]
    more = [part for pair in ["optim.steps=6", *settings] for part in ("--set", pair)]
    alone = fresh(workspace, benchmark, tmp_path / "alone")
    run(launched(2, workspace, student, *more))
    run(launched(1, alone, student, *more))
    shared, whole = journal(workspace), journal(alone)
    assert len(whole) == 6
    assert [row["ids"] for row in shared] == [row["ids"] for row in whole]
    assert [row["n"] for row in shared] == [6 + 5] * 6
    assert [row["loss"] for row in shared] == pytest.approx([row["loss"] for row in whole], abs=1e-5)
    names = {name for row in whole for name in row["terms"]}
    assert any(name.startswith("pool_") for name in names)
    for name in names:
        one, other = ([row["terms"].get(name, 0.0) for row in rows] for rows in (shared, whole))
        assert one == pytest.approx(other, abs=1e-5), name
    (manifest,) = workspace.runs.glob("mini-vcr/*/manifest.json")
    assert read_json(manifest)["processes"] == 2


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all_after_the_same_step(workspace, student):
    long = launched(2, workspace, student, "--set", "optim.steps=400")
    process = subprocess.Popen(long, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 400
    while process.poll() is None and time.monotonic() < deadline:
        journals = list(workspace.runs.glob("mini-vcr/*/metrics.jsonl"))
        if journals and journals[0].read_bytes().count(b'"loss"') >= 6:
            break
        time.sleep(0.01)
    assert process.poll() is None
    ranks = [child for child in psutil.Process(process.pid).children() if child.environ().get("RANK") == "1"]
    ranks[0].terminate()
    _, words = process.communicate(timeout=400)
    assert "Stopped by" in words
    (folder,) = workspace.runs.glob("mini-vcr/*/checkpoints")
    saved = max(int(path.name[-6:]) for path in folder.glob("step-*"))
    assert saved == journal(workspace)[-1]["step"]


@pytest.mark.slow
def test_two_machines_that_share_a_folder_train_one_run(workspace, benchmark, student, tmp_path):
    alone = fresh(workspace, benchmark, tmp_path / "alone")
    run(launched(1, alone, student))
    both = machines([workspace, workspace], student)
    said = [process.communicate(timeout=900) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert ["development split" in out for out, _ in said] == [True, False]  # one machine speaks
    shared, whole = journal(workspace), journal(alone)
    assert [row["ids"] for row in shared] == [row["ids"] for row in whole]
    assert [row["loss"] for row in shared] == pytest.approx([row["loss"] for row in whole], abs=1e-5)
    (manifest,) = workspace.runs.glob("mini-vcr/*/manifest.json")
    assert read_json(manifest)["processes"] == 2


@pytest.mark.slow
def test_two_machines_without_a_common_folder_do_not_go_on_apart(workspace, benchmark, student, tmp_path):
    """The second has no checkpoint: it would begin anew where the first goes on."""
    other = fresh(workspace, benchmark, tmp_path / "other")
    long = ["--set", "optim.steps=400"]
    both = machines([workspace, other], student, *long)
    deadline = time.monotonic() + 400
    while both[0].poll() is None and time.monotonic() < deadline:
        if list(workspace.runs.glob("mini-vcr/*/checkpoints/step-*")):
            break
        time.sleep(0.01)
    assert both[0].poll() is None
    for process in both:
        launcher = psutil.Process(process.pid)
        for one in (launcher, *launcher.children(recursive=True)):
            one.kill()
        process.communicate()
    both = machines([workspace, other], student, *long)
    said = [process.communicate(timeout=400)[1] for process in both]
    assert 0 not in [process.returncode for process in both]
    assert "go on from different steps" in said[0]
    assert "--workspace" in said[0]
