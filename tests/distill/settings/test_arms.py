from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from madkit.cli.app import load_command
from madkit.core.errors import ConfigError, NotFoundError, UsageProblem
from madkit.core.files import read_jsonl
from madkit.distill.settings.arms import (
    FOLDER,
    ORDER,
    arm_names,
    arm_path,
    left_out,
    load_arm,
    meant_for,
    parse_overrides,
)
from madkit.distill.settings.config import resolve
from madkit.distill.stage import distill

torch.set_num_threads(1)


def test_the_shipped_arms_are_those_of_the_comparison():
    assert set(arm_names()) >= {
        "finetune", "finetune-long", "kd-global", "kd-all", "mad", "mad-no-selection", "mad-no-confidence",
        "mad-no-adaptation", "affinity", "mad-affinity", "clip-vil",
    }  # fmt: skip
    assert arm_names() == list(dict.fromkeys(arm_names()))
    assert set(arm_names()) <= set(ORDER), "a new arm: say where comparisons list it"


@pytest.mark.parametrize("name", arm_names())
def test_a_shipped_arm_is_called_as_its_file(name):
    config = load_arm(name)
    assert config.arm == name
    assert config.description
    assert config.needs_cache == ("finetune" not in name)
    assert config.distils == (config.needs_cache and name != "clip-vil")
    assert (config.pre_phase is not None) == ("affinity" in name and not name.endswith("-labelled"))
    assert (config.mad is not None) == name.startswith(("kd", "mad"))


@pytest.mark.parametrize(
    ("arm", "of", "key", "value"),
    [
        ("mad-no-selection", "mad", "mad.tokens", "all"),
        ("mad-no-confidence", "mad", "mad.weighting", "uniform"),
        ("mad-no-adaptation", "mad", "adaptation", "never"),
        ("finetune-long", "finetune", "optim.extra_steps", 1000),
        ("clip-vil", "finetune", "visual_input", "teacher"),
    ],
)
def test_an_ablation_differs_in_exactly_one_thing(arm, of, key, value):
    """In the files as they are read, and in everything that these leave to the defaults."""

    def flat(values, prefix=""):
        for name, one in values.items():
            yield from flat(one, f"{prefix}{name}.") if isinstance(one, dict) else [(prefix + name, one)]

    def told(values):
        return {name: one for name, one in flat(values) if name not in ("arm", "description")}

    files = [told(yaml.safe_load(arm_path(name).read_text())) for name in (arm, of)]
    resolved = [told(load_arm(name).model_dump(mode="json")) for name in (arm, of)]
    for mine, other in (files, resolved):
        assert {name for name in {*mine, *other} if mine.get(name) != other.get(name)} == {key}
        assert mine[key] == value


def test_the_long_baseline_has_as_many_updates_as_the_longest_arm():
    before = [load_arm(name).pre_phase for name in arm_names()]
    longest = max(phase.steps for phase in before if phase is not None)
    usual, long = (
        resolve(load_arm(name), task="snli-ve", n_examples=800, seed=0).optim for name in ("finetune", "finetune-long")
    )
    assert usual.steps is not None
    assert long.steps == usual.steps + longest
    again = resolve(load_arm("finetune", {"optim": long.model_dump()}), task="snli-ve", n_examples=800, seed=0)
    assert again.optim.steps == long.steps, "what a run writes down is not made longer again"


def test_the_control_is_called_by_another_name():
    config = load_arm("mad", {"permute_teacher": True})
    for _ in range(2):
        config = resolve(config, task="vcr", n_examples=40, seed=0)
        assert config.arm == "mad-permuted"
    assert resolve(load_arm("mad-permuted"), task="vcr", n_examples=40, seed=0) == config
    for arm in ("finetune", "finetune-long", "clip-vil"):
        with pytest.raises(ConfigError, match="nothing to permute"):
            load_arm(arm, {"permute_teacher": True})


@pytest.mark.parametrize("name", arm_names())
def test_every_arm_runs(workspace, student, name):
    config = load_arm(name)
    settings = {"optim.steps": 2, "optim.batch_size": 4, "eval.limit": 4, "confidence.folds": 2}
    if config.pre_phase is not None:
        settings |= {"pre_phase.steps": 2, "pre_phase.batch_size": 4, "pre_phase.eval_every": 2, "pre_phase.pool": 12}
    if config.optim.extra_steps:
        settings["optim.extra_steps"] = 1
    done = distill(workspace, task="snli-ve", shots="8", arm=name, student=student, config_overrides=settings)
    rows = [row for row in read_jsonl(done.path / "metrics.jsonl") if "loss" in row]
    assert len(rows) == (3 if name == "finetune-long" else 2)
    assert all(np.isfinite(row["loss"]) for row in rows)
    learnt = config.mad is not None or config.pool is not None
    assert any(set(row["terms"]) - {"task"} for row in rows) == learnt
    assert done.manifest["teacher"] == ("random" if config.needs_cache else None)
    assert done.manifest["arm"] == name


def test_combined_arms_are_made_of_the_single_ones():
    both, mad, affinity = load_arm("mad-affinity"), load_arm("mad"), load_arm("affinity")
    assert (both.mad, both.pre_phase) == (mad.mad, affinity.pre_phase)
    assert both.optim == mad.optim == affinity.optim == load_arm("finetune").optim
    beside = load_arm("mad-affinity-labelled")
    assert mad.mad is not None
    assert beside.mad == mad.mad.model_copy(update={"affinity_weight": 1.0, "affinity_form": "both"})
    assert (beside.pre_phase, beside.pool, beside.optim) == (None, None, mad.optim)


def test_the_help_names_every_arm():
    (option,) = (one for one in load_command("distill").params if "--arm" in one.opts)
    named = option.help.partition(" (")[0].replace(" or ", ", ").split(", ")
    assert named == arm_names()


def test_a_copy_of_an_arm_can_be_edited(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text((FOLDER / "mad.yaml").read_text().replace("arm: mad\n", "").replace("k_text: 4", "k_text: 9"))
    config = load_arm(str(path))
    assert config.arm == "mine"
    assert config.mad is not None
    assert config.mad.k_text == 9


def test_overrides_reach_into_sections():
    config = load_arm("mad", parse_overrides(["mad.k_text=8", "optim.learning_rate=2e-4", "optim.betas=[0.9, 0.95]"]))
    assert config.mad is not None
    assert (config.mad.k_text, config.optim.learning_rate, config.optim.betas) == (8, 2e-4, (0.9, 0.95))


@pytest.mark.parametrize("arm", ["mad-no-selection", "mad-no-confidence"])
def test_a_section_given_as_a_mapping_leaves_an_ablation_what_it_is(arm):
    assert load_arm(arm, {"mad": {"weight": 0.3}}) == load_arm(arm, {"mad.weight": 0.3}) != load_arm(arm)


@pytest.mark.parametrize("arm", ["finetune", "finetune-long"])
def test_a_baseline_is_given_no_teacher_under_its_own_name(arm, tmp_path):
    for settings in ({"mad.weight": 0.3}, {"mad": {"weight": 0.3}}, {"pre_phase.steps": 9}, {"pool.weight": 1.0}):
        with pytest.raises(ConfigError, match=f"^{arm} is plain fine-tuning, without a teacher: ") as caught:
            load_arm(arm, settings)
        assert f"madkit config init {arm} mine.yaml" in caught.value.hint
    assert load_arm(arm, {"mad": None, "adversarial.steps": 2}).adversarial is not None
    own = tmp_path / "mine.yaml"
    own.write_text(arm_path(arm).read_text().replace(f"arm: {arm}\n", ""))
    assert load_arm(str(own), {"mad.weight": 0.3}).distils


def test_arms_with_a_teacher_are_given_sections():
    assert load_arm("mad", {"pre_phase.objective.weight": 0.0, "pre_phase.objective.weighting": "uniform",
                            "pre_phase.objective.affinity_weight": 1.0}).pre_phase is not None  # fmt: skip
    assert load_arm("mad", {"pool.weight": 1.0}).pool is not None
    assert load_arm("affinity-absolute", {"pool.soft_labels.weight": 1.0}).pool is not None


def test_settings_that_arms_share_are_for_those_that_have_the_section():
    shared = {"mad.weight": 0.3, "pre_phase.steps": 9, "optim.steps": 5, "adversarial.steps": 2}
    arms = ("finetune", "mad", "affinity")
    for arm, left in (("finetune", set()), ("mad", {"mad.weight"}), ("affinity", {"pre_phase.steps"})):
        assert set(meant_for(arm, shared, arms)) == {"optim.steps", "adversarial.steps", *left}
    assert meant_for("mad", shared, ["mad", "kd-all"]) == shared


def test_what_concerns_a_teacher_is_not_for_a_baseline_beside_another_arm(tmp_path):
    """Whether or not the other arm has the section in its file; alone, a baseline refuses it."""
    own = tmp_path / "mine.yaml"
    own.write_text("optim: {steps: 3}\n")
    shared = {"pool": {"weight": 1}, "teachers": {"a.b": {"weight": 2, "mad": {"tokens": "all"}}}, "optim.steps": 5}
    whole = {"pool.weight": 1, 'teachers."a.b".weight': 2, 'teachers."a.b".mad.tokens': "all", "optim.steps": 5}
    for other in ("mad", "kd-all-permuted"):
        assert meant_for("finetune", shared, ["finetune", "finetune-long", other]) == {"optim.steps": 5}
        assert meant_for(other, shared, ["finetune", other]) == whole
    assert meant_for(str(own), {"pool.weight": 1}, ["finetune", str(own)]) == {"pool.weight": 1}
    assert meant_for("finetune", shared, ["finetune", "finetune-long"]) == whole
    without_mad = {key: value for key, value in whole.items() if ".mad." not in key}
    assert meant_for("affinity", shared, ["affinity", "mad"]) == without_mad
    assert left_out(shared, ["mad", "finetune", "affinity"]) == {
        "pool.weight": ["finetune"],
        'teachers."a.b".weight': ["finetune"],
        'teachers."a.b".mad.tokens': ["finetune", "affinity"],
    }


def test_all_wrong_keys_come_at_once_with_the_nearest_right_ones():
    with pytest.raises(ConfigError) as error:
        load_arm("affinity", {"optim.learnin_rate": 1, "pre_phase.objective.affinty_tau": 3, "optim.clip": "much"})
    for text in ("'learning_rate'", "'affinity_tau'", "optim.clip"):
        assert text in error.value.message


@pytest.mark.parametrize("text", ["mad.k_text", "=3", "optim.betas=[1"])
def test_what_is_no_key_and_value_is_refused(text):
    with pytest.raises(UsageProblem):
        parse_overrides([text])


def test_wrong_arms():
    with pytest.raises(UsageProblem, match="Did you mean 'mad-affinity'"):
        arm_path("mad-afinity")
    with pytest.raises(NotFoundError):
        arm_path("nowhere.yaml")


@pytest.mark.parametrize(("n", "steps"), [(16, 400), (800, 500), (20_000, 2000)])
def test_open_values_are_filled(n, steps):
    config = resolve(load_arm("affinity"), task="snli-ve", n_examples=n, seed=11)
    assert config.optim.steps == steps  # 20 epochs of batches of 32, between 400 and 2,000
    assert config.pre_phase is not None
    assert config.pre_phase.seed == 11


def test_listing_arms_imports_nothing_heavy():
    code = (
        "import sys; from madkit.distill.settings.arms import load_arm; load_arm('mad');"
        "print([m for m in ('torch', 'transformers', 'zarr', 'accelerate') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
