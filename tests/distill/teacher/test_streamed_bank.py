"""Vectors that are read batch by batch are those of a bank in memory, and a cache ten times the room for it will do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from madkit.cache import choose_cache
from madkit.distill.batches.answers import head_for
from madkit.distill.batches.examples import ExampleSet
from madkit.distill.batches.micro_batch import BatchMaker
from madkit.distill.loop.ahead import each_tensor
from madkit.distill.settings.config import DistillConfig
from madkit.distill.teacher.bank import text_bytes
from madkit.distill.teacher.bank_room import Room
from madkit.distill.teacher.side import TeacherSide
from madkit.distill.teacher.streamed_bank import StreamedGlobals, StreamedRegions, StreamedTexts
from madkit.mad.config import MADConfig
from madkit.students.load import load_student
from madkit.tasks.data import open_task

BATCHES = [np.asarray(found) for found in ([5, 0, 17, 3], [3, 4, 11], [0, 0])]


@pytest.fixture(params=["vcr", "snli-ve"])
def loaded(request, workspace, student):
    torch.set_num_threads(1)
    data = open_task(workspace, request.param, part="auto")
    model = load_student(student, head=head_for(data.spec, data.examples("train")))
    return ExampleSet(data.examples("train")[:24], model, data.regions()), choose_cache(workspace, data, None)


def tensors(value: object) -> Iterator[torch.Tensor]:
    found: list[torch.Tensor] = []
    each_tensor(value, lambda tensor: found.append(tensor) or tensor)
    yield from found


@pytest.mark.parametrize(
    "changes",
    [{}, {"tokens": "random"}, {"tokens": "all"}, {"affinity_weight": 1.0, "affinity_form": "both"}],
    ids=["adaptive", "random", "all", "affinity"],
)
def test_streamed_equals_held(loaded, changes):
    examples, cache = loaded
    config = MADConfig(weighting="uniform", **changes)
    held = TeacherSide(examples, cache, config, room=Room("memory"))
    streamed = TeacherSide(examples, cache, config, room=Room("stream"), permute_seed=None)
    assert not held.reads
    assert streamed.reads
    makers = [BatchMaker(examples, 10, teacher=side) for side in (held, streamed)]
    assert [maker.reads for maker in makers] == [False, True]
    for step, indices in enumerate(BATCHES):
        ours, theirs = ([*tensors(maker(indices, step).to("cpu"))] for maker in makers)
        assert len(ours) == len(theirs) > 10
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    everything = examples.teacher_rows(np.arange(len(examples)))  # what confidence is worked out from
    assert torch.equal(held.images.globals[everything.images], streamed.images.globals[everything.images])
    assert torch.equal(held.text_globals(everything.texts), streamed.text_globals(everything.texts))


def test_rows_without_values_are_zeros(loaded):
    examples, cache = loaded
    rows = cache.images.rows(examples.image_ids[:3])
    rows[1] = -1
    images = StreamedGlobals(cache.images, rows)
    assert images.shape == (3, cache.images.dim)
    found = images[torch.tensor([[2, 1], [1, 0]])]
    assert found[0, 0].abs().sum() > 0
    assert not found[0, 1].any()
    regions = StreamedRegions(cache.images, rows, examples.region_boxes[:3], images)
    assert not regions[torch.tensor([1])].any()
    assert regions[torch.tensor([0, 1]), :2][0].abs().sum() > 0
    where = int((examples.token_pairs[:, 0] == 0).sum())
    store = cache.texts.rows(examples.texts)
    tokens = StreamedTexts(cache.texts, np.where(np.arange(len(store)) == 0, -1, store), examples.token_pairs)
    found = tokens[torch.tensor([0, where])]
    assert not found[0].any()
    assert found[1].abs().sum() > 0


def test_the_room_decides_by_size_and_says_why(capsys):
    assert not Room(limit=100).streams("images", 100)
    assert Room(limit=100).streams("images", 101)
    assert not Room("memory", limit=100).streams("texts", 10**10)
    assert Room("stream").streams("texts", 1)
    said = capsys.readouterr().err
    assert "images take 0.0 MB, more than the 0.0 MB to be held: they are read batch by batch" in said
    assert "texts take 10.0 GB, as teacher_bank: memory asks: they are held in memory" in said
    table = torch.zeros(3, 2)
    assert Room(device="cpu").place("regions", table) is table


def test_all_sides_share_one_room(loaded, capsys):
    room = Room(limit=100)
    assert not room.streams("images", 60)
    assert room.streams("texts", 41)
    assert not room.streams("texts", 40)
    assert room.streams("images", 1)
    assert "take 0.0 MB, more than the 0.0 MB still to be held" in capsys.readouterr().err
    examples, cache = loaded
    config = MADConfig(weighting="uniform")
    alone = Room("memory")
    TeacherSide(examples, cache, config, room=alone)
    shared = Room(limit=int(1.5 * alone.held))  # enough for one of two teachers
    sides = [TeacherSide(examples, cache, config, room=shared) for _ in range(2)]
    assert [side.reads for side in sides] == [False, True]
    assert alone.held <= shared.held <= 1.5 * alone.held


@pytest.mark.parametrize("bank", ["memory", "stream"])
@pytest.mark.parametrize(
    ("changes", "also", "read"),
    [
        ({"tokens": "global"}, (), False),
        ({"region_weight": 0.0, "tag_weight": 0.0}, (), False),
        ({"tokens": "global"}, (MADConfig(),), True),
        ({"tokens": "global", "affinity_weight": 1.0, "affinity_form": "sentence"}, (), True),
        ({"region_weight": 0.0}, (), True),  # tags are regions, too
    ],
)
def test_patches_are_read_where_a_term_compares_regions(loaded, monkeypatch, bank, changes, also, read):
    examples, cache = loaded
    asked = []
    tokens = type(cache.images).tokens
    monkeypatch.setattr(type(cache.images), "tokens", lambda self, rows: asked.append(len(rows)) or tokens(self, rows))
    placed = []
    monkeypatch.setattr(Room, "place", lambda self, what, table: placed.append(what) or table)
    room = Room(bank)
    side = TeacherSide(examples, cache, MADConfig(weighting="uniform", **changes), also=also, room=room)
    indices = BATCHES[0]
    targets = side.targets(examples.teacher_rows(indices), indices, examples.inputs(indices))
    assert bool(asked) == read
    assert bool(targets.regions.any()) == read
    assert placed == (["regions"] if read and bank == "memory" else [])
    n, R = examples.region_boxes.shape[:2]
    assert side.images.regions.shape == (n, R, cache.images.dim)
    whole = TeacherSide(examples, cache, MADConfig(), room=Room("memory"))
    want = whole.targets(examples.teacher_rows(indices), indices, examples.inputs(indices))
    for name in ("image_global", "text_global", "region_mask"):
        assert torch.equal(getattr(targets, name), getattr(want, name))
    if bank == "memory":
        images = n * cache.images.dim * (4 + (2 * R if read else 0))
        pairs = examples.token_pairs if side.texts.tokens is not None else None
        assert room.held == images + text_bytes(cache, len(examples.texts), pairs)
        assert isinstance(side.images.regions, torch.Tensor)
        assert side.images.regions.untyped_storage().nbytes() == (2 * n * R * cache.images.dim if read else 2)


def test_where_vectors_are_held_is_no_part_of_a_run():
    from madkit.core.later_keys import OUTSIDE

    assert "teacher_bank" in OUTSIDE
    assert "teacher_bank" in DistillConfig.model_fields


CHILD = """
    import json, sys
    from pathlib import Path
    import numpy as np
    import torch
    from madkit.bench.distill_data import MadeUpRegions, Shape, made_up_examples, write_cache
    from madkit.cache import TokenCache
    from madkit.distill.loop.ahead import Ahead
    from madkit.distill.teacher.bank_room import Room
    from madkit.distill.batches.examples import ExampleSet
    from madkit.distill.batches.micro_batch import BatchMaker
    from madkit.distill.objective.objective import Objective
    from madkit.distill.teacher.criterion import make_criterion
    from madkit.distill.teacher.side import TeacherSide
    from madkit.mad.config import MADConfig
    from madkit.students.start import new_student

    torch.set_num_threads(1)
    N = 1200
    shape = Shape("snli-ve", 12, 40)
    student = new_student("mini-uniter", init="random", region_dim=8, head=shape.head(), layers=1).student
    examples = made_up_examples(shape, student, N)
    folder = write_cache(Path(sys.argv[1]), examples, dim=512, grid=(7, 7), kept=49)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    held = ExampleSet(examples, student, MadeUpRegions(shape, 8, N))
    config = MADConfig(weighting="uniform")
    order = np.random.default_rng(0).permutation(N).reshape(-1, 16)

    def anonymous():
        line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon:"))
        return int(line.split()[1]) * 1024

    def train(room, steps):
        side = TeacherSide(held, cache, config, room=room, threads=1)
        objective = Objective(student, make_criterion(config, student, side, 0))
        optimizer = torch.optim.SGD(objective.parameters(), lr=1e-3)
        maker = BatchMaker(held, N, teacher=side)
        most = 0
        with Ahead(maker, on=maker.reads) as batches:
            for step in range(steps):
                batch = batches(order[step], step)
                batches.announce([order[(step + 1) % len(order)]], step + 1)
                objective(batch.to("cpu")).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                most = max(most, anonymous())
        return most, side.reads

    with TokenCache.open(folder) as cache:
        limit = size // 20
        train(Room(limit=limit), 16)  # what libraries and the allocator take when they are first used
        before = anonymous()
        most, streamed = train(Room(limit=limit), len(order))
        control, reads = train(Room("memory"), 2)
    print(json.dumps({"size": size, "streamed": streamed, "grown": most - before, "control": control - before}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from Linux's /proc")
def test_a_cache_ten_times_the_room_is_streamed(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path / "cache")],
        capture_output=True, text=True, timeout=900, check=False,
        env=os.environ | {"MALLOC_ARENA_MAX": "1"},  # else every thread keeps freed pages of its own
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["size"] > 60e6
    assert found["streamed"]
    assert "read batch by batch" in run.stderr
    assert found["grown"] <= found["size"] / 10  # the whole of the cache was read, a tenth of it was never held
    assert found["control"] > found["size"] / 2  # which the bank in memory takes several times over
