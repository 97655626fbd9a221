"""The benchmark of texts in miniature: every side is measured, and a side that reads otherwise is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from madkit.bench import text
from madkit.bench.text import TextBenchOptions, bench_text
from madkit.bench.text_inputs import common_words, made_up_texts
from madkit.bench.text_sides import Read
from madkit.cli.main import main
from madkit.core.errors import RunError, UsageProblem
from madkit.extract.options import TEXT_BATCH_TOKENS

TINY = TextBenchOptions(tiny=True, repeats=1, device="cpu")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return bench_text(TINY)


def test_on_a_gpu_the_loops_have_batches_as_large_as_madkits() -> None:
    budget = TEXT_BATCH_TOKENS["cuda"]
    assert 0.8 * budget <= text._BATCH["cuda"] * 77 <= budget


def test_every_side_is_measured_and_ratios_are_those_of_the_numbers(document: dict[str, Any]) -> None:
    json.dumps(document, allow_nan=False)
    assert [row["side"] for row in document["clip"]["rows"]] == ["open_clip encode_text fp32", "madkit fp32"]
    assert [row["side"] for row in document["roberta"]["rows"]] == ["transformers loop fp32", "madkit fp32"]
    for part in (document["clip"], document["roberta"]):
        ours = part["rows"][-1]
        assert ours["default"]
        for row in part["rows"]:
            assert row["madkit_is"] == pytest.approx(ours["per_second"] / row["per_second"], rel=0.01)
            assert row["finite"]
            assert row["unexplained"] < 1e-4
    assert document["options"]["texts"] == 48


def test_the_tables_fit_a_terminal(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(text, "bench_text", lambda options: document)
    assert main(["bench", "text", "--tiny"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    for said in ("open_clip encode_text fp32", "transformers loop fp32", "madkit fp32 *", "texts/s"):
        assert said in printed
    assert main(["bench", "text", "--tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(document))


def _changed(make: Callable[..., Any], change: Callable[[Read], Read]) -> Callable[..., Any]:
    def made(*arguments: Any, **named: Any) -> Any:
        reader = make(*arguments, **named)
        return replace(reader, read=lambda texts: change(reader.read(texts)))

    return made


@pytest.mark.parametrize(
    ("side", "change", "said"),
    [
        ("open_clip_texts", lambda read: Read(read.globals[::-1], None), "gives other tokens of the same texts"),
        ("madkit_texts", lambda read: Read(read.globals, [one[::-1] for one in read.tokens]), "than open_clip in f"),
        ("transformers_texts", lambda read: Read(None, [one[:-1] for one in read.tokens]), "same texts of which"),
    ],
)  # fmt: skip
def test_a_side_that_reads_otherwise_is_refused(
    monkeypatch: pytest.MonkeyPatch, side: str, change: Callable[[Read], Read], said: str
) -> None:
    monkeypatch.setattr(text, side, _changed(getattr(text, side), change))
    with pytest.raises(RunError, match=said):
        bench_text(TINY)


def test_texts_have_the_lengths_of_real_ones() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    words = common_words()
    assert len(words) == len(set(words)) == 3000
    texts = made_up_texts(words, 1500)
    assert texts == made_up_texts(words, 1500)
    assert len(set(texts)) == 1500
    tokenizer = SimpleTokenizer()
    lengths = np.array([len(tokenizer.encode(one)) for one in texts])
    assert lengths.mean() == pytest.approx(20, abs=0.5)
    assert lengths.std() == pytest.approx(8, abs=1)
    assert lengths.min() >= 4
    assert lengths.max() <= 70
    with pytest.raises(UsageProblem, match="tiny"):
        TextBenchOptions(model="ViT-B-32", tiny=True)
