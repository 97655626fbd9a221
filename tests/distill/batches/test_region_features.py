"""Region features in memory and read batch by batch are the same to a run; batches made ahead of time are the same."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import torch

from madkit.core.errors import DataError
from madkit.distill.batches import region_features
from madkit.distill.batches.region_features import RegionFeatures
from madkit.distill.loop.ahead import Ahead
from madkit.distill.stage import distill
from madkit.regions import Regions

torch.set_num_threads(1)


class Made:
    """Regions that are functions of the image's number."""

    dim = 5

    def __init__(self) -> None:
        self.read = 0

    def get(self, name: str) -> Regions:
        self.read += 1
        number = int(name)
        draw = np.random.default_rng(number)
        count = 1 + number % 4
        return Regions(draw.random((count, 4), dtype=np.float32), draw.standard_normal((count, 5)).astype(np.float32))


@pytest.mark.parametrize("threads", [1, 3])
def test_both_ways_give_the_same_tensors(threads):
    ids = [str(number) for number in range(150)]
    kept, read = RegionFeatures(Made(), ids, threads=threads), RegionFeatures(Made(), ids, threads=threads, limit=0)
    assert kept.in_memory
    assert not read.in_memory
    torch.testing.assert_close(kept.boxes, read.boxes, rtol=0, atol=0)
    assert kept.counts.tolist() == [1 + number % 4 for number in range(150)]
    assert torch.equal(kept.mask.sum(1), torch.from_numpy(kept.counts))
    rows = torch.tensor([7, 140, 7, 3])
    for width in (1, 4):
        torch.testing.assert_close(kept.features(rows, width), read.features(rows, width), rtol=0, atol=0)
    before = read.reader.read
    read.features(rows, 4)
    assert read.reader.read - before == 3  # each image once


def test_features_lie_in_memory_once_and_without_padding():
    class Uneven(Made):
        def get(self, name: str) -> Regions:
            count = 100 if name == "7" else 2
            return Regions(np.tile(np.float32([0, 0, 1, 1]), (count, 1)), np.full((count, 5), int(name), np.float32))

    kept = RegionFeatures(Uneven(), [str(number) for number in range(150)], limit=10**6)
    assert kept.in_memory
    held = sum(value.nbytes for value in vars(kept).values() if isinstance(value, torch.Tensor) and value.dim() == 2)
    assert held < 2 * (149 * 2 + 100) * 5 * 4 + 150 * 100  # and not 150 images of 100
    assert kept.features(torch.tensor([7, 3]), 100)[:, :, 0].sum(1).tolist() == [700.0, 6.0]


def test_what_turns_out_larger_than_its_first_images_is_not_kept(capsys):
    class Growing(Made):
        def get(self, name: str) -> Regions:
            count = 1 if int(name) < 64 else 50
            return Regions(np.tile(np.float32([0, 0, 1, 1]), (count, 1)), np.full((count, 5), int(name), np.float32))

    names = [str(number) for number in range(300)]
    read = RegionFeatures(Growing(), names, limit=20_000)
    assert not read.in_memory
    assert "read batch by batch" in capsys.readouterr().err
    assert read.features(torch.tensor([200, 3]), 2)[:, 1, 0].tolist() == [200.0, 0.0]


@pytest.mark.parametrize("arm", ["finetune", "mad"])
def test_a_run_does_not_notice(workspace, student, monkeypatch, tmp_path, capsys, arm):
    def losses(share: float, seed_folder: str) -> list[float]:
        monkeypatch.setattr(region_features, "SHARE_OF_MEMORY", share)
        result = distill(
            workspace, task="snli-ve", shots="24", arm=arm, student=student, part="tiny",
            config_overrides={"optim.steps": 4, "optim.micro_tokens": 300, "description": seed_folder,
                              "checkpoint.every": 3},
        )  # fmt: skip
        rows = [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]
        import shutil

        shutil.rmtree(result.path)
        return [row["loss"] for row in rows if "loss" in row]

    assert losses(0.4, "kept") == losses(0.0, "read")
    assert "read batch by batch" in capsys.readouterr().err


def test_batches_made_ahead_are_those_asked_for():
    made: list[tuple[int, str]] = []

    def make(piece: np.ndarray, step: int) -> tuple[int, int]:
        made.append((step, threading.current_thread().name))
        if step == 9:
            raise DataError("the file has gone")
        return int(piece.sum()), step

    one, other = np.array([1, 2]), np.array([3])
    with Ahead(make, on=True) as batches:
        assert batches(one, 0) == (3, 0)  # nobody announced it
        batches.announce([one, other], 1)
        assert batches(one, 1) == (3, 1)
        assert batches(other, 1) == (3, 1)
        batches.announce([one], 2)
        assert batches(other, 2) == (3, 2)  # another one was announced
        batches.announce([one], 9)
        with pytest.raises(DataError, match="the file has gone"):
            batches(one, 9)
    assert made[0][1] == threading.current_thread().name
    assert all(name.startswith("madkit-batch") for step, name in made if step == 1)
    with Ahead(make, on=False) as batches:
        batches.announce([one], 3)
        assert batches(one, 3) == (3, 3)
