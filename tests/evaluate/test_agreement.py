from __future__ import annotations

import json

import numpy as np
import pytest
from statsmodels.stats import inter_rater

from madkit.evaluate.agreement import kappa, same_answers


def test_same_answers():
    assert same_answers(["a", "b", "c", "d"], ["a", "x", "c", "y"]) == 0.5
    with pytest.raises(ValueError, match="shorter"):
        same_answers([1, 2], [1])


def test_kappa_of_cohens_own_kind_of_table():
    """Two raters, 20/5/10/15 (yes-yes, yes-no, no-yes, no-no): observed 0.7, by chance 0.5, kappa 0.4."""
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert kappa(first, second) == pytest.approx(0.4)


def test_statsmodels_kappa_says_the_same():
    random = np.random.default_rng(0)
    first, second = random.integers(0, 3, (2, 80))
    table, _ = inter_rater.to_table(np.stack([first, second], axis=1))
    assert kappa(first.tolist(), second.tolist()) == pytest.approx(inter_rater.cohens_kappa(table).kappa)


def test_kappa_of_equal_independent_and_constant_answers():
    random = np.random.default_rng(1)
    first, second = random.integers(0, 3, (2, 20_000)).tolist()
    assert kappa(first, first) == pytest.approx(1.0)
    assert kappa(first, second) == pytest.approx(0.0, abs=0.02)
    assert kappa(["a"] * 4, ["a"] * 4) is None


def answers_of(folder, suite="test"):
    lines = (folder / "predictions" / f"{suite}.jsonl").read_text().splitlines()
    return [(row["prediction"], row["score"]) for row in map(json.loads, lines)]


def test_pairs_of_arms_and_of_seeds_stand_in_the_results(made_up):
    made_up.add_data("snli-ve", "mini-snli-ve")
    folders = {(arm, seed): made_up.add_run(arm, seed) for arm in ("finetune", "mad") for seed in range(2)}
    results = made_up.evaluate("smoke")
    found = {(one.first, one.second): one for one in results.agreements}
    assert set(found) == {("finetune", "finetune"), ("finetune", "mad"), ("mad", "mad")}
    across = found["finetune", "mad"]
    pairs = [(answers_of(folders["finetune", seed]), answers_of(folders["mad", seed])) for seed in range(2)]
    by_hand = [100 * np.mean([a[0] == b[0] for a, b in zip(*pair, strict=True)]) for pair in pairs]
    assert across.mean == pytest.approx(np.mean(by_hand))
    assert across.low < across.mean < across.high
    better = [100 * np.mean([a[1] > b[1] for a, b in zip(*pair, strict=True)]) for pair in pairs]
    assert across.first_better == pytest.approx(np.mean(better))
    alone = found["mad", "mad"]
    own = zip(answers_of(folders["mad", 0]), answers_of(folders["mad", 1]), strict=True)
    assert alone.mean == pytest.approx(100 * np.mean([a[0] == b[0] for a, b in own]))
    assert alone.low is None


def test_joint_answers_agree_where_both_halves_do(made_up):
    made_up.add_data("vcr", "mini-vcr")
    folder = made_up.add_run("finetune", 0, task="vcr", source="mini-vcr")
    made_up.add_run("mad", 0, task="vcr", source="mini-vcr")
    results = made_up.evaluate("smoke")
    (one,) = results.agreements
    assert one.metric == "Q->AR"
    assert one.n_examples == 60
    rows = {arm: {} for arm in ("finetune", "mad")}
    for path in (folder, folder.parent / folder.name.replace("finetune", "mad")):
        for line in (path / "predictions" / "test.jsonl").read_text().splitlines():
            row = json.loads(line)
            arm = "mad" if "-mad-" in path.name else "finetune"
            rows[arm].setdefault(row["question_id"], {})[row["subtask"]] = row["prediction"]
    same = [rows["finetune"][question] == rows["mad"][question] for question in rows["finetune"]]
    assert one.mean == pytest.approx(100 * np.mean(same))
