from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from madkit.core.errors import UsageProblem
from madkit.core.files import read_jsonl
from madkit.evaluate.predict import Answering
from madkit.evaluate.scorer import StudentScorer


class In:
    """A scorer of made-up runs that computes in a precision."""

    def __init__(self, made_up, precision, wanted=None):
        self.made_up, self.precision, self.wanted = made_up, precision, wanted

    def __call__(self, *arguments):
        return self.made_up.scorer(*arguments)


@pytest.fixture
def runs(made_up):
    made_up.add_data("snli-ve", "mini-snli-ve")
    folders = [made_up.add_run("finetune", seed) for seed in range(2)]

    def evaluate(precision, wanted=None):
        from madkit.evaluate import stage

        return stage.evaluate(made_up.workspace, "smoke", scorer=In(made_up, precision, wanted))

    return made_up, folders, evaluate


def test_rows_tell_their_precision(runs):
    _, folders, evaluate = runs
    assert {row.precision for row in evaluate("bf16").rows} == {"bf16"}
    assert [row["precision"] for row in read_jsonl(folders[0] / "results.jsonl")] == ["bf16"]


def test_what_is_there_counts_unless_a_precision_is_wanted(runs, capsys):
    made_up, _, evaluate = runs
    evaluate("bf16")
    assert {row.precision for row in evaluate("fp32").rows} == {"bf16"}
    assert len(made_up.scored) == 2
    assert {row.precision for row in evaluate("fp32", "fp32").rows} == {"fp32"}
    assert len(made_up.scored) == 4
    assert "were computed" not in capsys.readouterr().err


def test_a_mixture_is_told_in_the_rows_and_by_a_warning(runs, capsys):
    made_up, _, evaluate = runs
    evaluate("fp32")
    made_up.add_run("finetune", 2)
    results = evaluate("bf16")
    assert {row.precision for row in results.rows} == {"bf16, fp32"}
    assert "Answers on mini-snli-ve were computed 1 in bf16 and 2 in fp32; --precision fp32" in capsys.readouterr().err


def test_rows_from_before_precision_was_told_are_fp32(runs):
    made_up, folders, evaluate = runs
    evaluate("fp32")
    for folder in folders:
        path = folder / "results.jsonl"
        path.write_text(path.read_text().replace('"precision": "fp32", ', ""))
        assert "precision" not in path.read_text()
    assert {row.precision for row in evaluate("fp32", "fp32").rows} == {"fp32"}
    assert len(made_up.scored) == 2


def test_answers_that_are_scored_anew_keep_their_precision(runs):
    _, folders, evaluate = runs
    evaluate("bf16")
    path = folders[0] / "results.jsonl"
    path.write_text(path.read_text().replace('"metric_version": 2', '"metric_version": 1'))
    evaluate("fp32")
    assert [row["precision"] for row in read_jsonl(path)] == ["bf16", "bf16"]


class Gpu:
    """A CUDA device that torch tells of and nobody computes on: compute capability `major`.x, two of them."""

    def __init__(self, monkeypatch, major, *, emulates=True):
        self.major, self.current, self.asked = major, 0, []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "device", self.entered)
        monkeypatch.setattr(torch.cuda, "get_device_properties", self.properties)
        monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: emulates)

    @contextmanager
    def entered(self, device):
        before, self.current = self.current, device.index or 0
        yield
        self.current = before

    def properties(self, number):
        self.asked.append(number)
        return SimpleNamespace(major=self.major)


def test_auto_is_bf16_where_the_gpu_computes_in_it_and_fp32_elsewhere(monkeypatch):
    """Torch's own answer, to a made-up device: what it only emulates (before Ampere) does not count."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (StudentScorer().precision, str(StudentScorer().device)) == ("fp32", "cpu")
    assert StudentScorer("cpu", "bf16").precision == "bf16"
    for major, precision in ((9, "bf16"), (8, "bf16"), (7, "fp32")):
        gpu = Gpu(monkeypatch, major)
        assert (StudentScorer().precision, str(StudentScorer().device)) == (precision, "cuda")
        assert StudentScorer("cuda:1").precision == precision
        assert gpu.asked == [0, 1]
        assert (StudentScorer(precision="fp32").precision, StudentScorer(precision="bf16").precision) == (
            "fp32",
            "bf16",
        )
        assert StudentScorer("cpu").precision == "fp32"
    assert (StudentScorer().wanted, StudentScorer(precision="fp32").wanted) == (None, "fp32")


def test_what_was_found_out_of_the_gpu_is_what_students_are_asked_with(monkeypatch):
    Gpu(monkeypatch, 9)
    told = {}
    monkeypatch.setattr("madkit.evaluate.predict.predict", lambda *given, **how: told.update(how) or [])
    StudentScorer("cuda:1")(None, [], None, None)
    assert (told["device"], told["precision"]) == ("cuda:1", "bf16")


def test_bf16_on_a_gpu_is_autocast_of_that_device(monkeypatch):
    entered = []

    class Autocast(nullcontext):
        def __init__(self, kind, **how):
            super().__init__()
            entered.append((kind, how))

    monkeypatch.setattr(torch, "autocast", Autocast)
    for kind in ("cuda", "cpu"):
        answering = object.__new__(Answering)
        answering._device, answering._bf16 = torch.device(kind), True
        with answering._autocast():
            assert entered[-1] == (kind, {"dtype": torch.bfloat16})


def test_processes_of_one_machine_take_a_gpu_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    launched = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for variable, value in launched.items():
        monkeypatch.setenv(variable, value)
    assert str(StudentScorer().device) == "cuda:1"
    assert str(StudentScorer("cuda:0").device) == "cuda:0"
    assert str(StudentScorer("cpu").device) == "cpu"


def test_a_device_that_is_not_there_is_said_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageProblem, match="no GPU"):
        StudentScorer("cuda").check()
    with pytest.raises(UsageProblem, match="precision"):
        StudentScorer("cpu", "fp16").check()
