"""Sets as tensors agree with the students' own collation, and teacher targets with a plain computation by hand."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from madkit.cache import choose_cache
from madkit.core.errors import RunError
from madkit.distill.batches.answers import head_for
from madkit.distill.batches.examples import ExampleSet
from madkit.distill.batches.micro_batch import BatchMaker
from madkit.distill.teacher.side import TeacherSide
from madkit.mad.config import MADConfig
from madkit.students.inputs import collate, encode_example
from madkit.students.load import load_student
from madkit.tasks.data import open_task

INDICES = np.asarray([5, 0, 17, 3])


@pytest.fixture(params=["vcr", "snli-ve", "vqa"])
def loaded(request, workspace, student):
    data = open_task(workspace, request.param, part="auto")
    model = load_student(student, head=head_for(data.spec, data.examples("train")))
    return workspace, data, model, ExampleSet(data.examples("train")[:24], model, data.regions())


def test_inputs_equal_the_students_own_collation(loaded):
    _, data, model, examples = loaded
    chosen = [examples.examples[place] for place in INDICES]
    encoded = [encode_example(example, model.tokenizer, model.max_text_length) for example in chosen]
    regions = [data.regions().get(example.image.id) for example in chosen]
    want = collate(encoded, regions, pad_id=model.tokenizer.pad_id)
    got = examples.inputs(INDICES)
    for field in fields(want):
        a, b = getattr(want, field.name), getattr(got, field.name)
        assert a == b if field.name == "n_candidates" else (a.dtype == b.dtype and torch.equal(a, b)), field.name
    if data.spec.name == "vcr":
        assert (got.tag_regions >= 0).any()


def test_text_targets_are_the_teachers_tokens_of_the_same_characters(loaded):
    """The made-up teacher cuts at words, and the student's vocabulary has whole words: targets are copies."""
    workspace, data, model, examples = loaded
    cache = choose_cache(workspace, data, None)
    side = TeacherSide(examples, cache, MADConfig())
    teacher = side.targets(examples.teacher_rows(INDICES), INDICES, examples.inputs(INDICES))
    checked = 0
    for row, place in enumerate(INDICES):
        encoded = encode_example(examples.examples[place], model.tokenizer, model.max_text_length)
        for number, sequence in enumerate(encoded.sequences):
            at = row * examples.n_candidates + number
            for position in range(len(sequence.ids)):
                owner = sequence.segment[position]
                assert bool(teacher.text_mask[at, position]) == (owner >= 0)
                if owner < 0:
                    continue
                text = sequence.texts[owner]
                ragged = cache.texts.tokens(cache.texts.rows([text]))
                (match,) = np.flatnonzero((ragged.spans == sequence.spans[position]).all(1))
                want = torch.from_numpy(ragged.tokens[match].copy())
                assert torch.equal(teacher.text_tokens[at, position], want)
                checked += 1
            words = cache.texts.globals(cache.texts.rows(list(sequence.texts))).astype(np.float32).mean(0)
            torch.testing.assert_close(teacher.text_global[at], torch.from_numpy(words))
    assert checked > 20


def test_region_targets_are_means_of_the_patches_under_the_box(loaded):
    workspace, data, _, examples = loaded
    cache = choose_cache(workspace, data, None)
    side = TeacherSide(examples, cache, MADConfig(text_weight=0.0))
    teacher = side.targets(examples.teacher_rows(INDICES), INDICES, examples.inputs(INDICES))
    for row, place in enumerate(INDICES):
        image = examples.examples[place].image.id
        patches = cache.images.tokens(cache.images.rows([image]))[0].astype(np.float64).reshape(3, 3, -1)
        for number, (x1, y1, x2, y2) in enumerate(data.regions().get(image).boxes.astype(np.float64)):
            shares = np.zeros((3, 3))
            for down in range(3):
                for across in range(3):
                    width = min(x2, (across + 1) / 3) - max(x1, across / 3)
                    height = min(y2, (down + 1) / 3) - max(y1, down / 3)
                    shares[down, across] = max(0, width) * max(0, height)
            want = (patches * shares[..., None]).sum((0, 1)) / shares.sum()
            got = teacher.regions[row, number].double().numpy()
            np.testing.assert_allclose(got, want, atol=2e-3)
    assert not teacher.text_mask.any()  # where no term compares words, none are read


def test_one_text_asks_at_its_own_separator(loaded):
    workspace, data, model, examples = loaded
    side = TeacherSide(examples, choose_cache(workspace, data, None), MADConfig(weight=0, affinity_weight=1))
    maker = BatchMaker(examples, 10, teacher=side, one_text=True)
    seen = set()
    for step in range(3):
        batch = maker(INDICES, step)
        assert batch.query_index is not None
        assert batch.teacher is not None
        asked = batch.inputs.input_ids.gather(1, batch.query_index[:, None])
        assert (asked == model.tokenizer.sep_id).all()
        rows = examples.teacher_rows(INDICES)
        for at, place in enumerate(batch.query_index.tolist()):
            turn = rows.ends[at].tolist().index(place)
            seen.add(turn)
            assert torch.equal(batch.teacher.text_global[at], side.texts.globals[rows.texts[at, turn]])
    assert seen == ({0, 1, 2} if data.spec.name == "vcr" else {0})


def test_a_student_for_other_features_is_refused(loaded):
    _, data, model, _ = loaded

    class Other:
        dim = 5

    with pytest.raises(RunError, match="width"):
        ExampleSet(data.examples("train")[:2], model, Other())
    with pytest.raises(RunError, match="no region features"):
        ExampleSet(data.examples("train")[:2], model, None)
