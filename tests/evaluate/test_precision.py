from __future__ import annotations

import pytest
import torch

from madkit.core.errors import UsageProblem
from madkit.core.files import read_jsonl
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


def test_auto_is_bf16_where_the_gpu_computes_in_it_and_fp32_elsewhere(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (StudentScorer().precision, str(StudentScorer().device)) == ("fp32", "cpu")
    assert StudentScorer("cpu", "bf16").precision == "bf16"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for supported in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, _is=supported, **k: _is)
        assert StudentScorer().precision == ("bf16" if supported else "fp32")
    assert StudentScorer("cpu").precision == "fp32"
    assert (StudentScorer().wanted, StudentScorer(precision="fp32").wanted) == (None, "fp32")


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
