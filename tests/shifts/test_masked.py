"""Masked suites: a scorer that finds a planted shortcut, and masks that hide just it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from madkit.core.errors import DataError, NotFoundError, StoppedResumable, UsageProblem
from madkit.core.files import read_json, read_jsonl
from madkit.core.interrupts import StopSignals
from madkit.shifts import ShiftOptions, make_shift
from madkit.shifts.masked import build as building
from madkit.shifts.masked.losses import token_losses
from madkit.shifts.masked.masks import MASKINGS, masked_row
from madkit.shifts.masked.scorer import DeviceSequences, Scorer, ScorerConfig
from madkit.shifts.masked.scores import losses_of, read_scores
from madkit.shifts.masked.sequences import MAX_LENGTH, SequenceBuilder, Sequences
from madkit.shifts.masked.training import is_chance
from madkit.shifts.masked.words import CLS, MASK, MASKED_TAG, SEP, UNKNOWN, Vocabulary, flatten
from madkit.tasks.data import TaskData
from madkit.tasks.formats.tagged_text import segment_of

Make = Callable[..., Any]
ADV = MASKINGS[0]
OPTIONS = ShiftOptions(epochs=10)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def masked(make_vcr: Make) -> Any:
    """An imported VCR with a planted shortcut, and the suites made from it."""
    workspace, data = make_vcr(120, 24)
    return workspace, data, make_shift(workspace, data, "masked", OPTIONS)


def scored_lines(data: TaskData) -> tuple[list[dict[str, Any]], dict[str, Any], Path]:
    (path,) = (data.root / "suites").glob("masked-scorer-*/shortcut_scores.jsonl")
    return read_jsonl(Path(data.about("test")["files"][0]["path"])), read_scores(path), path


def test_the_scorer_learns_a_planted_shortcut_and_says_so(masked: Any) -> None:
    _, _, made = masked
    for one in made:
        facts = read_json(one.path / "manifest.json")["made_by"]["scorer"]
        for part in ("answer", "rationale"):
            assert facts[part]["accuracy"] > 90  # chance is 25
            assert not facts[part]["at_chance"]
            assert facts[part]["train_questions"] + facts[part]["dev_questions"] == 120


def test_the_highest_loss_is_on_the_planted_token(masked: Any) -> None:
    _, data, _ = masked
    rows, scores, path = scored_lines(data)
    hits = []
    for row in rows:
        losses = losses_of(scores, row, path)
        for part in ("answer", "rationale"):
            label = row[f"{part}_label"]
            (hidden,) = ADV.hidden(losses[part][label])
            hits.append(isinstance(flatten(row[f"{part}_choices"][label])[hidden], int))
    assert np.mean(hits) > 0.95  # four tokens a choice


def test_the_suites_hide_it_or_keep_it(masked: Any) -> None:
    _, data, made = masked
    assert [one.name for one in made] == ["test-adv-top-1", "test-keep-top-1", "test-keep-top-3", "test-keep-top-5"]
    assert TaskData(data.root).suites() == ["test", *sorted(one.name for one in made)]
    by_name = {one.name: one.counts for one in made}
    assert {counts["questions"] for counts in by_name.values()} == {24}
    # Without the tag the shortcut falls to the first choice; with nothing but the tag it is always right.
    assert by_name["test-adv-top-1"]["answers by tag overlap"] < 12
    assert by_name["test-keep-top-1"]["answers by tag overlap"] > 22
    assert by_name["test-keep-top-5"]["rationales by tag overlap"] == 24
    data = TaskData(data.root)
    for example, kept in zip(data.examples("test-adv-top-1"), data.examples("test-keep-top-1"), strict=True):
        assert all(choice.text.count("[MASK]") == 1 for choice in example.candidates)
        assert all(choice.text.count("[MASK]") == 3 for choice in kept.candidates)
    originals = {example.id: example for example in data.examples("test")}
    for example in data.examples("test-adv-top-1"):
        original = originals[example.id]
        assert (example.label, example.boxes, example.image) == (original.label, original.boxes, original.image)
        assert example.context[0] == original.context[0]
        for choice, before in zip(example.candidates, original.candidates, strict=True):
            assert len(choice.tags) == len(before.tags) - ("person" not in choice.text)
    # Five of four tokens: nothing is left to mask.
    assert [e.candidates for e in data.examples("test-keep-top-5")] == [e.candidates for e in originals.values()]


def test_scores_have_the_published_fields(masked: Any) -> None:
    _, data, _ = masked
    rows, _, path = scored_lines(data)
    for line, row in zip(read_jsonl(path), rows, strict=True):
        assert list(line) == [
            "annot_id", "answer_label", "answer_tokens", "answer_losses",
            "rationale_label", "rationale_tokens", "rationale_losses",
        ]  # fmt: skip
        assert line["answer_tokens"] == [flatten(choice) for choice in row["answer_choices"]]
        assert [len(choice) for choice in line["rationale_losses"]] == [4] * 4


def test_finished_suites_are_found_and_missing_ones_made_without_training(
    masked: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a scorer is there already")

    workspace, data, made = masked
    monkeypatch.setattr(building, "train_scorer", never)
    monkeypatch.setattr(building, "token_losses", never)
    before = {one.name: read_json(one.path / "manifest.json")["revision"] for one in made}
    assert make_shift(workspace, TaskData(data.root), "masked", OPTIONS) == made
    assert capsys.readouterr().err.count("nothing to make") == 4
    (made[1].path / "manifest.json").unlink()
    again = make_shift(workspace, TaskData(data.root), "masked", OPTIONS)
    assert {one.name: read_json(one.path / "manifest.json")["revision"] for one in again} == before
    assert capsys.readouterr().err.count("nothing to make") == 3
    with pytest.raises(AssertionError, match="there already"):
        make_shift(workspace, TaskData(data.root), "masked", ShiftOptions(epochs=10, seed=1))


def test_only_wrong_choices(masked: Any) -> None:
    workspace, data, _ = masked
    made = make_shift(workspace, TaskData(data.root), "masked", ShiftOptions(epochs=10, only_wrong=True))
    assert [one.name for one in made][:2] == ["test-adv-top-1-wrong", "test-keep-top-1-wrong"]
    for example in TaskData(data.root).examples("test-keep-top-1-wrong"):
        masks = [choice.text.count("[MASK]") for choice in example.candidates]
        assert masks.pop(example.label) == 0
        assert masks == [3, 3, 3]


def test_the_same_seed_gives_the_same_scores(make_vcr: Make) -> None:
    contents = []
    for _ in range(2):
        workspace, data = make_vcr(30, 6)
        torch.rand(7)  # what was drawn before does not matter
        make_shift(workspace, data, "masked", ShiftOptions(epochs=1, seed=3))
        contents.append(scored_lines(data)[2].read_bytes())
    assert contents[0] == contents[1]


def shuffled(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for number, row in enumerate(rows):
        row["answer_label"], row["rationale_label"] = number % 4, number // 4 % 4
    return rows


def test_a_scorer_at_chance_is_reported(make_vcr: Make, capsys: pytest.CaptureFixture[str]) -> None:
    workspace, data = make_vcr(40, 8, shuffled)
    made = make_shift(workspace, data, "masked", ShiftOptions(epochs=1, limit=24))
    assert "scorer of vcr's answers is at chance" in capsys.readouterr().err
    manifest = read_json(made[0].path / "manifest.json")
    assert manifest["made_by"]["scorer"]["answer"]["at_chance"] is True
    assert manifest["made_by"]["scorer"]["answer"]["train_questions"] == 24
    assert "the scorer of answers and rationales is at chance, so its masks mean nothing" in manifest["about"]
    assert is_chance(0.30, 100)
    assert not is_chance(0.40, 100)
    assert is_chance(0.40, 100, looks=1000)


def test_a_stopped_run_keeps_the_scorer_that_was_ready(make_vcr: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, data = make_vcr(30, 6)
    original = building.train_scorer
    asked: list[str] = []

    def train(*args: Any, stop: StopSignals, title: str, **options: Any) -> Any:
        asked.append(title)
        if title == "rationale" and len(asked) == 2:
            stop._on_signal(15, None)
        return original(*args, stop=stop, title=title, **options)

    monkeypatch.setattr(building, "train_scorer", train)
    with pytest.raises(StoppedResumable):
        make_shift(workspace, data, "masked", ShiftOptions(epochs=1))
    assert TaskData(data.root).suites() == ["test"]
    assert len(make_shift(workspace, data, "masked", ShiftOptions(epochs=1))) == 4
    assert asked == ["answer", "rationale", "rationale"]


def repeated(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for row in rows:
        row["rationale_choices"], row["rationale_label"] = row["answer_choices"], row["answer_label"]
    return rows


def test_without_rationales_answers_alone_are_masked(make_vcr: Make) -> None:
    workspace, data = make_vcr(30, 6, repeated)
    make_shift(workspace, data, "masked", ShiftOptions(epochs=1))
    assert {example.subtask for example in TaskData(data.root).examples("test-adv-top-1")} == {"answer"}


def test_a_data_set_without_train_and_a_device_that_is_none(make_vcr: Make) -> None:
    workspace, data = make_vcr(30, 6)
    with pytest.raises(UsageProblem, match="no device named 'tpux'"):
        make_shift(workspace, data, "masked", ShiftOptions(device="tpux"))
    del data.manifest["splits"]["train"]
    with pytest.raises(NotFoundError, match="vcr has no split train"):
        make_shift(workspace, data, "masked")


# The pieces


ROW: dict[str, Any] = {
    "annot_id": "val-0",
    "objects": ["person", "person", "car"],
    "question": ["Is", [1], "with", [0, 1], "?"],
    "answer_choices": [["Yes", [1, 2], "."], [[0]], ["No"], ["[MASK]", [10001]]],
    "answer_label": 0,
    "rationale_choices": [["a"], ["b", [2]], ["c"], ["d"]],
    "rationale_label": 1,
}


def sequences_of(row: dict[str, Any], part: Any, vocabulary: Vocabulary | None = None) -> tuple[Sequences, Vocabulary]:
    vocabulary = vocabulary or Vocabulary()
    builder = SequenceBuilder(part, vocabulary)
    builder.add(row)
    return builder.build(), vocabulary


def test_what_the_scorer_reads() -> None:
    found, words = sequences_of(ROW, "answer")
    person, car = words.tag("person"), words.tag("car")
    query = [CLS, words.word("is"), person, words.word("with"), person, person, words.word("?"), SEP]
    first = found.ids[: found.starts[1]].tolist()
    assert first == [*query, words.word("yes"), person, car, words.word("."), SEP]
    # Box 1 is mentioned first, box 0 second, box 2 not at all; words have no box.
    assert found.orders[: found.starts[1]].tolist() == [0, 0, 2, 0, 3, 2, 0, 0, 0, 2, 1, 0, 0]
    last = slice(found.starts[3], found.starts[4])
    assert found.ids[last].tolist() == [*query, MASK, MASKED_TAG, SEP]
    assert found.orders[last].tolist()[-3:] == [0, 0, 0]
    assert found.choice_lengths.tolist() == [4, 1, 1, 2]
    assert found.choice_starts.tolist() == [8] * 4
    rationale, _ = sequences_of(ROW, "rationale", words)
    # The query goes on with the right answer, which mentions box 2.
    assert rationale.ids[: rationale.choice_starts[0]].tolist() == [*query[:-1], *first[8:12], SEP]
    assert rationale.orders[rationale.starts[2] - 2] == 4


def test_long_queries_are_cut_and_long_choices_refused() -> None:
    row = {**ROW, "question": ["x"] * 1000}
    found, _ = sequences_of(row, "answer")
    assert found.lengths.max() <= MAX_LENGTH
    assert found.choice_lengths.tolist() == [4, 1, 1, 2]
    with pytest.raises(DataError, match="val-0: a choice has 400 tokens"):
        sequences_of({**ROW, "answer_choices": [["x"] * 400] * 4}, "answer")


def test_rare_words_become_unknown(tmp_path: Path) -> None:
    words = Vocabulary()
    ids = np.array([words.word(w) for w in ["b", "a", "B", "rare", "c", "c", "c", "[MASK]"]] + [words.tag("car")] * 2)
    settled = words.settle(ids.astype(np.int32), at_least=2, at_most=8)
    # The most frequent first; "b" and the tag tie for the last of two places.
    assert settled.tolist() == [7, UNKNOWN, 7, UNKNOWN, 6, 6, 6, MASK, UNKNOWN, UNKNOWN]
    words.write(tmp_path / "words.json")
    again = Vocabulary.read(tmp_path / "words.json")
    assert [again.word(w) for w in ("c", "B", "a", "new")] == [6, 7, UNKNOWN, UNKNOWN]
    assert len(again) == 8


def test_all_maskings_at_once_are_each_by_itself() -> None:
    """The batched losses against one sequence, one mask, one forward pass at a time."""
    builder = SequenceBuilder("answer", Vocabulary())
    builder.add(ROW)
    builder.add({**ROW, "annot_id": "val-1", "question": ["Who", "?"], "answer_label": 2})
    sequences = builder.build()
    torch.manual_seed(0)
    scorer = Scorer(ScorerConfig(dim=16, layers=2, heads=2, epochs=1, batch=1, rate=1), len(builder.vocabulary)).eval()
    losses = token_losses(scorer, sequences, torch.device("cpu"))
    held = DeviceSequences(sequences, torch.device("cpu"))
    for number, found in enumerate(losses):
        target = float(number % 4 == sequences.labels[number // 4])
        batch = held.batch(torch.tensor([number]))
        for token in range(int(sequences.choice_lengths[number])):
            at = int(sequences.choice_starts[number]) + token
            ids, orders = batch.ids.clone(), batch.orders.clone()
            ids[0, at] = MASKED_TAG if orders[0, at] else MASK
            orders[0, at] = 0
            with torch.no_grad():
                p = torch.sigmoid(scorer(type(batch)(ids, orders, batch.segments, batch.real)))
            expected = -torch.log(p if target else 1 - p)
            assert found[token] == pytest.approx(float(expected), rel=1e-4)
    assert [len(found) for found in losses] == [4, 1, 1, 2] * 2


TOKENS = st.lists(
    st.sampled_from(["He", "sings", "."]) | st.lists(st.integers(0, 2) | st.just(10_001), min_size=1, max_size=3),
    min_size=1,
    max_size=6,
)


@given(TOKENS, st.data(), st.sampled_from(MASKINGS), st.booleans())
def test_masked_lines_read_back(tokens: list[Any], data: st.DataObject, masking: Any, only_wrong: bool) -> None:
    count = len(flatten(tokens))
    losses = data.draw(st.lists(st.floats(0, 9), min_size=count, max_size=count))
    row = {**ROW, "answer_choices": [tokens] * 4, "answer_label": 2}
    new = masked_row(row, {"answer": [losses] * 4}, masking, only_wrong=only_wrong)
    assert row["answer_choices"][0] is tokens
    assert {key: value for key, value in new.items() if key != "answer_choices"} == {
        key: value for key, value in row.items() if key != "answer_choices"
    }
    hidden = masking.hidden(losses)
    assert len(hidden) == (max(0, count - masking.count) if masking.keep else 1)
    shown = set(range(count)) - hidden
    assert (
        not hidden
        or not shown
        or (
            max(losses[i] for i in hidden) <= min(losses[i] for i in shown)
            if masking.keep
            else min(losses[i] for i in hidden) >= max(losses[i] for i in shown)
        )
    )
    for number, choice in enumerate(new["answer_choices"]):
        if only_wrong and number == 2:
            assert choice == tokens
            continue
        before, after = flatten(tokens), flatten(choice)
        assert [isinstance(t, list) for t in choice] == [isinstance(t, list) for t in tokens]
        for place, (old, now) in enumerate(zip(before, after, strict=True)):
            if place not in hidden:
                assert now == old
            else:
                assert now == ("[MASK]" if isinstance(old, str) else old if old >= 10_000 else 10_000 + old)
        text = segment_of(choice, ROW["objects"])
        masks = sum(token == "[MASK]" or (isinstance(token, int) and token >= 10_000) for token in after)
        assert text.text.count("[MASK]") == masks


def test_scores_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text('{"annot_id": "val-0", "answer_tokens": [[1],[1],[1],[1]], "answer_losses": [[1],[1],[1]]}\n')
    with pytest.raises(DataError, match="line 1: 'answer_losses' must be 4 lists"):
        read_scores(path)
    path.write_text('{"annot_id": "val-0", "answer_tokens": [[1],[1],[1],[1]], "answer_losses": [[1],[1],[1],[1]]}\n')
    with pytest.raises(DataError, match="does not fit the question val-0"):
        losses_of(read_scores(path), ROW, path)
