"""`madkit evaluate` and `madkit report` as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from madkit.cli.main import main
from madkit.evaluate import predict as predict_module


@pytest.fixture
def runs(made_up, monkeypatch):
    made_up.add_data("snli-ve", "mini-snli-ve")
    for arm in ("finetune", "affinity"):
        for seed in range(2):
            made_up.add_run(arm, seed)
    monkeypatch.setattr(predict_module, "predict", lambda *arguments, spec, **_: made_up.scorer(*arguments, spec))
    return made_up


def test_json_is_one_document_with_schema_rows_and_report(runs, capsys):
    assert main(["evaluate", "--workspace", str(runs.workspace.root), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "madkit.results/1"
    assert document["protocol"] == "full"
    assert {row["suite"] for row in document["rows"]} == {"test", "test-rendering"}
    page = runs.workspace.reports / "full" / "index.html"
    assert document["report"] == str(page)
    assert page.is_file()


def test_people_get_a_table_the_page_and_the_next_command(runs, capsys):
    runs.add_run("mad", 0)
    assert main(["evaluate", "--workspace", str(runs.workspace.root), "--protocol", "smoke"]) == 0
    out = capsys.readouterr().out
    assert "mini-snli-ve, 1 % of the labels, mini-uniter" in out
    same = f"--workspace {runs.workspace.root}"  # so that the next command is of the same workspace
    assert f"Next: madkit distill {same} --task snli-ve --shots 1pct --arm mad --student mini-uniter --seed 1\n" in out
    assert out.splitlines()[-1].endswith("smoke/index.html")


def test_an_empty_workspace_is_one_sentence_and_what_to_type(tmp_path, capsys):
    assert main(["evaluate", "--workspace", str(tmp_path / "none")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[1] == f"Try: madkit distill --workspace {tmp_path / 'none'} --task vcr --shots 1pct"


def test_an_unknown_protocol_is_answered_with_the_nearest(tmp_path, capsys):
    assert main(["evaluate", "--workspace", str(tmp_path), "--protocol", "ful"]) == 2
    assert "Did you mean 'full'" in capsys.readouterr().err


def test_a_failed_cell_is_named_and_the_exit_code_is_1(runs, capsys):
    broken = runs.add_run("mad", 0)
    runs.broken.add(broken.name)
    assert main(["evaluate", "--workspace", str(runs.workspace.root), "--json"]) == 1
    captured = capsys.readouterr()
    assert f"{broken.name} on test: The student gives NaN" in captured.err
    assert len(json.loads(captured.out)["problems"]) == 2
    assert {row["arm"] for row in json.loads(captured.out)["rows"]} == {"finetune", "affinity"}


@pytest.mark.parametrize(
    ("form", "words"), [("markdown", "## mini-snli-ve"), ("latex", r"\toprule"), ("csv", "per_seed")]
)
def test_report_prints_the_same_table_in_other_formats(runs, capsys, tmp_path, form, words):
    where = ["--workspace", str(runs.workspace.root)]
    assert main(["evaluate", *where]) == 0
    scored = len(runs.scored)
    capsys.readouterr()
    assert main(["report", "full", "--format", form, *where]) == 0
    printed = capsys.readouterr().out
    assert words in printed
    assert len(runs.scored) == scored
    assert main(["report", "full", "--format", form, "-o", str(tmp_path / "out.txt"), *where]) == 0
    assert (tmp_path / "out.txt").read_text() == printed


def test_report_of_what_was_never_evaluated(tmp_path, capsys):
    assert main(["report", "smoke", "--workspace", str(tmp_path)]) == 1
    assert f"Try: madkit evaluate --workspace {tmp_path} --protocol smoke" in capsys.readouterr().err
    assert main(["report", "demo", "--workspace", str(tmp_path)]) == 1
    assert "Try: madkit demo" in capsys.readouterr().err
    for name in ("full", "mine"):
        (tmp_path / "reports" / name).mkdir(parents=True)
        (tmp_path / "reports" / name / "results.json").write_text("{}")
    assert main(["report", "ful", "--workspace", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "Did you mean 'full'?" in told
    assert f"Try: madkit report --workspace {tmp_path} full" in told


def test_a_protocol_of_ones_own_may_have_dots_in_its_name(runs, tmp_path, capsys):
    (tmp_path / "low.v2.yaml").write_text("suites: [test]\nresamples: 100\n")
    where = ["--workspace", str(runs.workspace.root)]
    assert main(["evaluate", "--protocol", str(tmp_path / "low.v2.yaml"), *where]) == 0
    for name in ("low.v2", "low.v2.yaml"):
        capsys.readouterr()
        assert main(["report", name, "--format", "markdown", *where]) == 0
        assert "# Protocol low.v2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--submission", "--agreement"], "leave out --agreement"),
        (["--submission", "--beside", "published"], "leave out --beside"),
        (["--submission", "--vqa-rule", "pre2021"], "leave out --vqa-rule"),
        (["--processes", "2"], "add --train-missing"),
        (["--submission", "--device", "gpu"], "no device named 'gpu'"),
        (["--train-missing", "--device", "gpu"], "no device named 'gpu'"),
    ],
)
def test_options_that_would_do_nothing_or_fail_late_are_wrong_usage(runs, capsys, monkeypatch, options, words):
    monkeypatch.setattr("madkit.cli.evaluate.train", lambda *given, **how: pytest.fail("hours of training"))
    assert main(["evaluate", "--workspace", str(runs.workspace.root), *options]) == 2
    assert words in capsys.readouterr().err
    assert not runs.scored


def test_a_file_name_that_says_no_format_is_answered_with_those_that_do(tmp_path, capsys):
    assert main(["report", "-o", "table.docx", "--workspace", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "No report is written as .docx." in told
    assert "latex" in told


def test_the_room_is_light_to_import():
    """Neither the public names nor the commands may cost the start-up torch or scipy."""
    code = (
        "import sys, madkit.evaluate, madkit.cli.evaluate, madkit.cli.report, madkit.evaluate.stage\n"
        "from madkit.evaluate import GalleryItem, Results, evaluate, vqa_accuracy, normalize_vqa_answer, write_report\n"
        "print([name for name in ('torch', 'scipy', 'transformers', 'jinja2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
