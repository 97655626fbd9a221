"""A teacher read batch by batch says what the banks of `madkit distill` say, and what a calculation by hand says."""

from __future__ import annotations

import multiprocessing
import pickle
from dataclasses import fields

import numpy as np
import pytest
import torch

from madkit import CachedTeacher, MADConfig, MADCriterion
from madkit.cache import TokenCache, choose_cache
from madkit.core.errors import CacheError, ConfigError, DataError
from madkit.core.workspace import Workspace
from madkit.distill.batches.answers import head_for
from madkit.distill.batches.examples import ExampleSet
from madkit.distill.settings.config import ConfidenceConfig
from madkit.distill.teacher.confidence import teacher_confidence
from madkit.distill.teacher.region_targets import pool_boxes
from madkit.distill.teacher.side import TeacherSide
from madkit.mad.targets import TeacherTargets
from madkit.students.inputs import encode_example
from madkit.students.load import load_student
from madkit.tasks.data import open_task

INDICES = np.asarray([5, 0, 17, 3])


@pytest.fixture(params=["vcr", "snli-ve", "vqa"])
def loaded(request, workspace, student):
    data = open_task(workspace, request.param, part="auto")
    model = load_student(student, head=head_for(data.spec, data.examples("train")))
    return choose_cache(workspace, data, None), model, ExampleSet(data.examples("train")[:24], model, data.regions())


def asked(model, examples, indices, inputs):
    """What a loop of one's own would say about a batch: images, texts, spans, segments, boxes."""
    chosen = [examples.examples[place] for place in indices]
    sequences = [
        sequence
        for example in chosen
        for sequence in encode_example(example, model.tokenizer, model.max_text_length).sequences
    ]
    T = inputs.input_ids.shape[1]
    spans, segments = torch.zeros(len(sequences), T, 2, dtype=torch.long), torch.full((len(sequences), T), -1)
    for row, sequence in enumerate(sequences):
        spans[row, : len(sequence.ids)] = torch.from_numpy(np.asarray(sequence.spans, dtype=np.int64))
        segments[row, : len(sequence.ids)] = torch.from_numpy(np.asarray(sequence.segment, dtype=np.int64))
    return {
        "images": [example.image.id for example in chosen],
        "texts": [sequence.texts for sequence in sequences],
        "spans": spans,
        "segments": segments,
        "boxes": inputs.region_boxes,
        "region_mask": inputs.region_mask,
        "keys": [example.id for example in chosen for _ in range(inputs.n_candidates)],
    }


def test_a_batch_has_the_targets_that_a_run_has(loaded):
    cache, model, examples = loaded
    inputs = examples.inputs(INDICES)
    want = TeacherSide(examples, cache, MADConfig(tokens="random")).targets(
        examples.teacher_rows(INDICES), INDICES, inputs
    )
    got = CachedTeacher(cache).targets(**asked(model, examples, INDICES, inputs))
    for field in fields(TeacherTargets):
        a, b = getattr(want, field.name), getattr(got, field.name)
        if isinstance(a, torch.Tensor):
            if field.name in ("text_tokens", "regions"):  # where there is no target, nothing is read
                mask = want.text_mask if field.name == "text_tokens" else want.region_mask
                a, b = a[mask], b[mask]
            assert a.dtype == b.dtype, field.name
            torch.testing.assert_close(b, a, rtol=0, atol=0, msg=field.name)
        elif field.name.endswith("stats"):
            assert torch.equal(a.mean, b.mean)
            assert torch.equal(a.var, b.var)
        else:
            assert a == b, field.name
    assert got.text_content is not None
    assert (got.text_mask & ~got.text_content).any()


def test_confidence_is_that_of_a_run(loaded, tmp_path):
    cache, model, examples = loaded
    side, config = TeacherSide(examples, cache, MADConfig(tokens="global")), ConfidenceConfig(folds=3)
    want = teacher_confidence(examples, side, config, seed=4, path=tmp_path / "confidence.json")
    everything = np.arange(len(examples))
    said = asked(model, examples, everything, examples.inputs(everything))
    target = examples.target if isinstance(examples.target, torch.Tensor) else examples.target.dense()
    images, texts = said["images"], said["texts"]
    got = CachedTeacher(cache).confidence(
        images=images, texts=texts, target=target, n_candidates=examples.n_candidates, folds=3, seed=4
    )
    torch.testing.assert_close(got, want)
    with pytest.raises(DataError, match="24 images, 23 sequences"):
        CachedTeacher(cache).confidence(images=images, texts=texts[:23], target=target)


def test_what_the_cache_lacks_is_no_part_of_the_probe(loaded, without_images):
    cache, model, examples = loaded
    everything = np.arange(len(examples))
    said = asked(model, examples, everything, examples.inputs(everything))
    target = examples.target if isinstance(examples.target, torch.Tensor) else examples.target.dense()
    images, texts, C = said["images"], said["texts"], examples.n_candidates
    gone = list(dict.fromkeys(images))[:3]
    kept = [row for row, image in enumerate(images) if image not in gone]
    teacher = CachedTeacher(without_images(cache, gone))
    got = teacher.confidence(images=images, texts=texts, target=target, n_candidates=C, folds=3, seed=4)
    want = teacher.confidence(
        images=[images[row] for row in kept],
        texts=[texts[row * C + place] for row in kept for place in range(C)],
        target=target[kept], n_candidates=C, folds=3, seed=4,
    )  # fmt: skip
    torch.testing.assert_close(got[kept], want)
    others = [row for row in range(len(images)) if row not in kept]
    torch.testing.assert_close(got[others], want.mean().expand(len(others)))
    with pytest.raises(DataError, match="no values for any of these examples"):
        teacher.confidence(
            images=[images[row] for row in others],
            texts=[texts[row * C + place] for row in others for place in range(C)],
            target=target[others], n_candidates=C,
        )  # fmt: skip


@pytest.fixture
def plain(workspace) -> tuple[CachedTeacher, list[str], list[str]]:
    """A teacher of SNLI-VE, two of its images and two of its texts."""
    data = open_task(workspace, "snli-ve", part="auto")
    examples = data.examples("train")
    images = list(dict.fromkeys(example.image.id for example in examples))[:2]
    texts = list(dict.fromkeys(text for example in examples for text in example.texts()))[:2]
    return CachedTeacher(choose_cache(workspace, data, None)), images, texts


def whole_words(texts: list[str]) -> torch.Tensor:
    """One token for the first four characters of each text."""
    return torch.tensor([[[0, 0], [0, 4]] for _ in texts])


@pytest.mark.parametrize("globals_only", [False, True])
def test_another_process_can_have_it(plain, monkeypatch, tmp_path, globals_only):
    """What a worker of a `DataLoader` gets where processes are not forked."""
    teacher, images, texts = plain
    place = teacher.cache.path
    monkeypatch.chdir(place.parent)
    here = CachedTeacher(TokenCache.open(place.name, check=True), globals_only=globals_only)
    said = {
        "images": images,
        "texts": texts,
        "spans": whole_words(texts),
        "boxes": torch.tensor([[[0.1, 0, 1, 1]]] * 2),
    }
    want = here.targets(**said)
    sent = pickle.dumps(here)
    monkeypatch.chdir(tmp_path)
    there = pickle.loads(sent)
    got = there.targets(**said)
    for field in ("text_tokens", "text_mask", "text_global", "regions", "region_mask", "image_global"):
        assert torch.equal(getattr(got, field), getattr(want, field)), field
    assert (there.globals_only, there.shared_space) == (globals_only, here.shared_space)


def test_workers_that_are_not_forked_read_what_the_loop_would(plain):
    teacher, images, texts = plain
    context = multiprocessing.get_context("spawn")
    said = {"images": images, "texts": texts}
    with context.Pool(1) as pool:
        got = pool.apply(_globals_of, (teacher, said))
    for there, here in zip(got, teacher.globals(**said), strict=True):
        assert np.array_equal(there, here.numpy())


def _globals_of(teacher, said):
    return [vectors.numpy() for vectors in teacher.globals(**said)]


def test_segments_and_rows_of_images_may_be_left_out_where_they_are_plain(plain):
    teacher, images, texts = plain
    got = teacher.targets(images=images, texts=[texts[0], texts[1], texts[1], texts[0]], spans=whole_words(texts * 2))
    assert got.image_index.tolist() == [0, 0, 1, 1]
    assert got.text_mask.tolist() == [[False, True]] * 4
    assert got.regions.shape == (2, 0, 16)
    explicit = teacher.targets(
        images=images, texts=[[text] for text in texts], spans=whole_words(texts), segments=torch.tensor([[-1, 0]] * 2),
        image_index=torch.tensor([1, 0]),
    )  # fmt: skip
    assert torch.equal(explicit.text_tokens, got.text_tokens[:2])
    assert explicit.image_index.tolist() == [1, 0]


def test_a_student_without_regions_can_be_taught(plain):
    teacher, images, texts = plain
    targets = teacher.targets(images=images, texts=texts, spans=whole_words(texts))
    config = MADConfig(weighting="uniform", tokens="all")
    criterion = MADCriterion(config, 8, teacher.vision_dim, teacher.text_dim)
    mask = torch.ones(2, 2, dtype=torch.bool)
    hidden = (torch.randn(2, 2, 8, requires_grad=True),)
    out = criterion(hidden, 2, targets, text_mask=mask, region_mask=torch.zeros(2, 0, dtype=torch.bool))
    out.loss.backward()
    assert hidden[0].grad[:, 1].abs().sum() > 0


@pytest.fixture
def one_sided(workspace, make_cache):
    """Teachers of the same texts and images, each of which reads one kind; and some of both."""
    data = open_task(workspace, "snli-ve", part="tiny")
    examples = list({example.image.id: example for example in data.examples("dev")}.values())[:2]
    home = Workspace.at(workspace.root / "one-sided")
    apart = {"shared_space": False, "logit_scale": 1.0}
    eye = make_cache(home, data, teacher="eye", parts=("images",), dim=24, **apart)
    ear = make_cache(home, data, teacher="ear", parts=("texts",), dim=20, **apart)
    with TokenCache.open(eye) as images, TokenCache.open(ear) as texts:
        yield (
            CachedTeacher(images),
            CachedTeacher(texts),
            [example.image.id for example in examples],
            [example.texts()[0] for example in examples],
        )


def test_a_teacher_of_one_side_teaches_that_side(one_sided):
    eye, ear, images, texts = one_sided
    assert (eye.vision_dim, eye.text_dim, ear.vision_dim, ear.text_dim) == (24, 0, 0, 20)
    boxes, mask = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]] * 2), torch.ones(2, 1, dtype=torch.bool)
    hidden = (torch.randn(2, 3, 8, requires_grad=True),)
    said = {}
    for teacher in (eye, ear):
        targets = teacher.targets(images=images, texts=texts, spans=whole_words(texts), boxes=boxes, region_mask=mask)
        criterion = teacher.criterion(MADConfig(weighting="uniform", tokens="all", affinity_weight=1.0), 8)
        out = criterion(hidden, 2, targets, text_mask=torch.ones(2, 2, dtype=torch.bool), region_mask=mask)
        out.loss.backward()
        said[teacher] = set(out.terms)
        features = teacher.globals(images=images, texts=texts)
        assert [part.shape[-1] for part in features] == [teacher.vision_dim, teacher.text_dim]
    assert said == {eye: {"global_image", "token_region"}, ear: {"global_text", "token_text"}}
    # an image alone says which answers are frequent, and is a confidence all the same
    sure = ear.confidence(images=images, texts=texts, target=torch.tensor([0, 1]))
    assert sure.shape == (2,)
    # a teacher of texts alone asks for no image, and its targets are those of the texts
    elsewhere = ear.targets(images=["no", "such"], texts=texts, spans=whole_words(texts))
    assert torch.equal(elsewhere.text_tokens, targets.text_tokens)
    assert torch.equal(elsewhere.text_global, ear.globals(images=images, texts=texts)[1])
    with pytest.raises(CacheError, match="are not in the cache"):
        ear.targets(images=images, texts=["never", "read"], spans=whole_words(["never", "read"]))
    with pytest.raises(CacheError, match="are not in the cache"):
        eye.targets(images=["no", "such"], texts=texts, spans=whole_words(texts))


def test_what_a_teacher_cannot_teach_is_said(one_sided):
    eye, ear, *_ = one_sided
    with pytest.raises(ConfigError, match="'ear' can teach nothing of these settings: it reads texts, without a space"):
        ear.criterion(MADConfig(weight=0.0, affinity_weight=1.0), 8)
    with pytest.raises(ConfigError, match="reads no images"):
        MADCriterion(MADConfig(), 8, ear.vision_dim, ear.text_dim)
    with pytest.raises(ConfigError, match="reads no texts"):
        MADCriterion(MADConfig(), 8, eye.vision_dim, eye.text_dim)


def test_globals_alone_read_no_tokens(plain, monkeypatch):
    teacher, images, texts = plain
    spans, boxes = whole_words(texts), torch.tensor([[[0.0, 0.0, 1.0, 1.0]]] * 2)
    usual = teacher.targets(images=images, texts=texts, spans=spans, boxes=boxes)
    for part in (teacher.cache.images, teacher.cache.texts):
        monkeypatch.setattr(part, "tokens", None)
    got = CachedTeacher(teacher.cache, globals_only=True).targets(images=images, texts=texts, spans=spans, boxes=boxes)
    assert not got.text_mask.any()
    assert not got.region_mask.any()
    assert torch.equal(got.text_global, usual.text_global)
    assert torch.equal(got.image_global, usual.image_global)
    assert got.text_tokens.shape == usual.text_tokens.shape


def test_absent_images_teach_nothing_and_unknown_ones_are_refused(plain, without_images):
    teacher, images, texts = plain
    holed = CachedTeacher(without_images(teacher.cache, images[:1]))
    boxes = torch.tensor([[[0.1, 0.1, 0.6, 0.6]]] * 2)
    got = holed.targets(images=images, texts=texts, spans=whole_words(texts), boxes=boxes)
    whole = teacher.targets(images=images, texts=texts, spans=whole_words(texts), boxes=boxes)
    assert got.taught.tolist() == [False, True]
    assert whole.taught is None
    assert got.region_mask.tolist() == [[False], [True]]
    assert torch.equal(got.regions[1], whole.regions[1])
    assert not got.image_global[0].any()
    with pytest.raises(CacheError, match="not in the cache"):
        teacher.targets(images=["nowhere", images[1]], texts=texts, spans=whole_words(texts))
    with pytest.raises(CacheError, match="not in the cache"):
        teacher.targets(images=images, texts=["no such words", texts[1]], spans=whole_words(texts))


class Patches:
    """The image half of a made-up cache: one image, 2 x 2 patches of one channel (1, 2, 4, 8)."""

    grid = (2, 2)

    def __init__(self, kept: list[int] | None = None, view: list[float] | None = None) -> None:
        self.kept, self.view, self.selected = kept, view, None if kept is None else len(kept)

    def tokens(self, rows):
        every = np.asarray([1, 2, 4, 8], dtype=np.float16)
        return every[self.kept if self.kept is not None else slice(None)].reshape(1, -1, 1)

    def positions(self, rows):
        return np.asarray([self.kept], dtype=np.int32)

    def views(self, rows):
        return None if self.view is None else np.asarray([self.view], dtype=np.float32)


@pytest.mark.parametrize(
    ("patches", "box", "value", "known"),
    [
        (Patches(), (0, 0, 0.5, 0.5), 1, True),
        (Patches(), (0, 0, 0.5, 1), 2.5, True),
        (Patches(), (0, 0, 1, 1), 100, True),  # the whole image: its global vector
        (Patches(kept=[1, 3]), (0, 0, 0.5, 0.5), 0, False),  # its patch was not kept
        (Patches(kept=[1, 3]), (0, 0, 1, 0.5), 2, True),
        # a teacher that saw the middle half of the width: its first patch is the image's 0.25 to 0.5
        (Patches(view=[0.25, 0, 0.75, 1]), (0.25, 0, 0.5, 0.5), 1, True),
        (Patches(view=[0.25, 0, 0.75, 1]), (0, 0, 0.2, 1), 0, False),
        (Patches(view=[0.25, 0, 0.75, 1]), (0, 0, 1, 1), 100, True),
    ],
)
def test_boxes_take_what_the_cache_knows_of_them(patches, box, value, known):
    pooled, has = pool_boxes(
        patches, np.asarray([0]), torch.tensor([[box]], dtype=torch.float32), torch.tensor([[100.0]])
    )
    assert has.tolist() == [[known]]
    assert pooled.item() == pytest.approx(value)
