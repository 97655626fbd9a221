"""The benchmark of a distillation step in miniature: the same sides and the same code, figures that mean nothing."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from madkit.bench import distill
from madkit.bench.distill import (
    AGAIN,
    ALL,
    EAGER,
    MAD,
    ONLINE,
    PLAIN,
    DistillBenchOptions,
    _Bench,
    _overhead,
    bench_distill,
)
from madkit.bench.distill_data import MINI_SHAPES, MadeUpRegions, Shape, made_up_examples, write_cache
from madkit.cache import TokenCache
from madkit.cli.bench import app
from madkit.core.errors import UsageProblem
from madkit.distill.batches.examples import ExampleSet
from madkit.distill.batches.micro_batch import BatchMaker
from madkit.distill.loop.ahead import Ahead
from madkit.distill.teacher.side import TeacherSide
from madkit.mad.config import MADConfig
from madkit.mad.targets import TeacherTargets
from madkit.students.start import new_student


def test_batches_come_to_the_device_as_in_a_run(monkeypatch, tmp_path):
    """On a GPU a run holds the teacher's regions there, and copies the next batch while a step is computed."""
    seen = set()

    def teacher(*args, room, **more):
        seen.add(("bank", room.device))
        return TeacherSide(*args, room=room, **more)

    def ahead(make, *, on, device):
        seen.add(("batches", device))
        return Ahead(make, on=on, device=device)

    monkeypatch.setattr(distill, "TeacherSide", teacher)
    monkeypatch.setattr(distill, "Ahead", ahead)
    torch.set_num_threads(1)
    bench = _Bench(DistillBenchOptions(shape="vqa", tiny=True), "cpu:0", tmp_path)
    bench._turn(PLAIN, 1)
    bench.close()
    assert seen == {("bank", "cpu:0"), ("batches", "cpu:0")}


def test_what_a_turn_counts_and_how_batches_are_timed(monkeypatch, tmp_path):
    """All that is done for a batch, by a clock that nothing else moves; the first one is there when a turn begins."""
    torch.set_num_threads(1)
    bench = _Bench(DistillBenchOptions(shape="vqa", tiny=True), "cpu", tmp_path)
    now, made = [0.0], []

    def making(name, seconds):
        make = bench.makers[name]

        def made_slowly(piece, step):
            now[0] += seconds
            made.append((name, step))
            return make(piece, step)

        return Ahead(made_slowly, on=False)

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    bench.batches = {PLAIN: making(PLAIN, 2.0), MAD: making(MAD, 3.0)}
    assert bench._turn(MAD, 2).wall == 6.0
    assert made == [(MAD, 0), (MAD, 1), (MAD, 2)]
    found = bench.reader(12.0)
    assert (found["batch_s"], found["finetune_batch_s"], found["headroom"]) == (3.0, 2.0, 4.0)
    assert found["examples_per_s"] == bench.batch / 3
    bench.close()


def test_one_thread_makes_the_batches_of_a_side_for_good(monkeypatch, tmp_path):
    begun, ended = [], []

    class Watched(Ahead):
        def __enter__(self):
            begun.append(self)
            return super().__enter__()

        def __exit__(self, *error):
            ended.append(self)
            super().__exit__(*error)

    monkeypatch.setattr(distill, "Ahead", Watched)
    torch.set_num_threads(1)
    bench = _Bench(DistillBenchOptions(shape="vqa", tiny=True), "cpu", tmp_path)
    sides = list(begun)
    bench._turn(PLAIN, 1)
    bench._turn(PLAIN, 1)
    assert begun == sides
    assert not ended
    bench.close()
    assert set(ended) == set(sides)


@pytest.mark.parametrize(("states", "late"), [([False, True], True), ([False, False], False), ([True, True], False)])
def test_a_gpu_that_ran_dry_while_a_batch_was_made_waited_for_it(monkeypatch, states, late):
    answers = iter(states)
    event = SimpleNamespace(query=lambda: next(answers))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(record_event=lambda: event))
    bench = SimpleNamespace(cuda=True, device="cuda", _next=lambda name, step: (name, step))
    assert _Bench._awaited(bench, MAD, 3) == ((MAD, 3), late)


@pytest.mark.parametrize("shape", sorted(MINI_SHAPES))
def test_examples_have_the_shape_and_something_to_learn_from(shape, tmp_path):
    torch.set_num_threads(1)
    wanted = MINI_SHAPES[shape]
    student = new_student("mini-uniter", init="random", head=wanted.head(), layers=1).student
    examples = made_up_examples(wanted, student, 4)
    found = ExampleSet(examples, student, MadeUpRegions(wanted, student.region_dim, 4))
    assert (found.text_lengths == wanted.text).all()
    assert (found.region_counts == wanted.regions).all()
    assert found.shortened == 0
    assert len(set(found.texts)) == len(found.texts)
    with TokenCache.open(write_cache(tmp_path / "cache", examples, dim=8, grid=(3, 3), kept=5)) as cache:
        side = TeacherSide(found, cache, MADConfig())
        teacher = BatchMaker(found, 10, teacher=side)(np.arange(3), 0).teacher
    assert isinstance(teacher, TeacherTargets)
    assert teacher.chosen is not None
    kinds = {"text": teacher.chosen.text, "region": teacher.chosen.region, "tag": teacher.chosen.tag}
    for name, kind in kinds.items():
        assert kind is not None
        assert bool(kind.valid.any()) == (name != "tag" or shape == "vcr"), name


def test_all_sides_take_turns():
    torch.set_num_threads(1)
    runner = CliRunner()
    run = ["distill", "--tiny", "--device", "cpu", "--repeats", "1", "--shape", "vcr"]
    result = runner.invoke(app, [*run, "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    rows = {row["side"]: row for row in document["rows"]}
    assert list(rows) == [PLAIN, MAD, ALL, ONLINE, EAGER, AGAIN]
    assert all(row["seconds"] > 0 for row in rows.values())
    assert all("overhead" in rows[name] for name in (MAD, ALL, ONLINE, EAGER))
    assert rows[ONLINE]["cached_is_faster"] > 0
    asked = document["batch"]["examples"] / rows[MAD]["clock_s"]
    assert document["reader"]["headroom"] == pytest.approx(document["reader"]["examples_per_s"] / asked, rel=0.01)
    assert rows[MAD]["waited"] is None  # there is no GPU that could
    assert document["batch"]["tokens"] == 3 * Shape("vcr", 18, 5).tokens


def test_an_online_teacher_reads_the_texts_of_a_step_and_no_more(tmp_path):
    torch.set_num_threads(1)
    shape = MINI_SHAPES["vcr"]
    bench = _Bench(DistillBenchOptions(shape="vcr", device="cpu", tiny=True), "cpu", tmp_path)
    bench.close()
    for name in (ONLINE, EAGER):
        read = [len(text.ids) for text in bench.online[name]._ids]
        # 15 words beside [CLS] and two [SEP]: five of the question, ten of each of four choices
        assert read == [5, 10, 10, 10, 10] * 3
        assert max(read) < shape.text


def test_overhead_is_paired_with_an_interval():
    base = [1.0, 2.0, 4.0, 8.0]
    found = _overhead([1.1 * value for value in base], base)
    assert found["overhead"] == pytest.approx(0.1)
    assert found["interval"] == pytest.approx([0.1, 0.1])
    low, high = _overhead([1.0, 2.4, 4.4, 8.0], base)["interval"]
    assert low < 0.1 < high


def test_what_it_does_not_know_is_refused():
    with pytest.raises(UsageProblem, match="no student"):
        bench_distill(DistillBenchOptions(student="lxmert"))
    with pytest.raises(UsageProblem, match="no shape"):
        bench_distill(DistillBenchOptions(shape="coco"))


def test_the_step_command():
    torch.set_num_threads(1)
    result = CliRunner().invoke(app, ["step", "--tiny", "--device", "cpu", "--repeats", "1", "--shape", "vqa"])
    assert result.exit_code == 0, result.output
    assert "the time of BertModel" in " ".join(result.stdout.split())
    assert max(map(len, result.stdout.splitlines())) <= 80
