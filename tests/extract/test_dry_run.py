"""What an extraction would do: counts, bytes for every choice, room, time, and nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
import zarr

from madkit.cli.main import main
from madkit.core.workspace import Workspace
from madkit.extract import warm_up
from madkit.extract.dry_run import dry_run
from madkit.extract.items import Items
from madkit.extract.options import ExtractOptions
from madkit.extract.stage import extract
from madkit.tasks.data import TaskData
from madkit.teachers.interface import Teacher

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


class Costs:
    """Runs whose seconds are a function of their items: a clock without the work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, device: str, each: float, fixed: float, cold: float) -> None:
        self.each, self.fixed, self.cold = each, fixed, cold
        self.sizes: list[int] = []
        self.batches: list[int] = []
        self.teacher = Teacher("simulated", None, None, True, 1.0, device)
        monkeypatch.setattr(warm_up, "_run", self.run)

    def run(self, teacher: Teacher, data: Any, items: Items, options: ExtractOptions) -> tuple[float, int]:
        self.sizes.append(len(items.image_ids))
        self.batches.append(options.image_batch)
        return self.fixed + (self.cold if len(self.sizes) == 1 else 0.0) + self.each * self.sizes[-1], 0

    def of(self, images: int) -> warm_up.Measured:
        ids = tuple(map(str, range(images)))
        items = Items(ids, (Path("image.png"),) * images, {}, ())
        found = warm_up.warm_up(self.teacher, cast(TaskData, None), items, {"images": range(images), "texts": ()},
                                ExtractOptions())  # fmt: skip
        return found["images"]


@pytest.mark.parametrize("cold", [0.0, 5.0])
@pytest.mark.parametrize("fixed", [0.0, 0.05, 0.2, 1.0])
def test_what_a_run_costs_whatever_its_items_is_counted_once(
    monkeypatch: pytest.MonkeyPatch, fixed: float, cold: float
) -> None:
    costs = Costs(monkeypatch, "cuda", 1 / 2950, fixed, cold)
    one = costs.of(110_000)
    assert one.seconds_for(110_000 / one.items) == pytest.approx(110_000 / 2950 + fixed, rel=0.01)
    assert one.fixed == pytest.approx(fixed, abs=1e-6)
    assert costs.sizes[0] == 256  # in the shape of a whole batch, and not counted
    assert one.items <= 4 * 256
    assert costs.batches == [0] * len(costs.sizes)  # the device's own


@pytest.mark.parametrize(("each", "images", "seconds"), [(1.5, 8, 7.0), (0.05, 128, 3.0), (0.001, 128, 0.1)])
def test_a_slow_cpu_is_not_kept_long(monkeypatch: pytest.MonkeyPatch, each: float, images: int, seconds: float) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    costs = Costs(monkeypatch, "cpu", each / 4, 0.02, 0.0)
    one = costs.of(10_000)
    assert one.items <= images
    assert sum(costs.sizes) * costs.each < seconds
    assert costs.batches == [min(32, size // 4) for size in costs.sizes]
    assert not any(size % 4 for size in costs.sizes)
    assert one.seconds_for(10_000 / one.items) == pytest.approx(10_000 * each / 4, rel=0.01)


def test_where_no_slope_can_be_told_all_that_was_measured_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = Costs(monkeypatch, "cuda", 0.0, 0.4, 0.0)
    one = costs.of(10_000)
    assert (one.items, one.fixed) == (1024, 0.0)
    assert costs.of(3).items == 3  # a set that is smaller than any batch


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


@pytest.mark.parametrize("remote", [False, True])
def test_what_is_there_is_counted_in_the_sizes_that_it_was_begun_with(
    workspace: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: bool
) -> None:
    monkeypatch.setenv("MADKIT_CACHE_DIR", str(tmp_path / "mirrors"))
    place = Workspace(workspace, f"file://{tmp_path}/bucket" if remote else None)
    name = f"local:{tiny_teacher}"
    (report,) = extract(place, name, ["snli-ve"], device="cpu", shard_mb=0.002)
    folder = tmp_path / "bucket" / report.path.name if remote else report.path
    (folder / "manifest.json").unlink()
    if remote:
        for note in (folder / "journal").iterdir():
            if note.name != "images-0.json":
                note.unlink()
    else:
        journal = folder / "journal.jsonl"
        (line,) = [line for line in journal.read_text().splitlines() if '"images", "unit": 0' in line]
        journal.write_text(line + "\n")
    there = json.loads((folder / "plan.json").read_text())["images"]["unit"]
    assert 0 < there < 10
    (plan,) = dry_run(place, name, ["snli-ve"], device="cpu")
    assert plan.counts == {"images": (10, there, 10 - there), "texts": (19, 0, 19)}
    shutil.rmtree(tmp_path / "mirrors", ignore_errors=True)
    (report,) = extract(place, name, ["snli-ve"], device="cpu")
    assert (report.computed, report.skipped) == (plan.pending, plan.skipped)


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
