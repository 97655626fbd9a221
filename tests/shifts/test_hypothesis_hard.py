from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from madkit.core.errors import DataError
from madkit.core.workspace import Workspace
from madkit.shifts import ShiftOptions, hypothesis_classifier, make_shift
from madkit.tasks.data import TaskData, open_task
from madkit.tasks.importing.run import import_data
from madkit.tasks.spec import SNLI_VE_LABELS

CUES = ("nobody", "outdoors", "sad")
WORDS = [f"word{i}" for i in range(40)]
OPTIONS = ShiftOptions(epochs=6)


def imported(root: Path, cue: float, *, sizes: tuple[int, int, int] = (400, 100, 150), same: bool = False) -> TaskData:
    """An SNLI-VE whose hypotheses name their label with probability `cue`."""
    draw = random.Random(f"{cue}")
    files = root / "files"
    files.mkdir()
    for split, n in zip(("train", "dev", "test"), sizes, strict=True):
        lines = []
        for i in range(n):
            label = 0 if same else draw.randrange(3)
            words = [draw.choice(WORDS) for _ in range(4)]
            if draw.random() < cue:
                words = [CUES[label]]
            image = f"{split}{i // 3}"
            (files / f"{image}.jpg").touch()
            lines.append({"pairID": f"{image}.jpg#{i}r1", "Flickr30K_ID": image, "sentence2": " ".join(words),
                          "gold_label": SNLI_VE_LABELS[label]})  # fmt: skip
        (files / f"snli_ve_{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    workspace = Workspace.at(root / "ws")
    import_data(workspace, "snli-ve", files)
    return open_task(workspace, "snli-ve")


def make(data: TaskData, options: ShiftOptions = OPTIONS) -> TaskData:
    make_shift(Workspace.at(data.root.parents[1]), data, "hypothesis-hard", options)
    return TaskData(data.root)


def ids(data: TaskData, suite: str) -> list[str]:
    return [example.id for example in data.examples(suite)]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> TaskData:
    return make(imported(tmp_path_factory.mktemp("planted"), 0.6))


def test_hard_and_easy_are_the_test_split(planted: TaskData) -> None:
    assert {"test-hypothesis-hard", "test-hypothesis-easy"} <= set(planted.suites())
    hard, easy = ids(planted, "test-hypothesis-hard"), ids(planted, "test-hypothesis-easy")
    everything = {example.id: example for example in planted.examples("test")}
    assert sorted(hard + easy) == sorted(everything)
    assert all(one == everything[one.id] for one in planted.examples("test-hypothesis-hard"))
    assert hard == [one for one in everything if one in set(hard)], "in the order of the test split"


def test_what_the_words_tell_is_easy(planted: TaskData) -> None:
    cue = dict(enumerate(CUES))
    told = [one.id for one in planted.examples("test") if one.context[0].text == cue[one.label or 0]]
    assert len(told) > 60
    easy = set(ids(planted, "test-hypothesis-easy"))
    assert sum(one in easy for one in told) > 0.95 * len(told)


def test_what_is_published(planted: TaskData) -> None:
    for suite in ("test-hypothesis-hard", "test-hypothesis-easy"):
        home = planted.root / "suites" / suite
        assert (home / "pair-ids.txt").read_text().splitlines() == ids(planted, suite)
    lists = [
        set((planted.root / "suites" / f"test-hypothesis-{kind}" / "pair-ids-dev.txt").read_text().splitlines())
        for kind in ("hard", "easy")
    ]
    assert lists[0] | lists[1] == set(ids(planted, "dev"))
    assert not lists[0] & lists[1]
    hard = planted.about("test-hypothesis-hard")
    facts, easy = hard["made_by"], planted.about("test-hypothesis-easy")
    right = 100 * easy["examples"] / 150
    assert facts["accuracy"]["test"] == pytest.approx(right, abs=0.01)
    assert facts["accuracy"]["dev"] == pytest.approx(len(lists[1]), abs=0.01)
    assert not facts["at chance"]
    assert (facts["train pairs"], facts["seed"], facts["split"]) == (400, 0, "test")
    assert facts["counts"]["pairs"] == hard["examples"]
    assert sum(facts["counts"][name] for name in SNLI_VE_LABELS) == hard["examples"]
    labels = [one.label for one in planted.examples("test")]
    for index, name in enumerate(SNLI_VE_LABELS):
        solved = sum(one.label == index for one in planted.examples("test-hypothesis-easy"))
        assert facts["test accuracy by label"][name] == pytest.approx(100 * solved / labels.count(index), abs=0.01)


def test_a_finished_one_is_not_made_again(
    planted: TaskData, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(hypothesis_classifier, "fit", trained)
    made = make_shift(Workspace.at(planted.root.parents[1]), planted, "hypothesis-hard", OPTIONS)
    assert [one.name for one in made] == ["test-hypothesis-hard", "test-hypothesis-easy"]
    assert made[0].counts["pairs"] == planted.about("test-hypothesis-hard")["examples"]
    assert "nothing to make" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="trained again"):
        make(planted, ShiftOptions(epochs=6, seed=1))


def test_a_classifier_at_chance_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make(imported(tmp_path, 0.0), ShiftOptions(epochs=3, limit=200))
    facts = data.about("test-hypothesis-hard")["made_by"]
    assert facts["at chance"]
    assert facts["train pairs"] == 200
    assert "That is chance: the hypotheses give nothing away" in capsys.readouterr().err


def test_no_suite_without_two_kinds_of_pairs(tmp_path: Path) -> None:
    data = imported(tmp_path, 1.0, sizes=(300, 30, 30))
    with pytest.raises(DataError, match="gets all of the 30 test pairs of snli-ve right"):
        make(data, ShiftOptions())
    assert TaskData(data.root).suites() == ["test"]


def test_one_label_alone_cannot_be_learned(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="have the same label"):
        make(imported(tmp_path, 0.5, sizes=(6, 3, 3), same=True))
