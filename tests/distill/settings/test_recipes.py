"""Recipes of the papers: every shipped one is valid, says what its paper says, and trains a student."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from madkit.core.errors import ConfigError, UsageProblem
from madkit.distill.batches.effective_batch import effective_batch
from madkit.distill.batches.order import BucketOrder, PlainOrder
from madkit.distill.loop.optimizer import OptimizerSettings, make_optimizer
from madkit.distill.loop.schedule import rate_factor
from madkit.distill.objective.objective import loss_forms
from madkit.distill.settings.arms import load_arm
from madkit.distill.settings.recipes import FOLDER, load_recipe, recipe_names, recipe_rows
from madkit.distill.stage import distill
from madkit.students.heads import task_loss

torch.set_num_threads(1)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_states_both_batch_sizes(name):
    recipe = load_recipe(name)
    config = load_arm("finetune", below=recipe.settings)
    assert recipe.recipe == name == f"{recipe.student}-{recipe.task}"
    assert recipe.source.startswith("https://")
    optim = config.optim
    stated = recipe.batch.tokens if optim.token_budget is not None else recipe.batch.samples
    assert stated == (optim.token_budget or optim.batch_size)
    usual = {"vcr": 492, "snli-ve": 56, "vqa": 156 if recipe.student.startswith("vilt") else 48}[recipe.task]
    assert recipe.batch.tokens / recipe.batch.samples == pytest.approx(usual, rel=0.05)
    assert (config.adversarial is not None) is recipe.student.startswith("villa")
    assert optim.steps is not None or optim.max_steps == 1_000_000  # the paper's length, not the embedded benchmark's


@pytest.mark.parametrize(
    ("name", "steps", "rate", "budget", "head"),
    [  # config/train-*.json of https://github.com/ChenRocks/UNITER: GPUs x tokens x accumulation
        ("uniter-base-vcr", 8000, 6e-5, 4 * 4000 * 5 * 4, 1),
        ("uniter-base-snli-ve", 4000, 8e-5, 2 * 4096 * 4, 1),
        ("uniter-large-snli-ve", 4000, 3e-5, 4 * 4096 * 2, 1),
        ("uniter-base-vqa", 6000, 8e-5, 4 * 5120 * 5, 10),
        ("uniter-large-vqa", 5000, 5e-5, 8 * 3072 * 4, 10),
    ],
)
def test_uniters_published_figures(name, steps, rate, budget, head):
    optim = load_arm("finetune", below=load_recipe(name).settings).optim
    assert (optim.steps, optim.learning_rate, optim.token_budget, optim.head_rate) == (steps, rate, budget, head)
    assert (optim.betas, optim.clip, optim.warmup, optim.weight_decay) == ((0.9, 0.98), 2.0, 0.1, 0.01)


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.endswith("-vcr")])
def test_a_choice_costs_what_it_costs_its_authors(name):
    """The rates of SGD, the clipping and the weight of VILLA's KL were chosen for means over all candidates."""
    forms = loss_forms(load_arm("finetune", below=load_recipe(name).settings))
    torch.manual_seed(0)
    pairs, target = torch.randn(5, 4, 2), torch.randint(0, 4, (5,))
    logits, right = pairs[..., 1], torch.nn.functional.one_hot(target, 4)
    theirs = {
        "softmax": torch.nn.functional.cross_entropy(logits, target),
        "sigmoid": torch.nn.functional.binary_cross_entropy_with_logits(logits, right.float()),
        "binary": torch.nn.functional.cross_entropy(pairs.view(-1, 2), right.flatten()),
    }[forms.choice]
    ours = task_loss("multiple-choice", logits, target, forms, pairs=pairs if forms.choice == "binary" else None)
    torch.testing.assert_close(ours.mean(), theirs)


def test_an_arm_and_the_command_line_lie_above_a_recipe():
    recipe = load_recipe("villa-base-vcr")
    config = load_arm("mad", {"optim.steps": 5, "adversarial.rate_text": 0.3}, below=recipe.settings)
    assert config.optim.steps == 5
    assert config.optim.learning_rate == 6e-5
    assert config.adversarial is not None
    assert (config.adversarial.rate_text, config.adversarial.rate_image) == (0.3, 0.01)
    assert config.mad is not None


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_trains(name, workspace, student):
    recipe = load_recipe(name)
    result = distill(
        workspace,
        task=recipe.task,
        shots="24",
        arm="finetune",
        student=student,
        recipe=name,
        config_overrides={"optim.steps": 2, "eval.limit": 8},
        part="tiny",
    )
    assert result.manifest["steps"] == 2
    assert result.manifest["batch"]["samples"] > 0
    assert math.isfinite(next(value for key, value in result.dev.items() if key != "n"))


def test_every_recipe_is_told_of_its_student():
    """What `madkit students show` prints is read from the files that train, and leaves none out."""
    students = {load_recipe(name).student for name in recipe_names()}
    rows = [row for student in students for row in recipe_rows(student)]
    assert sorted(row["recipe"] for row in rows) == recipe_names()
    by_name = {row["recipe"]: row for row in rows}
    for name in ("vl-bert-base-vcr", "vl-bert-large-vcr"):  # a loss and a network that training has and the recipe not
        said = by_name[name]["note"]
        assert "loss on the 81 classes of objects" in said
        assert "detector that stays as it is" in said
        assert said.endswith("pretrained files converted with --copy-segment; SGD by steps")
    assert by_name["vl-bert-base-vcr"]["warmup"] == "1,000 steps"
    assert by_name["vilt-base-vqa"]["length"] == "10 epochs"
    assert by_name["vilt-base-vqa"]["note"].startswith("text up to 40 tokens; pictures as they are")
    assert recipe_rows("mini-uniter") == []


def test_paper_means_the_student_and_the_task():
    assert load_recipe("paper", student="uniter-large", task="vqa").recipe == "uniter-large-vqa"
    with pytest.raises(UsageProblem, match="No paper gives a recipe for vl-bert-base on snli-ve") as error:
        load_recipe("paper", student="vl-bert-base", task="snli-ve")
    assert "vl-bert-base-vcr" in str(error.value.hint)
    assert "uniter" not in str(error.value.hint)
    with pytest.raises(UsageProblem, match="No paper gives a recipe for mini-uniter on vcr") as error:
        load_recipe("paper", student="mini-uniter", task="vcr")
    assert str(error.value.hint) == "leave out --recipe, or see what there is: madkit config list"
    assert "--recipe uniter-base-vcr or uniter-large-vcr" in error.value.message
    with pytest.raises(UsageProblem, match=r"for mini-lxmert on vcr\.$"):
        load_recipe("paper", student="mini-lxmert", task="vcr")


def test_names_and_keys_that_do_not_exist(tmp_path):
    with pytest.raises(UsageProblem, match="Did you mean 'uniter-base-vcr'"):
        load_recipe("uniter-base-vrc")
    text = (FOLDER / "vilt-base-vqa.yaml").read_text()
    (tmp_path / "own.yaml").write_text(text.replace("clip:", "clipp:"))
    with pytest.raises(ConfigError, match="clipp"):
        load_arm("finetune", below=load_recipe(str(tmp_path / "own.yaml")).settings)


def test_step_schedule_and_sgd_are_torchs():
    module = torch.nn.Linear(3, 1)
    optimizer = make_optimizer(module, OptimizerSettings("sgd"), 1.0, torch.device("cpu"), lambda name: False)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["momentum"] == 0.9
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [14, 18], gamma=0.1)
    for step in range(20):
        ours = rate_factor(step, 20, 0.0, shape="steps", milestones=(0.7, 0.9))
        assert ours == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    cosine = [rate_factor(step, 10, 0.0, shape="cosine") for step in range(10)]
    np.testing.assert_allclose(cosine, [0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)])
    assert rate_factor(7, 10, 0.0, shape="constant") == 1.0


def test_the_effective_batch_counts_what_a_step_holds():
    lengths, sequences = np.array([10, 20, 30, 40] * 8), np.full(32, 4)
    texts, regions = np.repeat(lengths[:, None] - 4, 4, axis=1), np.full(32, 4)
    plain = effective_batch(PlainOrder(32, 8, "x"), texts, regions, 10**6)
    assert plain.samples == 8
    assert plain.sequences == 32
    assert plain.tokens == pytest.approx(8 * 4 * 25)  # the 32 steps see whole epochs
    sorted_ = effective_batch(BucketOrder(lengths, sequences, 800, 32, "x"), texts, regions, 10**6)
    assert sorted_.tokens <= 800
    assert sorted_.padding < plain.padding
    assert "examples" in str(plain)
