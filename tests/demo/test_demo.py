"""The demo from an empty workspace to its page, at the smallest size; and that it is idempotent."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from madkit.cli.main import main
from madkit.core.workspace import Workspace
from madkit.demo import stage
from madkit.demo.gallery import SCENES, demo_gallery
from madkit.tasks.data import open_task


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


@dataclass(frozen=True)
class Second:
    """What a second call, by the command, printed, and when the runs' journals were written before and after it."""

    printed: str
    before: dict[Path, int]
    after: dict[Path, int]


@pytest.fixture(scope="module")
def second(workspace: Workspace) -> Second:
    def journals() -> dict[Path, int]:
        found = (workspace.runs / "mini-snli-ve").glob("*/metrics.jsonl")
        return {path: path.stat().st_mtime_ns for path in found}

    before, out = journals(), io.StringIO()
    with redirect_stdout(out):
        assert main(["demo", "--workspace", str(workspace.root), "--seeds", "2", "--device", "cpu", "--json"]) == 0
    return Second(out.getvalue(), before, journals())


def test_the_document_has_what_is_promised(second: Second) -> None:
    document = json.loads(second.printed)
    assert set(document) == {"results", "report", "seconds"}
    wanted = {"task", "arm", "suite", "metric", "mean", "low", "high", "n_seeds"}
    assert all(wanted <= set(row) for row in document["results"])
    headline = [row for row in document["results"] if row["metric"] == "accuracy"]
    suites = {"test", "test-concepts", "test-rendering", "test-rewording"}
    assert {(row["arm"], row["suite"]) for row in headline} == {(a, s) for a in stage.ARMS for s in suites}
    assert all(row["n_seeds"] == 2 and row["low"] <= row["mean"] <= row["high"] for row in headline)
    assert Path(document["report"]).is_file()


def test_a_second_call_trains_nothing(second: Second) -> None:
    assert second.before == second.after
    assert len(second.before) == len(stage.ARMS) * 2 + 1  # and one pre-phase for both seeds


def test_the_page_shows_scenes_boxes_and_answers(workspace: Workspace) -> None:
    page = (workspace.reports / "demo" / "index.html").read_text(encoding="utf-8")
    assert page.count('class="scene"') == SCENES
    assert page.count("data:image/png;base64,") >= SCENES
    assert "embedded benchmark" in page
    for arm in stage.ARMS:
        assert arm in page


def test_every_scene_shows_what_selection_keeps(workspace: Workspace) -> None:
    data = open_task(workspace, stage.TASK, part="tiny")
    runs = [path.relative_to(workspace.root) for path in (workspace.runs / data.source).glob("*finetune*")]
    items = demo_gallery(workspace, data, runs)
    assert len(items) == SCENES
    for item in items:
        assert len(set(item.selected_regions)) == min(2, len(item.boxes))
        assert set(item.selected_regions) <= set(range(len(item.boxes)))
        words = [item.text[start:end] for start, end in item.selected_spans]
        assert 1 <= len(words) <= 4
        assert all(word.strip() for word in words)
