"""Runs of students by name: what they begin with is put together once, and every family trains on every task."""

from __future__ import annotations

import math

import pytest

from madkit.core.errors import NotFoundError, UsageProblem
from madkit.core.files import read_json, read_jsonl
from madkit.distill.stage import distill
from madkit.students.families import FAMILIES, family_of
from madkit.students.load import load_student

QUICK = {"optim.steps": 2, "optim.batch_size": 4, "eval.limit": 4}
NAMES = [name for name in FAMILIES.names() if family_of(name).visual == "regions"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("task", ["vcr", "vqa"])
def test_every_family_trains_with_a_teacher(workspace, name: str, task: str) -> None:
    result = distill(
        workspace, task=task, shots="10pct", arm="mad", student=f"mini-{name}", config_overrides=QUICK, threads=1,
        init="random" if family_of(name).from_text is None else None,
    )  # fmt: skip
    rows = [row for row in read_jsonl(result.path / "metrics.jsonl") if "loss" in row]
    assert len(rows) == 2
    assert all(math.isfinite(value) for row in rows for value in (row["loss"], *row["terms"].values()))
    assert {"task", "token_text", "token_region"} <= rows[0]["terms"].keys()
    trained = load_student(result.path / "student")
    assert (trained.identity.name, trained.identity.family) in {(f"mini-{name}", name)}
    assert (result.path.name).startswith(f"mini-{name}")


@pytest.mark.parametrize("loss", ["sigmoid", "binary"])
def test_the_papers_losses_of_multiple_choice(workspace, loss: str) -> None:
    result = distill(
        workspace, task="vcr", shots="10pct", arm="finetune", student="mini-uniter",
        config_overrides={**QUICK, "choice_loss": loss}, threads=1,
    )  # fmt: skip
    rows = [row for row in read_jsonl(result.path / "metrics.jsonl") if "loss" in row]
    # a fresh head says one half to everything: four candidates cost ln 2 each
    assert rows[0]["loss"] == pytest.approx(4 * math.log(2), abs=0.5)
    assert load_student(result.path / "student").head_spec.binary == (loss == "binary")


def test_a_beginning_is_made_once_and_is_part_of_the_run(workspace) -> None:
    def run(**options: object):
        return distill(workspace, task="snli-ve", shots="10pct", arm="finetune", student="mini-villa",
                       config_overrides=QUICK, threads=1, **options)  # fmt: skip

    first = run()
    (folder,) = (workspace.root / "students").glob("mini-villa-*")
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert run().skipped
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    other = run(init="random")
    assert other.path != first.path
    assert (
        read_json(other.path / "manifest.json")["student_digest"]
        != read_json(first.path / "manifest.json")["student_digest"]
    )
    assert len(list((workspace.root / "students").glob("mini-villa-*"))) == 2


def test_names_are_checked_before_anything_is_built(workspace) -> None:
    for options, error, match in (
        ({"student": "uniter"}, UsageProblem, "no weights of uniter-base"),
        ({"student": "unter"}, UsageProblem, "Did you mean 'uniter'"),
        ({"student": "uniter", "init": "./nothing"}, NotFoundError, "no checkpoint"),
        ({"init": "random"}, UsageProblem, "weights of its own"),
    ):
        with pytest.raises(error, match=match):
            distill(workspace, task="vcr", arm="finetune", threads=1, **options)
    assert not (workspace.root / "students").exists()
