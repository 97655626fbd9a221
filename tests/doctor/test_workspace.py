"""Every way in which a workspace can be out of order is told, with the command that mends it; a sound one passes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from madkit.core.files import FileLock
from madkit.core.workspace import Workspace
from madkit.doctor import workspace as checks
from madkit.doctor.findings import Status
from madkit.doctor.stage import _placed
from madkit.doctor.workspace import check_adapters, check_caches, check_leftovers, check_runs, check_workspace

from .conftest import MadeWorkspace, one

RUN = "mini-snli-ve/mini-uniter-mad-1pct-s3-00000000"


def test_a_sound_workspace_passes(made: MadeWorkspace) -> None:
    made.add_data()
    before = {path: path.stat().st_mtime_ns for path in made.workspace.root.rglob("*")}
    findings = check_workspace(made.workspace)
    assert {finding.status for finding in findings} == {Status.PASS}
    assert "1 complete, no file missing" in one(findings, "caches").detail
    assert "1 complete, their students whole" in one(findings, "runs").detail
    assert {path: path.stat().st_mtime_ns for path in made.workspace.root.rglob("*")} == before, "nothing is written"


def test_an_empty_workspace_passes(tmp_path: Path) -> None:
    findings = check_workspace(Workspace.at(tmp_path))
    assert {finding.status for finding in findings} == {Status.PASS}
    assert all("none yet" in finding.detail for finding in findings)


def shard(store: Path) -> Path:
    return min(path for path in (store / "images" / "tokens" / "c").rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda store: shard(store).unlink(), "is missing"),
        (lambda store: os.truncate(shard(store), 10), "has 10 bytes instead of"),
        (lambda store: (store / "manifest.json").write_text("{"), "it cannot be read"),
        (lambda store: (store / "manifest.json").write_text("{}"), "it cannot be read"),
    ],
)
def test_a_damaged_cache_fails(made: MadeWorkspace, harm: Callable[[Path], object], words: str) -> None:
    harm(made.store)
    found = one(check_caches(made.workspace), made.store.name)
    assert found.status is Status.FAIL
    assert words in found.detail
    assert found.mend.startswith("madkit cache ")
    assert made.store.name in found.mend


def test_an_unfinished_cache_warns_but_not_while_it_is_made(made: MadeWorkspace) -> None:
    (made.store / "manifest.json").unlink()
    (made.store / ".lock").write_text("process 1 on another day\n")
    found = one(check_caches(made.workspace), made.store.name)
    assert (found.status, found.mend) == (Status.WARN, "madkit extract --teacher doctor --task vcr")
    with FileLock(made.store / ".lock"):
        assert one(check_caches(made.workspace), made.store.name).status is Status.PASS


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda run: cut(run / "student" / "model.safetensors"), "bytes instead of"),
        (lambda run: (run / "student" / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda run: (run / "student" / "model.safetensors").write_bytes(b"\xff" * 40), "is not a safetensors file"),
        (
            lambda run: (run / "student" / "model.safetensors").write_bytes(b"\x04" + bytes(7) + b"null"),
            "cannot be read",
        ),
        (lambda run: (run / "student" / "config.json").unlink(), "has no config.json"),
        (lambda run: (run / "student" / "vocab.txt").unlink(), "has no vocabulary"),
        (lambda run: shutil.rmtree(run / "student"), "its student is gone"),
        (lambda run: (run / "manifest.json").write_text("{"), "is not valid JSON"),
        (lambda run: (run / "manifest.json").write_text('{"schema": 99}'), "manifest schema 99"),
        (lambda run: (run / "results.jsonl").write_text("{\n{}\n"), "line 1: not valid JSON"),
    ],
)
def test_a_damaged_run_fails(made: MadeWorkspace, harm: Callable[[Path], object], words: str) -> None:
    harm(made.run)
    findings = check_runs(made.workspace)
    found = one(findings, RUN)
    assert found.status is Status.FAIL
    assert words in found.detail
    assert found.mend
    assert "0 complete" not in str(findings)


def test_data_that_is_gone_warns_once_for_all_its_runs(made: MadeWorkspace) -> None:
    shutil.copytree(made.run, made.run.with_name("mini-uniter-mad-1pct-s4-00000000"))
    found = one(check_runs(made.workspace), "mini-snli-ve r")
    assert found.status is Status.WARN
    assert "revision r of mini-snli-ve is gone, on which 2 runs learnt" in found.detail
    assert found.mend == "madkit extract --teacher mini --task snli-ve"
    made.add_data()  # one of the two now belongs to data that is there
    found = one(check_runs(made.workspace), "mini-snli-ve r")
    assert "on which 1 run learnt" in found.detail
    shutil.rmtree(made.workspace.data)
    found = next(one for one in check_runs(made.workspace) if one.name.startswith("mine "))
    assert (found.status, found.mend) == (
        Status.WARN, "put that data back, or train again on the data that is there",
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_fail(made: MadeWorkspace, dtype: torch.dtype, value: float) -> None:
    weights = {f"layer.{number}": torch.zeros(3000, dtype=dtype) for number in range(20)}
    weights |= {"ids": torch.full((9,), -1), "largest": torch.full((9,), torch.finfo(dtype).max, dtype=dtype)}
    file = made.run / "student" / "model.safetensors"
    made.say(config={"optim": {"learning_rate": 1e-3}})
    save_file(weights, file)
    assert one(check_runs(made.workspace, deep=True), "runs").status is Status.PASS
    weights["layer.7"][2999] = value  # in one place, far behind: only who reads everything finds it
    save_file(weights, file)
    assert one(check_runs(made.workspace), "runs").status is Status.PASS
    assert "NaN or infinite (layer.7)" in one(check_runs(made.workspace, deep=True), RUN).detail
    save_file({name: one.fill_(value) if one.is_floating_point() else one for name, one in weights.items()}, file)
    found = one(check_runs(made.workspace), RUN)
    assert (found.status, "NaN or infinite" in found.detail) == (Status.FAIL, True)
    assert found.mend.startswith(f"rm {made.run / 'manifest.json'} && madkit distill --task snli-ve ")
    assert found.mend.endswith("config.yaml --set optim.learning_rate=0.0005")


def test_a_stopped_run_warns_with_the_command_that_goes_on(made: MadeWorkspace) -> None:
    made.say(status="running")
    found = one(check_runs(made.workspace), RUN)
    assert found.status is Status.WARN
    assert found.mend == (
        f"madkit distill --task snli-ve --shots 1pct --seed 3 --teacher mini-x-0 --config {made.run / 'config.yaml'}"
    )
    with FileLock(made.run / ".lock"):
        assert one(check_runs(made.workspace), "under way").status is Status.PASS
    made.say(status="running", is_mini=False, source="birds")  # where no student is taken for granted
    assert "--task birds " in one(check_runs(made.workspace), RUN).mend
    assert " --student mini-uniter " in one(check_runs(made.workspace), RUN).mend


def test_the_command_that_goes_on_is_one_that_parses(made: MadeWorkspace) -> None:
    import shlex

    from madkit.cli.app import load_command

    made.say(status="running", is_mini=False, source="my-vcr", student="uniter-base-1234", teacher=None, cache_key=None)
    found = one(check_runs(made.workspace), RUN)
    arguments = shlex.split(found.mend)[2:]
    context = load_command("distill").make_context("distill", list(arguments))
    assert (context.params["task"], context.params["student"]) == (["my-vcr"], ["uniter-base-1234"])
    assert not context.params["teacher"]


def test_several_teachers_are_named_one_by_one(made: MadeWorkspace) -> None:
    made.say(status="running", cache_key="mini-x-0, dinov2-x-1")
    assert " --teacher mini-x-0 --teacher dinov2-x-1 --config " in one(check_runs(made.workspace), RUN).mend


def test_adapters(made: MadeWorkspace) -> None:
    (made.adapter / "adapter.safetensors").unlink()
    assert one(check_adapters(made.workspace), "mine").status is Status.FAIL
    made.say_adapter(untouched=True)
    assert one(check_adapters(made.workspace), "adapters").status is Status.PASS
    made.say_adapter(status="running")
    found = one(check_adapters(made.workspace), "mine")
    assert found.status is Status.WARN
    assert found.mend.startswith("madkit adapt --teacher mini --task vcr --shots 5pct --seed 1 --config ")
    (made.adapter / "manifest.json").write_text("[]")
    assert one(check_adapters(made.workspace), "mine").status is Status.FAIL


def test_what_killed_processes_left_is_told(made: MadeWorkspace) -> None:
    assert check_leftovers(made.workspace) == []
    (made.run / ".lock").write_text("process 1\n")
    (made.run / ".student.abc.new").mkdir()
    (made.run / ".student.abc.new" / "half").write_bytes(bytes(2_000_000))
    (made.workspace.root / "data").mkdir()
    findings = check_leftovers(made.workspace)
    assert one(findings, "locks").status is Status.PASS
    assert one(findings, "locks").detail.startswith("1 of processes that were killed")
    left = one(findings, "temporary files")
    assert left.status is Status.WARN
    assert "2.0 MB" in left.detail
    assert left.mend == f"rm -r {made.run / '.student.abc.new'}"


def test_locks_of_other_processes_are_seen(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from madkit.core.files import FileLock\n"
        "with FileLock(Path(sys.argv[1])):\n  print('held', flush=True)\n  sys.stdin.read()"
    )
    path = tmp_path / "x.lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert checks.is_held(path, checks.held_locks())
        process.communicate()
    path.write_text("left")
    assert not checks.is_held(path, checks.held_locks())
    assert checks.is_held(path, None), "where the kernel does not tell, a lock counts as held"


def test_caches_at_a_url_are_left_alone(tmp_path: Path) -> None:
    (found,) = check_caches(Workspace.at(tmp_path, cache="s3://bucket/caches"))
    assert found.status is Status.PASS
    assert "not looked at" in found.detail


def test_data_that_lost_examples_or_images_fails(tmp_path: Path) -> None:
    from madkit.doctor.workspace import check_data
    from madkit.tasks.mini.build import build_mini

    workspace = Workspace.at(tmp_path)
    home = workspace.data / "mini" / "mini-vqa-tiny"
    build_mini(home, "mini-vqa", part="tiny", workers=1)
    assert one(check_data(workspace), "data sets").detail == "mini-vqa-tiny"
    manifest = json.loads((home / "manifest.json").read_text())
    manifest["splits"]["dev"]["examples"] += 1
    (home / "manifest.json").write_text(json.dumps(manifest))
    found = one(check_data(workspace), "mini-vqa-tiny")
    assert found.status is Status.FAIL
    assert "dev holds" in found.detail
    manifest["splits"]["dev"]["examples"] -= 1
    manifest["images_root"] = "gone"
    (home / "manifest.json").write_text(json.dumps(manifest))
    assert "its images are gone" in one(check_data(workspace), "mini-vqa-tiny").detail
    (home / "manifest.json").write_text("{")
    found = one(check_data(workspace), "mini-vqa-tiny")
    assert found.status is Status.FAIL
    assert found.mend == f"rm -r {home} && madkit extract --teacher mini --task vqa"  # nothing but what can be typed
    assert _placed(found, workspace).mend.endswith(f" --task vqa --workspace {tmp_path}")
    home.rename(home.with_name("mini-vqa-demo"))
    found = _placed(one(check_data(workspace), "mini-vqa-demo"), workspace)
    assert found.mend == f"rm -r {home.with_name('mini-vqa-demo')} && madkit demo --workspace {tmp_path}"
