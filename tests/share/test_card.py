"""The model card: what the hub's own classes read in it, its figures, and what it must never claim."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from madkit import predict
from madkit.core.files import write_json_atomic
from madkit.share.folder import export_run
from madkit.tasks.formats.custom import keys_of

from .conftest import CLASSES, SharedRun, write_results


def card_of(run: SharedRun, folder: Path) -> ModelCard:
    export_run(run.workspace, str(run.path), folder)
    return ModelCard.load(folder / "README.md")


def test_the_front_matter_is_what_the_hubs_classes_read(run: SharedRun, tmp_path: Path) -> None:
    run.score(percent=41.254)
    run.score("test-rendering", 38.5)
    data = card_of(run, tmp_path / "out").data
    assert (data.library_name, data.license, data.language) == ("madkit", "unknown", "en")
    assert data.datasets == [run.data.source]
    assert data.metrics == ["accuracy"]
    assert {"madkit", "uniter", "snli-ve", "knowledge-distillation", "embedded-benchmark"} <= set(data.tags)
    found = {(one.dataset_split, one.metric_name): one.metric_value for one in data.eval_results}
    assert found == {("test", "accuracy"): 41.25, ("test-rendering", "accuracy"): 38.5}
    assert {one.dataset_revision for one in data.eval_results} == {run.data.revision}
    assert all("embedded benchmark" in one.dataset_name for one in data.eval_results)
    text = (tmp_path / "out" / "README.md").read_text()
    plain = yaml.safe_load(text.split("---\n")[1])
    assert plain["model-index"][0]["results"][0]["metrics"] == [
        {"type": "accuracy", "value": 41.25, "name": "accuracy"}
    ]


def test_one_seed_has_no_interval(run: SharedRun, tmp_path: Path) -> None:
    run.score(percent=41.25)
    write_results(run, {1: 41.25}, low=None, high=None)
    text = card_of(run, tmp_path / "out").text
    assert "| test (in-domain) | accuracy | 41.25 | 2,000 |" in text
    assert "One seed, no interval." in text
    assert "[" not in text.split("## Results")[1].split("## Use")[0]


def test_the_interval_is_the_evaluations(run: SharedRun, tmp_path: Path) -> None:
    run.score(percent=41.25)
    run.score("test-wording", 40.0)
    write_results(run, {0: 42.0, 1: 41.25004})
    write_results(run, {0: 42.0, 1: 41.25, 2: 39.0}, name="low-shot")
    text = card_of(run, tmp_path / "out").text
    assert "| test (in-domain) | accuracy | 41.25 | 2,000 | 40.75 (n=3) | [39.00, 43.50] |" in text
    assert "| test-wording | accuracy | 40.00 | 2,000 |  | n=1, no interval |" in text


@pytest.mark.parametrize(
    "other", [{"per_seed": [42.0, 55.0]}, {"revision": "other"}, {"arm": "finetune"}, {"metric": "other"}]
)
def test_no_interval_of_another_experiment(run: SharedRun, tmp_path: Path, other: dict[str, object]) -> None:
    run.score(percent=41.25)
    write_results(run, {0: 42.0, 1: 41.25}, **{"label": "mad", **other})
    assert "One seed, no interval." in card_of(run, tmp_path / "out").text


def test_two_experiments_that_fit_alike_give_no_interval(run: SharedRun, tmp_path: Path) -> None:
    run.score(percent=41.25)
    write_results(run, {0: 42.0, 1: 41.25})
    write_results(run, {0: 49.0, 1: 41.25}, name="other")
    assert "One seed, no interval." in card_of(run, tmp_path / "out").text


def test_a_report_that_cannot_be_read_costs_its_interval_only(run: SharedRun, tmp_path: Path) -> None:
    run.score(percent=41.25)
    (run.workspace.reports / "full").mkdir(parents=True)
    (run.workspace.reports / "full" / "results.json").write_text("{")
    assert "41.25" in card_of(run, tmp_path / "out").text


def test_scores_of_an_earlier_student_are_not_told(run: SharedRun, tmp_path: Path) -> None:
    run.score(percent=99.0, student_digest="of other weights")
    card = card_of(run, tmp_path / "out")
    assert "had not been evaluated" in card.text
    assert "99.0" not in card.text
    assert card.data.eval_results is None


def test_the_last_score_of_a_suite_counts(run: SharedRun, tmp_path: Path) -> None:
    run.score(percent=30.0, metric_version=1)
    run.score(percent=41.25, metric_version=2)
    text = card_of(run, tmp_path / "out").text
    assert "41.25" in text
    assert "30.00" not in text


def test_scores_by_two_rules_say_by_which(run: SharedRun, tmp_path: Path) -> None:
    run.score(percent=53.5, vqa_rule="current")
    run.score(percent=20.75, vqa_rule="pre2021")
    card = card_of(run, tmp_path / "out")
    assert "| test (in-domain) | accuracy, rule current | 53.50 |" in card.text
    assert "| test (in-domain) | accuracy, rule pre2021 | 20.75 |" in card.text
    named = {one.metric_name: one.metric_value for one in card.data.eval_results}
    assert named == {"accuracy, rule current": 53.5, "accuracy, rule pre2021": 20.75}


def test_a_mini_result_is_named_as_such_and_a_real_one_is_not(run: SharedRun, tmp_path: Path) -> None:
    run.score()
    assert "must not be quoted as such" in card_of(run, tmp_path / "mini").text
    write_json_atomic(run.path / "manifest.json", run.manifest(is_mini=False, source="snli-ve"))
    card = card_of(run, tmp_path / "real")
    assert "mbedded" not in card.content
    assert "Flickr30k: on request" in card.text
    assert [one.dataset_name for one in card.data.eval_results] == ["Visual Entailment (SNLI-VE)"]


def test_what_a_reader_needs_is_on_it(run: SharedRun, tmp_path: Path) -> None:
    text = card_of(run, tmp_path / "out").text
    for words in (
        "20 questions, 20 examples",
        "`mad` (chosen \\| tokens)",
        "contradiction, entailment",
        "| name | mini |",
        "| licence of its weights | Apache-2.0 |",
        "madkit predict DIR --task snli-ve",
        "eprint = {2204.10496}",
        "| learning rate | 0.0001, linear, warm-up 0.1 |",
    ):
        assert words in text
    write_json_atomic(run.path / "manifest.json", run.manifest(teacher=None, cache_key=None))
    text = card_of(run, tmp_path / "alone").text
    assert "learnt from labels alone" in text
    assert "knowledge-distillation" not in (tmp_path / "alone" / "README.md").read_text()


def test_its_line_of_questions_and_its_command_are_such_as_predict_takes(run: SharedRun, tmp_path: Path) -> None:
    text = card_of(run, tmp_path / "out").text
    line = json.loads(text.split("A line of `questions.jsonl` is `")[1].split("`")[0])
    assert {"image", "text"} <= line.keys() <= set(keys_of("classification"))
    told = predict(tmp_path / "out", [{**line, "image": str(run.data.examples("test")[0].image.path)}], device="cpu")
    assert set(told.rows[0]["scores"]) == set(CLASSES)
    assert "madkit predict DIR questions.jsonl --images photos --regions pixels" in text
    assert 'regions="pixels")' in text
    write_json_atomic(run.path / "manifest.json", run.manifest(regions="0123456789abcdef"))
    text = card_of(run, tmp_path / "added").text
    assert "--images photos --regions features.tsv" in text
    assert "region features of 768 values, of the detector" in text


def test_adapted_and_several_teachers_are_told_with_their_bases(run: SharedRun, tmp_path: Path) -> None:
    adapted = {"name": "mine", "base": "clip-vit-l14", "train": "lora", "kind": "own", "outside": 0}
    write_json_atomic(run.path / "manifest.json", run.manifest(teacher="mine", adapted=adapted))
    text = card_of(run, tmp_path / "adapted").text
    assert "| name | mine |\n| adapted from | clip-vit-l14 |\n| licence of its weights | MIT |" in text
    names = ["mini", "local:/home/me/dino+roberta-base"]
    rows = [{"name": name, "cache": key, "adapted": None} for name, key in zip(names, "ab", strict=True)]
    manifest = run.manifest(teacher=", ".join(names), cache_key="a, b", teachers=rows)
    write_json_atomic(run.path / "manifest.json", manifest)
    export = card_of(run, tmp_path / "several")
    assert "| name | mini |" in export.text
    assert "| name | local:dino+roberta-base |" in export.text
    assert "local:dino: unknown; roberta-base: MIT" in export.text
    assert "/home/me" not in export.content
    assert export.data.license == "unknown"
