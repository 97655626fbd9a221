"""The study's bookkeeping: equal budgets, settings chosen by the development split, tables of what is there alone."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from madkit.core.errors import DataError
from madkit.core.workspace import Workspace
from madkit.distill.settings.arms import arm_names, load_arm
from madkit.distill.sweep.sweep import RunReport
from madkit.evaluate.results import Difference, Row

FOLDER = Path(__file__).parents[2] / "examples" / "study"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"study_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


run, tables, knowledge, joined = module("run"), module("tables"), module("knowledge"), module("joined")
strays, picture = module("strays"), module("picture")


def grid() -> dict[str, Any]:
    found = run.load_grid(FOLDER / "grid.yaml")
    run.limit(found, None, None, None)
    return found


def rows_of(grid: dict[str, Any], score: Any) -> list[dict[str, Any]]:
    tuning = grid["tuning"]
    return [
        {"task": task, "arm": arm, "shots": shots, "seed": seed, "settings": settings,
         "dev": {"accuracy": score(arm, place), "n": 10}}
        for shots in run.tuned_at(grid) for task in grid["tasks"]
        for arm, candidates in run.candidates_of(grid, shots).items()
        for place, settings in enumerate(candidates) for seed in tuning["seeds"]
    ]  # fmt: skip


def test_the_grid_gives_every_arm_the_same_budget_and_settings_that_it_has():
    found = grid()
    named = {*found["tuning"]["arms"], *found["follow"]}
    assert named == set(arm_names())
    for shots in ("1pct", "full"):
        for arm, candidates in run.candidates_of(found, shots).items():
            for settings in candidates:
                load_arm(arm, settings)
    for arm, settings in found["controls"].items():
        assert load_arm(arm, settings).permute_teacher


def test_variants_differ_from_each_other_and_are_noted_under_their_names(tmp_path, monkeypatch):
    found = grid()
    asked = found["variants"]["runs"]
    for variant in asked.values():
        load_arm(variant["arm"], variant["settings"])
    made = []

    def run_many(workspace: Any, specs: list[Any], *, processes: int, threads_each: int, on_done: Any) -> None:
        made.extend(specs)
        for number, spec in enumerate(specs):
            on_done(RunReport(spec, tmp_path, False, {"accuracy": float(number)}))

    monkeypatch.setattr(run, "run_many", run_many)
    run.try_variants(found, None, tmp_path / "variants.jsonl", 1)
    rows = run.read(tmp_path / "variants.jsonl")
    cells = [
        (task, name, seed)
        for task in ("snli-ve", "vqa")
        for name, variant in asked.items()
        for seed in variant.get("seeds", (100, 101))
    ]
    assert [(row["task"], row["variant"], row["seed"]) for row in rows] == cells
    teachers = [spec.teacher for spec in made if spec.task == "vqa" and spec.seed == 100]
    assert teachers == [variant.get("teacher", "mini") for variant in asked.values()]
    made.clear()
    run.try_variants(found, None, tmp_path / "variants.jsonl", 1)
    assert made == []


def test_unequal_budgets_are_refused(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("tuning: {arms: {finetune: [{a: 1}], mad: [{a: 1}, {a: 2}]}}")
    with pytest.raises(SystemExit, match="different budgets"):
        run.load_grid(path)
    path.write_text("tuning: {arms: {finetune: [{a: 1}], mad: [{a: 1}]}, instead: {full: {mad: [{a: 1}, {a: 2}]}}}")
    with pytest.raises(SystemExit, match="different budgets"):
        run.load_grid(path)


def test_every_arm_can_choose_as_high_a_rate_as_plain_fine_tuning_with_all_labels():
    found = grid()
    highest = {
        arm: max(settings["optim.learning_rate"] for settings in candidates)
        for arm, candidates in run.candidates_of(found, "full").items()
    }
    assert len(set(highest.values())) == 1


def test_tuning_seeds_are_in_no_table():
    found = grid()
    assert not set(found["tuning"]["seeds"]) & {seed for seeds in found["shots"].values() for seed in seeds}


def test_the_best_on_the_development_split_is_taken_and_followed():
    found = grid()
    best = run.chosen(found, rows_of(found, lambda arm, place: 50.0 + (place == 2)))
    assert best["vqa", "1pct", "mad"] == found["tuning"]["arms"]["mad"][2]
    assert best["vqa", "1pct", "mad-no-selection"] == best["vqa", "1pct", "mad"]
    ties = run.chosen(found, rows_of(found, lambda arm, place: 50.0))
    assert ties["vcr", "1pct", "finetune"] == found["tuning"]["arms"]["finetune"][0]


def test_all_labels_have_settings_of_their_own_and_few_share_theirs():
    found = grid()
    rows = rows_of(found, lambda arm, place: 50.0)
    for row in rows:
        row["dev"]["accuracy"] += (
            row["settings"] == run.candidates_of(found, row["shots"])[row["arm"]][4 if row["shots"] == "full" else 1]
        )
    rates = {
        (spec.shots, spec.overrides["optim.learning_rate"])
        for spec, _ in run.study_runs(found, run.chosen(found, rows))
        if spec.arm == "finetune"
    }
    assert rates == {("1pct", 1e-4), ("5pct", 1e-4), ("full", 4e-4)}
    run.limit(found, None, ["5pct"], None)
    assert run.tuned_at(found) == ["1pct"]


def test_an_arm_whose_tuning_is_not_finished_is_not_trained():
    found = grid()
    rows = [row for row in rows_of(found, lambda arm, place: 50.0) if row["arm"] != "mad" or row["task"] == "vqa"]
    best = run.chosen(found, rows)
    assert ("vqa", "1pct", "mad") in best
    assert ("vcr", "1pct", "mad") not in best
    assert ("vcr", "1pct", "mad-no-selection") not in best


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


def drawn(
    label: str, mean: float, low: float | None, high: float | None, p: float, shots: str = "1pct"
) -> dict[str, Any]:
    found = {"mean": mean, "low": low, "high": high, "p_holm": p, "baseline": "finetune"}
    return {"source": "mini-vqa", "label": label, "shots": shots, "suite": "test", "difference": found}


def test_a_picture_has_a_mark_for_every_difference_and_fills_those_that_are_shown():
    rows = [
        drawn("mad", 1.0, -1.0, 3.0, 0.9), drawn("affinity", 12.0, 10.0, 14.0, 0.001),
        drawn("affinity", 30.0, 9.0, 51.0, 0.2, "full"), drawn("clip-vil", -44.1, -46.0, -42.0, 0.001),
        drawn("kd-all", 5.0, None, None, 0.001),
    ]  # fmt: skip
    text = picture.picture(rows, ["kd-all", "mad", "affinity", "clip-vil"], "test")
    _, *lanes = text.split('class="stripe"')  # what stands before it is the legend, which has one mark of each kind
    marks = re.findall(r'class="(dot[^"]*)"', "".join(lanes))
    assert sorted(marks) == ["dot s0", "dot s0 hollow", "dot s2 hollow"]  # clip-vil's lies further out
    assert ">-44.1</text>" in text
    assert len(re.findall("<path", text)) == 2  # arrows: an interval that ends further out, and one that lies there
    assert ">kd-all</text>" not in text  # one seed: no interval
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"


def test_marks_stand_where_the_axis_says(tmp_path):
    left = 100.0
    places = [picture._x(value, left) for value in (-100, -20, 0, 40, 100)]
    assert places[0] == places[1] == left
    assert places[3] == places[4] == left + picture.PANEL
    assert places[2] == pytest.approx(left + picture.PANEL / 3)


def test_the_tables_and_pictures_of_the_page_are_those_of_the_committed_rows(tmp_path):
    docs = FOLDER.parents[1] / "docs"
    page = tmp_path / "results.md"
    page.write_text((docs / "results.md").read_text(encoding="utf-8"), encoding="utf-8")
    tables.fill_page(docs / "results", page)
    assert page.read_text(encoding="utf-8") == (docs / "results.md").read_text(encoding="utf-8")
    rows = tables.headlines(tables.read(docs / "results" / "study.jsonl"))
    picture.draw_pictures(rows, tables.ordered({row["label"] for row in rows}), tmp_path)
    for name in picture.PICTURES:
        assert (tmp_path / name).read_text(encoding="utf-8") == (docs / "images" / name).read_text(encoding="utf-8")


def test_arms_of_two_phases_stand_beside_as_many_updates():
    sure = {"mean": 4.0, "low": 2.0, "high": 6.0, "p_holm": 0.01}
    rows = [
        result("mini-vqa", "affinity", "test-concepts", 38.0, sure),
        result("mini-vqa", "finetune-long", "test-concepts", 34.0, None),
        result("mini-vqa", "affinity", "test", 38.0, sure),
        result("mini-vqa", "finetune-long", "test", 34.5, None),
        {**result("mini-vqa", "finetune-long", "test", 34.0, None), "shots": "5pct"},  # nobody to be held against it
        result("mini-vcr", "affinity", "test", 38.0, None),  # nobody to hold it against
    ]
    table = tables.updates_table(rows).splitlines()[2:]
    assert table == [
        "| 1pct | mini-vqa, test | 34.5 (n=5) | **+4.0 [+2.0, +6.0]** * |",
        "| 1pct | mini-vqa, test-concepts | 34.0 (n=5) | **+4.0 [+2.0, +6.0]** * |",
    ]
    assert tables.updates_table([]) == "Not measured yet.\n"


def test_adaptations_are_counted_where_they_were_kept():
    untouched = {"task": "vqa", "shots": "1pct", "seed": 0, "kept_step": 0, "before": {"accuracy": 0.5},
                 "after": {"accuracy": 0.5}}  # fmt: skip
    better = {**untouched, "seed": 1, "kept_step": 20, "after": {"accuracy": 0.625}}
    assert tables.adaptation_table([]) == "Not measured yet.\n"
    table = tables.adaptation_table([untouched, better])
    assert "| vqa | 1pct | 2 | 1 | 50.0 to 62.5 |" in table
    assert "| vqa | 1pct | 1 | 0 |  |" in tables.adaptation_table([untouched])


def test_nothing_is_bold_before_every_candidate_is_scored():
    found = [row for row in rows_of(grid(), lambda arm, place: 50.0 + place) if row["arm"] in ("finetune", "mad")]
    lines = tables.tuning_table(found).splitlines()[2:]
    assert all(line.count("**") == 2 and "unfinished" not in line for line in lines)
    lines = tables.tuning_table([row for row in found if row is not found[-1]]).splitlines()[2:]
    assert [("**" in line, "unfinished" in line) for line in lines][-1] == (False, True)
    assert all("**" in line for line in lines[:-1])


def test_a_candidate_is_told_by_what_it_says():
    settings = {"optim.learning_rate": 5e-5, "mad.affinity_kind": "absolute", "mad.affinity_tau": None}
    row = {"task": "vqa", "shots": "1pct", "arm": "mad", "seed": 100, "settings": settings, "dev": {"accuracy": 40.0}}
    assert "learning_rate 5e-05, affinity_kind absolute: 40.0" in tables.tuning_table([row])


def test_probes_tell_what_is_there_from_what_is_not():
    torch.manual_seed(0)
    states, noise = torch.randn(600, 8), torch.randn(600, 5)
    linear = states @ torch.randn(8, 5) + 3.0
    found = knowledge.explained(states[:400], linear[:400] + noise[:400], states[400:], linear[400:] + noise[400:])
    centred = np.c_[states.numpy(), np.ones(600)]
    weights = np.linalg.lstsq(centred[:400], (linear + noise)[:400].numpy(), rcond=None)[0]
    target = (linear + noise)[400:].numpy()
    left = ((target - centred[400:] @ weights) ** 2).sum() / ((target - target.mean(0)) ** 2).sum()
    assert found == pytest.approx(1 - left, abs=0.01)
    assert 0.5 < found < 0.99
    assert abs(knowledge.explained(states[:400], noise[:400], states[400:], noise[400:])) < 0.1


@pytest.mark.parametrize("related", [True, False])
def test_the_probe_of_relations_finds_them_only_where_they_are(related):
    torch.manual_seed(0)
    n, regions, width = 900, 4, 6
    keys, query = torch.randn(1, n, regions, width), torch.randn(1, n, width)
    turned = query[0] @ torch.linalg.qr(torch.randn(width, width))[0]
    scores = (keys[0] @ turned.unsqueeze(-1)).squeeze(-1) if related else torch.randn(n, regions)
    mask = torch.ones(n, regions, dtype=torch.bool)
    nothing = torch.zeros(n, regions, 0)
    affinity = (4 * scores).softmax(-1)
    held = [
        knowledge.Gathered(
            keys[:, rows], mask[rows], nothing[rows], query[:, rows], keys[:, rows, 0], nothing[rows], affinity[rows]
        )
        for rows in (slice(0, 700), slice(700, n))
    ]
    named, chance = knowledge.agreement(*held, 0)
    assert chance == 0.25
    assert named > 0.85 if related else abs(named - 0.25) < 0.12


def test_what_students_know_is_told_by_layer(tmp_path):
    rows = [
        {"task": "mini-vqa", "student": student, "seed": seed, "layer": layer, "region_r2": 0.456, "text_r2": 0.3,
         "relation": 40.0 + layer, "relation_chance": 25.0}
        for student, seed in (("untrained", None), ("mad", 0)) for layer in (0, 1)
    ]  # fmt: skip
    lines = tables.knowledge_table(rows).splitlines()
    assert lines[0] == "mini-vqa; a region drawn at random is the closest one in 25.0 %."
    assert lines[-2:] == [
        "| untrained | 0.46 / 0.46 | 0.30 / 0.30 | 40.0 / 41.0 |",
        "| mad, seed 0 | 0.46 / 0.46 | 0.30 / 0.30 | 40.0 / 41.0 |",
    ]
    assert tables.knowledge_table([]) == "Not measured yet.\n"


def about(created: str = "today", version: int = 2, **more: Any) -> dict[str, Any]:
    return {"created": created, "metric_version": version, **more}


def cell_row(source: str, shots: str, label: str, mean: float = 50.0, **more: Any) -> dict[str, Any]:
    return {"kind": "row", "source": source, "shots": shots, "label": label, "mean": mean, "seeds": [0, 1],
            "revision": "r1", **more}  # fmt: skip


def test_cells_of_several_machines_make_one_study():
    before = [{"kind": "about", **about("before")}, cell_row("mini-vqa", "1pct", "finetune", 30.0),
              cell_row("mini-vqa", "full", "finetune", 40.0),
              cell_row("mini-vqa", "full", "finetune", 41.0, kind="against finetune-long")]  # fmt: skip
    now = [cell_row("mini-vqa", "full", label, 60.0) for label in ("finetune", "mad")]
    lines, told = joined.joined(before, about(), now)
    assert [(line["shots"], line["label"], line["mean"]) for line in lines if line["kind"] != "about"] == [
        ("1pct", "finetune", 30.0), ("full", "finetune", 60.0), ("full", "mad", 60.0)]  # fmt: skip
    assert [(line["created"], line["cells"]) for line in lines if line["kind"] == "about"] == [
        ("before", [["mini-vqa", "1pct"]]), ("today", [["mini-vqa", "full"]])]  # fmt: skip
    assert told == ["mini-vqa at 1pct was measured elsewhere and stays."]
    again, _ = joined.joined(lines, about("tomorrow"), [])
    assert again == lines


def test_a_cell_with_fewer_runs_takes_no_place():
    before = [{"kind": "about", **about("before")}, *(cell_row("mini-vqa", "1pct", arm) for arm in ("finetune", "mad"))]
    for now in (
        [cell_row("mini-vqa", "1pct", "finetune", 60.0)],
        [cell_row("mini-vqa", "1pct", arm, 60.0, seeds=[0]) for arm in ("finetune", "mad")],
    ):
        lines, told = joined.joined(before, about(), now)
        assert [line["mean"] for line in lines if line["kind"] == "row"] == [50.0, 50.0]
        assert [line["created"] for line in lines if line["kind"] == "about"] == ["before"]
        assert "mad (seed 1)" in told[0]


def full_row(label: str, per_seed: list[float], p: float | None = None, suite: str = "test") -> dict[str, Any]:
    gap = None
    if p is not None:
        gap = Difference(
            baseline="finetune", mean=1.0, low=-1.0, high=3.0, p=p, p_holm=p, p_images=p, p_seeds=None,
            bootstrap_low=None, bootstrap_high=None, seeds=(0, 1), n_seeds=2, n_examples=10, n_images=5,
        )  # fmt: skip
    row = Row(
        task="vqa", source="mini-vqa", revision="r1", student="s", shots="1pct", arm=label, label=label, is_mini=True,
        teacher=None, suite=suite, metric="accuracy", headline=True, chance=None, mean=sum(per_seed) / 2, low=None,
        high=None, n_seeds=2, n_examples=10, n_images=5, seeds=(0, 1), per_seed=tuple(per_seed), difference=gap,
    )  # fmt: skip
    return json.loads(json.dumps({"kind": "row", **asdict(row)}))


def test_another_machine_brings_arms_where_it_computes_alike():
    there = [
        full_row("finetune", [50.0, 52.0]), full_row("kd-all", [50.0, 51.0], 0.6), full_row("mad", [50.5, 51.0], 0.02),
    ]  # fmt: skip
    longer = [{**row, "kind": "against finetune-long"} for row in (there[0], there[2])]
    longer[1] = {**longer[1], "difference": {**longer[1]["difference"], "baseline": "finetune-long"}}
    before = [{"kind": "about", **about("before")}, *there, *longer]  # of another family, which the new arm is none of
    here = [full_row("finetune", [50.0, 52.0]), full_row("mad", [50.5, 51.25], 0.5)]
    here += [full_row("affinity", [60.0, 61.0], 0.01)]
    lines, told = joined.joined(before, about(), here)
    rows = [line for line in lines if line["kind"] == "row"]
    assert [row["label"] for row in rows] == ["finetune", "kd-all", "mad", "affinity"]
    assert [row["difference"]["p_holm"] for row in rows[1:]] == [0.6, 0.04, 0.03], "Holm's correction over all three"
    assert [row["difference"]["n_comparisons"] for row in rows[1:]] == [3, 3, 3]
    assert list(rows[2]["per_seed"]) == [50.5, 51.0], "what was there stays"
    said = "3 of 4 scores that both have are the same to the digit, the rest within 0.25"
    assert told == [f"mini-vqa at 1pct has affinity from here: {said}."]
    assert [(line["created"], line["cells"]) for line in lines if line["kind"] == "about"] == [
        ("before", [["mini-vqa", "1pct"]]), ("today", [["mini-vqa", "1pct"]])]  # fmt: skip
    again, _ = joined.joined(lines, about("tomorrow"), [])
    assert again == lines


def test_another_machine_that_computes_otherwise_brings_nothing():
    there = [full_row("finetune", [50.0, 52.0]), full_row("mad", [50.5, 51.0], 0.02)]
    before = [{"kind": "about", **about("before")}, *there]
    new = full_row("affinity", [60.0, 61.0], 0.03)
    for scores, why in (
        (
            [50.0, 52.0001],
            "affinity would come to it, but finetune (seed 1) on test, accuracy scores 52.0001 here and 52",
        ),
        (None, "affinity would come to it, but finetune (seed 0) on test, accuracy was not measured here"),
    ):
        now = [new] if scores is None else [full_row("finetune", scores), new]
        lines, told = joined.joined(before, about(), now)
        assert [line["label"] for line in lines if line["kind"] == "row"] == ["finetune", "mad"]
        assert why in told[0]


def test_a_run_with_settings_that_are_not_chosen_is_in_no_table(tmp_path):
    found = grid()
    best = run.chosen(found, rows_of(found, lambda arm, place: 50.0 + place))
    specs = [spec for spec, _ in run.study_runs(found, best)]
    workspace = Workspace.at(tmp_path)

    def write(name: str, spec: Any, **changes: Any) -> None:
        config: dict[str, Any] = {"arm": spec.arm}
        for key, value in {**spec.overrides, **changes}.items():
            room, _, last = key.rpartition(".")
            (config.setdefault(room, {}) if room else config)[last] = value
        folder = workspace.runs / "mini" / name
        folder.mkdir(parents=True)
        told = {"task": spec.task, "arm": spec.arm, "shots": spec.shots, "seed": spec.seed}
        (folder / "manifest.json").write_text(json.dumps({"kind": "run", "config": config, **told}))

    for number, spec in enumerate(specs):
        write(str(number), spec)
    tuned = next(spec for spec in specs if spec.arm == "mad")
    write("tuning", replace(tuned, seed=100), **{"optim.learning_rate": 1.0})
    strays.refuse_strays(workspace, specs, found["shots"], found["tasks"])
    write("stray", tuned, **{"optim.learning_rate": 1.0})
    with pytest.raises(DataError, match="stray was trained with settings that the grid does not choose"):
        strays.refuse_strays(workspace, specs, found["shots"], found["tasks"])
    strays.refuse_strays(workspace, [], found["shots"], [])  # of tasks that nobody asked for


def test_rows_of_another_revision_or_scoring_are_not_laid_beside_each_other():
    before = [{"kind": "about", **about("before")}, cell_row("mini-vqa", "1pct", "finetune")]
    now = [cell_row("mini-vqa", "full", "finetune")]
    with pytest.raises(DataError, match="scored by version 2 of the metrics, these by version 3"):
        joined.joined(before, about(version=3), now)
    with pytest.raises(DataError, match="mini-vqa is at revision r2 here, and at r1"):
        joined.joined(before, about(), [{**now[0], "revision": "r2"}])
    lines, _ = joined.joined(before, about(version=3), [cell_row("mini-vqa", "1pct", "finetune", revision="r2")])
    assert len(lines) == 2, "nothing of the old stays"
