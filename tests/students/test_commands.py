"""`madkit students` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from madkit.cli.main import main
from madkit.students.describe import measured
from madkit.students.families import size_names
from madkit.students.known_sizes import KNOWN_SIZES


def madkit(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return int(code or 0), captured.out, captured.err


def test_list_names_every_student_with_published_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = madkit(capsys, "students", "list", "--json")
    rows = {row["name"]: row for row in json.loads(out)["students"]}
    assert code == 0
    assert list(rows) == size_names()
    # parameters without a task head, and operations of 12 words and 36 regions, as counted on another implementation
    assert rows["uniter-base"]["parameters_m"] == pytest.approx(110, abs=1)
    assert rows["uniter-large"]["parameters_m"] == pytest.approx(336, abs=2)
    assert rows["uniter-base"]["gflops_vqa"] == pytest.approx(8.37, abs=0.1)
    assert rows["villa-large"]["gflops_vqa"] == pytest.approx(29.4, abs=0.2)
    assert rows["mini-uniter"]["begins_with"] == "its own weights"


@pytest.mark.parametrize(
    "name",
    [name if name.startswith("mini") else pytest.param(name, marks=pytest.mark.slow) for name in size_names()],
)
def test_listed_sizes_are_counted_ones(name: str) -> None:
    assert KNOWN_SIZES[name] == measured(name)


def test_show_says_where_weights_are_and_how_the_paper_trains(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = madkit(capsys, "students", "show", "villa", "--json")
    facts = json.loads(out)
    assert (code, facts["name"]) == (0, "villa-base")
    assert facts["gflops"]["vcr"] == pytest.approx(67.1, rel=0.02)
    assert facts["gflops"]["snli-ve"] == pytest.approx(9.75, rel=0.02)
    assert any("convert" in source["how"] for source in facts["weights"])
    assert {recipe["task"] for recipe in facts["recipes"]} == {"vcr", "snli-ve", "vqa"}
    assert facts["recipes"][1] == {
        "recipe": "villa-base-vcr",
        "task": "vcr",
        "learning_rate": 6e-5,
        "batch": "4 GPUs x 4,000 tokens x 5 accumulations, counted over one of four candidates",
        "length": "8,000 steps",
        "warmup": "0.1",
        "loss": "binary",
        "note": "text up to 220 tokens; adversarial: both, rate 0.01",
    }
    code, out, _ = madkit(capsys, "students", "show", "villa-large")
    assert code == 0
    assert "0.1" in out
    code, _, err = madkit(capsys, "students", "show", "vila")
    assert (code, "Did you mean 'villa'?" in err) == (2, True)


def test_convert_prints_its_account(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.pt")
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    common = ("students", "convert", tmp_path / "x.pt", "--vocab", tmp_path / "vocab.txt", "--out", tmp_path / "out")
    code, out, err = madkit(capsys, *common, "--family", "uniter")
    assert (code, out) == (1, "")
    assert "none of its 1 keys is one of this family (first: x)" in " ".join(err.split())
    assert "Traceback" not in err
