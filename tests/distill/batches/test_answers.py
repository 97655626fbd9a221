from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from madkit.core.errors import UsageProblem
from madkit.core.files import digest_of
from madkit.distill.batches.answers import head_for
from madkit.distill.batches.examples import targets_of
from madkit.distill.runs.folder import RunIdentity
from madkit.distill.settings.arms import load_arm
from madkit.students.heads import HeadSpec
from madkit.tasks.example import Example, ImageRef, Segment
from madkit.tasks.index.columns import soft_scores
from madkit.tasks.spec import get_task

IDENTITY = RunIdentity("vqa", "vqa", "r", False, "s", "d", "finetune", "full", 0, None, None, "e")


def question(main: str, given: list[str]) -> Example:
    return Example(
        id="1",
        task="vqa",
        question_id="1",
        image=ImageRef("1", Path("1.jpg")),
        context=(Segment("Why?"),),
        answers=soft_scores(tuple(given)),
        annotations=tuple(given),
        main_answer=main,
    )


TRAIN = [question("a dog", ["a dog"] * 6 + ["dog"] * 4)] * 9 + [question("yes", ["yes"] * 10)] * 12


def test_heads_of_the_tasks() -> None:
    assert head_for(get_task("vcr"), []) == HeadSpec("multiple-choice")
    assert head_for(get_task("snli-ve"), []).outputs == ("contradiction", "entailment", "neutral")
    assert head_for(get_task("vqa"), TRAIN) == HeadSpec("vqa", ("yes", "dog"))
    assert head_for(get_task("vqa"), TRAIN, min_questions=10).outputs == ("yes",)


def test_a_given_list_keeps_its_order(tmp_path: Path) -> None:
    path = tmp_path / "ans2label.json"
    path.write_text(json.dumps({"dog": 1, "": 0, "yes": 2}))
    assert head_for(get_task("vqa"), TRAIN, answers=path).outputs == ("", "dog", "yes")
    with pytest.raises(UsageProblem, match="no answer list"):
        head_for(get_task("vcr"), [], answers=path)


def test_targets_by_either_way_of_matching() -> None:
    head = HeadSpec("vqa", ("yes", "dog"))
    assert torch.equal(targets_of(TRAIN[:1], head, "normalized").dense(), torch.tensor([[0.0, 1.0]]))
    twice = question("dog", ["a dog"] * 7 + ["dog"] * 3)
    assert torch.equal(targets_of([twice], head, "raw").dense(), torch.tensor([[0.0, 0.9]]))


def test_only_a_given_list_changes_the_digest_of_a_run(tmp_path: Path) -> None:
    """Runs that were made before there was the setting keep their folders; the list counts by its content."""
    config = load_arm("finetune", {})
    values = config.model_dump(mode="json")
    first = {"arm", "optim", "eval", "mad", "confidence", "pre_phase", "precision", "permute_teacher"}
    first_optim = {
        "learning_rate", "steps", "epochs", "min_steps", "max_steps", "batch_size", "token_budget", "bucket",
        "micro_tokens", "warmup", "weight_decay", "betas", "clip", "dropout", "vqa_loss", "head_rate",
    }  # fmt: skip
    earlier = {k: v for k, v in values.items() if k in first}
    earlier["optim"] = {k: v for k, v in values["optim"].items() if k in first_optim}
    earlier["eval"] = {k: v for k, v in values["eval"].items() if k in {"every", "limit", "keep", "tokens"}}
    earlier["confidence"] = {k: v for k, v in values["confidence"].items() if k in {"source", "folds"}}
    names = set(RunIdentity.__dataclass_fields__) - {"regions", "confidence_cache", "student_setup"}
    identity = {name: getattr(IDENTITY, name) for name in RunIdentity.__dataclass_fields__ if name in names}
    assert IDENTITY.digest(config) == digest_of([identity, earlier])
    digests = {IDENTITY.digest(config), IDENTITY.digest(config.model_copy(update={"answer_match": "raw"}))}
    for name, content in (("a.json", '["x"]'), ("b.json", '["x"]'), ("c.json", '["y"]')):
        (tmp_path / name).write_text(content)
        digests.add(IDENTITY.digest(config.model_copy(update={"answers": str(tmp_path / name)})))
    assert len(digests) == 4


def test_region_features_that_were_added_make_another_run() -> None:
    """Features that came with the data count through its revision, as they did before others could be added."""
    config = load_arm("finetune", {})
    other = replace(IDENTITY, regions="0123456789abcdef")
    assert len({one.digest(config) for one in (IDENTITY, other, replace(other, regions="f" * 16))}) == 3
