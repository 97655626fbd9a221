from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from madkit.bench import data as module
from madkit.bench import fresh_process, peers
from madkit.bench.data import DataBenchOptions, bench_data
from madkit.bench.fresh_process import Measured, call
from madkit.bench.machine import drop_cached
from madkit.bench.vqa_files import write_vqa_files
from madkit.cli.main import main
from madkit.core.errors import RunError, UsageProblem
from madkit.core.workspace import Workspace
from madkit.tasks.data import open_task
from madkit.tasks.importing import ImportOptions
from madkit.tasks.importing.run import import_data

TINY = ("--questions", "1000", "--tsv-gb", "0.002", "--repeats", "1")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary folders lie below this one, and nothing starts a process."""
    home = tmp_path / "tmp"
    home.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(home))

    def measure(target: str, **arguments: Any) -> Measured:
        return call(target, json.loads(json.dumps(arguments, default=os.fspath)))

    monkeypatch.setattr(fresh_process, "measure", measure)
    return home


def test_the_document_and_nothing_left_behind(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "data", *TINY, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"schema", "machine", "warnings", "repeats", "vqa", "tsv", "layouts"}
    assert set(document["machine"]) == {"madkit", "python", "platform", "cores", "memory_gb", "load"}
    vqa, tsv = document["vqa"], document["tsv"]
    assert vqa["questions"] == 1000
    assert [row["name"] for row in vqa["rows"]] == [
        "import",
        "open, first example",
        "1pct subset",
        "10,000 random reads",
    ]
    assert [row["name"] for row in tsv["rows"]] == ["build the index", "open, first row", "200 random rows"]
    for row in vqa["rows"] + tsv["rows"]:
        assert set(row) == {"name", "madkit", "peer", "times_faster", "times_less_cpu"}
        for side in ("madkit", "peer"):
            assert set(row[side]) == {"wall_s", "cpu_s", "peak_mb"}
            assert row[side]["peak_mb"] > 0
        assert row["times_faster"] == pytest.approx(row["peer"]["wall_s"] / row["madkit"]["wall_s"], rel=1e-3)
    assert tsv["images"] == 6
    assert set(tsv["row_ms"]) == {"cold", "cached", "bare"}
    for times in tsv["row_ms"].values():
        assert times["p50"] is None or 0 < times["p50"] <= times["p99"] <= times["max"]
    assert [row["layout"] for row in document["layouts"]] == ["lxmert-tsv", "uniter-npz", "butd-hdf5"]
    for row in document["layouts"]:
        assert row["images"] == 6
        assert row["of_plain"] == pytest.approx(row["reads_per_s"] / row["plain_reads_per_s"], rel=0.01)
    assert list(here.iterdir()) == []


def test_the_table_fits_a_terminal_and_a_busy_machine_is_told(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 1.0, 1.0))
    assert main(["bench", "data", *TINY]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "VQA v2, 1,000 questions" in out
    assert "Region TSV, 6 images" in out
    assert "uniter-npz" in out
    assert "The machine is busy (load 99.0" in out
    assert list(here.iterdir()) == []


def test_a_quiet_machine_gets_no_warning(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 1.0, 1.0))
    document = bench_data(DataBenchOptions(0, 0.001, None, 1))
    assert document["warnings"] == []
    assert "vqa" not in document


def test_kept_files_are_found_again(here: Path, tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    options = DataBenchOptions(1000, 0.002, keep, 1)
    bench_data(options)
    names = {"vqa-1000", "lxmert-0.002gb.tsv", "lxmert-0.002gb.tsv.madkit-index.npz"}
    assert {path.name for path in keep.iterdir()} == names
    made = [*(keep / "vqa-1000").iterdir(), keep / "lxmert-0.002gb.tsv"]
    before = {path: path.stat().st_mtime_ns for path in made}
    assert len(before) == 5
    bench_data(options)
    assert {path: path.stat().st_mtime_ns for path in made} == before
    assert {path.name for path in keep.iterdir()} == names


def test_a_peer_that_does_not_fit_is_left_out(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: 1_000_000)
    assert main(["bench", "data", *TINY]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "The peer was left out: its decoded TSV would need some 0.0 GB, and 0.0 GB of memory are free." in out
    assert "The peer was left out: its parsed VQA files" in out
    row = next(line for line in out.split("\n") if "build the index" in line)
    assert "build the index - - " in row


def test_no_room_on_the_disk_is_told_before_anything_is_written(here: Path) -> None:
    with pytest.raises(RunError, match=r"The files need 50000000\.0 GB, and .* GB free"):
        bench_data(DataBenchOptions(0, 5e7))
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(("questions", "gigabytes"), [(0, 0.0), (10, 0.0)])
def test_nothing_to_measure_is_refused(questions: int, gigabytes: float) -> None:
    with pytest.raises(UsageProblem, match="nothing"):
        bench_data(DataBenchOptions(questions, gigabytes))


def test_content_that_does_not_agree_is_an_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = peers.load_questions

    def wrong(*files: Path) -> list[dict[str, Any]]:
        return [row | {"label": {"never": 1.0}} for row in whole(*files)]

    monkeypatch.setattr(peers, "load_questions", wrong)
    with pytest.raises(RunError, match="the soft scores do not agree"):
        bench_data(DataBenchOptions(1000, 0, None, 1))
    assert list(here.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no file system in memory")
def test_a_file_that_lies_in_memory_is_never_called_cold() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "file"
        path.write_bytes(bytes(2_000_000))
        assert not drop_cached(path)


def test_the_peer_of_questions_waits_for_no_module_that_it_does_not_use() -> None:
    assert not hasattr(peers, "np")  # its clock runs while modules are imported


def test_the_peer_reads_what_madkit_imports(tmp_path: Path) -> None:
    paths = write_vqa_files(tmp_path / "files", 400, seed=5)
    workspace = Workspace.at(tmp_path / "w")
    import_data(workspace, "vqa-v2", tmp_path / "files", ImportOptions(without_images=True))
    data = open_task(workspace, "vqa", build=False)
    ours = {e.question_id: e for split in data.splits() for e in data.examples(split)}
    theirs = [
        row
        for subset in ("train2014", "val2014")
        for row in peers.load_questions(paths[f"{subset}_questions"], paths[f"{subset}_annotations"])
    ]
    assert len(theirs) == len(ours) == 400
    for row in theirs:
        example = ours[str(row["question_id"])]
        assert row["label"] == example.answers
        assert row["question"] == example.context[0].text
        assert str(row["image_id"]) == example.image.id
        assert (row["question_type"], row["answer_type"]) == (example.form, example.answer_type)


def interrupt(number: int) -> Callable[..., Measured]:
    def measure(target: str, **arguments: Any) -> Measured:
        os.kill(os.getpid(), number)
        time.sleep(5)
        raise AssertionError("the signal did nothing")

    return measure


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_no_files(here: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int) -> None:
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(fresh_process, "measure", interrupt(number))
    assert main(["bench", "data", *TINY]) == code
    assert list(here.iterdir()) == []
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_the_real_command_in_real_processes(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "madkit",
        "bench",
        "data",
        "--questions",
        "0",
        "--tsv-gb",
        "0.001",
        "--repeats",
        "1",
    ]
    done = subprocess.run(
        [*command, "--json"], env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    document = json.loads(done.stdout)
    ours, theirs = (document["tsv"]["rows"][0][side] for side in ("madkit", "peer"))
    assert 10 < ours["peak_mb"] < 300
    assert theirs["cpu_s"] > 0
    assert list(tmp_path.iterdir()) == []
