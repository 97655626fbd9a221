"""Without a network: one sentence for every scheme, at once, and nothing is asked of the net."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from madkit.core.errors import NotFoundError
from madkit.teachers.describe import describe_teacher
from madkit.teachers.load import load_teacher

NAMES = {
    "clip-vit-l14": "--weights PATH",
    "open_clip:RN50/openai": "--weights PATH",
    "open_clip:ViT-B-16-SigLIP/webli": "--weights PATH",
    "open_clip:roberta-ViT-B-32/laion2b_s12b_b32k": "--weights PATH",
    "siglip-b16": "--weights FOLDER",
    "roberta-base": "--weights FOLDER",
    "hf:someone/something@v2": "--weights FOLDER",
    "timm:resnet50.a1_in1k": "--weights PATH",
    "dinov2-vit-l14+roberta-base": "--weights FOLDER",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_teacher_is_found_out_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def refuse(*place: Any, **more: Any) -> None:
        asked.append(place)
        raise OSError("no network")

    for call in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, call, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(NotFoundError):  # imports what it needs
        load_teacher(name)
    began = time.monotonic()
    with pytest.raises(NotFoundError, match=r"are not on this machine, and the hub is switched off") as found:
        load_teacher(name)
    assert time.monotonic() - began < 5
    assert asked == []
    assert NAMES[name] in (found.value.hint or "")
    assert found.value.message.count(". ") == 0  # one sentence


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for name in (f"local:{tmp_path / 'x'}", f"hf:{tmp_path / 'x'}"):
        with pytest.raises(NotFoundError, match=r"has no config\.json"):
            load_teacher(name)


def test_a_folder_that_reads_like_a_name_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights" / "clip").mkdir(parents=True)
    for read in (load_teacher, describe_teacher):
        with pytest.raises(NotFoundError, match="on this machine") as found:
            read("hf:weights/clip")
        assert "hf:./weights/clip" in (found.value.hint or "")


def test_the_command_says_it_and_exits_with_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "madkit", "teachers", "check", "timm:resnet18.a1_in1k"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert time.monotonic() - began < 90  # imports of a busy machine, but no retries
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0].startswith("Error: The weights of 'timm:resnet18.a1_in1k' are not on this machine")
    assert lines[1].startswith("Try: give a file")
    assert len(lines) == 2
