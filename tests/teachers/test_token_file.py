from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madkit.core.errors import DataError, NotFoundError
from madkit.teachers.token_file import FileTokenizer


def test_spans_point_into_the_original_text(tiny_teacher: Path) -> None:
    tokenizer = FileTokenizer(tiny_teacher / "tokenizer.json")

    @given(st.text(st.sampled_from("abcdeIS É'?!  .0\u0301\u00a0😀Ⅷ"), max_size=30))
    def check(text: str) -> None:
        (found,) = tokenizer.tokenize([text])
        assert all(0 <= start < end <= len(text) for start, end in found.spans)
        assert list(found.spans) == sorted(found.spans)
        covered = {position for start, end in found.spans for position in range(start, end)}
        assert {position for position, c in enumerate(text) if c.isascii() and c.isalnum()} <= covered

    check()
    (found,) = tokenizer.tokenize(["It's  a RED\tcat?"])
    assert ["It's  a RED\tcat?"[start:end] for start, end in found.spans] == ["It", "'", "s", "a", "RED", "cat", "?"]


def test_special_tokens(tiny_teacher: Path) -> None:
    tokenizer = FileTokenizer(tiny_teacher / "tokenizer.json")
    (found,) = tokenizer.tokenize(["a a a a a"])
    assert (len(found.ids), len(found.spans)) == (5, 5)
    vocabulary = json.loads((tiny_teacher / "tokenizer.json").read_text())["model"]["vocab"]
    assert tokenizer.end_id == max(vocabulary.values())  # pooling by argmax finds the end token
    assert tokenizer.start_id not in found.ids


def test_broken_files(tmp_path: Path, tiny_teacher: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        FileTokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="is not a tokenizer"):
        FileTokenizer(tmp_path / "tokenizer.json")
    text = (tiny_teacher / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace("[EOS]", "[END]"))
    with pytest.raises(DataError, match=r"\[EOS\] is missing"):
        FileTokenizer(tmp_path / "tokenizer.json")
