from __future__ import annotations

import csv
import io
import re
import xml.etree.ElementTree as ET
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from rich.console import Console

from madkit.core.errors import DataError
from madkit.core.files import read_json
from madkit.evaluate.report import GalleryItem, render_page, write_report
from madkit.evaluate.report.gallery import marked, picture
from madkit.evaluate.report.latex import latex
from madkit.evaluate.report.svg import shortened, text_width, ticks
from madkit.evaluate.report.terminal import next_step, terminal
from madkit.evaluate.report.text import as_csv, facts, markdown, suite_name
from madkit.evaluate.results import Results

ATTACK = '<script>alert("x")</script>'
# a plain scene of 96 x 48 pixels
PNG = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAGAAAAAwCAIAAABhdOiYAAAAV0lEQVR42u3QQQkAAAgEsOufxxC+TWQD/8JgCZbp4hAFggQJEiRI"
    "kCBBCBIkSJAgQYIEIUiQIEGCBAkShCBBggQJEiRIkCAECRIkSJAgQYIQJEiQIEE/LNGlfmhctoxdAAAAAElFTkSuQmCC"
)
VOID = {"meta", "link", "br", "input", "img", "hr"}


class Page(HTMLParser):
    """Checks nesting and keeps tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def count(self, tag: str, css: str = "") -> int:
        return sum(name == tag and css in (attrs.get("class") or "") for name, attrs in self.tags)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def results(shared_results) -> Results:
    return shared_results


def scene(**values) -> GalleryItem:
    return GalleryItem(
        **{
            "image_png": PNG,
            "boxes": [(4.0, 4.0, 20.0, 20.0), (40.0, 10.0, 90.0, 44.0)],
            "labels": ["cup", "red umbrella"],
            "selected_regions": [1],
            "text": "Is the umbrella red?",
            "selected_spans": [(7, 15)],
            "truth": "yes",
            "answers": {"finetune": "no", "affinity": "yes"},
            "source": "mini-vqa",
            **values,
        }
    )


def test_the_page_is_whole_and_holds_the_plots(results):
    page = Page(render_page(results, gallery=[scene()]))
    assert page.count("svg", "low-shot") == 2  # a panel per suite
    assert page.count("svg", "suites") == page.count("svg", "forest") == 4  # wide and narrow, per number of labels
    assert page.count("svg", "scene") == 1
    assert page.count("path", "band") == 6  # a band per arm and panel
    assert page.count("details") >= 4
    assert page.count("script") == 0


def test_svg_drawings_are_wellformed_xml(results):
    drawings = re.findall(r"<svg.*?</svg>", render_page(results, gallery=[scene()]), flags=re.S)
    assert len(drawings) > 10
    for drawing in drawings:
        ET.fromstring(drawing)


def test_nothing_is_fetched(results):
    text = render_page(results, gallery=[scene()])
    assert not re.findall(r"(?:src|href)\s*=\s*[\"'](?!#|data:)", text)
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_data_is_escaped_wherever_it_comes_from(results):
    rows = tuple(
        replace(row, label=row.label + ATTACK, suite=row.suite + ATTACK, student=ATTACK) for row in results.rows
    )
    sources = tuple(
        replace(source, title=ATTACK, suites=tuple(suite + ATTACK for suite in source.suites))
        for source in results.sources
    )
    problem = {"where": ATTACK, "error": ATTACK, "hint": ATTACK}
    hostile = replace(results, rows=rows, sources=sources, problems=(problem,), protocol=ATTACK)
    gallery = [
        scene(text=ATTACK, selected_spans=[(0, 8)], truth=ATTACK, answers={ATTACK: ATTACK}, labels=[ATTACK] * 2,
              candidates=(ATTACK,), source=ATTACK, suite=ATTACK, note=ATTACK),
    ]  # fmt: skip
    text = render_page(hostile, gallery=gallery, title=ATTACK)
    page = Page(text)
    assert page.count("script") == 0
    assert 'alert("x")' in page.text
    assert "<script>alert" not in text


def test_the_embedded_benchmark_is_named_on_every_report(results):
    note = "not results on Visual Entailment (SNLI-VE)"
    assert note in Page(render_page(results)).text
    assert note in markdown(results)
    assert note in latex(results)
    assert "embedded benchmark" in Page(render_page(results)).text
    real = replace(results, sources=tuple(replace(one, is_mini=False) for one in results.sources))
    assert "embedded benchmark" not in Page(render_page(real)).text
    assert "embedded benchmark" not in markdown(real)


def test_the_page_says_what_its_intervals_are(results):
    text = Page(render_page(results)).text
    for words in ("95 % interval", "over the seeds", "same seeds", "Holm", "120 questions", "60 images"):
        assert words in text


def test_effects_and_no_effects_are_told_apart(results):
    mad, affinity = (
        [row.difference for row in results.rows if row.arm == arm and row.headline] for arm in ("mad", "affinity")
    )
    assert not any(gap.significant for gap in mad)
    assert any(gap.significant for gap in affinity)
    page = Page(render_page(results))
    significant = sum(gap.significant for gap in (*mad, *affinity))
    hollow = sum("hollow" in (attrs.get("class") or "") for name, attrs in page.tags)
    assert hollow == 2 * (len(mad) + len(affinity) - significant)
    assert "no effect shown" in page.text
    assert "better" in page.text
    assert "n.s." in markdown(results)


def test_one_seed_says_so_everywhere(made_up):
    made_up.add_data("snli-ve", "mini-snli-ve")
    made_up.add_run("finetune", 0)
    made_up.add_run("mad", 0)
    results = made_up.evaluate("smoke")
    assert "n=1, no interval" in Page(render_page(results)).text
    assert "one seed: no test" in Page(render_page(results)).text
    assert "n=1, no interval" in markdown(results)
    assert all(row.low is None for row in results.rows)


def test_a_single_run_without_baseline_makes_a_report(made_up, tmp_path):
    made_up.add_data("snli-ve", "mini-snli-ve")
    made_up.add_run("mad", 0)
    results = made_up.evaluate("smoke")
    page = Page(render_page(results))
    assert page.count("svg", "low-shot") == 1
    assert page.count("svg", "forest") == 0
    assert (
        next_step(results) == "madkit distill --task snli-ve --shots 1pct --arm finetune --student mini-uniter --seed 0"
    )


def test_arms_that_trained_for_other_numbers_of_steps_are_named(made_up):
    """A baseline that was trained by another rule would otherwise be compared without a word."""
    made_up.add_data("snli-ve", "mini-snli-ve")
    made_up.add_run("mad", 0, config={"arm": "mad", "optim": {"steps": 3, "batch_size": 32}})
    assert (next_step(made_up.evaluate("smoke")) or "").endswith(
        "--arm finetune --student mini-uniter --seed 0 --steps 3"
    )
    made_up.add_run("finetune", 0, config={"arm": "finetune", "optim": {"steps": 400, "batch_size": 8}})
    results = made_up.evaluate("smoke")
    told = [line for line in facts(results) if "trained for" in line]
    assert told == [
        "mad (mini-snli-ve, 1 % of the labels) was trained for 3 steps, finetune for 400.",
        "mad (mini-snli-ve, 1 % of the labels) was trained for 32 examples a step, finetune for 8.",
    ]
    assert told[0] in markdown(results)
    assert {row.label: (row.steps, row.batch_size) for row in results.rows} == {"finetune": (400, 8), "mad": (3, 32)}


def test_no_result_at_all_still_makes_a_page(made_up):
    folder = made_up.add_run("mad", 0)
    made_up.add_data("snli-ve", "mini-snli-ve")
    made_up.broken.add(folder.name)
    results = made_up.evaluate("smoke")
    assert not results.rows
    assert "NaN" in Page(render_page(results)).text
    assert markdown(results)
    assert latex(results)


def test_all_files_are_written_and_the_json_comes_back(results, tmp_path):
    page = write_report(tmp_path / "report", results, gallery=[scene()], title="A title")
    assert page == tmp_path / "report" / "index.html"
    assert sorted(path.name for path in page.parent.iterdir()) == [
        "index.html",
        "results.csv",
        "results.json",
        "results.md",
    ]
    assert Results.from_document(read_json(page.parent / "results.json")) == results
    assert "<title>A title" in page.read_text()


def test_examples_that_the_teacher_had_no_values_for_are_counted_in_every_form(results):
    said = "3 of 120 examples from their labels alone"
    assert said not in render_page(results) + markdown(results)
    rows = tuple(replace(row, n_labelled=120, n_untaught=3) if row.arm == "mad" else row for row in results.rows)
    assert any(row.arm == "mad" for row in rows)
    untaught = replace(results, rows=rows)
    assert said in " ".join("".join(Page(render_page(untaught)).words).split())
    assert said in markdown(untaught)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(terminal(untaught))
    assert said in " ".join(capture.get().split())
    assert Results.from_document(untaught.document()) == untaught


def test_csv_has_a_line_per_row_and_the_numbers_as_they_are(results):
    lines = list(csv.DictReader(io.StringIO(as_csv(results))))
    assert len(lines) == len(results.rows)
    for line, row in zip(lines, results.rows, strict=True):
        assert float(line["mean"]) == row.mean
        assert line["difference"] == ("" if row.difference is None else str(row.difference.mean))
        assert len(line["per_seed"].split()) == row.n_seeds


@pytest.fixture
def of_vqa(made_up) -> Results:
    made_up.add_data("vqa", "mini-vqa")
    for arm in ("finetune", "affinity"):
        for seed in range(2):
            made_up.add_run(arm, seed, task="vqa", source="mini-vqa")
    return made_up.evaluate(vqa_rule="pre2021")


def test_the_vqa_rule_stands_in_every_form(of_vqa):
    words = "VQA rule pre2021"
    console = Console(width=80, file=io.StringIO())
    console.print(terminal(of_vqa))
    text = console.file.getvalue()
    assert words in text
    assert max(map(len, text.splitlines())) <= 80
    assert words in markdown(of_vqa)
    assert words in latex(of_vqa)
    assert words in Page(render_page(of_vqa)).text
    assert {line["vqa_rule"] for line in csv.DictReader(io.StringIO(as_csv(of_vqa)))} == {"pre2021"}
    assert {row["vqa_rule"] for row in of_vqa.document()["rows"]} == {"pre2021"}


def test_other_tasks_name_no_rule(results):
    assert "VQA rule" not in Page(render_page(results)).text
    assert {line["vqa_rule"] for line in csv.DictReader(io.StringIO(as_csv(results)))} == {""}


def test_kinds_of_question_are_a_folded_table_and_lines_of_the_csv(of_vqa, results):
    page = Page(render_page(of_vqa))
    assert "Table: by question type" in page.text
    assert "is the 20" in page.text
    assert "Table: by question type" not in Page(render_page(results)).text
    lines = list(csv.DictReader(io.StringIO(as_csv(of_vqa))))
    kinds = [line for line in lines if "question type" in line["metric"]]
    assert len(lines) == len(of_vqa.rows) + len(kinds)
    assert {line["metric"] for line in kinds} == {
        "accuracy (question type: is the)",
        "accuracy (question type: what is)",
    }
    one = of_vqa.breakdowns[0]
    line = next(line for line in kinds if (line["arm"], line["suite"]) == (one.label, one.suite))
    assert float(line["mean"]) == one.mean["is the"]
    assert line["p"] == line["low"] == ""


def test_a_suite_with_answers_alone_stands_under_its_own_metric(made_up):
    data = made_up.add_data("vcr", "vcr", names=("test", "test-gd-vcr"))
    plain = data.examples
    data.examples = lambda suite: [one for one in plain(suite) if suite == "test" or one.subtask == "answer"]
    for arm in ("finetune", "affinity"):
        for seed in range(2):
            made_up.add_run(arm, seed, task="vcr", source="vcr", is_mini=False)
    results = made_up.evaluate()
    assert not results.problems
    assert {(row.suite, row.metric) for row in results.rows if row.headline} == {
        ("test", "Q->AR"),
        ("test-gd-vcr", "Q->A"),
    }
    text = Page(render_page(results)).text
    assert "gd vcr (Q\N{RIGHTWARDS ARROW}A)" in text
    assert "test-gd-vcr" in markdown(results)
    assert latex(results)
    assert terminal(results)


def test_markdown_tables_have_equal_columns_and_escape_pipes(results):
    rows = tuple(replace(row, label=row.label + "|*x*") for row in results.rows)
    for line in markdown(replace(results, rows=rows)).splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 10


def test_latex_escapes_and_marks(results):
    rows = tuple(replace(row, label="a_b & 50% #1") for row in results.rows)
    text = latex(replace(results, rows=rows))
    assert r"a\_b \& 50\% \#1" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert r"$^\dagger$" in text
    for line in text.splitlines():
        if line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) == 6


def test_the_terminal_table_fits_80_columns(results):
    console = Console(width=80, file=io.StringIO())
    console.print(terminal(results))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    row = next(row for row in results.rows if row.arm == "affinity")
    assert f"{row.mean:.1f}" in text
    assert "mini-snli-ve, 1 % of the labels" in text


def test_boxes_are_scaled_to_the_drawing_and_selected_ones_marked():
    root = ET.fromstring(str(picture(scene())))
    assert (root.get("width"), root.get("height")) == ("320", "160")
    boxes = [group for group in root if group.get("class", "").startswith("box")]
    assert [group.get("class") for group in boxes] == ["box", "box chosen"]  # the chosen one is drawn last, on top
    edge = next(shape for shape in boxes[1] if shape.get("class") == "edge")
    assert [float(edge.get(key)) for key in ("x", "y", "width", "height")] == pytest.approx(
        [133.3, 33.3, 166.7, 113.3], abs=0.1
    )
    assert boxes[1].find("text").text == "red umbrella"


def test_selected_words_are_marked_once():
    assert str(marked("a <b> c d", [(2, 5), (4, 7)])) == "a <mark>&lt;b&gt;</mark><mark> c</mark> d"
    assert str(marked("abc", [])) == "abc"
    assert str(marked("abc", [(1, 99)])) == "a<mark>bc</mark>"


def test_a_picture_that_is_no_png_is_refused():
    with pytest.raises(DataError, match="PNG"):
        picture(scene(image_png=b"GIF89a"))


@pytest.mark.parametrize(("low", "high"), [(33.2, 48.9), (0, 100), (-3.1, 12.4), (50, 50), (0.001, 0.002)])
def test_ticks_are_round_and_span_the_range(low, high):
    marks = ticks(low, high)
    assert marks[0] <= low
    assert marks[-1] >= high
    assert 3 <= len(marks) <= 9
    steps = {round(b - a, 9) for a, b in pairwise(marks)}
    assert len(steps) == 1


def test_long_names_are_cut_to_their_room():
    assert shortened("short", 100) == "short"
    cut = shortened("a very long name of an experiment", 80)
    assert cut.endswith("…")
    assert text_width(cut) <= 80


def test_suites_in_words():
    assert [suite_name(name) for name in ("test", "test-unseen-concepts", "val")] == [
        "in-domain test",
        "unseen concepts",
        "val",
    ]
