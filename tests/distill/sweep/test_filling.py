from __future__ import annotations

import json

import pytest
import yaml

from madkit.core.errors import RunError
from madkit.distill.settings.arms import load_arm
from madkit.distill.settings.config import resolve
from madkit.distill.sweep.filling import settings_of


def written(tmp_path, config, *, seed=0, n_examples=200):
    folder = tmp_path / f"run-{seed}"
    folder.mkdir()
    values = config if isinstance(config, dict) else config.model_dump(mode="json")
    manifest = {"config": values, "seed": seed, "spec": {"kind": "vqa"}, "examples_labelled": n_examples}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def made(arm, *, seed=0, n_examples=200, **overrides):
    return resolve(load_arm(arm, overrides), task="vqa", n_examples=n_examples, seed=seed)


@pytest.mark.parametrize("arm", ["finetune", "finetune-long", "mad", "affinity"])
@pytest.mark.parametrize("overrides", [{}, {"optim.epochs": 90.0}, {"optim.steps": 77}, {"optim.learning_rate": 1e-3}])
def test_the_settings_of_a_run_make_the_same_run_and_its_siblings(tmp_path, arm, overrides):
    """What was open is open again: the settings resolve, for other seeds and labels, as those that were typed do."""
    folders = [written(tmp_path, made(arm, seed=seed, **overrides), seed=seed) for seed in (0, 1)]
    path = tmp_path / "arm.yaml"
    path.write_text(yaml.safe_dump(settings_of(folders)))
    for seed, n_examples in ((0, 200), (5, 200), (1, 20_000)):
        found = resolve(load_arm(str(path)), task="vqa", n_examples=n_examples, seed=seed)
        assert found == made(arm, seed=seed, n_examples=n_examples, **overrides)


def test_a_pre_phase_that_seeds_share_stays_shared(tmp_path):
    config = {"pre_phase.seed": 0}
    folders = [written(tmp_path, made("affinity", seed=seed, **config), seed=seed) for seed in (0, 1)]
    assert settings_of(folders)["pre_phase"]["seed"] == 0


def test_settings_of_another_madkit_are_one_sentence(tmp_path):
    folder = written(tmp_path, {"arm": "mad", "of tomorrow": 1})
    with pytest.raises(RunError, match="cannot follow"):
        settings_of([folder])
