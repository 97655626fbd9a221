"""The HTML page: one file, no script, nothing fetched; light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from markupsafe import Markup

from madkit.core.console import counted
from madkit.evaluate.grid import arm_order, shots_order
from madkit.evaluate.published import notes
from madkit.evaluate.report import plots, text
from madkit.evaluate.report.behaviour import Behaviour, behaviour_of, both
from madkit.evaluate.report.gallery import GalleryItem, marked, picture
from madkit.evaluate.report.kinds import Kinds, kinds_of
from madkit.evaluate.report.svg import COLOURS, MARKERS, Drawing
from madkit.evaluate.results import Published, Results, Row, Source

_MOST_ARMS = COLOURS + (COLOURS - 1) * (len(MARKERS) - 1)  # that have a mark of their own


@dataclass(frozen=True)
class _Level:
    """What a page shows of one number of labels."""

    shots: str
    name: str
    suites: Markup
    forest: Markup | None
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class _Board:
    """One section: a source and revision, and a student."""

    source: Source
    label: str
    student: str
    teachers: tuple[str, ...]
    metric: str
    spread: str
    legend: tuple[tuple[str, Markup], ...]
    gains: tuple[tuple[str, tuple[dict[str, Any] | None, ...]], ...]
    curves: tuple[tuple[str, Markup], ...]
    levels: tuple[_Level, ...]
    rows: tuple[Row, ...]
    n_questions: tuple[tuple[str, int, int], ...]
    rule: str
    kinds: tuple[Kinds, ...]
    behaviour: Behaviour


@dataclass(frozen=True)
class _Quoted:
    """Published results of one data set."""

    data: str
    metrics: tuple[str, ...]
    rows: tuple[Published, ...]


def render_page(results: Results, *, gallery: Sequence[GalleryItem] = (), title: str | None = None) -> str:
    """The whole page as text. Everything that comes from data is escaped (jinja2 autoescape, `svg`, `gallery`)."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("madkit.evaluate.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "interval": _minus(text.interval),
        "points": _minus(_points),
        "gain": _minus(text.with_sign),
        "suite_name": text.suite_name,
        "arrows": text.arrows,
        "difference": _minus(text.difference),
        "p_value": text.p_value,
        "marked": lambda item: marked(item.text, item.selected_spans),
        "picture": picture,
        "groups": _groups,
        "counted": counted,
    }
    palette = _palette(results, gallery)
    baseline = str(results.settings.get("baseline", "baseline"))
    style = (resources.files("madkit.evaluate.report") / "page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        title=title or f"Protocol {results.protocol}",
        results=results,
        style=Markup(style),
        boards=[_board(results, source, student, palette) for source, student in _sections(results)],
        gallery=gallery,
        signs={"right": "✓", "wrong": "✗", "partly right": "≈"},
        lot=any(item.group for item in gallery),
        chips={label: _chip(palette[label]) for label in palette},
        explanation=text.EXPLANATION.format(baseline=baseline),
        mini_note=text.mini_note(results),
        facts=text.facts(results),
        quoted=_quoted(results),
        quoted_notes=notes(results),
        bins=next((one.n_bins for one in results.calibrations), 0),
        baseline=baseline,
        all_mini=bool(results.sources) and all(source.is_mini for source in results.sources),
        any_mini=any(source.is_mini for source in results.sources) or any(item.is_mini for item in gallery),
    )


def _groups(gallery: Sequence[GalleryItem]) -> list[tuple[str, list[GalleryItem]]]:
    """Scenes under their headings, in order; of several sources under one heading too."""
    found: dict[str, list[GalleryItem]] = {}
    for item in gallery:
        found.setdefault(item.group, []).append(item)
    return list(found.items())


def _points(mean: float | None, low: float | None, high: float | None) -> str:
    """A signed mean with its interval; nothing where there is none."""
    if mean is None:
        return ""
    return f"{text.with_sign(mean)} {text.interval(low, high, signed=True) if low is not None else '(n=1)'}"


def _minus(write: Callable[..., str]) -> Callable[..., str]:
    """The same text with true minus signs, as wide as the plus signs above and below."""

    def written(*args: Any, **options: Any) -> str:
        return write(*args, **options).replace("-", "\N{MINUS SIGN}")

    return written


def _sections(results: Results) -> list[tuple[Source, str]]:
    return [
        (source, student)
        for source in results.sources
        for student in dict.fromkeys(row.student for row in text.rows_of(results, source))
    ]


def _palette(results: Results, gallery: Sequence[GalleryItem]) -> dict[str, int]:
    """A colour and marker per arm: 0 for the baseline, the others in the order of the table."""
    baseline = results.settings.get("baseline")
    labels = dict.fromkeys(row.label for row in results.rows if row.arm == baseline)
    # an arm that lacks the first number of labels comes later in the rows, and stands where it would
    labels |= dict.fromkeys(row.label for row in sorted(results.rows, key=lambda row: (arm_order(row.arm), row.label)))
    labels |= dict.fromkeys(arm for item in gallery for arm in item.answers)
    return {label: 1 + (place - 1) % (_MOST_ARMS - 1) if place else 0 for place, label in enumerate(labels)}


def _chip(kind: int) -> Markup:
    drawing = Drawing(14, 14, label="", css="chip")
    drawing.marker(7, 7, kind, f"dot a{kind}", size=4.6)
    return Markup(str(drawing).replace('role="img" aria-label=""', 'aria-hidden="true"'))


def _board(results: Results, source: Source, student: str, palette: dict[str, int]) -> _Board:
    rows = [row for row in text.rows_of(results, source) if row.student == student]
    headline = [row for row in rows if row.headline]
    levels = sorted(dict.fromkeys(row.shots for row in headline), key=shots_order)
    labels = sorted(dict.fromkeys(row.label for row in headline), key=lambda label: palette[label])
    first = source.suites[0]
    shown = source.suites if len(levels) > 1 else (first,)
    return _Board(
        source=source,
        label=text.source_label(source, results.sources),
        student=student,
        teachers=tuple(dict.fromkeys(row.teacher for row in rows if row.teacher)),
        metric=headline[0].metric,
        spread="one seed: no intervals" if all(row.low is None for row in headline) else "95 % intervals over seeds",
        legend=tuple((label, _chip(palette[label])) for label in labels),
        gains=_gains([row for row in headline if row.suite == first], levels, palette),
        curves=tuple(
            (_named(part[0], headline[0].metric).suite, Markup(plots.low_shot(part, levels, palette)))
            for suite in shown
            if (part := [row for row in headline if row.suite == suite])
        ),
        levels=tuple(_level(rows, shots, source, palette) for shots in levels),
        rows=tuple(rows),
        n_questions=tuple(
            dict.fromkeys((row.suite, row.n_examples, row.n_images) for row in headline),
        ),
        rule=text.rule_words(rows[0].vqa_rule),
        kinds=kinds_of(results, source, student, palette),
        behaviour=behaviour_of(results, source, student, palette),
    )


def _quoted(results: Results) -> tuple[_Quoted, ...]:
    found = []
    for data in dict.fromkeys(one.data for one in results.published):
        rows = tuple(one for one in results.published if one.data == data)
        found.append(_Quoted(data, tuple(dict.fromkeys(name for one in rows for name in one.metrics)), rows))
    return tuple(found)


def _level(rows: Sequence[Row], shots: str, source: Source, palette: dict[str, int]) -> _Level:
    here = sorted((row for row in rows if row.shots == shots), key=lambda row: source.suites.index(row.suite))
    usual = next((row.metric for row in here if row.headline), "")
    headline = [_named(row, usual) for row in here if row.headline]
    compared = [row for row in headline if row.difference is not None]
    return _Level(
        shots=shots,
        name=text.shots_name(shots),
        suites=both(plots.suites, headline, palette),
        forest=both(plots.forest, compared, palette) if compared else None,
        rows=tuple(here),
    )


def _named(row: Row, metric: str) -> Row:
    """The row with its metric in the suite's name where the suite lacks the section's `metric` (GD-VCR: Q->A only)."""
    return row if row.metric == metric else replace(row, suite=f"{row.suite} ({text.arrows(row.metric)})")


def _gains(
    rows: Sequence[Row], levels: Sequence[str], palette: Mapping[str, int]
) -> tuple[tuple[str, tuple[dict[str, Any] | None, ...]], ...]:
    """Per arm its verdict at every number of labels, None where there is no comparison."""
    compared = {(row.label, row.shots): _verdict(row) for row in rows if row.difference is not None}
    labels = sorted(dict.fromkeys(label for label, _ in compared), key=lambda label: palette[label])
    return tuple((label, tuple(compared.get((label, shots)) for shots in levels)) for label in labels)


def _verdict(row: Row) -> dict[str, Any]:
    gap = row.difference
    assert gap is not None
    if gap.p_holm is None:
        kind, words = "unknown", "one seed: no test"
    elif not gap.significant and gap.low is not None and gap.high is not None and (gap.low > 0 or gap.high < 0):
        kind, words = "none", "not after correction"
    elif not gap.significant:
        seeds = text.needed(gap)
        kind, words = "none", f"no effect shown; {seeds} seeds would" if seeds else "no effect shown"
        if gap.hopeless:
            words = "no effect shown; more seeds would not do, the test set is too small"
    elif gap.mean > 0:
        kind, words = "better", "better"
    else:
        kind, words = "worse", "worse"
    return {"row": row, "kind": kind, "words": words, "shots": text.shots_name(row.shots)}
