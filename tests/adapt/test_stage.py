from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from madkit.adapt import loop, stage
from madkit.adapt.stage import adapt
from madkit.core.errors import DataError, NotFoundError, RunError, StoppedResumable, UsageProblem
from madkit.core.files import read_jsonl
from madkit.tasks.data import open_task
from madkit.tasks.id_lists import labelled_examples
from madkit.teachers.adapter import FILE, find_adapter
from madkit.teachers.clip_pair import ClipText
from madkit.teachers.load import load_teacher
from madkit.teachers.preprocess import Preprocessing

# A schedule that learns the toy set in a few seconds, whatever is trained.
QUICK = {"optim.batch_size": 8, "optim.steps": 16, "eval.every": 8, "checkpoint_every": 4}
RATES = {"heads": 2e-2, "lora": 2e-2, "all": 2e-3}


def run(workspace: Any, teacher: Path, what: str = "all", shots: str = "full", name: str | None = None, **more: Any):
    settings = {**QUICK, "train": what, "optim.learning_rate": RATES[what], **more}
    return adapt(
        workspace, teacher=f"local:{teacher}", task="snli-ve", shots=shots, overrides=settings, device="cpu", name=name
    )


def test_a_teacher_learns_what_can_be_learnt(workspace: Any, tiny_teacher: Path) -> None:
    result = run(workspace, tiny_teacher, **{"optim.steps": 48})
    manifest = result.manifest
    assert not manifest["untouched"]
    assert manifest["after"]["accuracy"] >= 0.85 > manifest["before"]["accuracy"]
    losses = [row["loss"] for row in read_jsonl(result.path / "metrics.jsonl") if "loss" in row]
    assert len(losses) == manifest["steps"]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert manifest["items"] == 32
    assert manifest["looks"][0]["step"] == 0
    adapted = load_teacher(manifest["teacher"], adapter=result.path)
    base = load_teacher(manifest["teacher"])
    for side in ("vision", "text"):
        here, there = getattr(adapted, side).identity, getattr(base, side).identity
        assert here["weights"] != there["weights"]
        assert here["adapter"]["name"] == manifest["name"]
        assert here.keys() - there.keys() == {"adapter"}
    image = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
    assert not torch.equal(adapted.vision.encode(image).global_, base.vision.encode(image).global_)
    assert not list(result.path.glob("checkpoints/*.safetensors"))


def test_the_adapted_teacher_matches_as_the_training_saw_it(workspace: Any, tiny_teacher: Path) -> None:
    """What was kept is what comes back: the score of the loaded teacher is that of the best look."""
    from madkit.adapt.config import AdaptConfig
    from madkit.adapt.development import match, sample
    from madkit.adapt.inputs import Inputs
    from madkit.adapt.items import make_items
    from madkit.adapt.trained_pair import TrainedPair
    from madkit.adapt.vectors import LiveVectors

    for what in ("lora", "heads"):
        result = run(workspace, tiny_teacher, what)
        data = open_task(workspace, "snli-ve")
        teacher = load_teacher(result.manifest["teacher"], adapter=result.path)
        config = AdaptConfig(train="all")
        items = sample(
            make_items(data.spec, data.examples("dev"), config.objective, answers={}, seed=0), config.eval.limit, "dev"
        )
        with Inputs(teacher.vision, teacher.text, memory_mb=10) as inputs:
            items = inputs.check(items)
            pair = TrainedPair(teacher, config, 0)
            found = match(pair, LiveVectors(pair, inputs), items, 8, config.objective)
        assert found.accuracy == result.manifest["after"]["accuracy"]
        assert found.loss == pytest.approx(result.manifest["after"]["loss"], abs=1e-4)


def test_unrelated_teachers_get_a_common_space(
    workspace: Any, tiny_teacher: Path, hf_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from madkit.adapt.config import AdaptConfig
    from madkit.adapt.development import match, sample
    from madkit.adapt.inputs import Inputs
    from madkit.adapt.items import make_items
    from madkit.adapt.trained_pair import TrainedPair
    from madkit.adapt.vectors import LiveVectors

    reads = []
    own = TrainedPair.see
    monkeypatch.setattr(TrainedPair, "see", lambda self, images: reads.append(len(images)) or own(self, images))
    settings = {**QUICK, "train": "heads", "optim.learning_rate": 5e-2, "optim.steps": 60, "eval.patience": 9}
    result = adapt(
        workspace, teacher=f"local:{tiny_teacher}+hf:{hf_folders['bert']}", task="snli-ve", shots="full",
        overrides={**settings, "head_dim": 12}, device="cpu",
    )  # fmt: skip
    manifest = result.manifest
    assert sum(reads) == 32 + 24, "frozen encoders read every image once"
    assert not manifest["untouched"]
    assert "random" in manifest["outcome"]
    assert manifest["after"]["accuracy"] > manifest["before"]["accuracy"]
    assert manifest["adapter"]["tensors"] == {"vision": 2, "text": 2}
    teacher = load_teacher(manifest["teacher"], adapter=result.path)
    assert teacher.shared_space
    assert teacher.logit_scale == manifest["adapter"]["logit_scale"]
    assert (teacher.vision.dim, teacher.text.dim) == (12, 12)
    assert teacher.vision.identity["layer"].endswith("+head")
    seen = teacher.vision.encode(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert (tuple(seen.tokens.shape), tuple(seen.global_.shape)) == ((2, 16, 12), (2, 12))
    data, config = open_task(workspace, "snli-ve"), AdaptConfig(train="all")
    made = make_items(data.spec, data.examples("dev"), config.objective, answers={}, seed=0)
    with Inputs(teacher.vision.base, teacher.text.base, memory_mb=10) as inputs:
        items = inputs.check(sample(made, config.eval.limit, "dev"))
        pair = TrainedPair(load_teacher(manifest["teacher"]), AdaptConfig(train="heads", head_dim=12), 0)
        with torch.no_grad():
            for side, half in (("vision", teacher.vision), ("text", teacher.text)):
                pair.heads[side].load_state_dict(half.head.state_dict())
            pair.log_scale.fill_(torch.tensor(teacher.logit_scale).log())
        found = match(pair, LiveVectors(pair, inputs), items, 8, config.objective)
    assert found.accuracy == manifest["after"]["accuracy"]
    assert found.loss == pytest.approx(manifest["after"]["loss"], abs=1e-4)


def test_the_same_command_twice_does_nothing(workspace: Any, tiny_teacher: Path) -> None:
    first = run(workspace, tiny_teacher, "heads")
    stamp = (first.path / "manifest.json").read_bytes()
    again = run(workspace, tiny_teacher, "heads")
    assert (first.skipped, again.skipped, again.path) == (False, True, first.path)
    assert (first.path / "manifest.json").read_bytes() == stamp
    other = run(workspace, tiny_teacher, "heads", **{"eval.patience": 9})
    assert other.path != first.path


class _Stopped(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_bytes(
    workspace: Any, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, more = "lora", {"lora.dropout": 0.2}
    whole = run(workspace, tiny_teacher, what, name="whole", **more)
    own = loop.Training._step
    for death in (6, 13):

        def dying(self: Any, step: int, death: int = death) -> dict[str, Any]:
            if step == death:
                raise _Stopped
            return own(self, step)

        monkeypatch.setattr(loop.Training, "_step", dying)
        if death < whole.manifest["steps"]:
            with pytest.raises(_Stopped):
                run(workspace, tiny_teacher, what, name="killed", **more)
    monkeypatch.setattr(loop.Training, "_step", own)
    resumed = run(workspace, tiny_teacher, what, name="killed", **more)
    assert (resumed.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()
    assert (resumed.path / FILE).read_bytes() == (whole.path / FILE).read_bytes()
    assert resumed.manifest["looks"] == whole.manifest["looks"]


def best_at_four_then_killed(workspace: Any, teacher: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> list[float]:
    """Kill a run after a new best look that no checkpoint knows of; returns scores that its later looks are to have."""
    scores = {0: 0.2, 4: 0.5, 8: 0.9, 12: 0.3, 16: 0.3}
    own_look, own_step = loop.Training._look, loop.Training._step

    def looked(self: Any, done: Any, look: Any, journal: Any, progress: Any) -> None:
        train, dev = look()
        fixed = replace(dev, accuracy=scores[done.step])
        own_look(self, done, lambda: (train, fixed), journal, progress)

    def dying(self: Any, step: int) -> dict[str, Any]:
        if step == 9:
            raise _Stopped
        return own_step(self, step)

    monkeypatch.setattr(loop.Training, "_look", looked)
    with monkeypatch.context() as patch, pytest.raises(_Stopped):
        patch.setattr(loop.Training, "_step", dying)
        run(workspace, teacher, "heads", name=name, **TWO_LOOKS)
    scores[8] = 0.4  # the arithmetic of a GPU: the same look, an item less
    return [scores[step] for step in (0, 4, 8, 12, 16)]


TWO_LOOKS = {"eval.every": 4, "checkpoint_every": 6, "eval.patience": 9}


def test_the_best_weights_outlive_a_look_that_is_the_best_only_once(
    workspace: Any, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = best_at_four_then_killed(workspace, tiny_teacher, monkeypatch, "killed")
    checkpoints = workspace.root / "adapters" / "killed" / "checkpoints"
    assert sorted(path.name for path in checkpoints.glob("best*")) == [
        "best-000004.safetensors",
        "best-000008.safetensors",
    ]
    result = run(workspace, tiny_teacher, "heads", name="killed", **TWO_LOOKS)
    assert [row["dev"]["accuracy"] for row in result.manifest["looks"]] == expected
    assert result.manifest["kept_step"] == 4
    shorter = {**TWO_LOOKS, "eval.patience": 1}  # ends with the look after its best one, undisturbed
    whole = run(workspace, tiny_teacher, "heads", name="whole", **shorter)
    assert whole.manifest["kept_step"] == 4
    assert (result.path / FILE).read_bytes() == (whole.path / FILE).read_bytes()


def test_a_checkpoint_removes_the_best_weights_before_those_that_it_knows(
    workspace: Any, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[int, list[str]] = {}
    own_save, own_look = loop.Training._save, loop.Training._look

    def saved(self: Any, done: Any) -> None:
        own_save(self, done)
        kept[done.step] = [path.name for path in (self.folder / "checkpoints").glob("best*")]

    def looked(self: Any, done: Any, look: Any, journal: Any, progress: Any) -> None:
        train, dev = look()
        own_look(self, done, lambda: (train, replace(dev, accuracy=done.step / 100)), journal, progress)

    monkeypatch.setattr(loop.Training, "_save", saved)
    monkeypatch.setattr(loop.Training, "_look", looked)
    run(workspace, tiny_teacher, "heads", **{"eval.every": 4, "checkpoint_every": 6})
    assert kept == {6: ["best-000004.safetensors"], 12: ["best-000012.safetensors"], 16: ["best-000016.safetensors"]}


def test_a_run_whose_best_weights_lie_in_the_older_versions_file_goes_on(
    workspace: Any, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best_at_four_then_killed(workspace, tiny_teacher, monkeypatch, "older")
    checkpoints = workspace.root / "adapters" / "older" / "checkpoints"
    (checkpoints / "best-000008.safetensors").unlink()
    (checkpoints / "best-000004.safetensors").rename(checkpoints / "best.safetensors")
    result = run(workspace, tiny_teacher, "heads", name="older", **TWO_LOOKS)
    assert result.manifest["kept_step"] == 4
    assert not list(checkpoints.glob("*.safetensors"))


def test_sigkill_in_another_process_loses_nothing(workspace: Any, tiny_teacher: Path) -> None:
    settings = {**QUICK, "train": "all", "optim.learning_rate": RATES["all"]}
    script = f"""
import os, signal, torch
torch.set_num_threads(1)
from madkit.adapt import loop
from madkit.adapt.stage import adapt
from madkit.core.workspace import Workspace
own = loop.Training._step
def dying(self, step):
    if step == 11:
        os.kill(os.getpid(), signal.SIGKILL)
    return own(self, step)
loop.Training._step = dying
adapt(Workspace.at({str(workspace.root)!r}), teacher={f"local:{tiny_teacher}"!r}, task="snli-ve", shots="full",
      overrides={settings!r}, device="cpu", name="killed")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    folder = workspace.root / "adapters" / "killed"
    assert json.loads((folder / "manifest.json").read_bytes())["status"] == "running"
    with pytest.raises(NotFoundError, match="is not finished"):
        load_teacher(f"local:{tiny_teacher}", adapter=folder)
    resumed = run(workspace, tiny_teacher, "all", name="killed")
    whole = run(workspace, tiny_teacher, "all", name="whole")
    assert (resumed.path / FILE).read_bytes() == (whole.path / FILE).read_bytes()
    assert (resumed.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, StoppedResumable), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_saves_and_stops(
    number: signal.Signals, error: type[BaseException], workspace: Any, tiny_teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    own = loop.Training._step

    def asked(self: Any, step: int) -> dict[str, Any]:
        if step == 6:
            os.kill(os.getpid(), number)
        return own(self, step)

    monkeypatch.setattr(loop.Training, "_step", asked)
    with pytest.raises(error):
        run(workspace, tiny_teacher, "heads", name="asked")
    assert (workspace.root / "adapters" / "asked" / "checkpoints" / "step-000007.safetensors").is_file()
    monkeypatch.setattr(loop.Training, "_step", own)
    if number == signal.SIGINT:
        return
    resumed = run(workspace, tiny_teacher, "heads", name="asked")
    whole = run(workspace, tiny_teacher, "heads", name="whole")
    assert (resumed.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()


def test_without_a_gain_the_teacher_stays_as_it_was(workspace: Any, tiny_teacher: Path) -> None:
    result = run(workspace, tiny_teacher, "heads", **{"optim.learning_rate": 1e-12, "eval.patience": 2})
    manifest = result.manifest
    assert manifest["untouched"]
    assert manifest["outcome"].startswith("no step was better than the untouched teacher")
    assert manifest["stopped_early"]
    assert not (result.path / FILE).exists()
    same = load_teacher(manifest["teacher"], adapter=result.path)
    assert same.vision.identity == load_teacher(manifest["teacher"]).vision.identity


def test_a_loss_that_is_no_number_names_its_examples(workspace: Any, tiny_teacher: Path) -> None:
    with pytest.raises(RunError, match=r"The loss of step \d+ is nan; the examples of that step are \d+\.png#"):
        run(workspace, tiny_teacher, "all", **{"optim.learning_rate": 1e30, "optim.warmup": 0.0, "optim.clip": 0.0})


def test_a_look_that_is_no_number_names_the_last_steps_examples(workspace: Any, tiny_teacher: Path) -> None:
    """The look after the step that blew the weights up is the first to see them."""
    huge = {"optim.learning_rate": 1e38, "optim.warmup": 0.0, "optim.clip": 0.0, "eval.every": 1}
    with pytest.raises(RunError, match=r"The loss on .* is nan after step 1; the examples of that step are \d+\."):
        run(workspace, tiny_teacher, "all", **huge)


def test_unreadable_images_are_counted_and_left_out(workspace: Any, tiny_teacher: Path) -> None:
    images = sorted((workspace.data / "snli-ve" / "images").glob("*.png"))
    images[0].write_bytes(b"no picture")
    images[40].unlink()
    result = run(workspace, tiny_teacher, "heads", **{"optim.steps": 8})
    assert sorted(item["image"] for item in result.manifest["unreadable"]) == ["100", "140"]
    assert result.manifest["items"] == 31
    assert result.manifest["looks"][0]["dev"]["items"] == 23


def test_nothing_but_the_training_subset_and_the_development_split_is_read(
    workspace: Any, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_task(workspace, "snli-ve")
    subset, dev = labelled_examples(data, "50pct", 0), data.examples("dev")
    assert 0 < len(subset) < len(data.examples("train"))
    seen, said, trained = set(), set(), set()
    load, tokenize, step = Preprocessing.load, ClipText.tokenize, loop.Training._step
    monkeypatch.setattr(Preprocessing, "load", lambda self, path: seen.add(path) or load(self, path))
    monkeypatch.setattr(ClipText, "tokenize", lambda self, texts: said.update(texts) or tokenize(self, texts))

    def watched(self: Any, number: int) -> dict[str, Any]:
        trained.update(example for place in self.order.at(number) for example in self.items[place].ids)
        return step(self, number)

    monkeypatch.setattr(loop.Training, "_step", watched)
    run(workspace, tiny_teacher, "heads", "50pct")
    allowed = [*subset, *dev]
    assert seen == {example.image.path for example in allowed}
    assert said == {text for example in allowed for text in example.texts()}
    assert trained == {example.id for example in subset}


def test_a_list_of_questions_is_the_subset(workspace: Any, tiny_teacher: Path, tmp_path: Path) -> None:
    from madkit.tasks.id_lists import export_shots, import_shots

    data = open_task(workspace, "snli-ve")
    document = export_shots(data, "10", 3)
    (tmp_path / "few.json").write_text(json.dumps(document))
    import_shots(data, tmp_path / "few.json", "few")
    result = run(workspace, tiny_teacher, "heads", "list:few", **{"optim.steps": 2})
    assert result.manifest["examples_used"] == 10
    assert result.manifest["shots"] == "list:few"
    assert "list-few" in result.path.name


def test_other_weights_are_refused(workspace: Any, tiny_teacher: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load, save_file

    result = run(workspace, tiny_teacher, "heads")
    other = tmp_path / "other"
    shutil.copytree(tiny_teacher, other)
    tensors = load((other / "model.safetensors").read_bytes())
    save_file({**tensors, "visual.proj": tensors["visual.proj"] + 1}, other / "model.safetensors")
    with pytest.raises(DataError, match=r"was made from other vision weights than these of") as caught:
        load_teacher(f"local:{other}", adapter=result.path)
    assert str(tiny_teacher) in str(caught.value.hint)
    (result.path / FILE).write_bytes((result.path / FILE).read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="is not the file that its manifest describes"):
        load_teacher(f"local:{tiny_teacher}", adapter=result.path)


def test_low_rank_updates_without_a_gradient_are_told(
    workspace: Any, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import peft

    real = peft.tuners.lora.Linear.forward

    def called_past(self: Any, x: torch.Tensor) -> torch.Tensor:
        if self.base_layer.out_features > self.base_layer.in_features:
            return self.base_layer(x)
        return real(self, x)

    monkeypatch.setattr(peft.tuners.lora.Linear, "forward", called_past)
    run(workspace, tiny_teacher, "lora", **{"optim.steps": 2, "eval.every": 2})
    told = [line for line in capsys.readouterr().err.splitlines() if "get no gradient" in line]
    assert len(told) == 1
    assert "low-rank updates get no gradient" in told[0]


def test_several_processes_are_refused_before_anything_is_read(workspace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(stage, "open_task", None)
    with pytest.raises(RunError, match="runs in one process, not in 2"):
        adapt(workspace, teacher="mini", task="snli-ve")


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK"])
def test_half_of_a_launchers_variables_make_no_job(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some clusters set them for every program; Accelerate alone would look for the others."""
    for other in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "2")
    stage._refuse_several_processes()
    assert stage._accelerator("cpu", "fp32").num_processes == 1
    assert os.environ[name] == "2"


def test_accumulation_that_a_launcher_asks_for_changes_no_gradient(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    value = torch.ones((), requires_grad=True)
    stage._accelerator("cpu", "fp32").backward(2 * value)
    assert value.grad is not None
    assert float(value.grad) == 2
    assert "not accumulated over 4 passes" in capsys.readouterr().err


def test_names_that_cannot_be_meant(workspace: Any, tiny_teacher: Path) -> None:
    run(workspace, tiny_teacher, "heads", name="mine")
    with pytest.raises(RunError, match="The name 'mine' belongs to another adaptation"):
        run(workspace, tiny_teacher, "all", name="mine")
    with pytest.raises(UsageProblem, match="cannot be the name"):
        run(workspace, tiny_teacher, "heads", name="../mine")
    folder = workspace.root / "adapters"
    assert find_adapter(folder, "mine") == find_adapter(folder, str(folder / "mine" / FILE)) == folder / "mine"
    with pytest.raises(NotFoundError, match=r"no adapted teacher 'mint'.*mine"):
        find_adapter(folder, "mint")
    with pytest.raises(UsageProblem, match="no device named 'tpu'"):
        stage.adapt(workspace, teacher=f"local:{tiny_teacher}", task="snli-ve", device="tpu")
    with pytest.raises(RunError, match="Precision bf16 needs a CUDA device"):
        run(workspace, tiny_teacher, "heads", precision="bf16")
