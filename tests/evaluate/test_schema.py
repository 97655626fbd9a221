"""Every form of a report, read by programs that know nothing of madkit."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
from jsonschema import Draft202012Validator

from madkit.cli.main import main
from madkit.core.files import write_json_atomic
from madkit.evaluate.published import beside_published
from madkit.evaluate.report import render_page
from madkit.evaluate.report.fields import ENTRIES
from madkit.evaluate.report.latex import latex
from madkit.evaluate.report.parquet import as_parquet
from madkit.evaluate.report.schema import results_schema
from madkit.evaluate.report.text import as_csv
from madkit.evaluate.results import Results, TeacherAgreement

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "report.md"


@pytest.fixture(scope="module")
def results(shared_results) -> Results:
    row = shared_results.rows[0]
    about = {name: getattr(row, name) for name in ("task", "source", "revision", "student", "shots", "arm", "label")}
    taught = TeacherAgreement(
        **about, suite=row.suite, metric=row.metric, teacher="mini", method="probe", seeds=(0, 1), n_examples=60,
        mean=70.0, low=60.0, high=80.0, per_seed=(69.0, 71.0), when_right=75.0, when_wrong=None, teacher_score=66.0,
    )  # fmt: skip
    problem = {"where": "a cell", "error": "It failed.", "hint": None}
    missing = {"task": "vqa", "source": None, "student": None, "shots": "1pct", "arm": None, "seed": 3}
    return replace(
        beside_published(shared_results), teacher_agreements=(taught,), problems=(problem,), missing=(missing,)
    )


def test_documents_fit_their_schema(results):
    schema = results_schema()
    Draft202012Validator.check_schema(schema)
    document = json.loads(json.dumps(results.document()))
    assert [error.message for error in Draft202012Validator(schema).iter_errors(document)] == []
    for part in ("rows", "calibrations", "robustness", "agreements", "teacher_agreements", "published", "missing"):
        assert document[part], part


def test_the_schema_refuses_what_is_no_such_document(results):
    validator = Draft202012Validator(results_schema())
    document = json.loads(json.dumps(results.document()))
    for spoil in (
        lambda one: one.update(schema="madkit.results/2"),
        lambda one: one.pop("environment"),
        lambda one: one["rows"][0].update(mean="much"),
        lambda one: one["rows"][0].pop("n_examples"),
        lambda one: one["calibrations"][0]["bins"][0].pop("n"),
        lambda one: one["robustness"][0]["line"].pop("slope"),
        lambda one: one["runs"][0].pop("student_digest"),
        lambda one: one["problems"][0].update(error=None),
    ):
        spoilt = json.loads(json.dumps(document))
        spoil(spoilt)
        assert not validator.is_valid(spoilt)


def test_the_documentation_has_every_field_with_its_meaning():
    schema, told = results_schema(), DOCUMENTATION.read_text(encoding="utf-8")
    parts = {"Results": schema, **schema["$defs"]}
    for name, part in parts.items():
        section = told.split(f"### `{name}`")[1].split("\n##")[0]
        listed = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| (.*) \|$", section, flags=re.M))
        expected = {field: about["description"] for field, about in part["properties"].items()}
        assert {field: about.replace("\\|", "|") for field, about in listed.items()} == expected, name
    for field in ENTRIES:
        assert f"### `{field}`" in told


def test_pandas_reads_csv_and_parquet_alike(results):
    table = pandas.read_csv(io.StringIO(as_csv(results)))
    whole = pandas.read_parquet(io.BytesIO(as_parquet(results)))
    assert list(table.columns) == list(whole.columns)
    assert len(table) == len(whole) >= len(results.rows)
    for column in ("mean", "low", "high", "difference", "p_holm", "ece", "brier"):
        pandas.testing.assert_series_equal(table[column], whole[column], check_exact=False)
    for column in ("task", "source", "arm", "shots", "suite", "metric", "n_seeds", "n_examples"):
        assert table[column].tolist() == whole[column].tolist()
    first = whole.iloc[0]
    assert list(first["per_seed"]) == list(results.rows[0].per_seed)
    assert first["mean"] == pytest.approx(sum(first["per_seed"]) / len(first["per_seed"]))
    assert whole["mini"].all()


def test_latex_is_wellformed(results):
    """No LaTeX runs here: environments nest, braces balance, and rows have the columns that are declared."""
    hostile = tuple(replace(row, label=row.label + r" \input{x} 50% $a_b^c$ #1 & {~") for row in results.rows)
    text = latex(replace(results, rows=hostile))
    bare = re.sub(r"\\[\\{}%&$#_]", "", re.sub(r"(?m)^%.*$", "", text))
    assert bare.count("{") == bare.count("}")
    assert not re.search(r"[#_^~&](?![^\n]*\\\\)", re.sub(r"(?m)^.*(\\\\|\$).*$", "", text))
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert stack == []
    assert set(re.findall(r"\\([a-zA-Z]+)", text)) <= {
        "begin", "end", "centering", "toprule", "midrule", "bottomrule", "caption", "textbf", "dagger", "ge",
        "textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "usepackage", "label",
    }  # fmt: skip
    for table in text.split(r"\begin{tabular}{")[1:]:
        columns, _, rest = table.partition("}")
        for line in rest.split(r"\end{tabular}")[0].splitlines():
            if line.endswith(r"\\"):
                assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1


def test_the_best_is_bold_and_what_is_not_shown_is_marked(results):
    text = latex(results)
    for suite in ("test", "test-rendering"):
        rows = [row for row in results.rows if (row.suite, row.shots) == (suite, "1pct") and row.headline]
        best = max(rows, key=lambda row: row.mean)
        for row in rows:
            bold = rf"{row.suite} & {row.metric} & {row.label} & \textbf{{{row.mean:.1f}}}" in text
            assert bold == (row.mean == best.mean)
            if row.difference and not row.difference.significant:
                assert rf"{row.label} & {row.mean:.1f}" in text or bold
    shown = [row.difference for row in results.rows if row.difference and "(" not in row.metric]
    assert text.count(r"$^\dagger$") == sum(not gap.significant for gap in shown) + 2  # and once in each caption


@pytest.fixture
def kept(results, tmp_path) -> list[str]:
    write_json_atomic(tmp_path / "reports" / "full" / "results.json", results.document())
    return ["--workspace", str(tmp_path)]


@pytest.mark.parametrize("name", ["a.md", "a.tex", "a.csv", "a.parquet", "a.json", "a.html"])
def test_a_file_name_says_the_format(kept, tmp_path, name, capsys):
    out = tmp_path / "out" / name
    assert main(["report", *kept, "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    start = out.read_bytes()[:15]
    assert start.startswith({
        "a.md": b"# Protocol", "a.tex": b"% needs", "a.csv": b"protocol,task", "a.parquet": b"PAR1", "a.json": b"{",
        "a.html": b"<!doctype html>",
    }[name])  # fmt: skip


def test_the_schema_is_printed_and_written(tmp_path, capsys):
    assert main(["report", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == results_schema()
    assert main(["report", "--schema", "-o", str(tmp_path / "s.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text()) == results_schema()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["ful"], 1, "Did you mean 'full'?"),
        (["other"], 1, "It holds results of full."),
        (["full", "--format", "markdwn"], 2, "Did you mean 'markdown'?"),
        (["full", "-o", "x.doc"], 2, "No report is written as .doc. Try: --format markdown, latex"),
        (["full", "-o", "."], 2, "is a folder"),
        (["full", "--format", "parquet"], 2, "cannot be printed"),
        (["full", "-o", "/proc/none/a.csv"], 1, "/proc/none"),
        (["--schema", "--format", "csv"], 2, "The schema is JSON."),
    ],
)
def test_wrong_input_is_one_sentence(kept, words, code, said, capsys):
    assert main(["report", *words, *kept]) == code
    error = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize("content", ['{"schema": "madkit.res', "[]", '{"schema": "madkit.results/1", "rows": [{}]}'])
def test_a_damaged_document_says_what_mends_it(kept, tmp_path, content, capsys):
    (tmp_path / "reports" / "full" / "results.json").write_text(content)
    assert main(["report", *kept]) == 1
    error = capsys.readouterr().err
    assert "results.json" in error
    assert "madkit evaluate" in error


def test_the_page_tells_how_often_an_arm_answers_as_its_teacher(results):
    told = render_page(results).split("Agreement with the teacher</h3>")[1].split("<h3>")[0]
    row = told.split("<tbody>")[1]
    assert re.findall(r'<td class="n">([^<]*)</td>', row) == ["70.0", "75.0", "", "66.0"]
    assert "[60.0, 80.0]" in row
    assert "Agreement with the teacher" not in render_page(replace(results, teacher_agreements=()))
