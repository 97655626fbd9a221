from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from madkit.core.errors import DataError
from madkit.tasks.formats.e_snli_ve import iter_e_snli_ve, read_e_snli_ve
from madkit.tasks.spec import SNLI_VE_LABELS

E_VIL = Path(__file__).parents[4] / "shared" / "data" / "e_snli_ve"

HEADER = ["", "pairID", "Flickr30kID", "hypothesis", "gold_label", "explanation"]
ROWS = [
    ["0", "77.jpg#2r1c", "77.jpg", "A dog, asleep.", "contradiction", "It runs."],
    ["1", "77.jpg#2r1n", "77.jpg", " A dog runs ", "entailment", 'One says "run",\nthe other\r\nruns.'],
    ["2", "88.jpg#0r1e", "88.jpg", "A cat.", "neutral", ""],
]


def write(folder: Path, rows: list[list[str]], name: str = "esnlive_dev.csv", *, end: str = "\n") -> Path:
    text = io.StringIO()
    csv.writer(text, delimiter="\t" if name.endswith(".tsv") else ",", lineterminator=end).writerows(rows)
    path = folder / name
    path.write_bytes(text.getvalue().encode())
    return path


def older(row: list[str]) -> list[str]:
    """A row of the CSV in the nine columns of the TSV."""
    _, pair, image, hypothesis, label, explanation = row
    return [label, "A dog", hypothesis.lower(), image + "#2", "A dog.", hypothesis, pair, explanation, "it runs"]


def said(path: Path) -> list[tuple[str, str, str, int | None]]:
    return [(e.id, e.image.id, e.context[0].text, e.label) for e in read_e_snli_ve(path, path.parent)]


EXPECTED = [
    ("77.jpg#2r1c", "77", "A dog, asleep.", 0),
    ("77.jpg#2r1n", "77", "A dog runs", 1),
    ("88.jpg#0r1e", "88", "A cat.", 2),
]


def test_the_csv(tmp_path: Path) -> None:
    path = write(tmp_path, [HEADER, *ROWS])
    assert said(path) == EXPECTED
    (first, *_) = read_e_snli_ve(path, tmp_path / "img")
    assert (first.task, first.image.path) == ("snli-ve", tmp_path / "img" / "77.jpg")
    # the explanation gives the label away and must be nowhere
    assert not any("runs." in text for e in read_e_snli_ve(path, tmp_path) for text in (*e.texts(), e.form))


def test_columns_may_stand_in_any_order(tmp_path: Path) -> None:
    order = [4, 3, 1, 2]
    assert said(write(tmp_path, [[row[i] for i in order] for row in (HEADER, *ROWS)])) == EXPECTED


def test_the_older_tsv_with_and_without_header(tmp_path: Path) -> None:
    header = ["gold_label", "s1_tokens", "s2_tokens", "image", "s1", "s2", "pairID", "explanation", "e_tokens"]
    rows = [older(row) for row in ROWS]
    assert said(write(tmp_path, [header, *rows], "a.tsv")) == EXPECTED
    assert said(write(tmp_path, rows, "b.tsv")) == EXPECTED


def test_marks_and_line_ends_of_other_systems(tmp_path: Path) -> None:
    path = write(tmp_path, [HEADER, *ROWS])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert said(path) == EXPECTED


def test_pairs_that_do_not_count_are_counted(tmp_path: Path) -> None:
    more = [["3", "88.jpg#0r1n", "88.jpg", "A.", "-", ""], ["4", "vg_88r1n", "88.jpg", "A.", "neutral", ""]]
    counts: dict[str, int] = {}
    assert len(read_e_snli_ve(write(tmp_path, [HEADER, *ROWS, *more]), tmp_path, counts=counts)) == 3
    assert counts == {"no-gold-label": 1, "visual-genome": 1}


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        (1, "", "line 6: 'pairID' is empty"),
        (1, "77.jpg#2r1c", "line 6: 'pairID' '77.jpg#2r1c' was used before, on line 2"),
        (2, "", "line 6: 'Flickr30kID' is empty"),
        (3, "  ", "line 6: 'hypothesis' is empty"),
        (4, "", "line 6: 'gold_label' must be one of"),
        (4, "2", "line 6: 'gold_label' is the number 2, and numbers are refused"),
        (4, "contradic", "line 6: 'gold_label' must be one of"),
    ],
)
def test_a_broken_row_is_named_by_its_first_line(tmp_path: Path, column: int, value: str, problem: str) -> None:
    broken = list(ROWS[2])
    broken[column] = value
    with pytest.raises(DataError, match=problem):
        read_e_snli_ve(write(tmp_path, [HEADER, *ROWS[:2], broken]), tmp_path)


def test_wrong_columns(tmp_path: Path) -> None:
    renamed = ["", "pair", "Flickr30kID", "hypothesis", "label", "explanation"]
    with pytest.raises(
        DataError, match="line 1: the columns pairID, gold_label are missing, the header has '', 'pair'"
    ):
        read_e_snli_ve(write(tmp_path, [renamed, *ROWS]), tmp_path)
    with pytest.raises(DataError, match="line 1: the column pairID stands in the header twice"):
        read_e_snli_ve(write(tmp_path, [[*HEADER, "pairID"], *ROWS]), tmp_path)
    with pytest.raises(DataError, match="line 2: 6 columns are needed, found 7"):
        read_e_snli_ve(write(tmp_path, [HEADER, [*ROWS[0], "more"]]), tmp_path)
    with pytest.raises(DataError, match="line 1: 9 columns are needed, found 6"):
        read_e_snli_ve(write(tmp_path, [["neutral", *ROWS[0][1:]]], "a.tsv"), tmp_path)
    with pytest.raises(DataError, match="holds no pairs"):
        read_e_snli_ve(write(tmp_path, [HEADER]), tmp_path)


def test_truncated_files(tmp_path: Path) -> None:
    path = write(tmp_path, [HEADER, *ROWS])
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"A cat")])
    with pytest.raises(DataError, match="line 6: 6 columns are needed, found 4, so the file is truncated"):
        read_e_snli_ve(path, tmp_path)
    path.write_bytes(whole[: whole.index(b"the other")])
    with pytest.raises(
        DataError, match="line 3: a quotation mark that opens here is never closed, so the file is trunc"
    ):
        read_e_snli_ve(path, tmp_path)
    path.write_bytes(whole.replace(b"A cat", b"A\rcat"))
    with pytest.raises(DataError, match="line 6: a carriage return stands outside quotation marks"):
        read_e_snli_ve(path, tmp_path)
    path.write_bytes(whole.replace(b'"A dog', b'"A" dog'))
    with pytest.raises(DataError, match="line 2: the row is not valid CSV"):
        read_e_snli_ve(path, tmp_path)


def test_other_encodings(tmp_path: Path) -> None:
    path = write(tmp_path, [HEADER, *ROWS])
    text = path.read_text().replace("A cat", "Un café")
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(DataError, match="is UTF-16 text"):
        read_e_snli_ve(path, tmp_path)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"line 6: byte [0-9]+ of the line is not UTF-8"):
        read_e_snli_ve(path, tmp_path)


FIELD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
HYPOTHESIS = FIELD.filter(lambda text: text.strip() != "")


@settings(max_examples=40)
@given(rows=st.lists(st.tuples(HYPOTHESIS, st.sampled_from(SNLI_VE_LABELS), FIELD), min_size=1, max_size=8))
def test_what_spreadsheets_write_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("csv")
    table = [
        [str(i), f"{i}.jpg#0r1", f"{i}.jpg", hypothesis, label, why] for i, (hypothesis, label, why) in enumerate(rows)
    ]
    path = write(folder, [HEADER, *table], end="\r\n")
    read: list[int] = []
    found = list(iter_e_snli_ve(path, folder, advance=read.append))
    assert [(e.context[0].text, SNLI_VE_LABELS[e.label or 0]) for e in found] == [(h.strip(), x) for h, x, _ in rows]
    assert sum(read) == path.stat().st_size
    assert said(write(folder, [older(row) for row in table], "a.tsv", end="\r\n")) == said(path)


@settings(max_examples=40)
@given(st.binary(max_size=120) | st.lists(FIELD, max_size=12).map(lambda parts: "\n".join([",".join(HEADER), *parts]).encode()))  # noqa: E501  # fmt: skip
def test_anything_else_is_a_clear_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bad") / "x.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_e_snli_ve(path, path.parent)
    assert str(path) in caught.value.message
    assert caught.value.hint


@pytest.mark.skipif(not E_VIL.is_dir(), reason="the real e-ViL files are not here")
@pytest.mark.parametrize(("split", "balance"), [("dev", (5643, 5254, 3442)), ("test", (5721, 5218, 3801))])
def test_the_real_files(split: str, balance: tuple[int, int, int]) -> None:
    found = read_e_snli_ve(E_VIL / f"esnlive_{split}.csv", E_VIL)
    assert Counter(e.label for e in found) == dict(enumerate(balance))
    assert len({e.image.id for e in found}) == 1000
