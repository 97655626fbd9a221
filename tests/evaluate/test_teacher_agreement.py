"""Agreement with the teacher: its answers against NumPy and the probe of distillation, and the rows that are kept."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from madkit.core.errors import NotFoundError
from madkit.core.files import read_jsonl
from madkit.core.seeds import derive_seed
from madkit.distill.teacher.probe_reader import ProbeReader
from madkit.evaluate import teacher_agreement
from madkit.evaluate.results import Results
from madkit.evaluate.teacher_answers import TeacherAnswers
from madkit.mad.probe import cross_fit_probe
from madkit.tasks.id_lists import labelled_examples
from madkit.tasks.spec import get_task

from .conftest import make_examples


class Part:
    """Vectors drawn from the names, as one half of a cache."""

    def __init__(self, width, gone=()):
        self.dim, self.absent, self._gone = width, dict.fromkeys(range(len(gone))), set(gone)
        self._names, self._rows = [], {}

    def vector(self, name):
        return np.random.default_rng(derive_seed("vector", name)).normal(size=self.dim).astype(np.float16)

    def present(self, names):
        return np.array([name not in self._gone for name in names])

    def rows(self, names, *, absent="error"):
        for name in names:
            if name not in self._rows:
                self._rows[name] = len(self._names)
                self._names.append(name)
        return np.array([self._rows[name] for name in names if absent == "error" or name not in self._gone])

    def globals(self, rows):
        return np.stack([self.vector(self._names[row]) for row in rows])


def made_cache(images=8, texts=8, shared=True, gone=(), parts=("images", "texts")):
    return SimpleNamespace(
        parts=parts, images=Part(images, gone), texts=Part(texts), shared_space=shared, logit_scale=10.0
    )


def unit(vector):
    vector = vector.astype(np.float64)
    return vector / np.linalg.norm(vector)


def test_zero_shot_is_the_candidate_nearest_to_the_image():
    examples = make_examples(get_task("vcr"), "test", 10)
    cache = made_cache()
    rows = TeacherAnswers([cache], [], get_task("vcr")).rows("zero-shot", examples)
    assert [row["id"] for row in rows] == [example.id for example in examples]
    for example, row in zip(examples, rows, strict=True):
        image = unit(cache.images.vector(example.image.id))
        cosines = np.array([image @ unit(cache.texts.vector(one.text)) for one in example.candidates])
        powers = np.exp(10 * cosines)
        assert row["logits"] == pytest.approx(powers / powers.sum(), abs=1e-4)
        assert row["prediction"] == cosines.argmax()


@pytest.mark.parametrize(("task", "shared"), [("snli-ve", True), ("vqa", True), ("vcr", False)])
def test_there_is_no_zero_shot_without_candidates_or_a_shared_space(task, shared):
    cache = made_cache(shared=shared)
    assert (
        TeacherAnswers([cache], [], get_task(task)).rows("zero-shot", make_examples(get_task(task), "test", 4)) is None
    )


@pytest.mark.parametrize("task", ["vcr", "snli-ve", "vqa"])
@pytest.mark.parametrize("caches", ["one", "two", "unlike"])
def test_the_probe_reads_what_distillation_reads(task, caches):
    examples = make_examples(get_task(task), "test", 6)
    made = {
        "one": [made_cache()],
        "two": [made_cache(), made_cache(6, 4, shared=False)],
        "unlike": [made_cache(parts=("images",)), made_cache(texts=5, parts=("texts",))],
    }[caches]
    expected = ProbeReader(made, list(dict.fromkeys(one.image.id for one in examples))).features(examples, "global")
    found = TeacherAnswers(made, [], get_task(task))._features(examples)
    torch.testing.assert_close(found, expected)


def test_the_probe_answers_its_own_training_images_out_of_fold_and_others_by_all_heads():
    spec = get_task("snli-ve")
    labelled, cache = make_examples(spec, "train", 40), made_cache()
    answers = TeacherAnswers([cache], labelled, spec, seed=3)
    rows = answers.rows("probe", labelled)
    features = answers._features(labelled)
    targets = torch.tensor([one.label for one in labelled])
    images = [one.image.id for one in labelled]
    fit = cross_fit_probe(features, targets, groups=images, n_classes=3, seed=derive_seed(3, "probe"))
    assert [row["prediction"] for row in rows] == fit.probabilities.argmax(-1).tolist()
    fresh = make_examples(spec, "test", 30)
    before = [row["prediction"] for row in answers.rows("probe", fresh)]
    for example in fresh:
        object.__setattr__(example, "label", 0)  # the labels of a suite are not looked at
    assert [row["prediction"] for row in TeacherAnswers([cache], labelled, spec, seed=3).rows("probe", fresh)] == before
    assert len(set(before)) > 1


def test_the_probe_answers_vqa_with_words_and_learns():
    spec = get_task("vqa")
    labelled = make_examples(spec, "train", 40)
    rows = TeacherAnswers([made_cache()], labelled, spec, outputs=["blue", "red"]).rows("probe", labelled)
    assert {row["prediction"] for row in rows} == {"red"}


def test_what_the_cache_has_no_values_for_is_left_out():
    examples = make_examples(get_task("vcr"), "test", 10)
    rows = TeacherAnswers([made_cache(gone=["test-1"])], [], get_task("vcr")).rows("zero-shot", examples)
    assert len(rows) == 16
    assert not any(row["image"] == "test-1" for row in rows)


@pytest.fixture
def taught(made_up, monkeypatch):
    """Three arms on made-up VCR whose teacher's cache is made up, too; `asked` lists the caches that were opened."""
    made_up.add_data("vcr", "mini-vcr", names=("test",))
    folders = [
        made_up.add_run(arm, seed, task="vcr", source="mini-vcr", shots="20", cache_key=key)
        for arm, key in (("finetune", None), ("mad", "mini-x"))
        for seed in range(2)
    ]
    made_up.asked = []

    def cache(self, name):
        made_up.asked.append(name)
        return made_cache(gone=["test-3"])

    monkeypatch.setattr(teacher_agreement._Teachers, "_cache", cache)
    made_up.folders = folders
    return made_up


def told(results, **wanted):
    (one,) = [
        one
        for one in results.teacher_agreements
        if all(getattr(one, key) == value for key, value in {"arm": "mad", "metric": "Q->A", **wanted}.items())
    ]
    return one


def test_rows_tell_how_often_the_answers_are_the_same(taught):
    results = taught.evaluate("smoke", agreement=True)
    assert len(results.teacher_agreements) == 2 * 2 * 3  # arms, ways to ask, metrics
    one = told(results, method="zero-shot")
    data = taught.data["mini-vcr", "aaaa000011112222"]
    rows = TeacherAnswers([made_cache(gone=["test-3"])], [], data.spec).rows("zero-shot", data.examples("test"))
    theirs = {row["id"]: row for row in rows}
    for seed, same in zip(one.seeds, one.per_seed, strict=True):
        lines = [
            json.loads(line) for line in (taught.folders[2 + seed] / "predictions/test.jsonl").read_text().splitlines()
        ]
        lines = [line for line in lines if line["id"] in theirs and line["subtask"] == "answer"]
        assert len(lines) == one.n_examples == 58
        equal = [line["prediction"] == theirs[line["id"]]["prediction"] for line in lines]
        assert same == pytest.approx(100 * np.mean(equal))
    assert one.mean == pytest.approx(np.mean(one.per_seed))
    right = [theirs[line["id"]]["score"] for line in lines]
    assert one.teacher_score == pytest.approx(100 * np.mean(right))
    assert one.when_right is not None
    assert told(results, method="zero-shot", arm="finetune").teacher == "mini"  # the other arm's teacher
    assert Results.from_document(json.loads(json.dumps(results.document()))) == results


def test_the_probe_sees_the_runs_training_labels_alone(taught):
    results = taught.evaluate("smoke", agreement=True)
    data = taught.data["mini-vcr", "aaaa000011112222"]
    labelled = labelled_examples(data, "20", 1)
    assert len(labelled) == 40
    cache = made_cache(gone=["test-3"])
    rows = TeacherAnswers([cache], labelled, data.spec, seed=1).rows("probe", data.examples("test"))
    answers = [row for row in rows if row["subtask"] == "answer"]
    kept = read_jsonl(taught.folders[3] / "agreement.jsonl")
    (row,) = [row for row in kept if (row["method"], row["metric"]) == ("probe", "Q->A")]
    assert row["teacher_score"] == pytest.approx(100 * np.mean([one["score"] for one in answers]))
    assert told(results, method="probe").per_seed[1] == row["same"]


def test_what_was_asked_once_is_told_without_asking(taught):
    first = taught.evaluate("smoke", agreement=True)
    asked = len(taught.asked)
    assert taught.evaluate("smoke").teacher_agreements == first.teacher_agreements
    assert taught.evaluate("smoke", agreement=True).teacher_agreements == first.teacher_agreements
    assert len(taught.asked) == asked
    (taught.folders[2] / "student" / "vocab.txt").write_text("another student")  # answers the same: the rows still fit
    assert taught.evaluate("smoke").teacher_agreements == first.teacher_agreements
    (taught.folders[2] / "agreement.jsonl").unlink()
    assert told(taught.evaluate("smoke"), method="probe").seeds == (1,)


def test_nothing_is_asked_where_nobody_wants_to_know(taught):
    assert taught.evaluate("smoke").teacher_agreements == ()
    assert taught.asked == []


def test_without_a_cache_it_goes_on_and_says_so_once(taught, monkeypatch, capsys):
    def gone(self, name):
        raise NotFoundError(f"There is no token cache named '{name}'.")

    monkeypatch.setattr(teacher_agreement._Teachers, "_cache", gone)
    results = taught.evaluate("smoke", agreement=True)
    assert len(results.rows) == 6
    assert results.teacher_agreements == ()
    warnings = [line for line in capsys.readouterr().err.splitlines() if "cannot be asked" in line]
    assert len(warnings) == 1
    assert "There is no token cache named 'mini-x'" in warnings[0]


def test_the_terminal_has_a_line_for_each_arm_and_way_to_ask(taught, capsys):
    from madkit.cli.evaluate import print_results

    print_results(taught.evaluate("smoke", agreement=True))
    table = capsys.readouterr().out.partition("Same answer as the teacher mini, % (mini-vcr, test, mini-uniter, 20)")[2]
    lines = [line.split()[:2] for line in table.splitlines() if line.startswith(("finetune", "mad"))]
    assert lines == [[arm, method] for arm in ("finetune", "mad") for method in ("zero-shot", "probe")]
    assert max(map(len, table.splitlines())) <= 80
