"""Flat columns of tokens against the sequences that they were made of, and what making them takes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from madkit.distill.batches import token_table
from madkit.distill.batches.examples import ExampleSet
from madkit.distill.batches.token_table import TokenTableMaker
from madkit.students.heads import HeadSpec
from madkit.students.inputs import EncodedSequence
from madkit.students.load import load_student
from madkit.tasks.data import open_task

WORDS = ["a man runs", "why", "he is late", "a dog", "two cats sit here"]


def sequence(draw: np.random.Generator, length: int) -> EncodedSequence:
    texts = tuple(draw.choice(WORDS, size=int(draw.integers(1, 4))).tolist())
    segment = draw.integers(-1, len(texts), length)
    spans = np.where(segment[:, None] >= 0, np.sort(draw.integers(0, 9, (length, 2)), axis=1), -1)
    return EncodedSequence(
        ids=draw.integers(0, 30_000, length), types=draw.integers(0, 4, length), segment=segment, spans=spans,
        tag_box=draw.integers(-1, 3, length), ends=draw.integers(0, length, len(texts)), texts=texts,
        shortened=int(draw.integers(0, 3)),
    )  # fmt: skip


@pytest.mark.parametrize("at_once", [1, 7, 4096])
def test_columns_say_what_the_sequences_say(monkeypatch, at_once):
    monkeypatch.setattr(token_table, "_AT_ONCE", at_once)
    draw = np.random.default_rng(0)
    given = [(sequence(draw, int(draw.integers(1, 12))), draw.integers(-1, 5, 3)) for _ in range(40)]
    maker = TokenTableMaker()
    for one, links in given:
        maker.add(one, links)
    table = maker.made()
    assert table.texts == list(dict.fromkeys(text for one, _ in given for text in one.texts))
    assert table.shortened == sum(one.shortened for one, _ in given)
    pairs = [tuple(pair) for pair in table.pairs.tolist()]
    assert pairs == sorted(set(pairs))
    most = max(len(one.texts) for one, _ in given)
    used = set()
    for place, (one, links) in enumerate(given):
        mine = slice(int(table.starts[place]), int(table.starts[place + 1]))
        assert table.ids[mine].tolist() == one.ids.tolist()
        assert table.types[mine].tolist() == one.types.tolist()
        assert table.tags[mine].tolist() == [-1 if box < 0 else links[box] for box in one.tag_box]
        rows = [table.texts.index(text) for text in one.texts]
        assert table.segments[place].tolist() == rows + [-1] * (most - len(rows))
        assert table.ends[place].tolist() == one.ends.tolist() + [-1] * (most - len(rows))
        for row, segment, span in zip(table.rows[mine].tolist(), one.segment, one.spans.tolist(), strict=True):
            assert (row < 0) is bool(segment < 0)
            if row >= 0:
                assert pairs[row] == (rows[segment], *span)
                used.add(row)
    assert used == set(range(len(pairs)))


def test_making_them_takes_little_more_than_they_take(monkeypatch):
    """As arrays of their own the sequences of VCR would take 7 GB, in every process of a training."""
    monkeypatch.setattr(token_table, "_AT_ONCE", 256)
    draw = np.random.default_rng(0)
    different = [sequence(draw, 20) for _ in range(20)]
    links = np.zeros(3, dtype=np.int64)
    tracemalloc.start()
    maker = TokenTableMaker()
    for number in range(6000):
        one = different[number % 20]
        # arrays anew, as every example brings them
        copy = {name: getattr(one, name).copy() for name in ("ids", "types", "segment", "spans", "tag_box", "ends")}
        maker.add(EncodedSequence(**copy, texts=one.texts, shortened=0), links)
    table = maker.made()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table.ids) == 120_000
    assert peak < 40 * 120_000


def test_the_examples_of_a_data_set_stay_in_its_file(workspace, student):
    data = open_task(workspace, "vcr", part="auto")
    train = data.examples("train")
    assert ExampleSet(train, load_student(student, head=HeadSpec("multiple-choice")), data.regions()).examples is train
