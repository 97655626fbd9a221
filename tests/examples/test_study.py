"""The study's bookkeeping: equal budgets, settings chosen by the development split, tables of what is there alone."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from madkit.core.errors import DataError
from madkit.distill.settings.arms import arm_names, load_arm

FOLDER = Path(__file__).parents[2] / "examples" / "study"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"study_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


run, tables = module("run"), module("tables")


def grid() -> dict[str, Any]:
    found = run.load_grid(FOLDER / "grid.yaml")
    run.limit(found, None, None, None)
    return found


def rows_of(grid: dict[str, Any], score: Any) -> list[dict[str, Any]]:
    tuning = grid["tuning"]
    return [
        {"task": task, "arm": arm, "shots": tuning["shots"], "seed": seed, "settings": settings,
         "dev": {"accuracy": score(arm, place), "n": 10}}
        for task in grid["tasks"] for arm, candidates in tuning["arms"].items()
        for place, settings in enumerate(candidates) for seed in tuning["seeds"]
    ]  # fmt: skip


def test_the_grid_gives_every_arm_the_same_budget_and_settings_that_it_has():
    found = grid()
    named = {*found["tuning"]["arms"], *found["follow"]}
    assert named == set(arm_names())
    for arm, candidates in found["tuning"]["arms"].items():
        for settings in candidates:
            load_arm(arm, settings)
    for arm, settings in found["controls"].items():
        assert load_arm(arm, settings).permute_teacher


def test_unequal_budgets_are_refused(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("tuning: {arms: {finetune: [{a: 1}], mad: [{a: 1}, {a: 2}]}}")
    with pytest.raises(SystemExit, match="different budgets"):
        run.load_grid(path)


def test_tuning_seeds_are_in_no_table():
    found = grid()
    assert not set(found["tuning"]["seeds"]) & {seed for seeds in found["shots"].values() for seed in seeds}


def test_the_best_on_the_development_split_is_taken_and_followed():
    found = grid()
    best = run.chosen(found, rows_of(found, lambda arm, place: 50.0 + (place == 2)))
    assert best["vqa", "mad"] == found["tuning"]["arms"]["mad"][2]
    assert best["vqa", "mad-no-selection"] == best["vqa", "mad"]
    ties = run.chosen(found, rows_of(found, lambda arm, place: 50.0))
    assert ties["vcr", "finetune"] == found["tuning"]["arms"]["finetune"][0]


def test_an_arm_whose_tuning_is_not_finished_is_not_trained():
    found = grid()
    rows = [row for row in rows_of(found, lambda arm, place: 50.0) if row["arm"] != "mad" or row["task"] == "vqa"]
    best = run.chosen(found, rows)
    assert ("vqa", "mad") in best
    assert ("vcr", "mad") not in best
    assert ("vcr", "mad-no-selection") not in best


def test_runs_share_three_pre_phases_and_controls_stand_beside_their_arms():
    found = grid()
    specs = [spec for spec, _ in run.study_runs(found, run.chosen(found, rows_of(found, lambda arm, place: 50.0)))]
    phases = {spec.overrides["pre_phase.seed"] for spec in specs if spec.arm == "affinity"}
    assert phases == {0, 1, 2}
    assert all("pre_phase.seed" not in spec.overrides for spec in specs if spec.arm == "finetune")
    assert sum(spec.overrides.get("permute_teacher", False) for spec in specs if spec.arm == "mad") == 3 * (5 + 5 + 3)


def result(source: str, label: str, suite: str, mean: float, difference: dict[str, float] | None) -> dict[str, Any]:
    return {"kind": "row", "headline": True, "source": source, "label": label, "suite": suite, "shots": "1pct",
            "mean": mean, "n_seeds": 5, "difference": difference}  # fmt: skip


def test_tables_tell_what_is_shown_from_what_is_not(tmp_path):
    sure = {"mean": 4.0, "low": 2.0, "high": 6.0, "p_holm": 0.01}
    unsure = {"mean": 0.4, "low": -2.0, "high": 2.8, "p_holm": 0.7}
    rows = [
        result("mini-vqa", "mad", "test", 34.4, unsure),
        result("mini-vqa", "affinity", "test", 38.0, sure),
        result("mini-vqa", "finetune", "test", 34.0, None),
        result("mini-vqa", "affinity", "test-concepts", 30.0, sure),
    ]
    (tmp_path / "study.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = tmp_path / "results.md"
    page.write_text("A\n<!-- table: test 1pct -->\nold\n<!-- end -->\nB\n<!-- table: tuning -->\n<!-- end -->\n")
    tables.fill_page(tmp_path, page)
    text = page.read_text()
    lines = text.splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")] == [
        "arm",
        "finetune",
        "mad",
        "affinity",
    ]
    assert "**+4.0 [+2.0, +6.0]** *" in text
    assert "| +0.4 [-2.0, +2.8] |" in text
    assert "old" not in text
    assert "Not measured yet." in text
    tables.fill_page(tmp_path, page)
    assert page.read_text() == text, "filling twice changes nothing"
    page.write_text("<!-- table: nothing -->\n<!-- end -->\n")
    with pytest.raises(DataError, match="nothing"):
        tables.fill_page(tmp_path, page)
