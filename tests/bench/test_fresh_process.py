from __future__ import annotations

from pathlib import Path

import pytest

from madkit.bench.fresh_process import Lap, Measured, measure, peak_memory_mb
from madkit.core.errors import RunError

STEPS = """
import os, sys, time

def work(watch, megabytes, where):
    watch.lap("start")
    kept = b"x" * (megabytes * 1_000_000)
    time.sleep(0.05)
    watch.lap("sleep")
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    watch.lap("spin")
    return {"pid": os.getpid(), "length": len(kept), "where": where, "numpy": "numpy" in sys.modules}

def fail(watch):
    raise ValueError("the disk\\nwas eaten")

def refuse(watch):
    from madkit.core.errors import DataError
    raise DataError("a.json, line 3: no 'answers'.", hint="nothing")

def die(watch):
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "probe_steps.py").write_text(STEPS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "probe_steps"


def test_a_fresh_process_measures_itself(steps: str, tmp_path: Path) -> None:
    ballast = b"y" * 300_000_000  # ours, not the fresh process's
    done = measure(f"{steps}:work", megabytes=60, where=tmp_path)
    assert len(ballast) == 300_000_000
    assert done.facts["where"] == str(tmp_path)
    assert done.facts["length"] == 60_000_000
    assert not done.facts["numpy"]
    assert list(done.laps) == ["start", "sleep", "spin"]
    # sleeping takes time and no processor; filling the memory before it may take some on a busy machine
    assert done.laps["sleep"].wall_s - done.laps["sleep"].cpu_s >= 0.045
    assert 0.1 <= done.laps["spin"].cpu_s < 0.5
    assert done.laps["spin"].wall_s >= 0.9 * done.laps["spin"].cpu_s
    assert done.laps["start"].peak_mb < 60 < done.laps["sleep"].peak_mb < 200


@pytest.mark.parametrize(
    ("step", "said"),
    [("fail", "was eaten"), ("refuse", "a.json, line 3: no 'answers'"), ("die", "the system killed it")],
)
def test_a_process_that_fails_is_one_sentence(steps: str, step: str, said: str) -> None:
    with pytest.raises(RunError, match=f"failed: .*{said}.*[.]$"):
        measure(f"{steps}:{step}")


def test_laps_add_up() -> None:
    laps = {"modules": Lap(1, 0.5, 10), "open": Lap(2, 1, 30), "reads": Lap(4, 4, 20)}
    measured = Measured(laps, {})
    assert measured.until("modules") == Lap(1, 0.5, 10)
    assert measured.until("reads") == Lap(7, 5.5, 30)


def test_memory_is_that_of_this_process() -> None:
    before = peak_memory_mb()
    kept = b"z" * 50_000_000
    assert before > 5
    assert peak_memory_mb() >= before
    assert len(kept) == 50_000_000
