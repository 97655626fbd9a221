"""Users' own tasks, of each kind, through extraction, every arm and the evaluation."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from PIL import Image

from madkit.core.errors import UsageProblem
from madkit.core.files import read_json, read_jsonl
from madkit.core.workspace import Workspace
from madkit.distill.settings.arms import arm_names
from madkit.distill.stage import distill
from madkit.evaluate.stage import evaluate
from madkit.extract.stage import extract
from madkit.students.load import load_student
from madkit.tasks.data import open_task
from madkit.tasks.importing import ImportOptions
from madkit.tasks.importing.run import import_data
from madkit.tasks.region_files import make_pixels

KINDS = ("multiple-choice", "classification", "vqa")
COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200), "green": (30, 160, 30)}
QUICK = {"optim.steps": 2, "optim.extra_steps": 0, "optim.batch_size": 4, "confidence.folds": 2}
PHASE = {"pre_phase.steps": 2, "pre_phase.batch_size": 4, "pre_phase.eval_every": 1}


def lines(kind: str) -> list[dict]:
    rows = []
    for n in range(36):
        colour = list(COLOURS)[n % 3]
        row = {
            "id": n, "split": "test" if n % 6 == 5 else "train", "image": f"{n % 18}.png", "width": 24, "height": 16,
            "boxes": [[0, 0, 12, 16], [12, 0, 24, 16]], "form": "even" if n % 2 else "odd",
        }  # fmt: skip
        if kind == "classification":
            row |= {"sentence": "What color is [it](1)?", "label": colour}
        elif kind == "vqa":
            row |= {"question": "What color is [it](2)?", "answers": [colour.title()] * (1 + n % 2 * 3)}
        else:
            row |= {"question": "What is [it](1)?", "choices": ["[it](1) is red", "the cat is blue", "no"]}
            row["label"] = n % 3
        rows.append(row)
    rows.append({**row, "id": "hidden", "split": "submission"})
    rows[-1].pop("answers" if kind == "vqa" else "label")
    return rows


@pytest.fixture(scope="module")
def ready(tmp_path_factory, tiny_teacher, make_student):
    """(workspace with the three tasks, their regions and a teacher's caches; folder of a student)."""
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("own")
    images = home / "images"
    images.mkdir()
    for n in range(18):
        Image.new("RGB", (24, 16), list(COLOURS.values())[n % 3]).save(images / f"{n}.png")
    workspace = Workspace.at(home / "workspace")
    datas = []
    for kind in KINDS:
        path = home / f"my-{kind}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in lines(kind)))
        import_data(workspace, "custom", path, ImportOptions(kind=kind, images=images, dev_cut=0.2))
        datas.append(open_task(workspace, f"my-{kind}"))
        make_pixels(datas[-1], side=2, grid=1, workers=1)
    extract(workspace, f"local:{tiny_teacher}", [data.name for data in datas], device="cpu", workers=1)
    return workspace, make_student(home / "student", datas)


@pytest.fixture
def workspace(ready, tmp_path):
    root = tmp_path / "workspace"
    root.mkdir()
    for name in ("data", "cache"):
        (root / name).symlink_to(getattr(ready[0], name))
    return Workspace.at(root)


def run(workspace, student, kind, arm, **values):
    overrides = {**QUICK, **(PHASE if "affinity" in arm else {}), **values}
    return distill(
        workspace, task=f"my-{kind}", shots="12", arm=arm, student=student, config_overrides=overrides, threads=1
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arm", arm_names())
def test_every_arm_trains_on_every_kind(workspace, ready, kind, arm):
    result = run(workspace, ready[1], kind, arm)
    steps = [row for row in read_jsonl(result.path / "metrics.jsonl") if "loss" in row]
    assert len(steps) == 2
    assert all(math.isfinite(row["loss"]) for row in steps)
    if arm == "mad":
        assert {"token_text", "token_region", "global_image", "global_text"} <= steps[0]["terms"].keys()
    assert (result.manifest["task"], result.manifest["source"]) == (f"my-{kind}", f"my-{kind}")
    assert result.manifest["is_mini"] is False
    outputs = load_student(result.path / "student").head_spec.outputs
    assert set(outputs) == (set() if kind == "multiple-choice" else set(COLOURS))
    assert 0 <= result.dev["accuracy"] <= 100


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_those_of_the_task(workspace, ready, kind):
    folder = run(workspace, ready[1], kind, "finetune").path
    results = evaluate(workspace, "smoke", device="cpu")
    assert not results.problems
    (row,) = [row for row in results.rows if row.metric == "accuracy"]
    assert (row.task, row.suite) == (f"my-{kind}", "test")
    predictions = read_jsonl(folder / "predictions" / "test.jsonl")
    assert len(predictions) == 6
    right = {str(line["id"]): line for line in lines(kind)}
    for prediction in predictions:
        line, answer = right[prediction["id"]], prediction["prediction"]
        if kind == "classification":
            expected = sorted(COLOURS)[answer] == line["label"]
        elif kind == "vqa":
            expected = answer == line["answers"][0].lower()
        else:
            expected = answer == line["label"]
        assert prediction["score"] == expected
    assert row.mean == pytest.approx(100 * sum(one["score"] for one in predictions) / 6)


def test_vqa_learns_at_the_rates_of_its_kind(workspace, ready):
    import yaml

    settings = yaml.safe_load((run(workspace, ready[1], "vqa", "finetune").path / "config.yaml").read_text())
    assert (settings["optim"]["learning_rate"], settings["optim"]["head_rate"]) == (3e-4, 3.0)


def test_a_student_has_to_be_named(workspace):
    with pytest.raises(UsageProblem, match="a student has to be named"):
        distill(workspace, task="my-vqa")


def test_region_features_outlive_a_second_import(ready, tmp_path):
    workspace = Workspace.at(tmp_path / "workspace")
    shutil.copytree(ready[0].data / "my-vqa", workspace.data / "my-vqa")
    source = read_json(workspace.data / "my-vqa" / "manifest.json")["splits"]["test"]["files"][0]["path"]
    images = ready[0].root.parent / "images"
    for options in (ImportOptions(kind="vqa", images=images, dev_cut=0.2), ImportOptions(kind="vqa", images=images)):
        import_data(workspace, "custom", ready[0].root.parent / source, options)
        data = open_task(workspace, "my-vqa")
        assert data.regions().get(data.examples("train")[0].image.id).features.shape == (2, 12)
