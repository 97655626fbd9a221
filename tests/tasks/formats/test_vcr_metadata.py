"""The metadata of an image: outlines are skipped, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madkit.core.errors import DataError, NotFoundError
from madkit.tasks.formats.source_lines import Place
from madkit.tasks.formats.vcr_metadata import MetadataFiles, _without_segments, read_metadata

NUMBERS = st.integers(-5, 2000) | st.floats(allow_nan=False, allow_infinity=False)
POLYGONS = st.lists(st.lists(st.lists(st.lists(NUMBERS, min_size=2, max_size=2), max_size=3), max_size=2), max_size=3)
# Outlines of another kind, and strings that look like the key or hold brackets.
ODD = st.sampled_from([None, "segms", '"segms": [1]', "]", [{"size": [1, 2], "counts": "a]b"}], {"segms": [1]}])
OTHER = st.dictionaries(
    st.sampled_from(["boxes", "names", "width", '"segms": ', "x"]),
    POLYGONS | ODD | NUMBERS,
    max_size=4,
)


@given(OTHER, POLYGONS | ODD, st.integers(0, 4), st.sampled_from([None, 1]))
def test_only_the_outlines_are_left_out(others: dict[str, Any], outlines: Any, place: int, indent: int | None) -> None:
    items = list(others.items())
    content = dict([*items[:place], ("segms", outlines), *items[place:]])
    read = json.loads(_without_segments(json.dumps(content, indent=indent).encode()))
    assert {key: value for key, value in read.items() if key != "segms"} == others
    assert read["segms"] in ([], outlines)


def test_the_usual_layout_is_cut() -> None:
    content = {
        "boxes": [[0, 0, 1, 1, 0.9]],
        "segms": [[[[1, 2], [3, 4]]]],
        "names": ["person"],
        "width": 9,
        "height": 9,
    }
    assert json.loads(_without_segments(json.dumps(content).encode())) == {**content, "segms": []}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"boxes": [], "segms": [[[[1, 2], [3', "line 1: the JSON ends too early, so the file is truncated"),
        ('{"boxes": [], "segms": [[1, 2]]], "width": 3, "height": 2}', "not valid JSON"),
        ('{"boxes": [], "segms": [[1, 2]] "width": 3, "height": 2}', "not valid JSON"),
        ('{"boxes": [], "segms": [], "width": 3', "truncated"),
        ('["segms"]', "a JSON object is needed, found a list"),
        ("", "truncated"),
        ('{"boxes": [[0, 0, 80, 99]], "width": 100, "height": 80}', "width and height may be swapped"),
        ('{"boxes": [[0, 0, 300, 99]], "width": 100, "height": 80}', "outside the image of 100 x 80"),
        ('{"boxes": [[0, 0, NaN, 9]], "width": 100, "height": 80}', r"'boxes\[0\]' holds something that is not"),
        ('{"boxes": [[0, 0, 1e999, 9]], "width": 100, "height": 80}', r"'boxes\[0\]' holds something that is not"),
        ('{"boxes": [[0, 0, true, 9]], "width": 100, "height": 80}', r"'boxes\[0\]' holds something that is not"),
        ('{"boxes": "none", "width": 100, "height": 80}', "'boxes' must be a list, found a string"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=problem) as caught:
        read_metadata(path)
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_wrong_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes('{"names": ["café"], "boxes": []}'.encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_metadata(path)


def test_more_images_than_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("madkit.tasks.formats.vcr_metadata._KEPT", 4)
    for number in range(9):
        (tmp_path / f"{number}.json").write_text(json.dumps({"boxes": [], "width": number + 1, "height": 1}))
    files, place = MetadataFiles(tmp_path), Place(Path("x.jsonl"), 1)
    for number in [*range(9), 0, 8, 3]:
        about = files.get(f"{number}.json", place)
        assert about is not None
        assert about.width == number + 1
    assert len(files._kept) <= 4


def test_a_missing_file_is_an_error_or_none(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_metadata(tmp_path / "a.json")
    with pytest.raises(DataError, match=r"x\.jsonl, line 1: the metadata file .*a\.json does not exist"):
        MetadataFiles(tmp_path).get("a.json", Place(Path("x.jsonl"), 1))
    assert MetadataFiles(tmp_path, required=False).get("a.json", Place(Path("x.jsonl"), 1)) is None
