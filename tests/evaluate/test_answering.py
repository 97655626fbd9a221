"""`madkit predict`: a student's answers as files, which score as evaluate does."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from madkit.cli.main import main
from madkit.core.errors import NotFoundError, RunError, UsageProblem
from madkit.core.files import read_jsonl
from madkit.core.workspace import Workspace
from madkit.evaluate import predict as predicting
from madkit.evaluate.answering import answer
from madkit.evaluate.origin import find_data, find_run
from madkit.evaluate.score_file import score_file
from madkit.evaluate.stage import evaluate
from madkit.evaluate.submission import known
from madkit.students.export import Exported
from madkit.students.load import load_student, save_student

NAME = "tiny-finetune-1pct-s0-01234567"


def test_what_is_predicted_scores_as_evaluate_does(tiny, tmp_path):
    rows = [row for row in evaluate(tiny.workspace, "smoke", device="cpu").rows if row.suite == "test"]
    wanted = {row.metric: row.mean for row in rows}
    assert len({round(value, 3) for value in wanted.values()}) > 1
    for form in known(tiny.data.spec):
        done = answer(tiny.workspace, NAME, "test", format_=form, output=tmp_path / form, device="cpu")
        found = score_file(tiny.workspace, done.path, tiny.task)
        # the official evaluation of VQA gives two places
        assert {name: one.score for name, one in found.metrics.items()} == pytest.approx(wanted, abs=0.00501), form
        assert done.questions == found.answered == found.questions


@pytest.mark.parametrize("rule", ["current", "pre2021"])
def test_both_rules_of_vqa_agree_between_evaluate_and_score(tiny, tmp_path, rule):
    if tiny.task != "vqa":
        return
    results = evaluate(tiny.workspace, "smoke", device="cpu", vqa_rule=rule)
    wanted = {row.metric: row.mean for row in results.rows if row.suite == "test"}
    done = answer(tiny.workspace, NAME, format_="vqa-json", output=tmp_path / "r.json", device="cpu")
    found = score_file(tiny.workspace, done.path, "vqa", vqa_rule=rule)
    assert {name: one.score for name, one in found.metrics.items()} == pytest.approx(wanted, abs=0.00501)
    (kinds,) = [one for one in results.breakdowns if one.suite == "test"]
    ours = {kind: one.score for kind, one in found.by_kind["accuracy"].items()}
    assert ours == pytest.approx(kinds.mean, abs=0.00501)
    assert sum(kinds.n_examples.values()) == found.questions


def test_the_command_writes_into_the_runs_folder_and_says_where(tiny, capsys, monkeypatch):
    where = ["--workspace", str(tiny.workspace.root), "--device", "cpu"]
    suite = tiny.data.suites()[1]
    real, threads = predicting.predict, []

    def watched(*arguments, **more):
        threads.append(torch.get_num_threads())
        return real(*arguments, **more)

    monkeypatch.setattr(predicting, "predict", watched)
    before = torch.get_num_threads()
    assert main(["predict", NAME, "--split", suite, "--threads", str(before + 1), *where, "--json"]) == 0
    assert (threads, torch.get_num_threads()) == ([before + 1], before)
    document = json.loads(capsys.readouterr().out)
    path = tiny.run / "submissions" / f"{suite}.jsonl"
    assert document["path"] == str(path)
    assert document["format"] == "jsonl"
    assert len(path.read_text().splitlines()) == len(tiny.data.examples(suite))
    assert main(["predict", str(tiny.run), "--split", "tset", *where]) == 2
    assert "Did you mean 'test'" in capsys.readouterr().err
    assert main(["predict", str(tiny.run), "--split", "", *where]) == 2  # a name that is given counts, empty as it is
    assert main(["predict", str(tiny.run), "--regions-format", "", *where]) == 2
    assert "--regions-format is for a file of questions" in capsys.readouterr().err
    wrong = "vqa-json" if tiny.task == "vcr" else "vcr-csv"
    assert main(["predict", NAME, "--format", wrong, *where]) == 2
    assert f"The format {wrong} does not hold answers of the task {tiny.task}" in capsys.readouterr().err
    assert main(["predict", NAME[:-1], *where]) == 1
    assert f"Did you mean '{NAME}'" in capsys.readouterr().err


def test_a_student_that_gives_nan_writes_nothing(tiny, tmp_path):
    shutil.copytree(tiny.run, tmp_path / "broken")
    student = load_student(tmp_path / "broken" / "student")
    with torch.no_grad():
        next(student.head.parameters()).fill_(float("nan"))
    save_student(student, tmp_path / "broken" / "student")
    out = tmp_path / "out"
    with pytest.raises(Exception, match="NaN or infinite scores"):
        answer(tiny.workspace, str(tmp_path / "broken"), output=out / "file", device="cpu")
    assert not out.exists()


def test_a_place_that_takes_no_file_is_told_before_the_student_is_asked(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(predicting, "predict", lambda *arguments, **more: pytest.fail("it was asked"))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        answer(tiny.workspace, NAME, output=tmp_path / "file" / "answers.jsonl", device="cpu")


def test_answers_to_a_split_have_probabilities_as_those_to_ones_own_file(tiny, tmp_path):
    path = tmp_path / "answers.jsonl"
    answer(tiny.workspace, NAME, format_="jsonl", output=path, device="cpu")
    lines = read_jsonl(path)
    assert all(0 < line["probability"] <= 1 for line in lines)
    assert tiny.task == "snli-ve" or len({line["probability"] for line in lines}) > 3  # there all are sure
    if tiny.task != "vqa":
        chosen = [max(line["scores"]) for line in lines]
        assert [line["probability"] for line in lines] == pytest.approx(chosen, abs=1e-6)
    else:
        answer(tiny.workspace, NAME, format_="csv", output=path.with_suffix(".csv"), device="cpu")
        head, first, *_ = path.with_suffix(".csv").read_text().splitlines()
        assert head == "id,prediction,probability"
        assert first == f"{lines[0]['id']},{lines[0]['prediction']},{lines[0]['probability']!r}"
    scored = score_file(tiny.workspace, path, tiny.data.spec.name)  # whoever reads such files reads these
    assert scored.answered == scored.questions


def test_runs_are_found_by_folder_by_name_and_by_source(tiny, tmp_path):
    for name in (NAME, f"{tiny.data.source}/{NAME}", str(tiny.run)):
        assert find_run(tiny.workspace, name).path == tiny.run
    with pytest.raises(NotFoundError, match="There is no run 'x'"):
        find_run(tiny.workspace, "x")
    other = Workspace.at(tmp_path / "other")
    with pytest.raises(NotFoundError) as caught:
        find_run(other, NAME)
    assert caught.value.hint == "madkit distill --task vcr --shots 1pct"
    with pytest.raises(NotFoundError, match="does not hold revision"):
        answer(other, str(tiny.run))
    for source in ("a", "b"):
        shutil.copytree(tiny.run, other.runs / source / NAME)
    with pytest.raises(UsageProblem, match="Several sources"):
        find_run(other, NAME)
    manifest = other.runs / "a" / NAME / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"complete"', '"running"'))
    with pytest.raises(RunError, match="is not finished"):
        find_run(other, f"a/{NAME}")


def test_data_is_found_under_any_folder_name(tiny, tmp_path):
    other = Workspace.at(tmp_path / "other")
    shutil.copytree(tiny.data.root, other.data / "another-name")
    (other.data / "broken").mkdir()
    (other.data / "broken" / "manifest.json").write_text("{")
    found = find_data(other, find_run(tiny.workspace, NAME))
    assert found is not None
    assert found.root == other.data / "another-name"


def test_students_are_exported_by_the_name_of_their_run(tiny, tmp_path, monkeypatch, capsys):
    asked = []

    def export(source, out):
        asked.append(source)
        return Exported(out, 1_000, 0.0, ("scores",))

    monkeypatch.setattr("madkit.students.export.export_student", export)
    where = ["--workspace", str(tiny.workspace.root)]
    for name in (NAME, str(tiny.run), str(tiny.run / "student")):
        assert main(["students", "export", name, "-o", str(tmp_path / "s.pt2"), *where]) == 0
    assert asked == [tiny.run / "student", str(tiny.run), str(tiny.run / "student")]
    capsys.readouterr()
    assert main(["students", "export", NAME[:-1], "--out", str(tmp_path / "s.pt2"), *where]) == 1
    told = capsys.readouterr().err
    assert f"Did you mean '{NAME}'" in told
    assert "--student" not in told
