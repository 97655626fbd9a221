"""Results on stdout."""

from __future__ import annotations

import io
import re
import sys

import pytest

from madkit.cli.output import emit, print_table


def test_tables_are_aligned_and_never_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/a/" + "long/" * 40 + "[person1]"
    print_table(["suite", "mean"], [["test", 3.5], [path, None]], right=[1])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["suite", "mean"]
    assert lines[2].split() == ["test", "3.5"]
    assert lines[3].split() == [path, "None"]
    assert lines[2].index("3.5") + 3 == lines[3].index("None") + 4 == lines[0].index("mean") + 4
    assert all(line == line.rstrip() for line in lines)


def test_tables_fit_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    print_table(["name", "path"], [["x", "/a" * 60]])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()
    assert max(map(len, lines)) <= 60
    assert "".join(line[6:].strip() for line in lines[2:]).replace(" ", "") == "/a" * 60, "folded, not cut"


def test_columns_move_together_before_figures_break(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "80")
    row = ["test-shortcut-singular", "QA→R", "55.8", "53.9", "-11.9", "[-11.0, +18.0]", "<0.001", "0.002"]
    print_table(["suite", "metric", "A", "B", "B - A", "95 %", "p", "flips"], [row], right={2, 3, 4, 6, 7})
    lines = re.sub(r"\x1b\[[0-9;]*m", "", sys.stdout.getvalue()).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].split() == " ".join(row).split()


def test_names_stay_whole_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def shown(columns: int) -> list[str]:
        monkeypatch.setattr(sys, "stdout", Terminal())
        monkeypatch.setenv("COLUMNS", str(columns))
        rows = [[name, "mini-snli-ve", 14003, ""], ["short", "mini-vcr", 7, "unfinished"]]
        print_table(["cache", "data", "images", "state"], rows, right=[2], whole=0)
        return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", sys.stdout.getvalue()).splitlines()]

    name = "dinov2-vit-b14-roberta-base-mini-snli-ve-6759a2eef0e9"
    assert shown(40) == [
        name,
        "  data mini-snli-ve, images 14003",
        "short",
        "  data mini-vcr, images 7, state",
        "  unfinished",
    ]
    wide = shown(100)
    assert wide[0].split() == ["cache", "data", "images", "state"]
    assert wide[2].split() == [name, "mini-snli-ve", "14003"]
    assert shown(len(wide[1])) == wide
    assert shown(len(wide[1]) - 1)[0] == name


def test_json_refuses_what_it_cannot_hold(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        emit({"mean": float("nan")}, True, lambda: None)
    with pytest.raises(TypeError, match="object is not JSON"):
        emit({"mean": object()}, True, lambda: None)
    assert capsys.readouterr().out == ""
