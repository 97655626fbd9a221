"""Results as LaTeX tables (package booktabs)."""

from __future__ import annotations

from madkit.evaluate.published import notes
from madkit.evaluate.report.text import interval, mini_note, quoted, tables, with_sign
from madkit.evaluate.results import Results, Row

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


_CAPTION = (
    r"Mean over seeds in percent with the 95\,\% interval of Student's $t$ over the seeds; differences in points on "
    r"the same seeds and questions, with the 95\,\% interval for new seeds and new images; $^\dagger$: $p \ge 0.05$ "
    r"after Holm's correction over the comparisons of this table by the same metric; one seed ($n=1$) has neither "
    r"interval nor test."
)


def latex(results: Results) -> str:
    """One table per source, student and number of labels; bold: best of a suite, dagger: not significant."""
    note = mini_note(results)
    lines = ["% needs \\usepackage{booktabs}", *([f"% {note}"] if note else [])]
    baseline = str(results.settings.get("baseline", "baseline"))
    for source, title, rows in tables(results):
        best = {
            (suite, metric): max(row.mean for row in rows if (row.suite, row.metric) == (suite, metric))
            for suite, metric in {(row.suite, row.metric) for row in rows}
        }
        kept = [row for row in rows if "(" not in row.metric]
        lines += [
            r"\begin{table}",
            r"  \centering",
            r"  \begin{tabular}{lllrcrl}",
            r"    \toprule",
            rf"    suite & metric & arm & score & 95\,\% & seeds & against {_tex(baseline)} \\",
        ]
        previous = None
        for row in kept:
            if row.suite != previous:
                lines.append(r"    \midrule")
                previous = row.suite
            lines.append(f"    {_cells(row, bold=row.mean == best[row.suite, row.metric])} \\\\")
        embedded = " Embedded benchmark, not the real one." if source.is_mini else ""
        caption = f"{_tex(title)}.{embedded} {_CAPTION}"
        lines += [r"    \bottomrule", r"  \end{tabular}", rf"  \caption{{{caption}}}", r"\end{table}", ""]
    return "\n".join([*lines, *_published(results)])


def _published(results: Results) -> list[str]:
    """The quoted results, one table per data set."""
    lines: list[str] = []
    for data in dict.fromkeys(one.data for one in results.published):
        rows = [one for one in results.published if one.data == data]
        metrics = [name for name in dict.fromkeys(name for one in rows for name in one.metrics) if "(" not in name]
        lines += [
            r"\begin{table}",
            r"  \centering",
            rf"  \begin{{tabular}}{{ll{'r' * len(metrics)}l}}",
            r"    \toprule",
        ]
        lines.append(f"    {' & '.join(['model', 'split', *map(_tex, metrics), 'source'])} \\\\")
        lines.append(r"    \midrule")
        for one in rows:
            cells = [quoted(one.metrics[name]) if name in one.metrics else "--" for name in metrics]
            lines.append(f"    {' & '.join([_tex(one.model), _tex(one.split), *cells, _tex(one.source)])} \\\\")
        caption = " ".join(_tex(note) for note in notes(results))
        lines += [
            r"    \bottomrule",
            r"  \end{tabular}",
            rf"  \caption{{Published results of {_tex(data)}. {caption}}}",
        ]
        lines += [r"\end{table}", ""]
    return lines


def _cells(row: Row, *, bold: bool) -> str:
    score = f"{row.mean:.1f}"
    gap = row.difference
    against = ""
    if gap is not None:
        mark = "" if gap.significant or gap.p_holm is None else r"$^\dagger$"  # one seed is no test
        spread = f" {interval(gap.low, gap.high, signed=True)}" if gap.low is not None else " (n=1)"
        against = f"{with_sign(gap.mean)}{mark}{spread}".replace("-", "$-$")  # a hyphen is no minus sign
    return " & ".join(
        [
            _tex(row.suite),
            _tex(row.metric),
            _tex(row.label),
            rf"\textbf{{{score}}}" if bold else score,
            interval(row.low, row.high) if row.low is not None else "--",
            str(row.n_seeds),
            against,
        ]
    )


def _tex(text: str) -> str:
    return "".join(_SPECIAL.get(char, char) for char in text)
