from __future__ import annotations

import errno
import json

import pytest
import torch

from madkit.core.errors import RunError
from madkit.core.metrics_log import MetricsLog
from madkit.distill.loop import checkpoint
from madkit.distill.loop.checkpoint import latest_checkpoint, list_checkpoints, write_checkpoint
from madkit.distill.loop.schedule import rate_factor


def state(value: float) -> dict[str, object]:
    return {"weights": torch.full((3,), value), "step": int(value)}


def test_the_last_k_are_kept_and_the_newest_is_found(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, state(step), keep=2)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-000002", "step-000003"]
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == 3
    assert torch.equal(found[1]["weights"], torch.full((3,), 3.0))


def test_nothing_to_resume_from(tmp_path):
    assert latest_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    for step in (1, 2):
        write_checkpoint(tmp_path, step, state(step), keep=3)
    file = tmp_path / "step-000002" / "state.pt"
    data = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(data[:-10])
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    else:
        file.unlink()
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == 1


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 1, state(1), keep=1)

    def full(path, data):
        path.write_bytes(bytes(data[: len(data) // 2]))
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "write_bytes_atomic", full)
    with pytest.raises(RunError, match=r"the disk is full.*intact"):
        write_checkpoint(tmp_path, 2, state(2), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == 1


def test_the_rubbish_of_a_killed_write_is_ignored_and_removed(tmp_path):
    write_checkpoint(tmp_path, 1, state(1), keep=1)
    (tmp_path / ".step-000002.abc.tmp").mkdir()
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_the_journal_is_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, after_step=0) as journal:
        for step in range(1, 6):
            journal.write({"step": step, "loss": step / 7})
    with path.open("ab") as file:
        file.write(b'{"step": 6, "lo')
    with MetricsLog(path, after_step=3) as journal:
        journal.write({"step": 4, "loss": 0.5})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["loss"] == 1 / 7
    assert rows[3]["loss"] == 0.5


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
def test_the_rate_rises_to_its_peak_and_falls_without_a_lost_step(steps, warmup):
    rates = [rate_factor(step, steps, warmup) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    rising = round(warmup * steps)
    assert rates[:rising] == sorted(rates[:rising])
    assert rates[rising:] == sorted(rates[rising:], reverse=True)
    if rising < steps:
        assert rates[rising] == 1.0
        assert rates[-1] == pytest.approx(1 / (steps - rising))
