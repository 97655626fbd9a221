"""What the builder writes is what the readers of the real formats read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from madkit.core.errors import UsageProblem
from madkit.core.workspace import Workspace
from madkit.tasks.data import TaskData, open_task
from madkit.tasks.mini.build import build_mini
from madkit.tasks.mini.plan import SOURCES

TASKS = tuple(SOURCES)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.at(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module", params=TASKS)
def data(request: pytest.FixtureRequest, workspace: Workspace) -> TaskData:
    return open_task(workspace, request.param, part="tiny")


def test_counts_and_suites(data: TaskData) -> None:
    assert data.is_mini
    assert data.source == SOURCES[data.spec.name]
    per_question = 2 if data.spec.name == "vcr" else 1
    assert len(data.examples("train")) == 240 * per_question
    wanted = {"test", "test-rendering", "test-rewording", "test-concepts"}
    extra = {"vcr": {"test-shortcut-singular", "test-shortcut-plural"}, "vqa": {"test-priors"}, "snli-ve": set()}
    assert set(data.suites()) == wanted | extra[data.spec.name]


def test_no_image_is_in_two_splits(data: TaskData) -> None:
    owner: dict[str, str] = {}
    for split in ("train", "dev", "test", "test-rendering", "test-concepts"):
        for example in data.examples(split):
            assert owner.setdefault(example.image.id, split) == split


def test_every_image_has_pixels_and_regions_with_its_boxes(data: TaskData) -> None:
    regions = data.regions()
    assert regions is not None
    for split in (*data.splits(), *data.suites()):
        for example in data.examples(split)[:40]:
            with Image.open(example.image.path) as image:
                assert image.size == (96, 96)
            found = regions.get(example.image.id)
            assert 3 <= len(found.boxes) <= 5
            if example.boxes:
                assert np.allclose(np.asarray(example.boxes) / 96, found.boxes, atol=1e-3)


def test_suites_shift_what_they_say_and_nothing_else(data: TaskData) -> None:
    test, rendered, reworded = (data.examples(s) for s in ("test", "test-rendering", "test-rewording"))
    for plain, shifted, other in zip(test, rendered, reworded, strict=True):
        assert plain.label == shifted.label == other.label
        assert plain.answers == shifted.answers == other.answers
        assert plain.texts() == shifted.texts()
        assert plain.image.id != shifted.image.id
        assert plain.image.id == other.image.id
    changed = sum(a.context != b.context for a, b in zip(test, reworded, strict=True))
    assert changed > 0.95 * len(test)


def test_vcr_tags_point_at_their_boxes(workspace: Workspace) -> None:
    data = open_task(workspace, "vcr", part="tiny")
    for example in data.examples("train"):
        assert len(example.candidates) == 4
        for segment in (*example.context, *example.candidates):
            for tag in segment.tags:
                assert segment.text[tag.start : tag.end] == "person"
                assert all(0 <= box < len(example.boxes) for box in tag.boxes)


def test_metadata_has_five_columns(workspace: Workspace) -> None:
    example = open_task(workspace, "vcr", part="tiny").examples("dev")[0]
    metadata = json.loads(example.image.path.with_suffix(".json").read_text())
    assert all(len(box) == 5 for box in metadata["boxes"])
    assert metadata["names"] == ["person"] * len(metadata["boxes"])


def test_vqa_has_ten_answers_of_which_most_agree(workspace: Workspace) -> None:
    for example in open_task(workspace, "vqa", part="tiny").examples("train"):
        assert len(example.annotations) == 10
        assert example.answers is not None
        assert max(example.answers.values()) == 1.0


def digests(folder: Path) -> dict[str, str]:
    """Digest of every file; HDF5 by content, since the library may write times."""
    result = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"):
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                content = b"".join(np.ascontiguousarray(file[name][...]).tobytes() for name in sorted(file))
        else:
            content = path.read_bytes()
        result[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return result


def test_building_again_gives_the_same_bytes(tmp_path: Path, workspace: Workspace) -> None:
    data = open_task(workspace, "vqa", part="tiny")
    build_mini(tmp_path / "again", "mini-vqa", part="tiny", workers=2)
    assert digests(tmp_path / "again") == digests(data.root)


def test_a_build_that_was_stopped_starts_again(tmp_path: Path) -> None:
    """The manifest comes last: without it nothing counts as built."""
    build_mini(tmp_path, "mini-snli-ve", part="tiny", workers=1)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "snli_ve_train.jsonl").write_text("torn")
    build_mini(tmp_path, "mini-snli-ve", part="tiny", workers=1)
    assert len((tmp_path / "snli_ve_train.jsonl").read_text().splitlines()) == 240


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="medium"):
        build_mini(tmp_path, "mini-vqa", part="medium")
