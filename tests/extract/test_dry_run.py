"""What an extraction would do: counts, bytes for every choice, room, time, and nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import zarr

from madkit.cli.main import main
from madkit.core.workspace import Workspace
from madkit.extract.dry_run import dry_run
from madkit.extract.stage import extract

torch.set_num_threads(1)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def plan_of(workspace: Path, teacher: Path, **more: Any) -> dict[str, Any]:
    (report,) = dry_run(Workspace(workspace), f"local:{teacher}", ["snli-ve"], device="cpu", **more)
    return report.as_row()


def test_counts_sample_and_time(workspace: Path, tiny_teacher: Path) -> None:
    plan = plan_of(workspace, tiny_teacher)
    assert (plan["images"], plan["texts"], plan["items"], plan["pending"], plan["skipped"]) == (10, 19, 29, 29, 0)
    assert plan["counts"] == {"images": (10, 0, 10), "texts": (19, 0, 19)}
    lines = [
        json.loads(line)
        for split in ("train", "dev", "test")
        for line in (workspace / f"data/snli-ve/{split}.jsonl").read_text().splitlines()
    ]
    assert plan["mentions"] == (len(lines), len(lines))
    assert plan["text_tokens"] > 19
    assert plan["device"] == "cpu"
    assert {part: one["items"] for part, one in plan["measured"].items()} == {"images": 10, "texts": 19}
    assert plan["seconds"] == pytest.approx(sum(one["seconds"] for one in plan["measured"].values()), abs=0.02)
    assert plan["fits"]
    assert not (workspace / "cache").exists()
    json.dumps(plan)


@pytest.mark.parametrize("tokens", ["all", "selected:4", "global"])
def test_bytes_are_those_of_the_arrays(workspace: Path, tiny_teacher: Path, tokens: str) -> None:
    plan = plan_of(workspace, tiny_teacher, tokens="selected:4" if tokens == "selected:4" else "all")
    told = {(row["tokens"], row["dtype"]): row["bytes"] for row in plan["sizes"]}
    for dtype in ("float16", "int8") if tokens != "global" else ("float16",):
        (report,) = extract(
            Workspace(workspace), f"local:{tiny_teacher}", ["snli-ve"], device="cpu", tokens=tokens, store_dtype=dtype
        )
        group = zarr.open_group(report.path, mode="r")
        words = int(np.diff(group["texts/extents"][:], axis=1).sum()) if "extents" in group["texts"] else 0
        size = 0
        for part in ("images", "texts"):
            for name in (path.parent.name for path in (report.path / part).glob("*/zarr.json")):
                array = group[part][name]
                ragged = part == "texts" and name in ("tokens", "spans", "scales")
                rows = words if ragged else array.shape[0]
                size += rows * int(np.prod(array.shape[1:])) * array.dtype.itemsize
        assert told[tokens, dtype] == size
        assert plan_of(workspace, tiny_teacher, tokens=tokens, store_dtype=dtype)["bytes"] == size


def test_what_is_there_is_skipped_and_costs_nothing(workspace: Path, tiny_teacher: Path) -> None:
    place, name = Workspace(workspace), f"local:{tiny_teacher}"
    (report,) = extract(place, name, ["snli-ve"], device="cpu", shard_mb=0.002)
    done = plan_of(workspace, tiny_teacher, shard_mb=0.002)
    assert (done["pending"], done["skipped"], done["seconds"], done["needed_bytes"]) == (0, 29, 0.0, 0)
    assert done["measured"] == {}
    journal = report.path / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    journal.write_text("".join(json.dumps(row) + "\n" for row in lines if row["part"] == "images"))
    half = plan_of(workspace, tiny_teacher, shard_mb=0.002)
    assert half["counts"] == {"images": (10, 10, 0), "texts": (19, 0, 19)}
    assert list(half["measured"]) == ["texts"]
    assert 0 < half["needed_bytes"] < half["bytes"]


def test_the_table_fits_a_terminal_and_warns_of_a_small_disk(
    workspace: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / "data/snli-ve/images/103.png").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**6, 10**6 - 1000, 1000))
    command = ["extract", "--teacher", f"local:{tiny_teacher}", "--task", "snli-ve", "--device", "cpu", "--dry-run"]
    assert main([*command, "--tokens", "selected:4", "--workspace", str(workspace)]) == 0
    out, err = capsys.readouterr()
    assert "Warning: snli-ve: 0.0 MB are needed and 0.0 MB are free at" in err
    lines = [line for line in out.splitlines() if not line.startswith("snli-ve: /")]
    assert max(map(len, lines)) <= 80
    assert any(line.split() == ["snli-ve", "images", "35", "10", "0", "10"] for line in lines)
    assert any(line.split()[:2] == ["snli-ve", "selected:4"] for line in lines)
    assert "10 images in 1 batch" in out
    assert "1 items have no values" in out
    assert "on cpu, by a sample" in out


def test_files_that_are_no_images_are_counted(
    workspace: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = workspace / "data/snli-ve/images"
    (images / "102.png").write_text("<html>not found</html>")
    (images / "104.png").write_bytes((images / "104.png").read_bytes()[:60])  # cut off behind its header
    (images / "106.png").unlink()
    plan = plan_of(workspace, tiny_teacher)
    assert plan["absent"] == 3
    told = capsys.readouterr().err
    assert "102.png" in told
    assert "and 1 more: no images, or damaged ones" in told
