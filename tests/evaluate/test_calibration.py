from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy import special, stats

from madkit.evaluate.calibration import BINS, confidences, expected_calibration_error, reliability
from madkit.evaluate.results import Results


def rows_of(logits, predictions, labels):
    return [
        {"logits": list(map(float, one)), "prediction": int(chosen), "label": int(label)}
        for one, chosen, label in zip(logits, predictions, labels, strict=True)
    ]


def test_probabilities_are_the_softmax_and_brier_the_squared_distance_to_the_truth():
    random = np.random.default_rng(0)
    logits, labels = random.normal(0, 3, (50, 4)), random.integers(0, 4, 50)
    chosen = logits.argmax(axis=1)
    found = confidences(rows_of(logits, chosen, labels), (chosen == labels).astype(float))
    probabilities = special.softmax(logits, axis=1)
    assert found["confidence"] == pytest.approx(probabilities.max(axis=1))
    assert found["brier"] == pytest.approx(((probabilities - np.eye(4)[labels]) ** 2).sum(axis=1))


def test_rows_of_several_widths_keep_their_places():
    rows = [
        *rows_of([[2.0, 0.0]], [0], [0]),
        *rows_of([[0.0, 0.0, 0.0, 0.0]], [1], [1]),
        *rows_of([[0.0, 0.0]], [1], [0]),
    ]
    found = confidences(rows, np.array([1.0, 1.0, 0.0]))
    assert found["confidence"] == pytest.approx([special.expit(2.0), 0.25, 0.5])


def test_answers_tell_by_the_probability_that_their_rows_keep():
    rows = [{"prediction": "red", "logits": [3.0], "confidence": 0.8}, {"prediction": "no", "confidence": 0.3}]
    found = confidences(rows, np.array([0.6, 1.0]))
    assert found["confidence"] == pytest.approx([0.8, 0.3])
    assert found["brier"] == pytest.approx([0.04, 0.49])
    del rows[1]["confidence"]  # answered by a madkit that did not keep it
    assert confidences(rows, np.array([0.6, 1.0])) == {"confidence": None, "brier": None}


def test_hidden_truth_and_broken_logits_tell_nothing():
    nothing = {"confidence": None, "brier": None}
    assert confidences([{"logits": [1.0, 2.0], "prediction": 1}], np.array([0.0])) == nothing
    assert confidences(rows_of([[np.nan, 2.0]], [1], [1]), np.array([0.0])) == nothing
    assert confidences([], np.array([])) == nothing


def test_a_known_ece():
    """Guo et al.'s definition on two bins by hand: (2 x |0.9 - 0.5| + 2 x |0.3 - 0.5|) / 4."""
    confidence, scores = np.array([0.9, 0.9, 0.3, 0.3]), np.array([1.0, 0.0, 1.0, 0.0])
    assert expected_calibration_error(confidence, scores, bins=2) == pytest.approx(100 * (2 * 0.4 + 2 * 0.2) / 4)


def test_bins_are_those_of_scipys_binned_statistic():
    random = np.random.default_rng(1)
    confidence = random.uniform(0.2, 1.0, 500)
    scores = (random.uniform(size=500) < confidence).astype(float)
    found = reliability(confidence, scores)
    means, edges, _ = stats.binned_statistic(confidence, [confidence, scores], bins=BINS, range=(0, 1))
    counts = stats.binned_statistic(confidence, scores, "count", bins=BINS, range=(0, 1)).statistic
    assert [one.n for one in found] == counts.tolist()
    assert [one.low for one in found] == pytest.approx(edges[:-1])
    full = [index for index, one in enumerate(found) if one.n]
    assert [found[index].confidence for index in full] == pytest.approx(means[0][full])
    assert [found[index].score for index in full] == pytest.approx(means[1][full])
    assert found[0].confidence is None


def test_the_edges_of_the_scale_belong_to_the_outer_bins():
    found = reliability(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    assert (found[0].n, found[-1].n) == (1, 1)


def test_students_that_know_what_they_know_have_no_error_and_sure_ones_have():
    random = np.random.default_rng(2)
    confidence = random.uniform(0.3, 1.0, 50_000)
    scores = (random.uniform(size=50_000) < confidence).astype(float)
    assert expected_calibration_error(confidence, scores) < 1.5
    assert expected_calibration_error(np.full(50_000, 1.0), scores) == pytest.approx(100 * (1 - scores.mean()))


def test_every_arm_and_suite_has_a_calibration_and_the_document_comes_back(shared_results):
    results = shared_results
    keys = {(one.label, one.shots, one.suite, one.metric) for one in results.calibrations}
    assert keys == {(row.label, row.shots, row.suite, row.metric) for row in results.rows if row.headline}
    one = next(item for item in results.calibrations if (item.label, item.suite) == ("affinity", "test"))
    row = next(row for row in results.rows if (row.label, row.suite, row.shots) == (one.label, one.suite, one.shots))
    assert one.score == pytest.approx(row.mean)
    assert sum(item["n"] for item in one.bins) == one.n_examples * len(one.seeds)
    # the made-up students give their answer e / (e + 2) whatever it is
    assert one.confidence == pytest.approx(100 * np.e / (np.e + 2))
    assert one.ece == pytest.approx(np.mean([abs(one.confidence - score) for score in row.per_seed]))
    assert Results.from_document(json.loads(json.dumps(results.document()))) == results


def test_vqa_without_probabilities_has_no_calibration(made_up):
    made_up.add_data("vqa", "mini-vqa")
    made_up.add_run("finetune", 0, task="vqa", source="mini-vqa")
    results = made_up.evaluate("smoke")
    assert results.rows
    assert results.calibrations == ()


def test_vcr_tells_of_its_two_halves(made_up):
    made_up.add_data("vcr", "mini-vcr")
    made_up.add_run("finetune", 0, task="vcr", source="mini-vcr")
    results = made_up.evaluate("smoke")
    assert [one.metric for one in results.calibrations] == ["Q->A", "QA->R"]
    assert all(one.ece_low is None for one in results.calibrations)  # one seed
    assert asdict(results.calibrations[0])["brier_of"] == "all choices"
