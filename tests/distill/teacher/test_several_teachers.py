"""Several teachers at once, from their caches to trained students: what is summed, said, kept, refused and resumed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml

from madkit.core.errors import ConfigError, NotFoundError, RunError, UsageProblem
from madkit.core.files import read_json, read_jsonl
from madkit.core.workspace import Workspace
from madkit.distill.stage import distill
from madkit.evaluate.stage import evaluate
from madkit.mad.several import SeveralTeachers
from madkit.tasks.data import open_task

QUICK = {"optim.steps": 2, "optim.batch_size": 4, "eval.limit": 8, "confidence.folds": 2}
PHASE = {"pre_phase.steps": 2, "pre_phase.batch_size": 8, "pre_phase.eval_every": 1}
APART = {"shared_space": False, "logit_scale": 1.0}


@pytest.fixture(scope="module")
def stores(benchmark, make_cache, tmp_path_factory) -> Workspace:
    """A workspace with caches of a pair in one space, of images alone, of texts alone, and of the pair once more."""
    workspace = Workspace.at(tmp_path_factory.mktemp("several"))
    (workspace.root / "data").symlink_to(benchmark[0].data)
    for task in ("snli-ve", "vcr"):
        data = open_task(workspace, task, part="tiny")
        make_cache(workspace, data, teacher="pair")
        make_cache(workspace, data, teacher="eye", parts=("images",), dim=24, **APART)
        make_cache(workspace, data, teacher="ear", parts=("texts",), dim=20, **APART)
    make_cache(workspace, open_task(workspace, "snli-ve", part="tiny"), teacher="twin")
    return workspace


@pytest.fixture
def place(stores, tmp_path) -> Workspace:
    """The same without any run."""
    for part in ("data", "cache"):
        (tmp_path / part).symlink_to(getattr(stores, part))
    return Workspace.at(tmp_path)


def train(workspace, student, teacher=None, *, arm="mad", task="snli-ve", **settings):
    overrides = {**QUICK, **(PHASE if "affinity" in str(arm) else {}), **settings}
    return distill(
        workspace, task=task, shots="10pct", arm=str(arm), student=student, seed=1, threads=1, teacher=teacher,
        config_overrides=overrides,
    )  # fmt: skip


def steps_of(result):
    return [row for row in read_jsonl(result.path / "metrics.jsonl") if "loss" in row]


@pytest.mark.parametrize("task", ["snli-ve", "vcr"])
def test_three_teachers_of_different_sides(place, student, task, capsys):
    result = train(place, student, ["pair", "eye", "ear"], task=task)
    steps = steps_of(result)
    assert len(steps) == 2
    assert all(math.isfinite(row["loss"]) for row in steps)
    terms = {name for row in steps for name in row["terms"]} - {"task"}
    both = {"pair/token_text", "pair/token_region", "pair/global_image", "pair/global_text"}
    assert terms - {"pair/token_tag", "eye/token_tag"} == both | {
        "eye/token_region", "eye/global_image", "ear/token_text", "ear/global_text",
    }  # fmt: skip
    said = capsys.readouterr().err
    assert said.count("eye teaches no") == said.count("ear teaches no") == 1
    assert "teachers ear, eye, pair" in said
    manifest = result.manifest
    assert manifest["teacher"] == "ear, eye, pair"
    assert [(one["name"], one["weight"]) for one in manifest["teachers"]] == [("ear", 1), ("eye", 1), ("pair", 1)]
    caches = [one["cache"] for one in manifest["teachers"]]
    assert manifest["cache_key"] == ", ".join(caches)
    assert len(read_json(result.path / "confidence.json")["confidence"]) == manifest["examples_labelled"]
    assert "ear, eye, pair" in (result.path / "summary.md").read_text()
    assert train(place, student, ["ear", "pair", "eye"], task=task).skipped  # the order does not matter


@pytest.mark.parametrize("task", ["snli-ve", "vcr"])
def test_one_teacher_of_one_side_teaches_that_side(place, student, task, capsys):
    expected = {"ear": {"token_text", "global_text"}, "eye": {"token_region", "global_image"}}
    for name, terms in expected.items():
        result = train(place, student, name, task=task)
        found = {term for row in steps_of(result) for term in row["terms"]} - {"task", f"{name}/token_tag"}
        assert found == {f"{name}/{term}" for term in terms}
        assert all(math.isfinite(row["loss"]) for row in steps_of(result))
        side = "texts" if name == "ear" else "images"
        said = capsys.readouterr().err
        assert f": it reads {side} alone." in said
        assert "madkit adapt" not in said  # which sets images against texts
        assert result.manifest["teacher"] == name
        assert [one["name"] for one in result.manifest["teachers"]] == [name]
        assert train(place, student, name, task=task).skipped


def test_one_teacher_of_one_side_is_not_adapted(place, student):
    with pytest.raises(ConfigError, match="requires an adapted teacher, and ear reads one of images and texts alone"):
        train(place, student, "ear", adaptation="required")


@pytest.mark.parametrize("arm", ["affinity", "mad-affinity"])
@pytest.mark.parametrize("name", ["ear", "eye"])
def test_one_teacher_of_one_side_teaches_no_affinity(place, student, arm, name):
    with pytest.raises(ConfigError, match=f"compares texts with regions, and {name} reads (texts|images) alone"):
        train(place, student, name, arm=arm)
    assert not list(place.root.glob("runs/*/pre-phase*/metrics.jsonl"))


def test_a_control_takes_a_teacher_of_images(place, student):
    for arm, settings in (("mad-permuted", {}), ("kd-all", {"permute_teacher": True})):
        with pytest.raises(ConfigError, match=r"no teacher here reads images \(ear\), so there is nothing to permute"):
            train(place, student, "ear", arm=arm, **settings)
    assert not list(place.root.glob("runs/*/*/metrics.jsonl"))
    (step, *_) = steps_of(train(place, student, ["ear", "eye"], arm="kd-all-permuted"))
    (true, *_) = steps_of(train(place, student, ["ear", "eye"], arm="kd-all"))
    assert step["terms"]["eye/token_region"] != true["terms"]["eye/token_region"]
    assert step["terms"]["ear/token_text"] == true["terms"]["ear/token_text"]  # a sentence keeps its own targets


def test_settings_without_a_term_for_the_one_side_are_refused(place, student):
    without = {"mad.text_weight": 0, "mad.global_text_weight": 0}
    with pytest.raises(ConfigError, match="ear reads texts alone, and no term of these settings is about texts"):
        train(place, student, "ear", **without)
    on_the_pool = {"pool.objective.weight": 0, "pool.objective.affinity_weight": 1, "pool.batch_size": 4}
    with pytest.raises(ConfigError, match="compares texts with regions, and ear reads texts alone"):
        train(place, student, "ear", **on_the_pool, **{"pool.objective.weighting": "uniform"})


def test_two_spaces_are_told_before_anything_is_read(stores, student, place, make_cache, monkeypatch):
    root = place.root / "apart"
    root.mkdir()
    (root / "data").symlink_to(place.data)
    apart = Workspace.at(root)
    make_cache(apart, open_task(apart, "snli-ve", part="tiny"), teacher="dino+bert", **APART)
    monkeypatch.setattr("madkit.distill.stage.ExampleSet", None)
    with pytest.raises(ConfigError, match="do not share a space"):
        train(apart, student, "dino+bert", arm="affinity")


def test_a_configuration_names_them_with_weights_and_settings(place, student, tmp_path):
    given = {"pair": 1, "eye": {"weight": 0.5, "mad": {"global_image_weight": 0, "k_region": 2}}}
    arm = tmp_path / "mine.yaml"
    arm.write_text(
        yaml.safe_dump({"mad": {"weighting": "uniform", "text_weight": 0, "tag_weight": 0}, "teachers": given})
    )
    result = train(place, student, arm=arm)
    (first, _) = steps_of(result)
    terms = first["terms"]
    assert set(terms) == {
        "task", "pair/token_region", "pair/global_image", "pair/global_text", "eye/token_region",
    }  # fmt: skip
    kept = yaml.safe_load((result.path / "config.yaml").read_text())
    assert kept["teachers"] == {
        "eye": {"weight": 0.5, "mad": {"global_image_weight": 0.0, "k_region": 2}},
        "pair": {"weight": 1.0, "mad": {}},
    }
    assert train(place, student, arm=result.path / "config.yaml").skipped  # a run's own file is that run
    # per teacher the mean of its terms, times lambda and the teacher's weight
    pair = sum(terms[f"pair/{name}"] for name in ("token_region", "global_image", "global_text")) / 3
    by_hand = terms["task"] + 0.1 * (pair + 0.5 * terms["eye/token_region"])
    assert first["loss"] == pytest.approx(by_hand, abs=1e-4)


def test_teachers_of_weight_zero_and_entries_that_say_nothing_are_a_run_with_one(place, student):
    alone = train(place, student, "pair")
    assert alone.manifest["teachers"] is None
    again = train(place, student, teachers={"pair": 1, "eye": 0})
    assert again.skipped
    assert again.path == alone.path
    half = train(place, student, teachers={"pair": 0.5})
    assert half.path != alone.path
    assert set(steps_of(half)[0]["terms"]) == {"task", *(f"pair/{name}" for name in steps_of(alone)[0]["terms"])} - {
        "pair/task"
    }


def test_two_halves_of_equal_caches_are_one_teacher(place, student):
    """`twin` holds what `pair` holds. The first loss is the same bit for bit; heads then move by AdamW, whose steps do
    not depend on the size of a gradient, but for its epsilon."""
    settings = {"mad.weighting": "uniform", "optim.steps": 3, "optim.clip": 0}
    alone = steps_of(train(place, student, "pair", **settings))
    both = steps_of(train(place, student, ["pair", "twin"], teachers={"pair": 0.5, "twin": 0.5}, **settings))
    assert [row["loss"] for row in both] == pytest.approx([row["loss"] for row in alone], rel=1e-5)
    assert both[0]["loss"] == alone[0]["loss"]


def test_a_run_that_was_stopped_goes_on_to_the_same_losses(place, student, stores, tmp_path, monkeypatch):
    settings = {"optim.steps": 6, "checkpoint.every": 2}
    whole = train(place, student, ["pair", "eye", "ear"], **settings)
    other = tmp_path / "other"
    other.mkdir()
    for part in ("data", "cache"):
        (other / part).symlink_to(getattr(stores, part))
    calls, forward = [], SeveralTeachers.forward

    def stops(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise RunError("the power went off")
        return forward(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SeveralTeachers, "forward", stops)
        with pytest.raises(RunError, match="power"):
            train(Workspace.at(other), student, ["pair", "eye", "ear"], **settings)
    resumed = train(Workspace.at(other), student, ["pair", "eye", "ear"], **settings)
    assert resumed.manifest["resumed_from"] == 4
    assert steps_of(resumed) == steps_of(whole)


def test_a_pre_phase_is_taught_by_those_who_can(place, student, capsys):
    alone = train(place, student, "pair", arm="mad-affinity")
    both = train(place, student, ["pair", "eye"], arm="mad-affinity")
    assert "eye teaches no" in capsys.readouterr().err
    assert both.manifest["pre_phase"] == alone.manifest["pre_phase"]  # the pair's alone, so it is shared
    weighed = train(place, student, ["pair", "twin"], arm="mad-affinity", teachers={"pair": 1, "twin": 2})
    assert weighed.manifest["pre_phase"] != alone.manifest["pre_phase"]
    phase = read_json(place.runs / "mini-snli-ve" / weighed.manifest["pre_phase"] / "manifest.json")
    assert [weight for _, weight in phase["cache"]] == [1, 2]
    with pytest.raises(ConfigError, match="teacher eye would teach nothing here: it reads images alone"):
        train(place, student, ["pair", "eye"], arm="affinity")
    with pytest.raises(ConfigError, match="do not share a space"):
        train(place, student, ["ear", "eye"], arm="mad-affinity")


def test_a_joint_pool_is_taught_by_all_of_them(place, student):
    result = train(place, student, ["pair", "eye", "ear"], **{"pool.batch_size": 4, "mad.weighting": "uniform"})
    terms = {name for row in steps_of(result) for name in row["terms"]}
    on_the_pool = {name for name in terms if "pool" in name}
    assert all(any(teacher in name for name in on_the_pool) for teacher in ("pair", "eye", "ear")), terms


def test_a_joint_pool_is_weighed_where_one_teacher_weighs(place, student):
    weighs = {"mad.weighting": "uniform", "teachers.eye.mad.weighting": "teacher-student", "mad.probe_threshold": 1.0}
    result = train(place, student, **{"pool.batch_size": 8, "teachers.pair.weight": 1, **weighs})
    for row in steps_of(result):  # nobody is sure enough for the one, and the other does not ask
        assert row["terms"]["pool_eye/token_region"] == 0
        assert row["terms"]["pool_pair/token_region"] != 0
        assert row["terms"]["eye/token_region"] != 0
    assert result.manifest["pool"]["probe"]["fitted_on"] > 0


def test_tables_name_all_teachers(place, student):
    train(place, student, ["pair", "eye"])
    train(place, student, arm="finetune")
    results = evaluate(place, "smoke", device="cpu")
    assert {row.teacher for row in results.rows} == {"eye, pair", None}


@pytest.mark.parametrize(
    ("teacher", "settings", "error", "message", "hint"),
    [
        (["pair", "pair"], {}, UsageProblem, "pair was given twice", "once"),
        (["pair", "eyes"], {}, UsageProblem, "Did you mean 'eye'", "madkit teachers list"),
        (["pair"], {"teachers.paar": 1}, UsageProblem, "Did you mean 'pair'", "--teacher paar"),
        (None, {"teachers": {"pair": 1, "clip-vit-l14": 1}}, NotFoundError, "no token cache of 'clip-vit-l14'",
         "madkit extract --teacher clip-vit-l14 --task snli-ve"),
        (None, {"teachers": {"pair": 0}}, ConfigError, "all weights are 0", ""),
        (["pair", "eye"], {"teachers.eye.mad.relevance": "shared"}, ConfigError, "do not share a space", "CLIP-like"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(place, student, teacher, settings, error, message, hint):
    with pytest.raises(error, match=message) as found:
        train(place, student, teacher, **settings)
    assert hint in str(found.value.hint)
    assert not list(place.root.glob("runs/*/*/metrics.jsonl"))


def test_one_cache_under_two_names_is_refused(place, student):
    (folder,) = (path.name for path in Path(place.cache).iterdir() if path.name.startswith("pair-mini-snli-ve"))
    with pytest.raises(UsageProblem, match="both names mean the cache"):
        train(place, student, ["pair", folder])


def test_arms_without_a_teacher_do_not_mind(place, student):
    result = train(place, student, ["pair", "eye"], arm="finetune")
    assert (result.manifest["teacher"], result.manifest["teachers"]) == (None, None)
    assert train(place, student, arm="finetune").skipped


def test_long_names_mean_the_short_ones(place, student, make_cache):
    data = open_task(place, "snli-ve", part="tiny")
    root = place.root / "own"
    root.mkdir()
    (root / "data").symlink_to(place.data)
    own = Workspace.at(root)
    make_cache(own, data, teacher="dinov2-vit-b14", parts=("images",), **APART)
    make_cache(own, data, teacher="roberta-base", parts=("texts",), **APART)
    torch.set_num_threads(1)
    result = train(own, student, ["hf:facebook/dinov2-base", "roberta-base"], **{"mad.weighting": "uniform"})
    assert result.manifest["teacher"] == "dinov2-vit-b14, roberta-base"
