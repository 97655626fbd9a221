"""The stream gives what `json.loads` gives, for any content and any size of the window, and its errors say where."""

from __future__ import annotations

import json
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from madkit.core.errors import DataError, NotFoundError
from madkit.tasks.formats.json_stream import JsonList, read_wrapper

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
WRAPPERS = st.dictionaries(st.text(max_size=4).filter(lambda key: key != "rows"), VALUES, max_size=3)
STYLES = st.fixed_dictionaries(
    {"indent": st.none() | st.integers(0, 2), "ensure_ascii": st.booleans()},
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stream") / "file.json"


def read(path: Path, chunk: int = 1 << 20) -> tuple[list[Any], dict[str, Any]]:
    rows = JsonList(path, "rows", chunk=chunk)
    return list(rows), rows.wrapper


def without_lists(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != "rows" and not isinstance(value, list)}


@given(before=WRAPPERS, rows=st.lists(VALUES, max_size=5), after=WRAPPERS, style=STYLES, chunk=st.integers(1, 60))
def test_any_wrapped_list_as_json_reads_it(
    path: Path, before: dict[str, Any], rows: list[Any], after: dict[str, Any], style: dict[str, Any], chunk: int
) -> None:
    content = before | {"rows": rows} | {key: value for key, value in after.items() if key not in before}
    path.write_text(json.dumps(content, **style), encoding="utf-8")
    assert read(path, chunk) == (rows, without_lists(content))
    assert read_wrapper(path, "rows") == without_lists(content)


@given(rows=st.lists(VALUES, max_size=6), style=STYLES, chunk=st.integers(1, 60), mark=st.booleans())
def test_any_bare_list_as_json_reads_it(
    path: Path, rows: list[Any], style: dict[str, Any], chunk: int, mark: bool
) -> None:
    path.write_text(json.dumps(rows, **style), encoding="utf-8-sig" if mark else "utf-8")
    told: list[int] = []
    assert list(JsonList(path, "rows", chunk=chunk, advance=told.append)) == rows
    assert sum(told) == path.stat().st_size


@given(rows=st.lists(VALUES, min_size=1, max_size=4), style=STYLES, chunk=st.integers(1, 60), data=st.data())
def test_a_file_cut_anywhere_is_called_truncated(
    path: Path, rows: list[Any], style: dict[str, Any], chunk: int, data: st.DataObject
) -> None:
    whole = json.dumps({"info": {"a": 1}, "rows": rows}, **style).encode()
    path.write_bytes(whole[: data.draw(st.integers(1, len(whole) - 1))])
    with pytest.raises(DataError, match=r"file\.json, line \d+(, rows\[\d+\])?: the JSON ends too early"):
        read(path, chunk)


@pytest.mark.parametrize(
    "end",
    [
        "1",
        "1.",
        "1e",
        "1.5e+",
        "-",
        "t",
        "nul",
        "-Inf",
        '"a',
        '"\\',
        '"\\u12',
        '"\\ud83d\\u',
        "[",
        "[1.",
        '{"a": 1e+',
        '{"a"',
        "é",
    ],
)
@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
def test_a_file_cut_within_a_value_is_called_truncated(tmp_path: Path, end: str, chunk: int) -> None:
    text = '{"rows": [null, ' + end
    (tmp_path / "f.json").write_bytes(text.encode()[: -1 if end == "é" else None])
    with pytest.raises(
        DataError, match=r"line 1, rows\[1\]: the JSON ends too early" if end[0] not in "1é" else "too early"
    ):
        read(tmp_path / "f.json", chunk)


@given(rows=st.lists(VALUES, max_size=4), chunk=st.integers(1, 60), data=st.data())
def test_a_damaged_file_gives_what_json_gives_or_an_error(
    path: Path, rows: list[Any], chunk: int, data: st.DataObject
) -> None:
    whole = bytearray(json.dumps({"info": 1, "rows": rows, "x": [2]}, ensure_ascii=False).encode("utf-8"))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(whole)))
        whole[place : place + data.draw(st.integers(0, 2))] = data.draw(
            st.sampled_from(
                [b"", b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b"1", b"-", b"e", b"\xff", b"\0", b"\n"]
            )
        )
    path.write_bytes(bytes(whole))
    try:
        content = json.loads(whole.decode("utf-8-sig"))
    except ValueError:
        content = None
    if isinstance(content, list):
        assert read(path, chunk)[0] == content
    elif isinstance(content, dict) and isinstance(content.get("rows"), list):
        assume(whole.count(b'"rows"') == 1)
        assert read(path, chunk) == (content["rows"], without_lists(content))
    else:
        with pytest.raises(DataError, match=r"file\.json"):
            read(path, chunk)


BROKEN = [
    ('{"rows": [1, 2}', "rows[2]"),
    ('{"rows": [\n 1,\n 2 3]}', "rows[2]"),
    ('{"a": tru,\n "rows": []}', None),
    ('{"rows": [{"a": 1},\n\n {"b" 2}, {}]}', "rows[1]"),
    ('{"rows": [{"a": "x\ny"}]}', "rows[0]"),
    ('{"rows": [1], "b"}', None),
    ('{"rows": [1]}\n{"rows": [2]}', None),
    ('[1, "\\q"]', "rows[1]"),
    ("{1: 2}", None),
    ("[1] 2", None),
]


@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
@pytest.mark.parametrize(("text", "entry"), BROKEN)
def test_syntax_errors_have_the_place_that_json_gives_and_the_entry(
    tmp_path: Path, text: str, entry: str | None, chunk: int
) -> None:
    text = "\n" + text + " " * 200
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(json.JSONDecodeError) as theirs:
        json.loads(text)
    with pytest.raises(DataError) as ours:
        read(tmp_path / "f.json", chunk)
    place = f"line {theirs.value.lineno}" + (f", {entry}" if entry else "")
    assert f"{place}: not valid JSON" in str(ours.value)
    assert f"at column {theirs.value.colno})" in str(ours.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", r"the file is empty"),
        (b" \n", r"the file is empty"),
        (b"3", r"an object with 'rows' or a list is needed, found a number"),
        (b"{}", r"the key 'rows' is missing \(the keys are none\)"),
        (b'{"questions": [1]}', r"the key 'rows' is missing \(the keys are 'questions'\)"),
        (b'{"rows": {}}', r"'rows' must be a list, found an object"),
        (b'{"rows": null}', r"'rows' must be a list, found null"),
        (b'{"rows": [], "rows": []}', r"the key 'rows' stands there twice"),
        ('{"rows": ["a"]}'.encode("utf-16"), "not UTF-8 but UTF-16"),
        ('{"rows": ["a"]}'.encode("utf-16-le"), "not UTF-8 but UTF-16"),
        ('{"rows": ["a"]}'.encode("utf-32"), "not UTF-8 but UTF-32"),
        ('["a", "caf\u00e9"]'.encode("latin-1"), r"byte 11 of the file is not UTF-8 text"),
        (b"\0" * 64, "not valid JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"rows": [1, {"a": ' + b'{"a":' * 200_000, r"line 1, rows\[1\]: the JSON is nested too deeply"),
        (b"[" + b"1" * 5000 + b"]", "not valid JSON"),
    ],
)
@pytest.mark.parametrize("chunk", [1 << 9, 1 << 20])
def test_other_contents_are_told(tmp_path: Path, content: bytes, problem: str, chunk: int) -> None:
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"f\.json.*{problem}") as error:
        read(tmp_path / "f.json", chunk)
    assert error.value.hint


def test_the_byte_of_a_wrong_encoding_counts_over_reads(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_bytes(b"\xef\xbb\xbf[" + b'"a", ' * 100 + b'"\xe9"]')
    with pytest.raises(DataError, match=r"rows\[\d+\] or a later entry, byte 506 of the file is not UTF-8"):
        read(tmp_path / "f.json", 16)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read(tmp_path / "f.json")


def test_a_quotation_mark_that_is_missing_does_not_fill_the_memory(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("madkit.tasks.formats.json_stream.LARGEST", 1000)
    (tmp_path / "f.json").write_text('[1, "' + "a" * 5000)
    with pytest.raises(DataError, match=r"rows\[1\]: one value has more than"):
        read(tmp_path / "f.json", 100)


def test_memory_is_that_of_the_window(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    row = json.dumps({"number": 1, "text": "x" * 500})
    path.write_text('{"other": [' + ",".join([row] * 3000) + '], "rows": [' + ",".join([row] * 3000) + "]}")
    tracemalloc.start()
    count = sum(1 for _ in JsonList(path, "rows", chunk=1 << 15))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 3000
    assert peak < 400_000 < path.stat().st_size / 5


def test_a_member_of_a_zip(tmp_path: Path) -> None:
    rows = [{"number": number} for number in range(20_000)]
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside/f.json", json.dumps({"rows": rows}))
    told: list[int] = []
    path = tmp_path / "a.zip" / "inside" / "f.json"
    assert list(JsonList(path, "rows", advance=told.append, chunk=1 << 14)) == rows
    assert sum(told) == len(json.dumps({"rows": rows}))
    whole = bytearray((tmp_path / "a.zip").read_bytes())
    whole[len(whole) // 2] ^= 255
    (tmp_path / "b.zip").write_bytes(whole)
    with pytest.raises(DataError, match=r"b\.zip"):
        read(tmp_path / "b.zip" / "inside" / "f.json")
