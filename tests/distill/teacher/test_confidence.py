"""The teacher's confidence worked out block by block: the same numbers, and never all features at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from madkit.cache import choose_cache
from madkit.core.files import read_json
from madkit.distill.batches.answers import head_for
from madkit.distill.batches.examples import ExampleSet
from madkit.distill.batches.soft_targets import SoftTargets
from madkit.distill.pool.soft_labels import fit_on_labelled
from madkit.distill.settings.config import ConfidenceConfig
from madkit.distill.settings.pool_config import SoftLabelConfig
from madkit.distill.teacher.bank_room import Room
from madkit.distill.teacher.confidence import teacher_confidence
from madkit.distill.teacher.criterion import make_criterion
from madkit.distill.teacher.probe_reader import ProbeReader
from madkit.distill.teacher.side import TeacherSide
from madkit.distill.teacher.sides import probe_features_of, side_of
from madkit.distill.teacher.teachers import Teacher, Teachers
from madkit.mad import rows as tables
from madkit.mad.config import MADConfig
from madkit.mad.probe import cross_fit_probe
from madkit.students.load import load_student
from madkit.tasks.data import open_task


def loaded(task, workspace, student, room):
    torch.set_num_threads(1)
    data = open_task(workspace, task, part="auto")
    model = load_student(student, head=head_for(data.spec, data.examples("train")))
    examples = ExampleSet(data.examples("train")[:48], model, data.regions())
    cache = choose_cache(workspace, data, None)
    return examples, cache, TeacherSide(examples, cache, MADConfig(tokens="global"), room=room)


def in_pieces(monkeypatch, examples: int, each: int) -> None:
    """Let so many examples of so many bytes be held, and a quarter of them be scored at once."""
    monkeypatch.setattr(tables, "HELD_BYTES", examples * each)
    monkeypatch.setattr(tables, "BLOCK_BYTES", examples * each // 4)


@pytest.mark.parametrize("task", ["vcr", "vqa"])
def test_blocks_give_the_confidence_of_the_whole(workspace, student, tmp_path, monkeypatch, task):
    examples, _, side = loaded(task, workspace, student, Room("memory"))
    config, C = ConfidenceConfig(folds=3), examples.n_candidates
    found = teacher_confidence(examples, side, config, seed=1, path=tmp_path / "whole.json")
    features = probe_features_of(side, examples.teacher_rows(np.arange(len(examples))), C)
    target = examples.target.dense() if isinstance(examples.target, SoftTargets) else examples.target
    groups = [example.image.id for example in examples.examples]
    plain = cross_fit_probe(features, target, groups=groups, folds=3, seed=1)
    assert torch.equal(found, plain.confidence)  # what fits is worked out as it always was
    facts = read_json(tmp_path / "whole.json")
    assert facts["l2"] == list(plain.l2)
    if task != "vqa":
        assert facts["accuracy"] == float((plain.probabilities.argmax(-1) == target).float().mean())
    # two thirds may be held, which is what a fit reads of three folds at the most, and all of them may not
    outputs = target.shape[1] if target.dim() == 2 else 0
    in_pieces(monkeypatch, 40, 4 * (features[0].numel() + 6 * outputs))
    pieces = teacher_confidence(examples, side, config, seed=1, path=tmp_path / "pieces.json")
    torch.testing.assert_close(pieces, found, rtol=0, atol=1e-3)  # L-BFGS makes more of the last digits


@pytest.mark.parametrize("task", ["vcr", "vqa"])
def test_what_the_cache_lacks_is_not_fitted(workspace, student, tmp_path, without_images, task):
    examples, cache, whole = loaded(task, workspace, student, Room("memory"))
    gone = examples.image_ids[:4]
    side = TeacherSide(examples, without_images(cache, gone), MADConfig(tokens="global"))
    found = teacher_confidence(examples, side, ConfidenceConfig(folds=3), seed=1, path=tmp_path / "holed.json")
    groups = [example.image.id for example in examples.examples]
    kept = [row for row, image in enumerate(groups) if image not in gone]
    features = probe_features_of(whole, examples.teacher_rows(np.asarray(kept)), examples.n_candidates)
    target = examples.target.dense() if isinstance(examples.target, SoftTargets) else examples.target
    want = cross_fit_probe(features, target[kept], groups=[groups[row] for row in kept], folds=3, seed=1)
    assert torch.equal(found[kept], want.confidence)
    others = [row for row in range(len(groups)) if row not in kept]
    assert torch.equal(found[others], want.confidence.mean().expand(len(others)))
    facts = read_json(tmp_path / "holed.json")
    assert (facts["without_teacher"], facts["l2"]) == (len(others), list(want.l2))
    assert list(facts["confidence"]) == examples.ids


def test_several_teachers_are_asked_about_what_all_of_them_know(workspace, student, tmp_path, without_images):
    examples, cache, whole = loaded("snli-ve", workspace, student, Room("memory"))
    gone = examples.image_ids[:4]
    opened = {"whole": cache, "holed": without_images(cache, gone)}
    several = Teachers([Teacher(name, one) for name, one in opened.items()])
    side = side_of(examples, several, MADConfig(tokens="global"))
    found = teacher_confidence(examples, side, ConfidenceConfig(folds=3), seed=1, path=tmp_path / "both.json")
    groups = [example.image.id for example in examples.examples]
    kept = [row for row, image in enumerate(groups) if image not in gone]
    features = probe_features_of(whole, examples.teacher_rows(np.asarray(kept)), 1)
    want = cross_fit_probe(
        torch.cat([features] * 2, -1), examples.target[kept], groups=[groups[row] for row in kept], folds=3, seed=1
    )
    assert torch.equal(found[kept], want.confidence)


def test_absolute_affinity_is_measured_on_what_the_cache_has(workspace, student, without_images):
    examples, cache, _ = loaded("snli-ve", workspace, student, Room("memory"))
    config = MADConfig(affinity_weight=1.0, affinity_kind="absolute")
    gone = set(examples.image_ids[:8])
    data = open_task(workspace, "snli-ve", part="auto")
    model = load_student(student, head=head_for(data.spec, data.examples("train")))
    kept = [example for example in examples.examples if example.image.id not in gone]
    few = ExampleSet(kept, model, data.regions())
    want = make_criterion(config, model, TeacherSide(few, cache, config), 0).config
    side = TeacherSide(examples, without_images(cache, sorted(gone)), config)
    got = make_criterion(config, model, side, 0).config
    assert (got.affinity_tau, got.affinity_threshold) == (want.affinity_tau, want.affinity_threshold)


def test_zero_shot_goes_by_blocks(workspace, student, tmp_path, monkeypatch):
    examples, _, side = loaded("vcr", workspace, student, Room("stream"))
    config = ConfidenceConfig(source="zero-shot")
    found = teacher_confidence(examples, side, config, seed=1, path=tmp_path / "whole.json")
    monkeypatch.setattr("madkit.distill.teacher.confidence._BLOCK", 5)
    assert torch.equal(teacher_confidence(examples, side, config, seed=1, path=tmp_path / "pieces.json"), found)


@pytest.mark.parametrize("task", ["snli-ve", "vqa"])
def test_the_probe_of_soft_labels_reads_in_pieces(workspace, student, monkeypatch, task):
    examples, cache, _ = loaded(task, workspace, student, Room("stream"))
    reader = ProbeReader([cache], examples.image_ids)
    config = SoftLabelConfig(folds=3)

    def fit():
        return fit_on_labelled(reader, examples.examples, examples.target, config, outputs=None, seed=3)

    whole, said = fit()
    each = sum(4 * reader.features(examples.examples[:1], kind)[0].numel() for kind in reader.kinds)
    outputs = examples.target.shape[1] if isinstance(examples.target, SoftTargets) else 0
    in_pieces(monkeypatch, 40, each + 24 * outputs)
    pieces, told = fit()
    assert told["features"] == said["features"]
    assert told["log_loss_out_of_fold"] == pytest.approx(said["log_loss_out_of_fold"], abs=1e-3)
    assert told["accuracy_out_of_fold"] == said["accuracy_out_of_fold"]
    few = examples.examples[:7]
    torch.testing.assert_close(pieces(few), whole(few), rtol=0, atol=1e-3)


CHILD = """
    import json, sys
    from pathlib import Path
    import torch
    from madkit.bench.distill_data import MadeUpRegions, Shape, made_up_examples, write_cache
    from madkit.cache import TokenCache
    from madkit.distill.batches.examples import ExampleSet
    from madkit.distill.settings.config import ConfidenceConfig
    from madkit.distill.teacher.bank_room import Room
    from madkit.distill.teacher.confidence import teacher_confidence
    from madkit.distill.teacher.side import TeacherSide
    from madkit.mad import rows
    from madkit.mad.config import MADConfig
    from madkit.students.start import new_student

    torch.set_num_threads(1)
    N, D = 800, 512
    shape = Shape("vcr", 12, 2)
    student = new_student("mini-uniter", init="random", region_dim=8, head=shape.head(), layers=1).student
    examples = made_up_examples(shape, student, N)
    folder = write_cache(Path(sys.argv[1]), examples, dim=D, grid=(1, 1), kept=1)
    held = ExampleSet(examples, student, MadeUpRegions(shape, 8, N))
    config = ConfidenceConfig(folds=2)

    def anonymous(field):
        line = next(line for line in open("/proc/self/status") if line.startswith(field))
        return int(line.split()[1]) * 1024

    def peak(fresh):
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        before = anonymous("VmRSS:")
        teacher_confidence(held, side, config, seed=0, path=Path(sys.argv[2]) / fresh)
        return anonymous("VmHWM:") - before

    with TokenCache.open(folder) as cache:
        side = TeacherSide(held, cache, MADConfig(tokens="global"), room=Room("stream"), threads=1)
        limits = rows.HELD_BYTES, rows.BLOCK_BYTES
        rows.HELD_BYTES, rows.BLOCK_BYTES = 2_500_000, 1_000_000
        peak("warm")
        bounded = peak("bounded")
        rows.HELD_BYTES, rows.BLOCK_BYTES = limits
        control = peak("control")
    print(json.dumps({"size": N * 4 * 4 * D * 4, "bounded": bounded, "control": control}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is read from Linux's /proc")
def test_features_ten_times_the_limit_are_never_held(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path / "cache"), str(tmp_path)],
        capture_output=True, text=True, timeout=900, check=False,
        env=os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["size"] > 25e6
    assert found["bounded"] < found["size"] / 3
    assert found["control"] > found["size"]
