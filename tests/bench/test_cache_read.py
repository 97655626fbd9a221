"""The benchmark of reading, in miniature: every side is measured, and sides that read otherwise are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from madkit.bench import cache_read
from madkit.bench.cache_read import ReadBenchOptions, bench_cache_read
from madkit.cli.main import main
from madkit.core.errors import RunError, UsageProblem


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


SMALL = ["--images", "16", "--tokens", "5", "--texts", "32", "--batch", "8", "--repeats", "2"]


def test_every_side_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["bench", "read", *SMALL, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["part"] for row in document["rows"] if row["state"] == "warm"] == ["images", "texts"]
    for row in document["rows"]:
        assert set(row["items_per_s"]) == {"madkit", "np.take", "zarr-python"}
        assert row["of_np_take_range"][0] <= row["of_np_take"] <= row["of_np_take_range"][1]
        assert row["of_zarr_python_range"][0] <= row["of_zarr_python"] <= row["of_zarr_python_range"][1]
        assert row["noise"] >= 0
        assert row["zarr_python_way"] in ("item by item", "oindex")
        assert ("read_mb" in row) == (row["state"] == "cold")
        assert ("of_np_take_cpu" in row) == (row["state"] == "warm")
        assert row["of_zarr_python_cpu"] > 0
        assert ("of_disk" in row) == (row["state"] == "cold")
    assert main(["bench", "read", *SMALL]) == 0
    text = capsys.readouterr().out
    assert "of np.take" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("Warning")) <= 80


def test_without_proof_that_pages_went_nothing_is_called_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_read, "cached_bytes", lambda paths: 10**9)
    small = ReadBenchOptions(images=8, tokens=2, texts=8, batch=4, batches=2, repeats=1)
    document = bench_cache_read(small)
    assert {row["state"] for row in document["rows"]} == {"warm"}
    assert any("Cold batches are left out" in warning for warning in document["warnings"])


def test_sides_take_turns_and_ratios_are_of_the_same_turn() -> None:
    sides = dict.fromkeys(["a", "b", "c"])
    assert [cache_read._order(sides, turn) for turn in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]
    # a machine ten times as slow in the second turn says nothing about the sides
    seconds = {"madkit": [1.0, 10.0, 1.0], "np.take": [2.0, 20.0, 1.0], "zarr-python": [30.0, 300.0, 31.0]}
    row = cache_read._row("images", "warm", ReadBenchOptions(), {**seconds, "np.take again": [2.2, 20.0, 1.0]})
    assert (row["of_np_take"], row["of_np_take_range"]) == (2.0, [1.0, 2.0])
    assert (row["of_zarr_python"], row["noise"]) == (30.0, 0.0)
    assert row["items_per_s"] == {"madkit": 64.0, "np.take": 32.0, "zarr-python": 2.1}


def test_zarr_python_is_taken_at_its_faster_way() -> None:
    seconds = {"madkit": [1.0, 1.0], "np.take": [1.0, 1.0], "zarr-python": [30.0, 31.0], "np.take again": [1.0, 1.0]}
    for at_once, way, ratio in ((9.0, "oindex", 9.0), (70.0, "item by item", 30.5)):
        both = {**seconds, cache_read.AT_ONCE: [at_once, at_once]}
        faster = cache_read._faster_zarr(both)
        row = cache_read._row("texts", "warm", ReadBenchOptions(), cache_read._of_way(both, faster), faster)
        assert (row["zarr_python_way"], row["of_zarr_python"]) == (way, ratio)
        assert list(row["items_per_s"]) == ["madkit", "np.take", "zarr-python"]


def test_about_as_many_bytes_of_images_whatever_their_tokens() -> None:
    for tokens in (1, 33, 257):
        options = ReadBenchOptions(tokens=tokens)
        assert options.image_count * tokens * options.dim * 2 == pytest.approx(4e8, rel=0.01)
    assert ReadBenchOptions(images=100).image_count == 100


def test_other_values_and_impossible_batches_are_refused() -> None:
    with pytest.raises(UsageProblem, match="Batches of 64"):
        ReadBenchOptions(images=10)
    values = {"np.take": np.zeros(3, np.float16), "madkit": np.ones(3, np.float16)}
    with pytest.raises(RunError, match="madkit read other images than were written"):
        cache_read._same("images", values)
    assert callable(bench_cache_read)
