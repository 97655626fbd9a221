from __future__ import annotations

import json
import signal

import numpy as np
import pytest
from scipy import stats

from madkit.core.errors import ConfigError, DataError, MadkitError, StoppedResumable
from madkit.core.files import read_jsonl, sha256_file
from madkit.evaluate import stage
from madkit.evaluate.results import SCHEMA, Results
from madkit.tasks.spec import custom_spec


def pairs(made_up, seeds=3, **values):
    made_up.add_data(values.get("task", "snli-ve"), values.get("source", "mini-snli-ve"))
    return [made_up.add_run(arm, seed, **values) for arm in ("finetune", "affinity") for seed in range(seeds)]


def row_of(results, **wanted):
    (row,) = [row for row in results.rows if all(getattr(row, key) == value for key, value in wanted.items())]
    return row


def test_rows_hold_the_scores_of_the_seeds_and_scipys_interval(made_up):
    folders = pairs(made_up)
    results = made_up.evaluate()
    row = row_of(results, arm="affinity", suite="test", metric="accuracy")
    by_hand = []
    for folder in folders[3:]:
        lines = [json.loads(line) for line in (folder / "predictions" / "test.jsonl").read_text().splitlines()]
        by_hand.append(100 * sum(line["prediction"] == line["label"] for line in lines) / len(lines))
    assert row.per_seed == pytest.approx(by_hand)
    interval = stats.ttest_1samp(by_hand, 0).confidence_interval(0.95)
    assert (row.low, row.high) == pytest.approx((interval.low, interval.high))
    assert (row.n_seeds, row.n_examples, row.n_images, row.seeds) == (3, 60, 30, (0, 1, 2))
    assert row.headline
    assert row.is_mini


def test_differences_are_paired_by_seed_and_question(made_up):
    pairs(made_up)
    results = made_up.evaluate()
    ours, theirs = (row_of(results, arm=arm, suite="test", metric="accuracy") for arm in ("affinity", "finetune"))
    assert theirs.difference is None
    assert ours.difference is not None
    assert ours.difference.mean == pytest.approx(np.mean(ours.per_seed) - np.mean(theirs.per_seed))
    assert ours.difference.seeds == (0, 1, 2)
    assert ours.difference.p_holm is not None
    assert ours.difference.p is not None
    assert ours.difference.p_holm >= ours.difference.p


def test_only_common_seeds_are_compared(made_up):
    pairs(made_up, seeds=2)
    made_up.add_run("affinity", 9)
    row = row_of(made_up.evaluate(), arm="affinity", suite="test", metric="accuracy")
    assert row.n_seeds == 3
    assert row.difference is not None
    assert row.difference.seeds == (0, 1)


def test_all_vcr_metrics_are_rows_and_the_headline_is_the_joint_one(made_up):
    pairs(made_up, task="vcr", source="mini-vcr")
    rows = [row for row in made_up.evaluate("smoke").rows if row.arm == "affinity"]
    assert [(row.metric, row.headline, row.chance) for row in rows] == [
        ("Q->AR", True, 6.25),
        ("Q->A", False, 25.0),
        ("QA->R", False, 25.0),
    ]
    assert all(row.difference is not None for row in rows)


def test_a_second_evaluation_scores_nothing_and_says_the_same(made_up):
    pairs(made_up)
    first = made_up.evaluate()
    assert len(made_up.scored) == 12
    second = made_up.evaluate()
    assert len(made_up.scored) == 12
    assert second.rows == first.rows


def test_results_are_one_row_per_suite_with_digests(made_up):
    folder = pairs(made_up, seeds=1)[0]
    made_up.evaluate()
    rows = read_jsonl(folder / "results.jsonl")
    assert [row["suite"] for row in rows] == ["test", "test-rendering"]
    assert all(len(row["student_digest"]) == len(row["suite_digest"]) == 16 for row in rows)
    assert rows[0]["metrics"]["accuracy"] == pytest.approx(made_up.evaluate().rows[0].mean, abs=1e-4)


@pytest.mark.parametrize("change", ["student", "predictions", "torn row", "no predictions"])
def test_what_no_longer_fits_is_scored_again(made_up, change):
    folder = pairs(made_up, seeds=1)[0]
    made_up.evaluate("smoke")
    before = len(made_up.scored)
    predictions = folder / "predictions" / "test.jsonl"
    if change == "student":
        (folder / "student" / "vocab.txt").write_text("another")
    elif change == "predictions":
        predictions.write_text(predictions.read_text().replace('"score": 0.0', '"score": 1.0', 1))
    elif change == "torn row":
        text = (folder / "results.jsonl").read_text()
        (folder / "results.jsonl").write_text(text[: len(text) // 2])
    else:
        predictions.unlink()
    made_up.evaluate("smoke")
    assert made_up.scored[before:] == [(folder.name, "test")]
    made_up.evaluate("smoke")
    assert len(made_up.scored) == before + 1


def test_nan_logits_cost_their_own_cell_only(made_up):
    folder = pairs(made_up)[1]
    made_up.broken.add(folder.name)
    results = made_up.evaluate("smoke")
    (problem,) = results.problems
    assert "NaN or infinite logits on 60 of 60" in problem["error"]
    assert folder.name in problem["where"]
    assert not (folder / "results.jsonl").exists()
    assert row_of(results, arm="finetune", metric="accuracy").seeds == (0, 2)
    assert row_of(results, arm="affinity", metric="accuracy").difference.seeds == (0, 2)


def test_any_exception_of_a_student_costs_its_own_cell_only(made_up, monkeypatch):
    pairs(made_up)
    plain = made_up.scorer

    def scorer(student, examples, regions, spec):
        if "affinity" in str(student):
            raise RuntimeError("size mismatch\nand a long story")
        return plain(student, examples, regions, spec)

    monkeypatch.setattr(made_up, "scorer", scorer)
    results = made_up.evaluate("smoke")
    assert [problem["error"] for problem in results.problems] == ["RuntimeError: size mismatch"] * 3
    assert {row.arm for row in results.rows} == {"finetune"}


def test_a_suite_that_the_data_lacks_is_one_clear_problem(made_up, tmp_path):
    from madkit.core.errors import NotFoundError

    data = made_up.add_data("snli-ve", "mini-snli-ve")
    made_up.add_run()
    plain = data.examples

    def examples(suite):
        if suite not in data.names:
            raise NotFoundError(f"mini-snli-ve has no suite {suite!r}.")
        return plain(suite)

    data.examples = examples
    protocol = tmp_path / "mine.yaml"
    protocol.write_text("suites: [test, test-moon]\n")
    results = made_up.evaluate(str(protocol))
    assert [problem["error"] for problem in results.problems] == ["mini-snli-ve has no suite 'test-moon'."]
    assert {row.suite for row in results.rows} == {"test"}


def test_revisions_never_share_a_table(made_up):
    pairs(made_up, seeds=2)
    made_up.add_data("snli-ve", "mini-snli-ve", "bbbb000011112222", n=20)
    for seed in range(2):
        made_up.add_run("mad", seed, data_revision="bbbb000011112222")
    results = made_up.evaluate("smoke")
    assert [(source.name, source.revision[:4]) for source in results.sources] == [
        ("mini-snli-ve", "aaaa"),
        ("mini-snli-ve", "bbbb"),
    ]
    row = row_of(results, arm="mad", metric="accuracy")
    assert row.n_examples == 20
    assert row.difference is None  # the baseline was scored on other questions


def test_mini_and_real_never_share_a_table(made_up):
    pairs(made_up, seeds=1)
    made_up.add_data("snli-ve", "snli-ve", "cccc000011112222")
    made_up.add_run("mad", 0, source="snli-ve", data_revision="cccc000011112222", is_mini=False)
    results = made_up.evaluate("smoke")
    assert [(source.name, source.is_mini) for source in results.sources] == [("snli-ve", False), ("mini-snli-ve", True)]
    assert row_of(results, arm="mad", metric="accuracy").difference is None


def test_a_run_whose_data_is_gone_is_refused_and_the_rest_is_there(made_up):
    pairs(made_up, seeds=1)
    made_up.add_run("mad", 0, data_revision="dddd000011112222")
    results = made_up.evaluate("smoke")
    (problem,) = results.problems
    assert "does not hold revision dddd000011112222" in problem["error"]
    assert {row.arm for row in results.rows} == {"finetune", "affinity"}


def test_results_outlive_their_data(made_up):
    pairs(made_up)
    before = made_up.evaluate()
    made_up.data.clear()
    after = made_up.evaluate()
    assert after.rows == before.rows
    assert not after.problems


def test_a_run_trained_twice_counts_once(made_up):
    pairs(made_up, seeds=2)
    made_up.add_run("finetune", 0, tag="11111111")
    assert row_of(made_up.evaluate("smoke"), arm="finetune", metric="accuracy").seeds == (0, 1)


def test_a_shared_pre_phase_is_counted(made_up):
    made_up.add_data("snli-ve", "mini-snli-ve")
    for seed in range(3):
        made_up.add_run("affinity", seed, config={"pre_phase": {"seed": 0}})
    row = row_of(made_up.evaluate("smoke"), arm="affinity", metric="accuracy")
    assert (row.n_pre_phases, row.n_seeds) == (1, 3)


def test_stopped_between_cells_it_keeps_what_is_done(made_up, monkeypatch):
    pairs(made_up, seeds=2)
    plain = made_up.scorer

    def scorer(*arguments):
        rows = plain(*arguments)
        if len(made_up.scored) == 3:
            signal.raise_signal(signal.SIGTERM)
        return rows

    monkeypatch.setattr(made_up, "scorer", scorer)
    with pytest.raises(StoppedResumable) as caught:
        made_up.evaluate()
    assert caught.value.exit_code == 75
    assert len(made_up.scored) == 3
    made_up.evaluate()
    assert len(made_up.scored) == 8  # the rest, and nothing twice


def vqa_runs(made_up):
    return pairs(made_up, seeds=1, task="vqa", source="mini-vqa")


def test_the_older_rule_scores_the_same_answers_without_a_student(made_up):
    folder = vqa_runs(made_up)[0]
    now = made_up.evaluate("smoke")
    scored = len(made_up.scored)
    before = made_up.evaluate("smoke", vqa_rule="pre2021")
    assert len(made_up.scored) == scored
    assert {row.vqa_rule for row in now.rows} == {"current"}
    assert {row.vqa_rule for row in before.rows} == {"pre2021"}
    lines = [json.loads(line) for line in (folder / "predictions" / "test.jsonl").read_text().splitlines()]
    # only where all ten say "red" is "red" right by the older rule
    right = [line["prediction"] == "red" and line["form"] == "is the" for line in lines]
    row = row_of(before, arm="finetune", metric="accuracy")
    assert row.mean == pytest.approx(100 * sum(right) / len(right))
    assert row_of(now, arm="finetune", metric="accuracy").mean > row.mean
    kept = [(row["vqa_rule"], row["metrics"]["accuracy"]) for row in read_jsonl(folder / "results.jsonl")]
    assert kept == [
        ("current", pytest.approx(now.rows[0].mean, abs=1e-4)),
        ("pre2021", pytest.approx(row.mean, abs=1e-4)),
    ]
    made_up.data.clear()  # both outlive the data
    assert made_up.evaluate("smoke", vqa_rule="pre2021").rows == before.rows
    assert made_up.evaluate("smoke").rows == now.rows
    assert len(read_jsonl(folder / "results.jsonl")) == 2


def test_kinds_of_question_are_told_beside_the_rows_and_not_tested(made_up):
    vqa_runs(made_up)
    results = made_up.evaluate("smoke")
    assert [(one.arm, one.by, one.metric) for one in results.breakdowns] == [
        ("finetune", "question type", "accuracy"),
        ("affinity", "question type", "accuracy"),
    ]
    one = results.breakdowns[0]
    assert one.n_examples == {"is the": 20, "what is": 40}
    row = row_of(results, arm="finetune", metric="accuracy")
    assert (20 * one.mean["is the"] + 40 * one.mean["what is"]) / 60 == pytest.approx(row.mean)
    assert not any("what is" in row.metric for row in results.rows)


def test_an_older_metric_version_is_scored_again_from_the_answers(made_up):
    folder = vqa_runs(made_up)[0]
    results = made_up.evaluate("smoke")
    path, rows = folder / "results.jsonl", read_jsonl(folder / "results.jsonl")
    predictions = folder / "predictions" / "test.jsonl"
    old = [json.loads(line) for line in predictions.read_text().splitlines()]
    for line in old:
        del line["score_pre2021"], line["form"]
        line["score"] = 0.0
    predictions.write_text("".join(json.dumps(line) + "\n" for line in old))
    digest = sha256_file(predictions)
    path.write_text(json.dumps({**rows[0], "metric_version": 1, "predictions_sha256": digest}) + "\n")
    scored = len(made_up.scored)
    assert made_up.evaluate("smoke").rows == results.rows
    assert len(made_up.scored) == scored


def test_a_suite_added_later_or_made_anew_is_scored_alone(made_up):
    folders = pairs(made_up, seeds=1)
    data = made_up.data["mini-snli-ve", "aaaa000011112222"]
    data.names = ("test",)
    made_up.evaluate()
    assert len(made_up.scored) == 2
    data.names = ("test", "test-hypothesis-hard")
    data.suite_revisions = {"test-hypothesis-hard": "1111"}
    results = made_up.evaluate()
    assert made_up.scored[2:] == [(folder.name, "test-hypothesis-hard") for folder in folders]
    assert {row.suite for row in results.rows} == {"test", "test-hypothesis-hard"}
    data.suite_revisions = {"test-hypothesis-hard": "2222"}
    made_up.evaluate()
    assert len(made_up.scored) == 6
    made_up.evaluate()
    assert len(made_up.scored) == 6


def test_other_region_features_make_results_anew_and_are_warned_of(made_up, capsys):
    folders = [made_up.add_run("finetune", seed, regions="aa" if seed else None) for seed in range(2)]
    data = made_up.add_data("snli-ve", "mini-snli-ve")
    data.names, data.region_digests = ("test", "test-own"), {None: "aa", "test": "aa", "test-own": "bb"}
    made_up.evaluate()
    made_up.evaluate()
    assert len(made_up.scored) == 4
    assert "other region features" not in capsys.readouterr().err
    data.region_digests["test-own"] = "cc"
    made_up.evaluate()
    assert made_up.scored[4:] == [(folder.name, "test-own") for folder in folders]
    data.region_digests |= {None: "dd", "test": "dd"}
    made_up.evaluate()
    assert made_up.scored[6:] == [(folder.name, "test") for folder in folders]
    # a run from before features had digests says nothing of them
    warnings = [line for line in capsys.readouterr().err.splitlines() if "other region features" in line]
    assert [folders[1].name in line for line in warnings] == [True]


def test_official_test_sets_without_labels_are_no_suites(made_up, tmp_path):
    pairs(made_up, seeds=1)
    protocol = tmp_path / "mine.yaml"
    protocol.write_text("suites: [test, submission]\n")
    results = made_up.evaluate(str(protocol))
    assert {row.suite for row in results.rows} == {"test"}
    assert len(results.problems) == 2
    assert "without labels" in results.problems[0]["error"]
    assert results.problems[0]["hint"].startswith("madkit predict mini-uniter-finetune-1pct-s0-00000000 --split")


def test_a_users_own_task_needs_the_data_or_the_runs_description(made_up):
    spec = custom_spec("birds", "multiple-choice", n_candidates=4)
    made_up.add_data("birds", "birds", own_spec=spec)
    values = {"task": "birds", "source": "birds", "is_mini": False}
    made_up.add_run("finetune", 0, spec=spec.to_dict(), **values)
    made_up.add_run("affinity", 0, **values)
    before = made_up.evaluate("smoke")
    assert {(row.metric, row.chance, row.headline) for row in before.rows} == {("accuracy", 25.0, True)}
    assert before.sources[0].title == "birds"
    assert {cell["task"] for cell in before.missing} <= {"birds"}
    made_up.data.clear()
    after = made_up.evaluate("smoke")
    assert [row.per_seed for row in after.rows] == [row.per_seed for row in before.rows]
    assert not after.problems


def test_an_unknown_task_without_data_is_one_problem(made_up):
    pairs(made_up, seeds=1)
    made_up.add_run("mad", 0, task="birds", source="birds", is_mini=False)
    results = made_up.evaluate("smoke")
    (problem,) = results.problems
    assert "says what the task 'birds' is" in problem["error"]
    assert {row.task for row in results.rows} == {"snli-ve"}


def test_data_that_cannot_be_opened_is_said_once_and_costs_no_other_table(made_up, monkeypatch):
    pairs(made_up, seeds=2)
    for seed in range(2):
        made_up.add_run("mad", seed, task="vqa", source="vqa", is_mini=False)
    plain = made_up.find

    def find(workspace, run):
        if run.source == "vqa":
            raise DataError("manifest.json has schema 1.", hint="import it again")
        return plain(workspace, run)

    monkeypatch.setattr(stage, "find_data", find)
    results = made_up.evaluate("smoke")
    assert sum(problem["error"] == "manifest.json has schema 1." for problem in results.problems) == 1
    assert {row.task for row in results.rows} == {"snli-ve"}


def test_protocols_may_name_data_sets_and_wrong_names_are_suggested(made_up, tmp_path):
    pairs(made_up, seeds=1)
    made_up.add_data("vqa", "vqa-cp-v2")
    made_up.add_run("finetune", 0, task="vqa", source="vqa-cp-v2", is_mini=False)
    protocol = tmp_path / "mine.yaml"
    protocol.write_text("tasks: [vqa-cp-v2]\nsuites: [test]\n")
    assert {row.source for row in made_up.evaluate(str(protocol)).rows} == {"vqa-cp-v2"}
    protocol.write_text("tasks: [vqa-pc-v2]\n")
    with pytest.raises(ConfigError, match="Did you mean 'vqa-cp-v2'"):
        made_up.evaluate(str(protocol))


def test_the_document_is_json_and_comes_back_as_it_was(made_up):
    pairs(made_up, seeds=2)
    results = made_up.evaluate()
    text = json.dumps(results.document(), allow_nan=False)
    assert Results.from_document(json.loads(text)) == results
    assert json.loads(text)["schema"] == SCHEMA == "madkit.results/1"


@pytest.mark.parametrize("document", [None, [], {"schema": "madkit.results/9"}, {"schema": SCHEMA, "rows": []}])
def test_other_documents_are_refused(document):
    with pytest.raises(MadkitError):
        Results.from_document(document)


def test_data_without_a_test_split_is_said_to_have_nothing_to_score(made_up):
    made_up.add_data("snli-ve", "mini-snli-ve", names=())
    made_up.add_run("mad", 0)
    results = made_up.evaluate()
    assert results.rows == ()
    assert [problem["error"] for problem in results.problems] == [
        "mini-snli-ve has no test split, so that there is nothing to score."
    ]
