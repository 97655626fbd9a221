"""The real students on the real formats, with random weights."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from madkit.core.errors import DataError
from madkit.evaluate.predict import predict
from madkit.students.inputs import collate, encode_example
from madkit.students.load import load_student, save_student
from madkit.tasks.spec import TASKS, custom_spec, get_task


def spec_of(examples):
    return get_task(examples[0].task)


@pytest.fixture
def setting(tiny):
    """(folder of a student, examples, region features) of each task."""
    return tiny.run / "student", tiny.data.examples("test")[:24], tiny.data.regions()


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


def test_bfloat16_is_as_near_as_its_eight_bits(setting, monkeypatch):
    """What a GPU does by default, on a CPU. The encoder computes in bfloat16, so that a score moves by 2^-6 of the
    largest at most. Its head does not: in eight bits the candidates of one question have one and the same score, and
    the first of them would be the answer.
    """
    folder, examples, regions = setting
    linear, computed = torch.nn.functional.linear, []

    def watched(*arguments):
        found = linear(*arguments)
        computed.append(found.dtype)
        return found

    full = predict(folder, examples, regions, spec=spec_of(examples), device="cpu", precision="fp32")
    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    half = predict(folder, examples, regions, spec=spec_of(examples), device="cpu", precision="bf16")
    assert computed.count(torch.bfloat16) > len(computed) / 2
    assert computed[-1] is torch.float32
    pairs = list(zip(full, half, strict=True))
    largest = max(abs(value) for row in full for value in row["logits"])
    moved = max(abs(a - b) for one, other in pairs for a, b in zip(one["logits"], other["logits"], strict=True))
    assert 0 < moved <= largest / 64
    scores = torch.tensor([row["logits"] for row in half])
    assert (scores.bfloat16().float() != scores).float().mean() > 0.9


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
    other = next(other for other in TASKS.values() if other.kind != spec.kind)
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


def test_images_without_boxes_are_answered(setting):
    """A detector may have found nothing, in one image of a batch or in all of them."""
    folder, examples, regions = setting

    class Empty:
        dim = regions.dim

        def get(self, image_id):
            found = regions.get(image_id)
            return replace(found, boxes=found.boxes[:0], features=found.features[:0])

    rows = predict(folder, examples, Empty(), spec=spec_of(examples))
    assert len(rows) == len(examples)
    assert all(math.isfinite(score) for row in rows for score in row["logits"])
