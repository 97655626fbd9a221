"""What a reader of a report could take for something else: marks of many arms, axes, titles, figures as quoted."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import resources

import pytest
from rich.console import Console

from madkit.evaluate.report import render_page
from madkit.evaluate.report.latex import latex
from madkit.evaluate.report.page import _palette
from madkit.evaluate.report.plots import forest, low_shot, suites
from madkit.evaluate.report.svg import Drawing, at_least
from madkit.evaluate.report.terminal import terminal
from madkit.evaluate.report.text import facts, markdown, quoted
from madkit.evaluate.results import Results


@pytest.fixture(scope="module")
def results(shared_results) -> Results:
    return shared_results


def colours() -> dict[str, str]:
    """Class of an arm -> its colour's variable, as the style sheet says."""
    style = (resources.files("madkit.evaluate.report") / "page.css").read_text(encoding="utf-8")
    rules = re.findall(r"^((?:\.a\d+(?:, )?)+) \{ --arm: var\((--a\d)\); \}", style, flags=re.M)
    return {name: variable for names, variable in rules for name in names.replace(".", "").split(", ")}


def mark(kind: int) -> tuple[str, str]:
    """Colour and outline of an arm's marker, which is drawn about the origin."""
    drawing = Drawing(10, 10, label="")
    drawing.marker(0, 0, kind, f"dot a{kind}")
    tag = re.search(r'<(circle|polygon)(?: points="([^"]*)")?', str(drawing))
    assert tag is not None
    return colours()[f"a{kind}"], f"{tag[1]} {tag[2]}"


def test_the_first_arms_have_a_colour_each_and_all_others_a_mark_of_their_own():
    assert [colours()[f"a{kind}"] for kind in range(6)] == [f"--a{kind}" for kind in range(6)]
    assert len({mark(kind)[1] for kind in range(6)}) == 6
    assert len({mark(kind) for kind in range(31)}) == 31


def test_fourteen_arms_of_one_table_are_told_apart(results):
    rows = tuple(
        replace(row, label=f"{row.label} {number}", arm=row.arm if row.arm == "finetune" else f"{row.arm} {number}")
        for row in results.rows
        for number in range(1 if row.arm == "finetune" else 7)
    )
    palette = _palette(replace(results, rows=rows), [])
    assert len(palette) == 15
    assert len({mark(kind) for kind in palette.values()}) == 15


def ticks_of(drawing: str) -> list[float]:
    words = [word.replace("\N{MINUS SIGN}", "-") for word in re.findall(r'class="tick">([^<]*)<', drawing)]
    return [float(word) for word in words if re.fullmatch(r"[-+]?[\d.]+", word)]


def test_no_axis_makes_a_tenth_of_a_point_look_like_a_difference(results):
    rows = [row for row in results.rows if row.headline and (row.suite, row.shots) == ("test", "1pct")]
    close = [replace(row, mean=70 + number / 20, low=None, high=None) for number, row in enumerate(rows)]
    palette = {row.label: number for number, row in enumerate(close)}
    for draw in (lambda: low_shot(close, ["1pct"], palette), lambda: suites(close, palette)):
        marks = ticks_of(draw())
        assert max(marks) - min(marks) >= 5
        assert min(marks) <= 70 <= max(marks)
    gaps = [
        replace(row, difference=replace(row.difference, mean=0.1, low=None, high=None))
        for row in close
        if row.difference is not None
    ]
    marks = ticks_of(forest(gaps, palette))
    assert min(marks) <= -1 < 1 <= max(marks)


@pytest.mark.parametrize(
    ("given", "made"), [((50, 60), (50, 60)), ((52, 52), (49.5, 54.5)), ((99, 99.5), (95, 100)), ((0.5, 1), (0, 5))]
)
def test_ranges_are_widened_about_their_middle_and_end_at_the_ends(given, made):
    assert at_least(*given, 5) == pytest.approx(made)


def printed(results: Results) -> list[str]:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(terminal(results))
    return [line.rstrip() for line in capture.get().splitlines()]


def one_seed(results: Results) -> Results:
    rows = tuple(replace(row, low=None, high=None, n_seeds=1, seeds=(0,), difference=None) for row in results.rows)
    return replace(results, rows=rows)


def test_a_title_is_not_broken_where_its_table_ends(results):
    assert "mini-snli-ve, 1 % of the labels, mini-uniter: accuracy, %" in printed(one_seed(results))


def test_a_page_of_one_seed_promises_no_intervals(results):
    page = render_page(one_seed(results))
    assert "one seed: no intervals" in page
    assert "95 % intervals over seeds" not in page.partition("Loss under shift")[0]
    assert "95 % intervals over seeds" in render_page(results)


def test_one_seed_is_not_called_insignificant_where_nothing_was_tested(results):
    def untested(row):
        gap = row.difference
        return row if gap is None else replace(row, difference=replace(gap, low=None, high=None, p=None, p_holm=None))

    alone = latex(replace(results, rows=tuple(map(untested, results.rows))))
    table = [line for line in alone.splitlines() if line.endswith(r"\\")]
    assert any("(n=1)" in line for line in table)
    assert not [line for line in table if "dagger" in line]
    assert any("dagger" in line for line in latex(results).splitlines() if line.endswith(r"\\"))


def test_a_difference_that_is_absent_for_want_of_a_common_seed_is_explained(results):
    def apart(row):
        return replace(row, seeds=(7, 8, 9), difference=None) if row.label == "mad" and row.shots == "1pct" else row

    told = replace(results, rows=tuple(map(apart, results.rows)))
    line = "No difference to finetune, having no seed in common with it: mad (mini-snli-ve, 1 % of the labels)."
    assert line in facts(told)
    assert line in markdown(told)
    assert not [one for one in facts(results) if "in common" in one]


@pytest.mark.parametrize(("value", "written"), [(80.0, "80.0"), (75.54, "75.54"), (69.9, "69.9"), (100.0, "100.0")])
def test_quoted_figures_keep_their_digits(value, written):
    assert quoted(value) == written


def test_an_arm_without_the_first_number_of_labels_keeps_its_place(results):
    """Rows come by number of labels; what lacks the first of them is no arm of the end."""
    rows = tuple(row for row in results.rows if (row.arm, row.shots) != ("mad", "1pct"))
    assert list(dict.fromkeys(row.arm for row in rows)) == ["finetune", "affinity", "mad"]
    assert list(_palette(replace(results, rows=rows), [])) == ["finetune", "mad", "affinity"]
    page = render_page(replace(results, rows=rows))
    gains = page[page.index('<table class="gains">') :]
    assert gains.index("</svg>mad<") < gains.index("</svg>affinity<")


def test_an_interval_that_goes_on_beyond_its_plot_has_an_arrow_head(results):
    rows = [row for row in results.rows if row.headline and (row.suite, row.shots) == ("test", "1pct")]
    palette = {row.label: number for number, row in enumerate(rows)}
    rows = [replace(row, mean=50.0 + number) for number, row in enumerate(rows)]
    narrow = [replace(row, low=row.mean - 1, high=row.mean + 1) for row in rows]
    assert 'class="curve' not in suites(narrow, palette)
    wide = suites([*narrow[:-1], replace(narrow[-1], low=0.0, high=100.0)], palette)
    assert wide.count(f'class="curve a{palette[rows[-1].label]}"') == 2


def test_one_of_a_thing_is_not_told_in_the_plural(results):
    one = replace(
        results, missing=({"task": "vcr", "source": None, "student": None, "shots": None, "arm": None, "seed": None},)
    )
    page = render_page(replace(one, rows=one_seed(results).rows))
    assert "<summary>1 cell without a run</summary>" in page
    assert not re.search(r"\b1 (seeds|cells|images|questions|runs)\b", page)
