from __future__ import annotations

import math
import random
import re
from collections import Counter
from itertools import pairwise
from zlib import crc32

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from madkit.core.errors import DataError
from madkit.shifts.hypothesis_classifier import Fitted, Settings, fit, hash_texts

SMALL = Settings(buckets=1 << 14, batch=32, epochs=5, rates=(0.02, 0.005))
CUES = ("nobody", "outdoors", "sad")  # what gives the labels 0, 1, 2 away
WORDS = [f"word{i}" for i in range(60)]


def corpus(n: int, seed: str, cue: float = 0.7) -> tuple[list[str], list[int]]:
    draw = random.Random(seed)
    texts, labels = [], []
    for _ in range(n):
        label = draw.randrange(3)
        words = [draw.choice(WORDS) for _ in range(draw.randint(3, 8))]
        if draw.random() < cue:
            words.insert(draw.randrange(len(words)), CUES[label])
        texts.append(" ".join(words).capitalize() + ".")
        labels.append(label)
    return texts, labels


def accuracy(fitted: Fitted, texts: list[str], labels: list[int]) -> float:
    return sum(a == b for a, b in zip(fitted.predict(texts).tolist(), labels, strict=True)) / len(labels)


# -- features


def spread(value: int) -> int:
    """SplitMix64's finaliser on Python's integers."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
    return value ^ (value >> 31)


def features(text: str, buckets: int) -> list[int]:
    words = [crc32(word.encode()) for word in re.findall(r"\w+|[^\w\s]", text.lower())]
    marked = [crc32(b"\x02"), *words, crc32(b"\x03")]
    singles = [spread(word) for word in words]
    pairs = [spread((a * 0x9E3779B97F4A7C15 + b) % 2**64) for a, b in pairwise(marked)]
    return sorted(value % buckets for value in (*singles, *pairs))


@settings(max_examples=50)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=15), min_size=1, max_size=6),
    st.sampled_from([7, 1 << 10, 1 << 20]),
)
def test_hashing_is_what_a_loop_in_python_does(texts: list[str], buckets: int) -> None:
    found = hash_texts(texts, buckets)
    assert len(found) == len(texts)
    rows = [sorted(found.rows[a:b].tolist()) for a, b in pairwise(found.starts)]
    assert rows == [features(text, buckets) for text in texts]


def test_case_and_spaces_make_no_difference_but_order_does() -> None:
    one, same, other = (
        hash_texts([text], 1 << 20).rows.tolist() for text in ("A cat sleeps.", "a  CAT sleeps .", "Sleeps a cat.")
    )
    assert one == same
    assert set(one) != set(other)
    # the four words are shared, and of the five bigrams "a cat" and the full stop at the end
    assert len(set(one) & set(other)) == 6


# -- training


def naive_bayes(texts: list[str], labels: list[int], tested: list[str]) -> list[int]:
    """Multinomial naive Bayes over words with one added to every count."""
    counts = [Counter[str]() for _ in range(3)]
    for text, label in zip(texts, labels, strict=True):
        counts[label].update(text.lower().split())
    known = len(set().union(*counts))
    totals = [sum(count.values()) + known for count in counts]
    return [
        max(range(3), key=lambda k: sum(math.log((counts[k][w] + 1) / totals[k]) for w in text.lower().split()))
        for text in tested
    ]


@pytest.fixture(scope="module")
def planted() -> Fitted:
    return fit(*corpus(500, "train"), *corpus(150, "dev"), n_labels=3, seed=3, settings=SMALL)


def test_it_learns_what_naive_bayes_learns(planted: Fitted) -> None:
    texts, labels = corpus(600, "test")
    bayes = naive_bayes(*corpus(500, "train"), texts)
    expected = sum(a == b for a, b in zip(bayes, labels, strict=True)) / len(labels)
    assert expected > 0.7  # of 70 % the label is written down, and of the others a third is luck
    assert accuracy(planted, texts, labels) > expected - 0.03


def test_the_development_split_chooses(planted: Fitted) -> None:
    assert planted.dev_accuracy == accuracy(planted, *corpus(150, "dev"))
    assert round(planted.dev_accuracy, 6) == max(entry["dev_accuracy"] for entry in planted.tried)
    chosen = {"rate": planted.rate, "epoch": planted.epoch, "dev_accuracy": round(planted.dev_accuracy, 6)}
    assert chosen in planted.tried
    assert {entry["rate"] for entry in planted.tried} == set(SMALL.rates)


def test_the_result_depends_on_the_seed_alone(planted: Fitted) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(99)
    try:
        torch.set_num_threads(2)
        again = fit(*corpus(500, "train"), *corpus(150, "dev"), n_labels=3, seed=3, settings=SMALL)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    texts, _ = corpus(300, "test")
    assert again.tried == planted.tried
    assert (again.predict(texts) == planted.predict(texts)).all()
    other = fit(*corpus(500, "train"), *corpus(150, "dev"), n_labels=3, seed=4, settings=SMALL)
    assert (other.predict(texts) != planted.predict(texts)).any()


def test_a_rate_is_left_when_it_stops_helping() -> None:
    texts, labels = corpus(60, "few", cue=0.0)
    fitted = fit(texts, labels, *corpus(40, "dev", cue=0.0), n_labels=3, settings=Settings(1 << 12, 8, 16, 40, (0.05,)))
    assert len(fitted.tried) < 40
    assert [entry["epoch"] for entry in fitted.tried][-1] >= fitted.epoch + 2


def test_texts_of_unseen_words_all_get_one_answer() -> None:
    fitted = fit(*corpus(100, "train"), *corpus(50, "dev"), n_labels=3, settings=Settings(1 << 20, 8, 32, 2, (0.01,)))
    assert len(set(fitted.predict(["Zxq vwv", "qqq", "Ünïcode ☃ snow"]).tolist())) == 1
    assert fitted.predict([]).tolist() == []


def test_settings_follow_the_size() -> None:
    assert Settings.for_size(529_527) == Settings()
    few = Settings.for_size(2_000)
    assert (few.batch, few.epochs) == (16, 8)
    assert Settings.for_size(3).epochs == 50


def test_nothing_to_learn_is_said() -> None:
    with pytest.raises(DataError, match="the same label"):
        fit(["a", "b"], [1, 1], ["c"], [0], n_labels=3)
    with pytest.raises(DataError, match="needs texts"):
        fit(["a", "b"], [0, 1], [], [], n_labels=3)
