"""Names that nothing has, in every command: wrong usage where madkit knows all there can be, else a failure."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from madkit.cache import choose_cache
from madkit.cli.main import main
from madkit.core.errors import NotFoundError, UsageProblem
from madkit.core.workspace import Workspace

WRONG = [
    ("distill --task vrc", "vcr"),
    ("distill --task vcr --arm finetun", "finetune"),
    ("distill --task vcr --student uniter-bse", "uniter-base"),
    ("distill --task vcr --recipe uniter-base-vrc", "uniter-base-vcr"),
    ("distill --task vcr --student uniter-bse --sweep", "uniter-base"),
    ("distill --task vrc --sweep", "vcr"),
    ("distill --task vcr --arm finetun --sweep", "finetune"),
    ("extract --teacher clip-vit-l15", "clip-vit-l14"),
    ("extract --task vrc --teacher mini", "vcr"),
    ("adapt --teacher clip-vit-l15 --task vcr", "clip-vit-l14"),
    ("adapt --teacher mini --task vrc", "vcr"),
    ("teachers show clip-vit-l15", "clip-vit-l14"),
    ("teachers check clip-vit-l15", "clip-vit-l14"),
    ("students show uniter-bse", "uniter-base"),
    ("students export uniter-bse --out x.pt2", "uniter-base"),
    ("evaluate --protocol smok", "smoke"),
    ("config show finetun", "finetune"),
    ("data check vrc", "vcr"),
    ("data suite vrc", "vcr"),
    ("data show vrc", "vcr"),
]
ABSENT = [
    "distill --task vcr --student ./uniter-bse",
    "distill --task vcr --arm ./finetun.yaml",
    "students export ./uniter-bse --out x.pt2",
    "predict finetune-run",
    "compare one-run another-run",
    "cache info some-cache",
    "report full",
    "data check vcr",
]


def run(line: str, workspace: Path) -> int:
    arguments = shlex.split(line)
    takes = arguments[0] not in ("teachers", "students", "config")
    return main([*arguments, *(["--workspace", str(workspace)] if takes else [])])


@pytest.mark.parametrize(("line", "nearest"), WRONG)
def test_a_name_that_nothing_has_is_wrong_usage(
    line: str, nearest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line, tmp_path / "ws") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"Did you mean '{nearest}'?" in err
    assert not (tmp_path / "ws" / "runs").exists()


@pytest.mark.parametrize("line", ABSENT)
def test_what_is_not_there_is_a_failure(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line, tmp_path / "ws") == 1
    assert capsys.readouterr().err.startswith("Error: ")


def data(source: str) -> Any:
    return SimpleNamespace(spec=SimpleNamespace(name="vcr"), source=source, revision="1")


def test_a_cache_is_asked_for_by_a_teacher_that_there_is(tmp_path: Path) -> None:
    place = Workspace.at(tmp_path)
    with pytest.raises(UsageProblem, match=r"no token cache named 'clip-vit-l15'\. Did you mean 'clip-vit-l14'"):
        choose_cache(place, data("vcr"), "clip-vit-l15")
    with pytest.raises(NotFoundError) as caught:
        choose_cache(place, data("vcr"), "clip-vit-l14")
    assert caught.value.hint == "make one: madkit extract --teacher clip-vit-l14 --task vcr"
    (place.adapters / "my-clip").mkdir(parents=True)
    (place.adapters / "my-clip" / "manifest.json").write_text("{}")
    with pytest.raises(NotFoundError) as caught:
        choose_cache(place, data("vcr"), "my-clip")
    assert caught.value.hint == "make one: madkit extract --adapter my-clip --task vcr"
