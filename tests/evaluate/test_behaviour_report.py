"""What reports tell beyond scores: calibration, loss under shift, agreement, seeds needed, and quoted results."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from madkit.cli.main import main
from madkit.evaluate import predict as predict_module
from madkit.evaluate.published import beside_published, notes, published
from madkit.evaluate.report import render_page
from madkit.evaluate.report.behaviour_plots import reliability, shift_line
from madkit.evaluate.report.latex import latex
from madkit.evaluate.report.parquet import as_parquet
from madkit.evaluate.report.terminal import terminal
from madkit.evaluate.report.text import as_csv, difference, markdown, needed
from madkit.evaluate.results import Results

from .test_report import ATTACK, Page

PALETTE = {"finetune": 0, "mad": 1, "affinity": 2}


@pytest.fixture(scope="module")
def results(shared_results) -> Results:
    return shared_results


def in_terminal(results: Results) -> str:
    console = Console(width=80, file=io.StringIO())
    console.print(terminal(results))
    return console.file.getvalue()


def test_the_page_has_calibration_shift_and_agreement(results):
    page = Page(render_page(results))
    for words in ("Calibration", "effective robustness", "Agreement between arms", "15 equally wide bins"):
        assert words in page.text
    # a reliability diagram per number of labels, and a line for the one shifted suite
    assert page.count("svg", "square") == 3
    assert page.count("path", "trend") == 1


def test_the_plots_are_wellformed_and_hold_every_arm(results):
    rows = [one for one in results.calibrations if (one.suite, one.shots) == ("test", "1pct")]
    for drawing in (reliability(rows, PALETTE), shift_line(results.robustness, PALETTE)):
        root = ET.fromstring(drawing)
        kinds = {name for shape in root.iter() for name in (shape.get("class") or "").split() if name[:1] == "a"}
        assert {"a0", "a1", "a2"} <= kinds


def test_without_a_line_the_page_says_what_it_takes(results):
    robustness = tuple(replace(one, line=None, effective=None) for one in results.robustness)
    page = Page(render_page(replace(results, robustness=robustness)))
    assert "at least two numbers of labels" in page.text
    assert page.count("path", "trend") == 0


def test_differences_that_are_not_shown_say_how_many_seeds_would_show_them(results):
    hidden = [row for row in results.rows if row.difference and not row.difference.significant]
    shown = [row for row in results.rows if row.difference and row.difference.significant]
    assert hidden
    assert shown
    assert all(row.difference.seeds_needed is None and not row.difference.hopeless for row in shown)
    for row in hidden:
        gap = row.difference
        if gap.mean == 0:
            continue
        assert gap.hopeless != (gap.seeds_needed is not None)
        assert gap.seeds_needed is None or gap.seeds_needed > gap.n_seeds
        assert f"n.s. ({needed(gap)})" in difference(gap)
    one = next(row for row in hidden if row.difference.seeds_needed and row.headline)
    told = f"({one.difference.seeds_needed:,})"
    assert told in markdown(results)
    assert told in in_terminal(results)
    assert f"{one.difference.seeds_needed:,} seeds would" in Page(render_page(results)).text or one.suite != "test"


def test_the_level_is_holms_strictest_of_the_table(results):
    by_family = {}
    for row in results.rows:
        if row.difference is not None and row.difference.p is not None:
            by_family.setdefault((row.shots, row.metric), []).append(row.difference)
    for gaps in by_family.values():
        assert {gap.n_comparisons for gap in gaps} == {len(gaps)}


def test_one_seed_needs_what_nobody_knows(made_up):
    made_up.add_data("snli-ve", "mini-snli-ve")
    made_up.add_run("finetune", 0)
    made_up.add_run("affinity", 0)
    (gap,) = [row.difference for row in made_up.evaluate("smoke").rows if row.difference]
    assert (gap.seeds_needed, gap.variance, gap.hopeless) == (None, None, False)


def test_the_csv_and_the_terminal_tell_of_calibration(results):
    lines = list(csv.DictReader(io.StringIO(as_csv(results))))
    one = results.calibrations[0]
    line = next(
        line for line in lines
        if (line["arm"], line["shots"], line["suite"], line["metric"]) == (one.label, one.shots, one.suite, one.metric)
    )  # fmt: skip
    assert (float(line["ece"]), float(line["brier"])) == (one.ece, one.brier)
    text = in_terminal(results)
    assert "Calibration, test" in text
    assert f"{one.brier:.3f}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_parquet_has_the_rows_of_the_csv_with_their_types(results):
    table = pq.read_table(io.BytesIO(as_parquet(results)))
    lines = list(csv.DictReader(io.StringIO(as_csv(results))))
    assert table.column_names == list(lines[0])
    rows = table.to_pylist()
    assert len(rows) == len(lines)
    assert [row["mean"] for row in rows] == [row.mean for row in results.rows]
    assert rows[0]["per_seed"] == list(results.rows[0].per_seed)
    for row, line in zip(rows, lines, strict=True):
        assert " ".join(map(str, row["seeds"])) == line["seeds"]
        assert ("" if row["difference"] is None else str(row["difference"])) == line["difference"]
        assert row["vqa_rule"] is None  # a column of text, though it holds none
    assert str(table.schema.field("vqa_rule").type) == "string"


def test_documents_of_an_earlier_madkit_are_read(results):
    document = json.loads(json.dumps(results.document()))
    for name in ("calibrations", "robustness", "agreements", "published", "breakdowns"):
        del document[name]
    for row in document["rows"]:
        if row["difference"]:
            for name in ("variance", "n_comparisons", "seeds_needed"):
                del row["difference"][name]
    old = Results.from_document(document)
    assert old.calibrations == ()
    assert "Calibration" not in Page(render_page(old)).text
    assert in_terminal(old)
    assert next(row.difference for row in old.rows if row.difference).hopeless is False
    assert markdown(old)


def test_quoted_results_name_their_sources_and_hold_what_can_be():
    found = published()
    assert {one.data for one in found} == {"vcr", "snli-ve", "vqa"}
    for one in found:
        assert one.url.startswith("https://github.com/")
        assert one.source
        assert all(0 < value < 100 for value in one.metrics.values())
    # both choices right is never more often than one of them
    for one in found:
        if one.data == "vcr":
            assert one.metrics["Q->AR"] < min(one.metrics["Q->A"], one.metrics["QA->R"])
    villa = next(one for one in found if (one.model, one.split) == ("VILLA large", "val"))
    assert villa.metrics == {"Q->A": 78.45, "QA->R": 82.57, "Q->AR": 65.18}


@pytest.mark.parametrize("mini", [True, False])
def test_quoted_results_are_marked_in_every_form_and_kept_apart_from_mini_ones(results, mini):
    if not mini:
        sources = tuple(replace(one, name="snli-ve", is_mini=False) for one in results.sources)
        rows = tuple(replace(row, source="snli-ve", is_mini=False) for row in results.rows)
        results = replace(
            results, sources=sources, rows=rows, breakdowns=(), calibrations=(), robustness=(), agreements=()
        )
    quoted = beside_published(results)
    assert {one.data for one in quoted.published} == {"snli-ve"}
    assert "Published results" not in in_terminal(results)
    forms = [Page(render_page(quoted)).text, markdown(quoted), latex(quoted), in_terminal(quoted)]
    for form in forms:
        text = " ".join(form.split())
        assert "nothing here was measured by madkit" in text
        assert "ALBEF" in text
        assert "LAVIS" in text
        assert ("cannot be compared with the published ones" in text) == mini
    assert Results.from_document(json.loads(json.dumps(quoted.document()))) == quoted
    assert notes(results) == []


def test_own_data_has_nothing_published(results):
    sources = tuple(replace(one, name="birds", task="birds", is_mini=False) for one in results.sources)
    assert beside_published(replace(results, sources=sources)).published == ()


def test_quoted_text_is_escaped(results):
    quoted = beside_published(results)
    hostile = replace(quoted, published=tuple(replace(one, model=ATTACK, note=ATTACK) for one in quoted.published))
    page = Page(render_page(hostile))
    assert page.count("script") == 0
    assert 'alert("x")' in page.text


def test_the_command_lays_them_beside(made_up, monkeypatch, capsys):
    monkeypatch.setattr(predict_module, "predict", lambda *arguments, spec, **_: made_up.scorer(*arguments, spec))
    made_up.add_data("snli-ve", "mini-snli-ve")
    made_up.add_run("finetune", 0)
    where = ["--workspace", str(made_up.workspace.root), "--protocol", "smoke"]
    assert main(["evaluate", *where, "--beside", "published", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["published"]
    assert main(["report", "smoke", *where[:2]]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "cannot be compared with the published ones" in out
    assert main(["report", "smoke", *where[:2], "--format", "parquet"]) == 2
    file = made_up.workspace.root / "out.parquet"
    assert main(["report", "smoke", *where[:2], "--format", "parquet", "-o", str(file)]) == 0
    assert pq.read_table(file).num_rows == len(document["rows"])
    capsys.readouterr()
    assert main(["evaluate", *where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["published"] == []
    assert main(["evaluate", *where, "--beside", "publishd"]) == 2
