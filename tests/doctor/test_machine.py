"""Versions, libraries, machine, disk and hub: what is wrong is told, and a broken library breaks no doctor."""

from __future__ import annotations

import errno
import os
import socket
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from madkit.core import hub as core_hub
from madkit.doctor import disk, machine, probe, versions
from madkit.doctor.disk import check_room, check_speed, file_system, trial_folder
from madkit.doctor.findings import Status
from madkit.doctor.hub import check_hub
from madkit.doctor.machine import Probe, check_libraries, check_machine
from madkit.doctor.versions import check_pair, check_versions

from .conftest import one

GOOD: dict[str, Any] = {
    "torch": {"version": "2.15.0", "seconds": 2.0, "devices": [], "threads": 1, "cuda": None},
    "torchvision": {"version": "0.29", "ok": True, "seconds": 1.0},
    "jpeg": {"pillow": 200.0, "torchvision": 300.0, "same": True},
    "zarr": {"version": "3.1", "pipeline": "P", "ok": True},
}


def test_this_installation_is_in_order() -> None:
    findings = check_versions()
    assert {finding.status for finding in findings} == {Status.PASS}
    packages = one(findings, "packages").detail
    assert f"torch {metadata.version('torch')}" in packages
    assert "transformers" in packages


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """What is said to be installed; names that are not in it are as they are."""
    changed: dict[str, str | None] = {}
    true = versions.installed
    monkeypatch.setattr(versions, "installed", lambda name: changed[name] if name in changed else true(name))
    return changed


def test_missing_and_old_packages_fail_with_what_to_install(installed: dict[str, str | None]) -> None:
    installed |= {"h5py": None, "zarr": "2.18.0", "peft": None}
    findings = check_versions()
    assert one(findings, "h5py").mend.startswith("pip install 'h5py>=")
    zarr = one(findings, "zarr")
    assert (zarr.status, zarr.detail) == (Status.FAIL, "2.18.0, and madkit needs >=3.1")
    assert zarr.mend == "pip install --upgrade 'zarr>=3.1'"
    extras = one(findings, "extras")
    assert extras.status is Status.PASS
    assert "lora (adapt with --train lora)" in extras.detail
    assert "s3 (" not in extras.detail


def test_a_torchvision_of_another_torch_fails(
    installed: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_pair().status is Status.PASS
    for line, version, status in [
        ("torch==2.13.0", "2.13.0+cu130", Status.PASS),
        ("torch (==2.13.0)", "2.13.0", Status.PASS),
        ("torch==2.13.0 ; extra == 'x'", "2.14.1", Status.FAIL),
        ("torch==2.13.0", "2.12.0", Status.FAIL),
        ("torch>=2.13.0", "2.12.0", Status.PASS),
    ]:
        installed["torch"] = version
        monkeypatch.setattr(metadata, "requires", lambda name, line=line: ["numpy", line])
        assert check_pair().status is status, (line, version)
    installed["torchvision"] = None
    assert check_pair().status is Status.FAIL


def test_a_madkit_that_is_not_installed_is_no_failure() -> None:
    assert check_versions("no-such-distribution")[-1].status is Status.WARN


def test_the_probe_tries_this_machines_libraries(tmp_path: Path) -> None:
    assert probe._torchvision()["ok"]
    jpeg = probe._jpeg()
    assert jpeg["pillow"] > 0
    assert jpeg["torchvision"] > 0
    assert jpeg["same"]
    assert probe._zarr(tmp_path / "store")["ok"]

    def broken() -> dict[str, object]:
        raise ZeroDivisionError("division by zero")

    assert probe._tried(broken)["error"] == "ZeroDivisionError: division by zero"
    torch = probe._torch()
    assert torch["threads"] >= 1
    assert torch["computes"] in (None, True)


def test_the_store_of_the_probe_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    import zarr

    monkeypatch.setattr(zarr, "open_array", lambda **_: np.zeros((6, 4, 8), np.float16))
    assert not probe._zarr(tmp_path / "store")["ok"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise SystemExit(3)", "ended with exit code 3"),
        ("import os; os.kill(os.getpid(), 11)", "ended with signal 11"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("print('no json')", "ended with exit code 0"),
        ("print('[]')", "the probe gave no answer"),
        ("import time; time.sleep(60)", "took longer than"),
    ],
)
def test_a_library_that_dies_or_hangs_is_told(code: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROBE", ("-c", code))
    with Probe(None) as started:
        answer = started.answer(0.3 if "sleep" in code else 30.0)
    (found,) = check_libraries(answer)
    assert found.status is Status.FAIL
    assert words in found.detail
    assert "torch" in found.mend
    assert ("pip install" in found.mend) == ("sleep" not in code)


def test_the_answers_of_the_probe_are_read() -> None:
    assert {finding.status for finding in check_libraries(GOOD)} == {Status.PASS}
    bad = {
        "torch": {"error": "ImportError: libcuda"},
        "torchvision": {"error": "RuntimeError: operator torchvision::nms does not exist"},
        "jpeg": {"pillow": 200.0},
        "zarr": {"version": "3.1", "ok": False},
        "imports": {"errors": {"open_clip": "ImportError: x"}},
    }
    findings = check_libraries(bad)
    assert [finding.status.value for finding in findings] == ["FAIL", "FAIL", "WARN", "FAIL", "FAIL"]
    assert "nms" in one(findings, "torchvision").detail
    assert one(findings, "open_clip").mend == "pip install --upgrade open_clip_torch"
    wrong = {**GOOD, "torchvision": {"ok": False, "version": "1", "seconds": 1}}
    assert one(check_libraries(wrong), "torchvision").status is Status.FAIL


def test_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def gpu(**torch: Any) -> Any:
        return [one_ for one_ in check_machine({"torch": torch}) if one_.name.startswith("GPU")]

    assert gpu(devices=[])[0].status in (Status.WARN, Status.FAIL)
    device = {"name": "H100", "gib": 79.2, "sm": 90, "bf16": True}
    (found,) = gpu(devices=[device], computes=True)
    assert (found.status, found.detail) == (Status.PASS, "H100, 79 GiB, bf16")
    assert gpu(devices=[{**device, "bf16": False}], computes=True)[0].status is Status.WARN
    assert gpu(devices=[device, device], computes=False)[1].status is Status.FAIL


def test_a_container_with_less_time_than_threads_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_quota", lambda: 1.0)
    found = one(check_machine({"torch": {"threads": 8}}), "processor")
    assert (found.status, found.mend) == (Status.WARN, "export OMP_NUM_THREADS=1")
    monkeypatch.setattr(machine, "_quota", lambda: None)
    assert one(check_machine({"torch": {"threads": 8}}), "processor").status is Status.PASS


def test_the_trial_folder_is_gone_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(KeyError), trial_folder(tmp_path) as folder:
        (folder / "x").write_text("x")
        raise KeyError
    old = tmp_path / ".doctor-killed"
    old.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    fresh = tmp_path / ".doctor-running"
    fresh.mkdir()
    with trial_folder(tmp_path) as folder:
        assert {path.name for path in tmp_path.iterdir()} == {folder.name, fresh.name}
    assert [path.name for path in tmp_path.iterdir()] == [fresh.name]


def test_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "TRIAL_BYTES", 2**20)
    monkeypatch.setattr(disk, "PIECE_BYTES", 2**18)
    findings = check_speed(tmp_path)
    assert "MB/s written" in one(findings, "speed").detail
    assert one(findings, "locks").status is Status.PASS
    monkeypatch.setattr(disk, "SLOW_READ_MB", 1e12)
    assert one(check_speed(tmp_path), "speed").status is Status.WARN

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    (found,) = check_speed(tmp_path)
    assert found.status is Status.FAIL
    assert "No space left" in found.detail


def test_the_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    found = check_room(tmp_path / "not" / "yet")
    assert found[0].name == "free space"
    assert not (tmp_path / "not").exists()
    for free, status in [(0.5e9, Status.FAIL), (5e9, Status.WARN), (5e12, Status.PASS)]:
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: shutil._ntuple_diskusage(9e12, 0, int(free)))
        assert one(check_room(tmp_path), "free space").status is status
    monkeypatch.setattr(disk, "file_system", lambda path: "nfs4")
    assert one(check_room(tmp_path), "file system").status is Status.WARN
    monkeypatch.undo()
    assert file_system(Path("/proc")) == "proc"


def test_the_hub_out_of_reach_is_a_warning_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in core_hub.PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        (found,) = check_hub(1.0)
        assert found.status is Status.PASS
    began = time.monotonic()
    (found,) = check_hub(1.0)
    assert time.monotonic() - began < 5
    assert (found.status, found.detail) == (Status.WARN, "127.0.0.1 cannot be reached from here")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in check_hub()[0].detail
