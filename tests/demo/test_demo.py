"""The demo from an empty workspace to its page, at the smallest size; and that it is idempotent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from madkit.cli.main import main
from madkit.core.workspace import Workspace
from madkit.demo import stage
from madkit.demo.gallery import SCENES


@pytest.fixture(scope="module")
def small() -> pytest.MonkeyPatch:
    patch = pytest.MonkeyPatch()
    steps = {"optim.steps": 2, "optim.batch_size": 4}
    patch.setattr(stage, "PART", "tiny")
    patch.setattr(stage, "STEPS", steps)
    patch.setattr(stage, "OVERRIDES", {"affinity-absolute": {**steps, "pre_phase.steps": 2, "pre_phase.seed": 0}})
    return patch


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, small: pytest.MonkeyPatch) -> Workspace:
    place = Workspace.at(tmp_path_factory.mktemp("demo"))
    stage.demo(place, seeds=2, device="cpu")
    return place


def test_the_document_has_what_is_promised(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--workspace", str(workspace.root), "--seeds", "2", "--device", "cpu", "--json"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert set(document) == {"results", "report", "seconds"}
    wanted = {"task", "arm", "suite", "metric", "mean", "low", "high", "n_seeds"}
    assert all(wanted <= set(row) for row in document["results"])
    headline = [row for row in document["results"] if row["metric"] == "accuracy"]
    suites = {"test", "test-concepts", "test-rendering", "test-rewording"}
    assert {(row["arm"], row["suite"]) for row in headline} == {(a, s) for a in stage.ARMS for s in suites}
    assert all(row["n_seeds"] == 2 and row["low"] <= row["mean"] <= row["high"] for row in headline)
    assert Path(document["report"]).is_file()


def test_a_second_call_trains_nothing(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    runs = sorted((workspace.runs / "mini-snli-ve").glob("*/metrics.jsonl"))
    before = [(path, path.stat().st_mtime_ns) for path in runs]
    stage.demo(workspace, seeds=2, device="cpu")
    assert before == [(path, path.stat().st_mtime_ns) for path in runs]
    assert len(runs) == len(stage.ARMS) * 2 + 1  # and one pre-phase for both seeds


def test_the_page_shows_scenes_boxes_and_answers(workspace: Workspace) -> None:
    page = (workspace.reports / "demo" / "index.html").read_text(encoding="utf-8")
    assert page.count('class="scene"') == SCENES
    assert page.count("data:image/png;base64,") >= SCENES
    assert "embedded benchmark" in page
    for arm in stage.ARMS:
        assert arm in page
