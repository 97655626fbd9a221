from __future__ import annotations

import subprocess
import sys

import pytest

from madkit.core.errors import ConfigError, NotFoundError, UsageProblem
from madkit.distill.arms import FOLDER, arm_names, arm_path, load_arm, parse_overrides
from madkit.distill.config import resolve


def test_the_shipped_arms_are_those_of_the_comparison():
    assert arm_names() == ["finetune", "kd-global", "kd-all", "mad", "affinity", "mad-affinity"]


@pytest.mark.parametrize("name", arm_names())
def test_a_shipped_arm_is_called_as_its_file(name):
    config = load_arm(name)
    assert config.arm == name
    assert config.description
    assert config.needs_cache == (name != "finetune")
    assert (config.pre_phase is not None) == ("affinity" in name)
    assert (config.mad is not None) == (name in ("kd-global", "kd-all", "mad", "mad-affinity"))


def test_combined_arms_are_made_of_the_single_ones():
    both, mad, affinity = load_arm("mad-affinity"), load_arm("mad"), load_arm("affinity")
    assert (both.mad, both.pre_phase) == (mad.mad, affinity.pre_phase)
    assert both.optim == mad.optim == affinity.optim == load_arm("finetune").optim


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
        "import sys; from madkit.distill.arms import load_arm; load_arm('mad');"
        "print([m for m in ('torch', 'transformers', 'zarr', 'accelerate') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
