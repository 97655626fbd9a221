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


def test_every_side_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--images", "16", "--tokens", "5", "--texts", "32", "--batch", "8", "--repeats", "1"]
    capsys.readouterr()
    assert main(["bench", "read", *small, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(row["part"], row["state"]) for row in document["rows"]][::2] == [("images", "warm"), ("texts", "warm")]
    for row in document["rows"]:
        assert set(row["items_per_s"]) == {"madkit", "np.take", "zarr-python"}
        assert row["of_np_take"] == pytest.approx(row["items_per_s"]["madkit"] / row["items_per_s"]["np.take"], rel=0.1)
    assert main(["bench", "read", *small]) == 0
    assert "of np.take" in capsys.readouterr().out


def test_other_values_and_impossible_batches_are_refused() -> None:
    with pytest.raises(UsageProblem, match="Batches of 64"):
        ReadBenchOptions(images=10)
    values = {"np.take": np.zeros(3, np.float16), "madkit": np.ones(3, np.float16)}
    with pytest.raises(RunError, match="madkit read other images than were written"):
        cache_read._same("images", values)
    assert callable(bench_cache_read)
