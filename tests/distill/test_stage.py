"""Whole runs on the tiny embedded benchmark, with a random student and a random teacher's cache."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from madkit.core.errors import CacheError, ConfigError, MadkitError, NotFoundError, RunError, UsageProblem
from madkit.core.files import read_json, read_jsonl
from madkit.core.workspace import Workspace
from madkit.distill.asked import ask_for, check_names
from madkit.distill.stage import distill
from madkit.students.load import load_student
from madkit.tasks.data import open_task
from madkit.tasks.id_lists import labelled_examples

QUICK = {"optim.steps": 2, "optim.batch_size": 4, "eval.limit": 8}
PHASE = {"pre_phase.steps": 4, "pre_phase.batch_size": 8, "pre_phase.eval_every": 2}


def run(workspace, student, *, arm="finetune", task="snli-ve", shots="10pct", seed=1, **overrides):
    values = {**QUICK, **{key.replace("__", "."): value for key, value in overrides.items()}}
    if "affinity" in arm:
        values = {**PHASE, **values}
    return distill(
        workspace, task=task, shots=shots, arm=arm, student=student, seed=seed, config_overrides=values, threads=1,
        part="auto",
    )  # fmt: skip


@pytest.mark.parametrize("task", ["vcr", "snli-ve", "vqa"])
@pytest.mark.parametrize("arm", ["finetune", "kd-global", "kd-all", "mad", "affinity", "mad-affinity"])
def test_every_arm_trains_on_every_task(workspace, student, arm, task):
    result = run(workspace, student, arm=arm, task=task)
    assert not result.skipped
    rows = read_jsonl(result.path / "metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(math.isfinite(row["loss"]) for row in steps)
    distilled = {name for row in steps for name in row["terms"]} - {"task"}
    assert bool(distilled) == (arm in ("kd-global", "kd-all", "mad", "mad-affinity"))
    if arm in ("kd-all", "mad"):
        assert {"token_text", "token_region", "global_image", "global_text"} <= distilled
        assert all(abs(row["terms"][name]) > 0 for row in steps for name in ("token_text", "token_region"))
    if arm == "kd-global":
        assert distilled == {"global_image", "global_text"}
    manifest = read_json(result.path / "manifest.json")
    assert manifest["status"] == "complete"
    assert (manifest["task"], manifest["arm"], manifest["seed"], manifest["shots"]) == (task, arm, 1, "10pct")
    assert manifest["is_mini"] is True
    assert (manifest["cache_key"] is None) == (arm == "finetune")
    assert (manifest["pre_phase"] is not None) == ("affinity" in arm)
    assert 0 <= manifest["dev"]["Q->AR" if task == "vcr" else "accuracy"] <= 100
    exported = load_student(result.path / "student")
    assert exported.head_spec.kind == manifest_kind(task)
    if task != "vcr":
        name = "answers.json" if task == "vqa" else "labels.json"
        assert tuple(read_json(result.path / "student" / name)) == exported.head_spec.outputs
    assert yaml.safe_load((result.path / "config.yaml").read_text())["optim"]["steps"] == 2
    assert "Embedded benchmark" in (result.path / "summary.md").read_text()


def manifest_kind(task: str) -> str:
    return {"vcr": "multiple-choice", "snli-ve": "classification", "vqa": "vqa"}[task]


def test_a_complete_run_is_left_alone(workspace, student):
    first = run(workspace, student)
    before = {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    again = run(workspace, student)
    assert again.skipped
    assert again.path == first.path
    assert again.dev == first.dev
    assert {path: path.stat().st_mtime_ns for path in first.path.rglob("*")} == before


def test_the_exported_student_holds_the_trained_weights_and_scores_as_the_run_said(workspace, student):
    from madkit.distill.batches.examples import ExampleSet
    from madkit.distill.loop.development import Development, sample_questions
    from madkit.tasks.data import open_task

    result = run(workspace, student, optim__steps=6, optim__learning_rate=0.01, eval__limit=40)
    exported = load_student(result.path / "student")
    data = open_task(workspace, "snli-ve", part="auto")
    examples = ExampleSet(sample_questions(data.examples("dev"), 40), exported, data.regions(), labelled=False)
    with torch.inference_mode():
        look = Development(data.spec, examples, 4096).look(exported, "cpu")
    assert look.values == result.dev
    start = load_student(student, head=exported.head_spec, head_seed=0)
    assert not torch.equal(start.encoder.pooler.dense.weight, exported.encoder.pooler.dense.weight)


def test_arms_of_one_seed_are_paired(workspace, student):
    """Same subset, same order, same fresh head: what differs is the teacher."""
    results = [run(workspace, student, arm=arm, task="vcr") for arm in ("finetune", "mad", "kd-global")]
    digests = [[row["ids"] for row in read_jsonl(result.path / "metrics.jsonl") if "ids" in row] for result in results]
    assert digests[0] == digests[1] == digests[2]
    first = [read_jsonl(result.path / "metrics.jsonl")[0]["terms"]["task"] for result in results]
    assert first[0] == first[1] == first[2]  # before any update, with the same dropout
    other = run(workspace, student, task="vcr", seed=2)
    assert [row["ids"] for row in read_jsonl(other.path / "metrics.jsonl") if "ids" in row] != digests[0]


def test_other_settings_are_another_run(workspace, student):
    paths = {
        run(workspace, student).path,
        run(workspace, student, seed=2).path,
        run(workspace, student, optim__learning_rate=3e-4).path,
        run(workspace, student, shots="full").path,
    }
    assert len(paths) == 4
    assert run(workspace, student, checkpoint__every=1).skipped  # changes no number


def test_the_pre_phase_is_made_once_and_shared(workspace, student):
    first = run(workspace, student, arm="affinity", pre_phase__seed=7)
    again = run(workspace, student, arm="mad-affinity", pre_phase__seed=7, seed=2)
    phases = sorted(first.path.parent.glob("pre-phase-*"))
    assert [path.name for path in phases] == [first.manifest["pre_phase"]] == [again.manifest["pre_phase"]]
    rows = read_jsonl(phases[0] / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert all(set(row["terms"]) == {"affinity_sentence"} for row in rows if "loss" in row)
    assert [row["step"] for row in rows if "dev" in row] == [2, 4]
    manifest = read_json(phases[0] / "manifest.json")
    assert (manifest["kind"], manifest["status"]) == ("pre-phase", "complete")
    assert not any((phases[0] / name).exists() for name in ("student/answers.json", "student/labels.json"))
    assert json.loads((phases[0] / "student" / "config.json").read_text())["head"] is None
    own = run(workspace, student, arm="affinity", seed=3)
    assert own.manifest["pre_phase"] != first.manifest["pre_phase"]


def test_the_best_weights_of_the_development_split_are_exported_where_asked(workspace, student):
    result = run(
        workspace, student, optim__steps=8, eval__every=2, eval__keep="best", optim__learning_rate=0.02, eval__limit=40
    )
    looks = {row["step"]: row["dev"]["accuracy"] for row in read_jsonl(result.path / "metrics.jsonl") if "dev" in row}
    assert sorted(looks) == [2, 4, 6, 8]
    assert result.dev["accuracy"] == max(looks.values())
    assert looks[result.manifest["kept_step"]] == max(looks.values())


def test_a_permuted_teacher_changes_the_distillation_and_nothing_else(workspace, student):
    straight = read_jsonl(run(workspace, student, arm="kd-all").path / "metrics.jsonl")[0]
    permuted = read_jsonl(run(workspace, student, arm="kd-all", permute_teacher=True).path / "metrics.jsonl")[0]
    assert straight["terms"]["task"] == permuted["terms"]["task"]
    assert straight["terms"]["token_region"] != permuted["terms"]["token_region"]
    assert straight["terms"]["token_text"] == permuted["terms"]["token_text"]


@pytest.mark.parametrize(
    ("changes", "kind", "message", "hint"),
    [
        ({"arm": "fintune"}, UsageProblem, "Did you mean 'finetune'", "one of"),
        ({"arm": "none.yaml"}, NotFoundError, "none.yaml", None),
        ({"shots": "1pc"}, UsageProblem, "'1pc'", "1pct"),
        ({"shots": "0"}, UsageProblem, "nothing", "1pct"),
        ({"shots": "100000"}, UsageProblem, "more questions than", "--shots"),
        ({"task": "vrc"}, UsageProblem, "Did you mean 'vcr'", "one of"),
        ({"student": "mini-unitre"}, UsageProblem, "Did you mean 'mini-uniter'", "--student"),
        ({"optim__step": 3}, ConfigError, "optim.step: unknown key. Did you mean 'steps'", None),
    ],
)
def test_wrong_names_are_answered_with_the_nearest_right_one(workspace, student, changes, kind, message, hint):
    arguments = {"student": student, **changes}
    with pytest.raises(kind) as error:
        run(workspace, arguments.pop("student"), **arguments)
    assert message in error.value.message
    assert hint is None or hint in (error.value.hint or "")
    assert not (workspace.root / "runs").exists()


def test_no_cache_is_one_sentence_with_the_command(benchmark, student, tmp_path):
    from madkit.core.workspace import Workspace

    shared, _ = benchmark
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "data").symlink_to(shared.data)
    workspace = Workspace.at(tmp_path / "w")
    with pytest.raises(MadkitError, match="no token cache") as error:
        run(workspace, student, arm="mad", task="vcr")
    assert error.value.hint is not None
    assert "madkit extract --teacher mini --task vcr" in error.value.hint
    assert run(workspace, student, task="vcr").manifest["cache_key"] is None  # plain fine-tuning needs none


@pytest.mark.parametrize("arm", ["mad", "kd-all", "mad-affinity"])
def test_what_the_cache_was_completed_without_is_learnt_from_labels_alone(
    benchmark, student, tmp_path, make_cache, capsys, arm
):
    shared, _ = benchmark
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "data").symlink_to(shared.data)
    workspace = Workspace.at(tmp_path / "w")
    data = open_task(workspace, "snli-ve", part="auto")
    store = make_cache(workspace, data)
    whole = run(workspace, student, arm=arm)
    assert whole.manifest["examples_without_teacher"] == 0
    manifest = json.loads((store / "manifest.json").read_text())
    ids = json.loads((store / "images/ids.json").read_text())["ids"]
    example = labelled_examples(data, "10pct", 2)[0]
    gone = [{"row": ids.index(example.image.id), "id": example.image.id, "error": "x.png is no image"}]
    (store / "manifest.json").write_text(json.dumps({**manifest, "absent": {"images": gone, "texts": []}}))
    result = run(workspace, student, arm=arm, seed=2)
    assert result.manifest["status"] == "complete"
    assert 1 <= result.manifest["examples_without_teacher"] < result.manifest["examples_labelled"]
    told = f"| without teacher | {result.manifest['examples_without_teacher']} examples, absent from the cache |"
    assert told in (result.path / "summary.md").read_text()
    assert "without teacher" not in (whole.path / "summary.md").read_text()
    assert all(math.isfinite(row["loss"]) for row in read_jsonl(result.path / "metrics.jsonl") if "loss" in row)
    err = capsys.readouterr().err
    assert "teacher random (the cache was completed without 1 images and 0 texts)" in err
    assert "learn from their labels alone" in err
    if arm == "mad-affinity":
        phase = read_json(result.path.parent / result.manifest["pre_phase"] / "manifest.json")
        assert phase["pairs_left_out"] > 0


@pytest.mark.parametrize(("splits", "revision"), [(("dev",), None), (("train", "dev"), "0" * 16)])
def test_a_cache_of_other_data_is_refused_before_the_first_step(
    benchmark, student, tmp_path, make_cache, splits, revision
):
    from madkit.core.workspace import Workspace
    from madkit.tasks.data import open_task

    shared, _ = benchmark
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "data").symlink_to(shared.data)
    workspace = Workspace.at(tmp_path / "w")
    data = open_task(workspace, "snli-ve", part="auto")
    make_cache(workspace, data, splits=splits, **({"revision": revision} if revision else {}))
    with pytest.raises((CacheError, NotFoundError)) as error:
        run(workspace, student, arm="mad")
    assert "madkit extract --teacher random --task snli-ve" in (error.value.hint or "")
    assert not list(workspace.runs.glob("*/*/metrics.jsonl"))


def reconfigured(folder, **encoder):
    config = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps({**config, "encoder": {**config["encoder"], **encoder}}))


def with_words_exchanged(folder):
    words = (folder / "vocab.txt").read_text().splitlines()
    (folder / "vocab.txt").write_text("\n".join([*words[:-2], words[-1], words[-2]]) + "\n")


@pytest.mark.parametrize(
    ("change", "what"),
    [(with_words_exchanged, "tokenizer"), (lambda folder: reconfigured(folder, dropout=0.3), "configuration")],
)
def test_a_student_that_has_changed_does_not_go_on(workspace, student, tmp_path, change, what):
    own = tmp_path / "own-student"
    shutil.copytree(student, own)
    (own / "beginning.json").write_text("{}")  # as an earlier madkit made it by name: no part of what names a run
    path = run(workspace, own, arm="finetune").path
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"complete"', '"running"'))
    change(own)
    with pytest.raises(RunError, match=f"was made with another {what} of the student") as error:
        run(workspace, own, arm="finetune")
    assert f"remove {path}" in (error.value.hint or "")


def test_another_configuration_or_vocabulary_is_another_run(workspace, student, tmp_path):
    own = tmp_path / "own-student"
    shutil.copytree(student, own)

    def asked(name):
        names = check_names(workspace, task="snli-ve", shots="10pct", arm="finetune", student=str(name))
        found = ask_for(workspace, names, teacher=None, seed=1)
        found.close()
        return found

    first = asked(own).folder.path
    config = read_json(own / "config.json")
    (own / "config.json").write_text(json.dumps({**config, "name": "another", "head": None}))
    assert asked(own).folder.path == first  # a name and a head decide nothing
    reconfigured(own, dropout=0.3)
    second = asked(own).folder.path
    with_words_exchanged(own)
    assert len({first, second, asked(own).folder.path}) == 3
    # runs of these are called as ever, as long as nobody changes what madkit wrote
    assert asked("mini-uniter").identity.student_setup is None
    made = asked("mini-villa")
    assert made.identity.student_setup is None
    reconfigured(Path(made.start), dropout=0.3)
    assert asked("mini-villa").folder.path != made.folder.path


def test_a_pre_phase_of_another_configuration_is_another_one(workspace, student, tmp_path):
    own = tmp_path / "own-student"
    shutil.copytree(student, own)
    first = run(workspace, own, arm="affinity").manifest["pre_phase"]
    reconfigured(own, dropout=0.3)
    assert run(workspace, own, arm="affinity").manifest["pre_phase"] != first
    shipped = run(workspace, student, arm="affinity").path.parent
    assert len(list(shipped.glob("pre-phase-*"))) == 2  # a copy is the same student


def test_two_processes_do_not_train_one_run(workspace, student):
    from madkit.core.files import FileLock

    path = run(workspace, student).path
    (path / "manifest.json").unlink()
    with FileLock(path / ".lock"), pytest.raises(RunError, match="is in use by process"):
        run(workspace, student)


def test_a_run_says_how_many_passes_its_steps_come_to(workspace, student, capsys):
    """Open steps follow from batch_size, also where batches go by tokens and hold other numbers of examples."""
    settings = {**QUICK, "optim.token_budget": 10**6}
    run = distill(workspace, task="snli-ve", shots="24", arm="finetune", student=student, config_overrides=settings)
    steps = run.manifest["steps"]
    assert f"; {steps} steps are {steps:.1f} passes." in capsys.readouterr().err  # a batch holds the whole subset
