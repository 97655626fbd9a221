"""Every family's student: exported and loaded again it gives the same answers, to the last bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from madkit import load_student
from madkit import predict as ask
from madkit.cache import TokenCache
from madkit.cache.layout import image_layout, text_layout
from madkit.cache.plan import StorePlan
from madkit.cache.token_regions import TokenRegions
from madkit.cache.writer import StoreWriter
from madkit.cli.main import main
from madkit.core.errors import DataError
from madkit.core.files import write_json_atomic
from madkit.evaluate.predict import predict
from madkit.regions.interface import Regions
from madkit.share.folder import export_run
from madkit.students.families import FAMILIES, family_of
from madkit.students.heads import HeadSpec
from madkit.students.load import save_student
from madkit.students.start import new_student

from .conftest import CLASSES, SharedRun

WIDTH = 20


class Tokens:
    """Stands in for a teacher's cache: nine tokens of an image, drawn from its name."""

    dim = WIDTH

    def get(self, image_id: str) -> Regions:
        draw = np.random.default_rng(sum(image_id.encode()))
        boxes = np.tile(np.array([0.1, 0.1, 0.6, 0.7], dtype=np.float32), (9, 1))
        return Regions(boxes, draw.standard_normal((9, WIDTH)).astype(np.float32))


def put(run: SharedRun, family: str) -> Any:
    """Put a student of that family into the run, and return what it sees with."""
    visual = family_of(family).visual
    regions: Any = {"regions": run.data.regions(), "teacher": Tokens(), "pixels": None}[visual]
    size = {} if regions is None else {"region_dim": regions.dim}
    made = new_student(f"mini-{family}", init="random", head=HeadSpec("classification", CLASSES), seed=3, **size)
    with torch.no_grad():  # so that answers differ from question to question
        for parameter in made.student.head.parameters():
            parameter.mul_(20)
    shutil.rmtree(run.path / "student")
    save_student(made.student, run.path / "student")
    write_json_atomic(run.path / "manifest.json", run.manifest(student=f"mini-{family}"))
    return regions


@pytest.mark.parametrize("family", FAMILIES.names())
def test_an_exported_student_gives_its_runs_answers(run: SharedRun, tmp_path: Path, family: str) -> None:
    regions = put(run, family)
    export_run(run.workspace, str(run.path), tmp_path / "out")
    examples = run.data.examples("test")[:8]
    ours, theirs = (
        predict(folder, examples, regions, spec=run.data.spec, device="cpu")
        for folder in (run.path / "student", tmp_path / "out")
    )
    assert ours == theirs
    assert len({tuple(row["logits"]) for row in ours}) > 3, "answers that do not differ would prove nothing"
    first, second = load_student(run.path / "student").state_dict(), load_student(tmp_path / "out").state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    if family_of(family).visual == "pixels":  # and on image files that nobody imported
        rows = [{"id": one.id, "image": str(one.image.path), "text": one.context[0].text} for one in examples]
        told = ask(tmp_path / "out", rows, device="cpu")
        for row, mine in zip(told.rows, ours, strict=True):
            assert row["prediction"] == run.data.spec.labels[mine["prediction"]]
        assert told.rows == ask(run.path / "student", rows, device="cpu").rows


def store_of(path: Path, images: list[str]) -> Path:
    """A token cache of four tokens an image, and of no text."""
    draw = np.random.default_rng(5)
    plan = StorePlan(
        identity={"teacher": "test", "task": "snli-ve", "source": "mini-snli-ve", "revision": "r"},
        image_ids=images, image_aliases={}, texts=[], lengths=np.zeros(0, np.int64),
        images=image_layout(len(images), (2, 2), WIDTH, 1.0), text=text_layout(np.zeros(0, np.int64), WIDTH, 1.0),
        facts={},
    )  # fmt: skip
    with StoreWriter(path, plan) as writer:
        for number in writer.pending("images"):
            count = len(writer.plan.items("images", number))
            values = {
                "tokens": draw.standard_normal((count, 4, WIDTH)).astype(np.float16),
                "globals": draw.standard_normal((count, WIDTH)).astype(np.float16),
            }
            writer.write_unit("images", number, values)
        writer.finish(seconds=1.0)
    return path


def test_a_student_that_sees_with_its_teacher_is_asked_with_a_cache(run: SharedRun, tmp_path: Path) -> None:
    put(run, "clip-vil")
    examples = run.data.examples("test")[:6]
    images = sorted({one.image.id for one in examples})
    store = store_of(tmp_path / "store", images)
    rows = [{"id": one.id, "image": one.image.path.name, "text": one.context[0].text} for one in examples]
    told = ask(run.path / "student", rows, regions=store, device="cpu", raw=True)
    with TokenCache.open(store) as cache:
        wanted = predict(run.path / "student", examples, TokenRegions(cache), spec=run.data.spec, device="cpu")
    for row, theirs in zip(told.rows, wanted, strict=True):
        assert [row["scores"][name] for name in run.data.spec.labels] == theirs["logits"]
    with pytest.raises(DataError, match=r"question 7: there are no region features in its cache .*b\.png"):
        ask(run.path / "student", [*rows, {"image": "b.png", "text": "x"}], regions=store, device="cpu")


def test_a_student_that_sees_with_its_teacher_says_that_the_cache_is_absent(
    run: SharedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(run, "clip-vil")
    export_run(run.workspace, str(run.path), tmp_path / "out")
    where = ["--workspace", str(run.workspace.root), "--device", "cpu"]
    assert main(["predict", str(tmp_path / "out"), "-o", str(tmp_path / "answers"), *where]) == 1
    err = capsys.readouterr().err
    assert "sees with its teacher's tokens, and their cache mini-mini-snli-ve-0123456789ab is gone." in err
    assert f"madkit extract --workspace {run.workspace.root} --teacher mini" in err
    (tmp_path / "q.jsonl").write_text('{"image": "a.png", "text": "x"}\n')
    assert main(["predict", str(tmp_path / "out"), str(tmp_path / "q.jsonl"), *where]) == 2
    assert "sees with its teacher's tokens, and needs one token cache of these images" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    command = ["predict", str(tmp_path / "out"), str(tmp_path / "q.jsonl"), "--regions", str(tmp_path / "empty")]
    assert main([*command, *where]) == 1
    assert "There is no token cache at" in capsys.readouterr().err
