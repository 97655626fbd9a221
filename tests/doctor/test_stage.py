"""The doctor as a whole, with a stand-in for the probe: exit codes, JSON, what is written, what breaks inside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from madkit.cli.main import main
from madkit.core.workspace import Workspace
from madkit.doctor import disk, hub, machine, stage
from madkit.doctor.stage import examine

from .conftest import MadeWorkspace
from .test_machine import GOOD


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROBE", ("-c", f"print({json.dumps(GOOD)!r})"))
    monkeypatch.setattr(disk, "TRIAL_BYTES", 2**20)
    monkeypatch.setattr(disk, "PIECE_BYTES", 2**18)
    monkeypatch.setattr(disk, "SLOW_WRITE_MB", 0.0)
    monkeypatch.setattr(hub, "why_unreachable", lambda endpoint, timeout: "the hub cannot be reached from here")


def test_a_sound_workspace_is_exit_0_and_left_as_it_was(
    made: MadeWorkspace, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(made.workspace.root.rglob("*"))
    assert main(["doctor", "--workspace", str(made.workspace.root)]) == 0
    out = capsys.readouterr().out
    assert sorted(made.workspace.root.rglob("*")) == before
    assert "0 FAIL in " in out.splitlines()[-1]
    assert "\x1b" not in out
    long = [line for line in out.splitlines() if len(line) > 80]
    assert all("mend:" in line or str(made.workspace.root) in line for line in long), long
    for words in ("Versions\n", "Libraries\n", "Machine\n", "Disk\n", "Hub\n", "Caches\n", "Runs\n"):
        assert words in out


def test_one_failure_is_exit_1_with_the_rest_told(made: MadeWorkspace, capsys: pytest.CaptureFixture[str]) -> None:
    (made.run / "student" / "config.json").unlink()
    assert main(["doctor", "--workspace", str(made.workspace.root), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert found["counts"]["FAIL"] == 1
    (bad,) = [check for check in found["checks"] if check["status"] == "FAIL"]
    assert set(bad) == {"group", "name", "status", "detail", "mend"}
    assert bad["mend"].startswith("rm ")
    assert bad["mend"].endswith(f" --workspace {made.workspace.root}")
    assert {check["group"] for check in found["checks"]} >= {"versions", "libraries", "machine", "disk", "caches"}
    for check in found["checks"]:
        assert bool(check["mend"]) == (check["status"] != "PASS"), check


def test_the_default_workspace_need_not_be_named(made: MadeWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADKIT_WORKSPACE", str(made.workspace.root))
    (made.store / "manifest.json").unlink()
    mends = [one.mend for one in examine(made.workspace).findings if one.group == "caches"]
    assert mends == ["madkit extract --teacher doctor --task vcr"]


def test_a_workspace_that_does_not_exist_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--workspace", str(tmp_path / "no")]) == 0
    assert "does not exist yet" in " ".join(capsys.readouterr().out.split())
    assert list(tmp_path.iterdir()) == []


def test_a_workspace_that_cannot_be_written_fails(made: MadeWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", denied)
    found = examine(made.workspace)
    assert not found.ok
    (bad,) = [one for one in found.findings if one.status == "FAIL"]
    assert "cannot be written" in bad.detail


def test_a_check_that_breaks_costs_no_other(made: MadeWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(stage, "check_versions", broken)
    found = examine(made.workspace)
    bad = [one for one in found.findings if one.status == "FAIL"]
    assert [one.detail for one in bad] == ["it ended with ZeroDivisionError: division"]
    assert any(one.group == "caches" for one in found.findings)


def test_deep_reads_every_byte(made: MadeWorkspace) -> None:
    shard = next(path for path in sorted(made.store.rglob("c/*/*/*")) if path.stat().st_size > 40)
    data = bytearray(shard.read_bytes())
    data[0] ^= 1
    shard.write_bytes(data)
    assert examine(made.workspace).ok, "sizes alone do not show it"
    found = examine(made.workspace, deep=True)
    assert not found.ok
    (bad,) = [one for one in found.findings if one.status == "FAIL"]
    assert bad.mend == f"madkit cache repair {made.store.name} --workspace {made.workspace.root}"


@pytest.mark.slow
def test_the_real_probe_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROBE", ("-m", "madkit.doctor.probe"))
    found = examine(stage_workspace(tmp_path))
    assert found.ok, found.findings
    assert any(one.name == "zarr pipeline" for one in found.findings)


def stage_workspace(root: Path) -> Workspace:
    return Workspace.at(root)
