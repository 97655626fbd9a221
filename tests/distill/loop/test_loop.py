"""The loop alone, with a toy module: exact resume, signals, NaN, accumulation, held-out looks."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace

import pytest
import torch

from madkit.core.errors import RunError, StoppedResumable
from madkit.distill.batches.order import BucketOrder, PlainOrder
from madkit.distill.loop.checkpoint import latest_checkpoint, list_checkpoints, write_checkpoint
from madkit.distill.loop.loop import Look, StepLoss
from madkit.distill.loop.optimizer import OptimizerSettings
from madkit.distill.loop.training_state import TrainingState
from tests.distill.loop.toy_loop import LENGTHS, SETTINGS, Killed, N, Toy, dying_after, lines, make_batch, train


@pytest.mark.parametrize("kind", ["plain", "buckets"])
@pytest.mark.parametrize("at", [2, 11, 23])
def test_a_killed_loop_repeats_the_uninterrupted_one_bit_for_bit(tmp_path, at, kind):
    def order():
        if kind == "plain":
            return PlainOrder(N, 8, "toy", 5)
        return BucketOrder(LENGTHS.tolist(), [1] * N, 60, 16, "toy", 5)

    whole, _ = train(tmp_path / "whole", order=order())
    with pytest.raises(Killed):
        train(tmp_path / "killed", batch=dying_after(at), order=order())
    torch.manual_seed(at)  # whatever state the new process has
    resumed, result = train(tmp_path / "killed", order=order())
    assert result.resumed_from == at - at % 4
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_every_step_has_a_line_with_loss_terms_rate_and_a_digest_of_its_samples(tmp_path):
    train(tmp_path)
    rows = [json.loads(line) for line in lines(tmp_path)]
    assert [row["step"] for row in rows] == list(range(1, 25))
    assert all(math.isfinite(row["loss"]) and row["loss"] == row["terms"]["task"] for row in rows)
    assert [row["terms"]["step"] for row in rows] == list(range(24))
    assert len({row["ids"] for row in rows}) == 24
    assert max(row["lr"] for row in rows) == 0.05
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path):
    train(tmp_path / "a", module=Toy(dropout=0.0))
    train(tmp_path / "b", module=Toy(dropout=0.0), settings=replace(SETTINGS, micro_tokens=30))
    first = [json.loads(line) for line in lines(tmp_path / "a")]
    second = [json.loads(line) for line in lines(tmp_path / "b")]
    assert [row["ids"] for row in first] == [row["ids"] for row in second]
    assert [row["loss"] for row in first] == pytest.approx([row["loss"] for row in second], rel=1e-4)


def test_accumulation_that_a_launcher_asks_for_changes_no_gradient(tmp_path, monkeypatch, capsys):
    """`accelerate launch --gradient_accumulation_steps 4` sets the variable; without clipping the loss shows it."""
    settings = replace(SETTINGS, clip=0.0, steps=4, optimizer=OptimizerSettings("sgd"))
    train(tmp_path / "plain", settings=settings)
    assert "Warning" not in capsys.readouterr().err
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    train(tmp_path / "asked", settings=settings)
    assert lines(tmp_path / "asked") == lines(tmp_path / "plain")
    assert "not accumulated over 4 passes" in capsys.readouterr().err


def test_a_loss_that_is_no_number_stops_with_the_samples(tmp_path):
    def poisoned(indices, step):
        batch = make_batch(indices, step)
        if 17 in indices:
            batch.x = batch.x * float("nan")
        return batch

    with pytest.raises(RunError, match=r"loss of step \d+ is nan; the samples of that step are .*sample-") as error:
        train(tmp_path, batch=poisoned)
    step = int(error.value.message.split()[4])
    assert [json.loads(line)["step"] for line in lines(tmp_path)] == list(range(1, step))
    # what is on disk is from before
    assert all(int(folder.name[-6:]) < step for folder in list_checkpoints(tmp_path / "checkpoints"))


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_look_that_is_no_number_stops_with_the_last_steps_samples(tmp_path, ema):
    """A look is the first to see weights that a step has blown up, where it follows upon that step."""
    settings = replace(
        SETTINGS, learning_rate=3e38, warmup=0.0, look_every=1, ema=ema, optimizer=OptimizerSettings("sgd")
    )
    module = Toy()

    def look(step):
        value = float(module(make_batch(range(N), step)).loss)
        return Look(-value, {"held_out": value})

    with pytest.raises(RunError, match=r"held_out is (nan|inf) after step 1; the samples of .*sample-") as error:
        train(tmp_path, module=module, settings=settings, look=look)
    assert "lower the rate" in (error.value.hint or "")
    assert not list_checkpoints(tmp_path / "checkpoints")


def test_a_gradient_that_is_no_number_stops_in_its_own_step(tmp_path):
    """The square root's slope at 0 is infinite while the loss is finite: what it does to the weights is not kept."""

    class Rooted(Toy):
        def forward(self, batch):
            out = super().forward(batch)
            bad = (self.net[0].weight * 0).abs().sum().sqrt() if batch.step == 5 else 0.0
            return StepLoss(out.loss + bad, out.terms)

    with pytest.raises(RunError, match=r"gradient of step 6 has the norm nan; the samples of .*sample-"):
        train(tmp_path, module=Rooted(), settings=replace(SETTINGS, checkpoint_every=1))
    step, state = latest_checkpoint(tmp_path / "checkpoints")
    assert step == 5
    assert all(value.isfinite().all() for value in state["module"].values())


def test_sigterm_saves_and_says_resumable(tmp_path):
    train(tmp_path / "whole")
    calls = 0

    def signalling(indices, step):
        nonlocal calls
        calls += 1
        if calls == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return make_batch(indices, step)

    with pytest.raises(StoppedResumable):
        train(tmp_path / "stopped", batch=signalling)
    assert list_checkpoints(tmp_path / "stopped" / "checkpoints")[-1].name == "step-000010"
    _, result = train(tmp_path / "stopped")
    assert result.resumed_from == 10
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")


def test_the_best_weights_are_kept_where_asked(tmp_path):
    scores = {4: 0.1, 8: 0.7, 12: 0.3, 16: 0.2, 20: 0.1, 24: 0.0}
    seen = {}
    module = Toy()

    def look(step: int) -> Look:
        assert not module.training
        seen[step] = module.net[0].weight.detach().clone()
        return Look(scores[step], {"score": scores[step]})

    settings = replace(SETTINGS, look_every=4, keep="best")
    _, result = train(tmp_path, module=module, settings=settings, look=look)
    assert (result.step, result.kept_step) == (24, 8)
    assert torch.equal(module.net[0].weight, seen[8])
    assert [entry["step"] for entry in result.looks] == [4, 8, 12, 16, 20, 24]
    assert sum("dev" in json.loads(line) for line in lines(tmp_path)) == 6


def test_patience_stops_early_and_a_second_call_does_no_step(tmp_path):
    scores = {4: 0.1, 8: 0.7, 12: 0.3, 16: 0.2}
    settings = replace(SETTINGS, look_every=4, keep="best", patience=2)
    first, result = train(tmp_path, settings=settings, look=lambda step: Look(scores[step], {}))
    assert (result.step, result.kept_step, result.stopped_early) == (16, 8, True)

    def never(indices, step):
        raise AssertionError("a finished loop made a batch")

    again, result = train(tmp_path, settings=settings, look=None, batch=never)
    assert (result.step, result.kept_step) == (16, 8)
    assert torch.equal(first.net[0].weight, again.net[0].weight)


def test_a_look_in_the_middle_changes_no_loss(tmp_path):
    def look(step: int) -> Look:
        torch.rand(7)
        return Look(0.0, {})

    train(tmp_path / "a")
    train(tmp_path / "b", settings=replace(SETTINGS, look_every=3), look=look)
    assert [line for line in lines(tmp_path / "b") if "dev" not in line] == lines(tmp_path / "a")


def test_a_checkpoint_of_another_seed_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(RunError, match="seed 5, not 6"):
        train(tmp_path, settings=replace(SETTINGS, seed=6))


def test_a_run_goes_on_where_fewer_gpus_are_visible(tmp_path, monkeypatch):
    """A checkpoint holds no generator's state: each step seeds them all. Those that hold some, of eight GPUs, load."""
    train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "killed", batch=dying_after(9))
    root = tmp_path / "killed" / "checkpoints"
    step, state = latest_checkpoint(root)
    assert not [name for name in state if name.startswith("rng")]
    generator = torch.get_rng_state()
    write_checkpoint(root, step, {**state, "rng": generator, "rng_cuda": [generator] * 8}, keep=1)
    resume = TrainingState.resume

    def absent(states):
        raise IndexError("tuple index out of range")

    def on_one_gpu(self):
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            patch.setattr(torch.cuda, "set_rng_state_all", absent)
            resume(self)
        torch.manual_seed(99)  # where a generator stands is of no account

    monkeypatch.setattr(TrainingState, "resume", on_one_gpu)
    train(tmp_path / "killed")
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


def test_patience_counts_on_through_a_kill(tmp_path):
    scores = {4: 0.1, 8: 0.7, 12: 0.3, 16: 0.2}
    settings = replace(SETTINGS, look_every=4, keep="best", patience=2)
    with pytest.raises(Killed):  # after the look without gain at 12, before the one at 16
        train(tmp_path, settings=settings, batch=dying_after(14), look=lambda step: Look(scores[step], {}))
    _, result = train(tmp_path, settings=settings, look=lambda step: Look(scores[step], {}))
    assert result.resumed_from == 12
    assert (result.step, result.kept_step, result.stopped_early) == (16, 8, True)


def test_the_best_weights_of_the_last_checkpoint_outlive_newer_ones(tmp_path):
    scores = {2: 0.5, 4: 0.3, 6: 0.9}
    settings = replace(SETTINGS, steps=8, look_every=2, keep="best")
    whole, _ = train(
        tmp_path / "whole", settings=settings, look=lambda step: Look({**scores, 6: 0.4, 8: 0.1}[step], {})
    )
    with pytest.raises(Killed):  # the look at 6 finds better ones, which no checkpoint knows of
        train(tmp_path / "a", settings=settings, batch=dying_after(6), look=lambda step: Look(scores[step], {}))
    assert {path.name for path in (tmp_path / "a" / "checkpoints").glob("best-*")} == {
        "best-000002.pt", "best-000006.pt",
    }  # fmt: skip
    # another machine, whose numbers differ a little, finds nothing at 6
    resumed, result = train(tmp_path / "a", settings=settings, look=lambda step: Look({6: 0.4, 8: 0.1}[step], {}))
    assert result.kept_step == 2
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_best_weights_that_somebody_removed_are_named(tmp_path):
    settings = replace(SETTINGS, steps=8, look_every=4, keep="best")
    train(tmp_path, settings=settings, look=lambda step: Look(-step, {}))
    (tmp_path / "checkpoints" / "best-000004.pt").unlink()
    with pytest.raises(RunError, match=r"weights of step 4, the best of this run, are gone"):
        train(tmp_path, settings=settings)


def test_a_checkpoint_with_another_mark_is_refused(tmp_path):
    train(tmp_path, marks={"tokenizer of the student": "a"})
    with pytest.raises(RunError, match="was made with another tokenizer of the student"):
        train(tmp_path, marks={"tokenizer of the student": "b"})
    train(tmp_path, marks={"tokenizer of the student": "a"})
