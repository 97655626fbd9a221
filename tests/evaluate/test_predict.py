"""The real students on the real formats, with random weights."""

from __future__ import annotations

import json
import re

import pytest
import torch

from madkit.core.errors import DataError
from madkit.core.workspace import Workspace
from madkit.evaluate.predict import predict
from madkit.students.heads import HeadSpec, TaskHead
from madkit.students.inputs import collate, encode_example
from madkit.students.load import load_student, save_student
from madkit.students.student import Student, StudentIdentity
from madkit.students.tokenizer import SPECIALS, StudentTokenizer
from madkit.students.uniter import UniterConfig, UniterModel
from madkit.tasks.data import open_task
from madkit.tasks.spec import custom_spec, get_task

HEADS = {
    "vcr": HeadSpec("multiple-choice"),
    "snli-ve": HeadSpec("classification", ("neutral", "contradiction", "entailment")),  # not the task's own order
    "vqa": HeadSpec("vqa", ("yes", "no", "red", "2")),
}


def spec_of(examples):
    return get_task(examples[0].task)


@pytest.fixture(scope="module", params=sorted(HEADS))
def setting(request, tmp_path_factory):
    """(folder of a student, examples, region features) of each task."""
    torch.set_num_threads(1)
    base = tmp_path_factory.mktemp("predict")
    data = open_task(Workspace.at(base / "workspace"), request.param, part="tiny")
    examples = data.examples("test")[:24]
    words = sorted(
        {word for one in examples for text in one.texts() for word in re.findall(r"\w+|[^\w\s]", text.lower())}
    )
    (base / "vocab.txt").write_text("\n".join([*SPECIALS, *words]) + "\n")
    tokenizer = StudentTokenizer(base / "vocab.txt", lowercase=True)
    config = UniterConfig(
        vocab_size=len(tokenizer), hidden_size=16, layers=2, heads=2, intermediate_size=32, max_positions=64,
        region_dim=data.regions().dim, tag_gain=1.0,
    )  # fmt: skip
    torch.manual_seed(1)
    student = Student(
        UniterModel(config), TaskHead(16, HEADS[request.param]), tokenizer, StudentIdentity("tiny", "uniter", "-")
    )
    save_student(student, base / "student")
    return base / "student", examples, data.regions()


def test_batches_give_the_logits_of_one_example_alone(setting):
    folder, examples, regions = setting
    rows = predict(folder, examples, regions, spec=spec_of(examples), token_budget=900)
    student = load_student(folder)
    for example, row in zip(examples, rows, strict=True):
        encoded = encode_example(example, student.tokenizer, student.max_text_length)
        inputs = collate([encoded], [regions.get(example.image.id)], pad_id=student.tokenizer.pad_id)
        with torch.inference_mode():
            logits = student(inputs).logits[0]
        labels = get_task(example.task).labels
        if labels:
            logits = logits[[student.head_spec.outputs.index(label) for label in labels]]
        if student.head_spec.kind == "vqa":
            assert row["top"][0] == row["prediction"] == student.head_spec.outputs[int(logits.argmax())]
            logits = logits.sort(descending=True).values
        else:
            assert row["prediction"] == int(logits.argmax())
        assert row["id"] == example.id
        assert row["logits"] == pytest.approx(logits.tolist(), abs=1e-4)


def test_the_budget_does_not_change_what_is_answered(setting):
    folder, examples, regions = setting
    small, large = (
        predict(folder, examples, regions, spec=spec_of(examples), token_budget=budget) for budget in (1, 10**6)
    )
    assert [row["prediction"] for row in small] == [row["prediction"] for row in large]


def test_nan_weights_show_in_the_logits(setting, tmp_path):
    folder, examples, regions = setting
    student = load_student(folder)
    with torch.no_grad():
        next(student.head.parameters()).fill_(float("nan"))
    save_student(student, tmp_path / "broken")
    rows = predict(tmp_path / "broken", examples[:3], regions, spec=spec_of(examples))
    assert all(row["logits"][0] != row["logits"][0] for row in rows)


def test_a_student_of_another_task_is_refused(setting):
    folder, examples, regions = setting
    spec = spec_of(examples)
    other = next(get_task(task) for task in HEADS if get_task(task).kind != spec.kind)
    with pytest.raises(DataError, match="answers"):
        predict(folder, examples, regions, spec=other)
    if spec.kind == "classification":
        with pytest.raises(DataError, match="other classes"):
            predict(folder, examples, regions, spec=custom_spec("mine", "classification", labels=("a", "b", "c")))


def test_features_of_another_width_are_refused(setting):
    folder, examples, regions = setting

    class Wide:
        dim = regions.dim + 1

    with pytest.raises(DataError, match="region features"):
        predict(folder, examples, Wide(), spec=spec_of(examples))
    with pytest.raises(DataError, match="no region features"):
        predict(folder, examples, None, spec=spec_of(examples))


def test_rows_are_plain_json(setting):
    folder, examples, regions = setting
    json.dumps(predict(folder, examples[:2], regions, spec=spec_of(examples)), allow_nan=False)
