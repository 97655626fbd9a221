"""VCR by the source of its films."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from madkit.core.errors import DataError, UsageProblem
from madkit.shifts import make_shift
from madkit.tasks.data import TaskData, imported_datasets, open_task
from madkit.tasks.importing import ImportOptions
from madkit.tasks.importing.run import import_data
from madkit.tasks.importing.write import in_cut

Make = Callable[..., Any]


def ids(data: TaskData, split: str) -> list[str]:
    return [example.id for example in data.examples(split)]


def test_two_data_sets_that_test_each_other(make_vcr: Make) -> None:
    workspace, data = make_vcr(60, 30)
    made = make_shift(workspace, data, "source")
    assert [(one.kind, one.name) for one in made] == [("dataset", "vcr-lsmdc"), ("dataset", "vcr-movieclips")]
    assert imported_datasets(workspace) == ["vcr", "vcr-lsmdc", "vcr-movieclips"]
    lsmdc, clips = (open_task(workspace, one.name) for one in made)
    assert (lsmdc.spec.name, lsmdc.source, lsmdc.suites()) == ("vcr", "vcr-lsmdc", ["test", "test-movieclips"])
    assert clips.suites() == ["test", "test-lsmdc"]
    assert lsmdc.revision != clips.revision
    for split in ("train", "dev", "test"):
        mine, theirs = ids(lsmdc, split), ids(clips, split)
        assert mine
        assert theirs
        assert sorted(mine + theirs) == sorted(ids(data, split))
        assert all(example.image.id.startswith("lsmdc_") for example in lsmdc.examples(split))
        assert all(example.image.id.startswith("movieclips_") for example in clips.examples(split))
    # The other source's test questions, which are its own test split, just as they are.
    assert list(lsmdc.examples("test-movieclips")) == list(clips.examples("test"))
    assert list(clips.examples("test-lsmdc")) == list(lsmdc.examples("test"))
    assert made[0].counts["test-movieclips"] == len({e.question_id for e in clips.examples("test")})


def test_other_shifts_work_on_them(make_vcr: Make) -> None:
    workspace, data = make_vcr(60, 30)
    name = make_shift(workspace, data, "source")[0].name
    lsmdc = open_task(workspace, name)
    (suite,) = make_shift(workspace, lsmdc, "shortcut-singular")
    kept = {example.question_id for example in open_task(workspace, name).examples(suite.name)}
    assert kept == {example.question_id for example in lsmdc.examples("test")}


def test_finished_ones_are_found(make_vcr: Make, capsys: pytest.CaptureFixture[str]) -> None:
    workspace, data = make_vcr(60, 30)
    first = make_shift(workspace, data, "source")
    before = [(one.path / "manifest.json").stat().st_mtime_ns for one in first]
    assert make_shift(workspace, data, "source") == first
    assert [(one.path / "manifest.json").stat().st_mtime_ns for one in first] == before
    assert "nothing to make" in capsys.readouterr().err
    with pytest.raises(UsageProblem, match="vcr-lsmdc holds one source already"):
        make_shift(workspace, open_task(workspace, "vcr-lsmdc"), "source")


def test_they_follow_files_that_moved_and_keep_what_was_added(make_vcr: Make) -> None:
    workspace, data = make_vcr(60, 30)
    name = make_shift(workspace, data, "source")[0].name
    made = open_task(workspace, name)
    suite = make_shift(workspace, made, "shortcut-singular")[0].name
    files = Path(data.about("test")["files"][0]["path"]).parent
    moved = files.rename(files.with_name("elsewhere"))
    data = import_data(workspace, "vcr", moved, ImportOptions(dev_cut=0.3)).data
    assert make_shift(workspace, data, "source")[0].name == name
    again = open_task(workspace, name)
    assert (again.revision, again.suites()) == (made.revision, [*made.suites(), suite])
    for split in again.suites():
        assert again.examples(split)[0].image.path.is_relative_to(moved)


def one_source(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for row in rows:
        for key in ("img_fn", "metadata_fn"):
            row[key] = row[key].replace("movieclips", "lsmdc")
    return rows


def test_a_development_split_of_one_source_is_said_before_anything_is_made(make_vcr: Make) -> None:
    """The cut takes films, and a small one may find them all in one source."""

    def one_for_dev(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        held = [row for row in rows if in_cut(row["img_fn"].rpartition("/")[0], 0.3)]
        one_source(name, held)
        return rows

    workspace, data = make_vcr(60, 30, one_for_dev)
    with pytest.raises(DataError, match=r"split dev of vcr has no image .* 'movieclips_'") as caught:
        make_shift(workspace, data, "source")
    assert "--dev-cut" in (caught.value.hint or "")
    assert imported_datasets(workspace) == ["vcr"]


def test_one_source_is_no_shift(make_vcr: Make) -> None:
    workspace, data = make_vcr(30, 6, one_source)
    with pytest.raises(DataError, match="no image whose folder begins with 'movieclips_'"):
        make_shift(workspace, data, "source")
    assert imported_datasets(workspace) == ["vcr"]
