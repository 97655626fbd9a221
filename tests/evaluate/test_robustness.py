from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit

from madkit.evaluate.robustness import fit_line
from madkit.evaluate.stage import evaluate


def on_the_line(in_domain, slope=0.8, intercept=-0.4):
    return 100 * expit(intercept + slope * logit(np.asarray(in_domain) / 100))


def test_the_line_that_runs_lie_on_is_found():
    in_domain = [40.0, 45.0, 70.0, 80.0]
    line = fit_line(in_domain, on_the_line(in_domain), ["1pct", "1pct", "full", "full"])
    assert (line.slope, line.intercept, line.r2) == pytest.approx((0.8, -0.4, 1.0))
    assert line.foretells(60.0) == pytest.approx(on_the_line(60.0))
    assert (line.n_runs, line.shots) == (4, ("1pct", "full"))
    assert line.beyond(85.0)
    assert not line.beyond(60.0)


def test_the_fit_is_scipys_on_logits():
    random = np.random.default_rng(0)
    in_domain, shifted = random.uniform(30, 90, 12), random.uniform(30, 90, 12)
    expected = stats.linregress(logit(in_domain / 100), logit(shifted / 100))
    line = fit_line(in_domain, shifted, ["1pct"] * 6 + ["full"] * 6)
    assert (line.slope, line.intercept) == pytest.approx((expected.slope, expected.intercept))
    assert line.r2 == pytest.approx(expected.rvalue**2)


@pytest.mark.parametrize(
    ("in_domain", "shots"),
    [([50.0, 60.0], ["1pct", "full"]), ([50.0, 51.0, 52.0], ["1pct"] * 3), ([50.0] * 3, ["1pct", "5pct", "full"])],
)
def test_seeds_alone_make_no_line(in_domain, shots):
    assert fit_line(in_domain, in_domain, shots) is None


def test_scores_at_the_ends_of_the_scale_stay_finite():
    line = fit_line([0.0, 50.0, 100.0], [0.0, 40.0, 100.0], ["1pct", "5pct", "full"])
    assert np.isfinite([line.slope, line.intercept, line.foretells(100.0), line.foretells(0.0)]).all()


def test_equal_scores_under_the_shift_are_a_level_line_that_explains_nothing():
    """A baseline that answers one class under a shift: scipy's correlation is NaN there, which no report may hold."""
    line = fit_line([40.0, 50.0, 60.0], [33.0, 33.0, 33.0], ["1pct", "5pct", "full"])
    assert (line.slope, line.r2) == (0.0, 0.0)
    assert line.foretells(55.0) == pytest.approx(33.0)


@pytest.mark.parametrize("gone", [False, True])
def test_what_is_in_domain_does_not_hang_on_which_cells_there_are(made_up, tmp_path, gone):
    """One cell failed, the protocol names the shifted suite first, or the answers to it are older."""
    made_up.add_data("snli-ve", "mini-snli-ve", n=120, names=("test", "test-rendering"))
    for arm in ("finetune", "affinity"):
        for seed in range(2):
            made_up.add_run(arm, seed)
    protocol = tmp_path / "mine.yaml"
    protocol.write_text("suites: [test-rendering]\n")
    assert made_up.evaluate(str(protocol)).robustness == ()
    protocol.write_text("suites: [test-rendering, test]\n")
    results = made_up.evaluate(str(protocol))
    if gone:
        made_up.data.clear()
        results = made_up.evaluate()
    assert results.sources[0].suites == ("test", "test-rendering")
    assert [(row.in_domain, row.suite) for row in results.robustness] == [("test", "test-rendering")] * 2


def test_a_failed_cell_leaves_the_in_domain_suite_first(made_up):
    made_up.add_data("snli-ve", "mini-snli-ve", n=120)
    for arm in ("finetune", "affinity"):
        for seed in range(2):
            made_up.add_run(arm, seed)
    usual = made_up.scorer

    def scorer(student, examples, regions, spec):
        if "finetune" in str(student) and "-s0" in str(student) and "rendering" not in examples[0].id:
            raise RuntimeError("out of memory")
        return usual(student, examples, regions, spec)

    results = evaluate(made_up.workspace, "full", scorer=scorer)
    assert len(results.problems) == 1
    assert results.sources[0].suites[0] == "test"
    assert {row.in_domain for row in results.robustness} == {"test"}


def test_gaps_and_effective_robustness_stand_in_the_results(made_up):
    """The made-up students lose 10 points under the shift, whatever they are: all but chance lies in their skill."""
    made_up.add_data("snli-ve", "mini-snli-ve", n=400)
    made_up.skill |= {"finetune": 0.5, "affinity": 0.5}
    for arm in ("finetune", "affinity"):
        for seed in range(2):
            made_up.add_run(arm, seed)
            made_up.skill["finetune"] = 0.8
            made_up.add_run(arm, seed, shots="full")
            made_up.skill["finetune"] = 0.5
    results = made_up.evaluate()
    rows = {(row.label, row.shots, row.suite): row for row in results.rows if row.headline}
    found = {(one.label, one.shots): one for one in results.robustness}
    assert set(found) == {(arm, shots) for arm in ("finetune", "affinity") for shots in ("1pct", "full")}
    one = found["affinity", "1pct"]
    here, there = rows["affinity", "1pct", "test"], rows["affinity", "1pct", "test-rendering"]
    assert (one.in_domain, one.suite) == ("test", "test-rendering")
    assert one.gap == pytest.approx(there.mean - here.mean)
    interval = stats.ttest_1samp(np.subtract(there.per_seed, here.per_seed), 0).confidence_interval(0.95)
    assert (one.gap_low, one.gap_high) == pytest.approx((interval.low, interval.high))
    plain = found["finetune", "1pct"]
    assert one.gap_difference == pytest.approx(one.gap - plain.gap)
    assert plain.gap_difference is None
    assert one.line["n_runs"] == 4
    assert one.line["shots"] == ["1pct", "full"]
    above = [
        100 * (b / 100 - expit(one.line["intercept"] + one.line["slope"] * logit(a / 100)))
        for a, b in zip(here.per_seed, there.per_seed, strict=True)
    ]
    assert one.effective_per_seed == pytest.approx(above)
    assert one.effective == pytest.approx(np.mean(above))


def test_one_number_of_labels_has_gaps_and_no_line(made_up):
    made_up.add_data("snli-ve", "mini-snli-ve")
    for seed in range(3):
        made_up.add_run("finetune", seed)
    (one,) = made_up.evaluate().robustness
    assert one.gap < 0
    assert one.line is None
    assert one.effective is None
    assert one.effective_per_seed == ()
