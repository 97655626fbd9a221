"""The frame of every import: what is replaced, what is kept, and that nothing is left half-done."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from madkit.core.errors import DataError, NotFoundError, StoppedResumable, UsageProblem
from madkit.core.workspace import Workspace
from madkit.tasks import importing
from madkit.tasks.data import TaskData, every_dataset, imported_datasets
from madkit.tasks.example import Example, ImageRef, Segment
from madkit.tasks.id_lists import import_shots
from madkit.tasks.importing import FoundFiles, ImportOptions, ImportPlan, SplitPlan
from madkit.tasks.importing.run import import_data
from madkit.tasks.importing.write import in_cut
from madkit.tasks.spec import custom_spec
from madkit.tasks.suites import write_suite

Change = Callable[[ImportPlan], ImportPlan]


def example(number: int, images: Path, split: str) -> Example:
    ref = ImageRef(f"{number // 2}", images / f"{number // 2}.png")
    return Example(f"{split}{number}", "snli-ve", f"{split}{number}", ref, (Segment("It."),), label=number % 3)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "images").mkdir(parents=True)
    for number in range(100):
        Image.new("RGB", (4, 4)).save(root / "images" / f"{number}.png")
    (root / "lines.txt").write_text("x" * 2_500_000)
    return root


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch) -> list[Change]:
    """An importer named "snli-ve" of 200 train and 20 test examples; what is appended here changes its plan."""
    changes: list[Change] = []

    def plan(files: FoundFiles, options: ImportOptions) -> ImportPlan:
        images = files.root / "images"

        def split(name: str, official: str, count: int) -> SplitPlan:
            def read(advance: Callable[[int], None]) -> Iterator[Example]:
                for number in range(count):
                    advance(25_000)
                    yield example(number, images, name)

            return SplitPlan(name, official, read, (files.root / "lines.txt",))

        made = ImportPlan(
            "snli-ve",
            "snli-ve",
            "Made up",
            [split("train", "train", 200), split("test", "val", 20)],
            images,
            cut_dev=True,
        )
        for one in changes:
            made = one(made)
        return made

    monkeypatch.setitem(importing.IMPORTERS._entries, "snli-ve", plan)
    return changes


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "ws")


def run(workspace: Workspace, source: Path, **options: Any) -> TaskData:
    data = import_data(workspace, "snli-ve", source, ImportOptions(**options)).data
    assert data is not None
    return data


def leftovers(workspace: Workspace) -> list[str]:
    return sorted(path.name for path in workspace.data.iterdir()) if workspace.data.exists() else []


def test_the_development_split_is_cut_by_image(workspace: Workspace, source: Path, change: list[Change]) -> None:
    data = run(workspace, source, dev_cut=0.2)
    train, dev = data.examples("train"), data.examples("dev")
    assert len(train) + len(dev) == 200
    assert 20 <= len(dev) <= 60
    assert not {one.image.id for one in train} & {one.image.id for one in dev}
    assert all(in_cut(one.image.id, 0.2) for one in dev)
    assert data.manifest["splits"]["dev"]["official"] == "20 % of train"
    assert leftovers(workspace) == ["snli-ve"]
    larger = run(workspace, source, dev_cut=0.4)
    assert {one.id for one in dev} < {one.id for one in larger.examples("dev")}
    assert larger.revision != data.revision


def test_groups_stay_together_and_a_single_group_is_cut_by_image(
    workspace: Workspace, source: Path, change: list[Change]
) -> None:
    change.append(lambda plan: replace(plan, cut_group=lambda one: str(int(one.image.id) // 10)))
    data = run(workspace, source, dev_cut=0.3)
    films = [{int(one.image.id) // 10 for one in data.examples(name)} for name in ("train", "dev")]
    assert not films[0] & films[1]
    change[:] = [lambda plan: replace(plan, cut_group=lambda one: "the only film")]
    (source / "images" / "50.png").unlink()
    data = run(workspace, source, dev_cut=0.3, allow_missing=True)
    assert data.manifest["splits"]["train"]["left_out"] == {"image missing": 2}  # counted once, though read twice
    assert len(data.examples("dev")) > 0
    assert not {one.image.id for one in data.examples("train")} & {one.image.id for one in data.examples("dev")}


def test_without_a_cut_dev_is_the_reported_split_and_says_so(
    workspace: Workspace, source: Path, change: list[Change], capsys: pytest.CaptureFixture[str]
) -> None:
    data = run(workspace, source, dev_cut=0)
    assert [one.id for one in data.examples("dev")] == [one.id for one in data.examples("test")]
    assert len(data.examples("train")) == 200
    assert "not held out" in data.manifest["notes"][0]
    assert "Warning: The development split is val itself" in capsys.readouterr().err


def test_the_same_files_again_keep_everything(workspace: Workspace, source: Path, change: list[Change]) -> None:
    data = run(workspace, source)
    write_suite(data, "test-hard", [example(1, source, "t")], made_by={}, about="")
    ids = source.parent / "ids.txt"
    ids.write_text(f"{data.examples('train')[0].question_id}\n")
    import_shots(data, ids, "mine")
    (data.root / "regions.json").write_text('{"parts": []}')
    result = import_data(workspace, "snli-ve", source)
    assert result.unchanged
    assert result.data is not None
    assert result.data.revision == data.revision
    assert result.data.suites() == ["test", "test-hard"]
    assert result.data.named_shots() == ["mine"]
    assert (data.root / "regions.json").is_file()


def test_other_content_drops_suites_and_lists_and_says_which(
    workspace: Workspace, source: Path, change: list[Change], capsys: pytest.CaptureFixture[str]
) -> None:
    data = run(workspace, source)
    write_suite(data, "test-hard", [example(1, source, "t")], made_by={}, about="")
    (data.root / "regions.json").write_text('{"parts": []}')
    again = run(workspace, source, dev_cut=0.5)
    assert again.suites() == ["test"]
    assert (again.root / "regions.json").is_file()
    assert "its suites are dropped and have to be made again: test-hard" in capsys.readouterr().err


@pytest.mark.parametrize("earlier", [False, True])
def test_a_failure_changes_nothing(workspace: Workspace, source: Path, change: list[Change], earlier: bool) -> None:
    before = run(workspace, source) if earlier else None

    def broken(plan: ImportPlan) -> ImportPlan:
        def read(advance: Callable[[int], None]) -> Iterator[Example]:
            yield from plan.splits[1].read(advance)
            raise DataError("line 21: wrong.")

        return replace(plan, splits=[plan.splits[0], replace(plan.splits[1], read=read)])

    change.append(broken)
    with pytest.raises(DataError, match="line 21"):
        import_data(workspace, "snli-ve", source)
    assert leftovers(workspace) == (["snli-ve"] if earlier else [])
    if before is not None:
        assert [one.id for one in TaskData(before.root).examples("test")] == [f"test{i}" for i in range(20)]


def test_a_signal_stops_an_import_without_a_trace(workspace: Workspace, source: Path, change: list[Change]) -> None:
    def stopped(plan: ImportPlan) -> ImportPlan:
        def read(advance: Callable[[int], None]) -> Iterator[Example]:
            signal.raise_signal(signal.SIGTERM)
            yield from plan.splits[0].read(advance)

        return replace(plan, splits=[replace(plan.splits[0], read=read)])

    change.append(stopped)
    with pytest.raises(StoppedResumable, match="Stopped by SIGTERM with nothing imported"):
        import_data(workspace, "snli-ve", source)
    assert leftovers(workspace) == []


def test_what_a_killed_import_left_is_cleared(workspace: Workspace, source: Path, change: list[Change]) -> None:
    (workspace.data / ".snli-ve.1-aaaa.new").mkdir(parents=True)
    (workspace.data / ".snli-ve.1-aaaa.new" / "train.arrow").write_text("half")
    run(workspace, source)
    assert leftovers(workspace) == ["snli-ve"]


def test_images_of_suites_are_where_the_data_was_imported_from_last(
    workspace: Workspace, source: Path, change: list[Change], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = run(workspace, source)
    write_suite(data, "test-a", data.examples("test"), made_by={}, about="")
    before = [one.image for one in TaskData(data.root).examples("test-a")]
    zipped = source.parent / "other" / "zipped"
    zipped.mkdir(parents=True)
    shutil.copy(source / "lines.txt", zipped)
    shutil.make_archive(str(zipped / "images"), "zip", source / "images")
    shutil.rmtree(source)
    monkeypatch.chdir(zipped)
    folder = importing.IMPORTERS.get("snli-ve")

    def plan(files: FoundFiles, options: ImportOptions) -> ImportPlan:
        made = folder(files, options)
        inside = files.root / "images.zip"

        def moved(split: SplitPlan) -> SplitPlan:
            return replace(
                split,
                read=lambda advance: (
                    replace(one, image=replace(one.image, path=inside / one.image.path.name))
                    for one in split.read(advance)
                ),
            )

        return replace(made, splits=[moved(one) for one in made.splits], images_root=inside)

    monkeypatch.setattr(importing.IMPORTERS, "get", lambda name: plan)
    data = run(workspace, Path("..") / "zipped")
    assert ".." not in json.dumps(data.manifest)
    images = [one.image for one in data.examples("test-a")]
    assert images == [one.image for one in data.examples("test")]
    assert [one.id for one in images] == [one.id for one in before]
    assert images[0].path == zipped / "images.zip" / before[0].path.name


def test_what_is_being_made_is_not_seen(workspace: Workspace, source: Path, change: list[Change]) -> None:
    """A kill between the manifest and the last rename leaves a folder that looks whole."""
    data = run(workspace, source)
    suite = write_suite(data, "test-a", data.examples("test"), made_by={}, about="")
    shutil.copytree(suite, suite.with_name(".test-b.0123456789ab.new"))
    shutil.copytree(data.root, workspace.data / ".snli-ve.0123456789ab.new")
    (workspace.data / ".snli-ve.0123456789ab.new" / "suites").rename(workspace.root / "aside")
    assert TaskData(data.root).suites() == ["test", "test-a"]
    assert imported_datasets(workspace) == [one.name for one in every_dataset(workspace)] == ["snli-ve"]
    run(workspace, source)  # suites are carried over, but not what was being made of them
    assert leftovers(workspace) == ["snli-ve"]
    assert sorted(path.name for path in (data.root / "suites").iterdir()) == ["test-a"]


def test_missing_images_are_counted_and_named(workspace: Workspace, source: Path, change: list[Change]) -> None:
    for number in (3, 4, 5, 50, 51, 52, 53):
        (source / "images" / f"{number}.png").unlink()
    with pytest.raises(DataError, match=r"7 of 100 images are missing: .*3\.png, .*51\.png, \.\.\.\.") as caught:
        import_data(workspace, "snli-ve", source)
    assert "--allow-missing to leave out the 14 examples" in (caught.value.hint or "")
    assert leftovers(workspace) == []
    data = run(workspace, source, allow_missing=True)
    assert len(data.examples("train")) + len(data.examples("dev")) == 186
    assert len(data.examples("test")) == 14
    assert data.manifest["splits"]["test"]["left_out"] == {"image missing": 6}
    everything = run(workspace, source, without_images=True)
    assert len(everything.examples("test")) == 20


def test_an_empty_development_split_is_an_error(workspace: Workspace, source: Path, change: list[Change]) -> None:
    with pytest.raises(DataError, match="split dev of snli-ve has no examples with a cut of 1e-06") as caught:
        import_data(workspace, "snli-ve", source, ImportOptions(dev_cut=1e-6))
    assert "--dev-cut" in (caught.value.hint or "")


def test_suites_go_to_the_data_set_they_belong_to(workspace: Workspace, source: Path, change: list[Change]) -> None:
    run(workspace, source)

    def only_suites(plan: ImportPlan) -> ImportPlan:
        suite = replace(plan.splits[1], name="test-other", about="others")
        return replace(plan, splits=[], suites=[suite], attach_to="snli-ve")

    change.append(only_suites)
    made = import_data(workspace, "snli-ve", source)
    assert (made.data, [path.name for path in made.suites]) == (None, ["test-other"])
    assert TaskData(workspace.data / "snli-ve").suites() == ["test", "test-other"]
    with pytest.raises(DataError, match="suites of snli-ve, which this workspace does not have"):
        import_data(Workspace(source.parent / "empty"), "snli-ve", source)
    change[:] = [lambda plan: replace(plan, suites=[replace(plan.splits[1], name="test-vcr")], attach_to="vcr")]
    assert "vcr is not in this workspace yet. It gets test-vcr" in import_data(workspace, "snli-ve", source).notes[-1]


@pytest.mark.parametrize("name", ["vqa", "vcr", "mini-vcr", "mini", "e-snli-ve"])
def test_an_own_task_cannot_take_a_benchmarks_name(
    workspace: Workspace, source: Path, change: list[Change], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(importing.IMPORTERS._info, "snli-ve", {"dataset": ""})
    change.append(lambda plan: replace(plan, source=name, spec=custom_spec(name, "classification", labels=("a", "b"))))
    with pytest.raises(UsageProblem, match=f"The name '{name}' is taken"):
        import_data(workspace, "snli-ve", source)


def test_options_that_would_have_no_effect(
    workspace: Workspace, source: Path, change: list[Change], capsys: pytest.CaptureFixture[str]
) -> None:
    for options in (ImportOptions(kind="vqa"), ImportOptions(name="mine")):
        with pytest.raises(UsageProblem, match="for questions of your own; snli-ve is a benchmark"):
            import_data(workspace, "snli-ve", source, options)
    run(workspace, source, dev_cut=0.2)
    assert "--dev-cut" not in capsys.readouterr().err
    change.append(lambda plan: replace(plan, cut_dev=False))
    run(workspace, source)
    assert "--dev-cut" not in capsys.readouterr().err
    run(workspace, source, dev_cut=0.2)
    assert "--dev-cut has no effect" in capsys.readouterr().err
    with pytest.raises(UsageProblem, match=r"lines\.txt is neither a folder nor a zip"):
        run(workspace, source, images=source / "lines.txt")


def test_names_and_paths_that_are_wrong(workspace: Workspace, source: Path) -> None:
    with pytest.raises(UsageProblem, match="Did you mean 'vqa-v2'"):
        import_data(workspace, "vqa-v1", source)
    with pytest.raises(NotFoundError, match="nothing at"):
        import_data(workspace, "vcr", source / "gone")
    with pytest.raises(UsageProblem, match=r"image folder .* does not exist"):
        import_data(workspace, "vcr", source, ImportOptions(images=source / "gone"))
    with pytest.raises(UsageProblem, match="must be 0 to below 1"):
        import_data(workspace, "vcr", source, ImportOptions(dev_cut=1.5))


def test_sources_are_recorded_with_their_digests(workspace: Workspace, source: Path, change: list[Change]) -> None:
    data = run(workspace, source)
    (file,) = json.loads((data.root / "manifest.json").read_text())["splits"]["test"]["files"]
    assert file["path"] == str(source / "lines.txt")
    assert file["bytes"] == 2_500_000
    assert len(file["sha256"]) == 64
