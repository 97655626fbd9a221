"""`madkit data` as a user types it, on the embedded benchmark's files taken for the owners'."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from madkit.cli.data_regions import _print_attached
from madkit.cli.main import main
from madkit.core.workspace import Workspace
from madkit.tasks.mini.build import build_mini
from madkit.tasks.region_files import Attached


@pytest.fixture(scope="module")
def vcr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.jsonl, val.jsonl, test.jsonl and vcr1images, as VCR's owners lay them out."""
    folder = tmp_path_factory.mktemp("owners") / "vcr"
    build_mini(folder, "mini-vcr", part="tiny", workers=1)
    for name in ("manifest.json", "regions.h5.json"):
        (folder / name).unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="module")
def imported(vcr: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with that data; tests that change it copy it."""
    root = tmp_path_factory.mktemp("workspace")
    assert main(["data", "import", "vcr", str(vcr), "--workspace", str(root), "--dev-cut", "0.2"]) == 0
    return root


@pytest.fixture
def workspace(imported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(imported, tmp_path / "ws"))


def madkit(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return int(code or 0), captured.out, captured.err


def document(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code, out, err = madkit(capsys, *arguments, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_import_list_and_show(vcr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ("--workspace", tmp_path / "ws")
    code, out, _ = madkit(capsys, "data", "import", "vcr", vcr, *place, "--dev-cut", "0.2")
    assert code == 0
    assert out.startswith("Imported: vcr (Visual Commonsense Reasoning)")
    step = f"madkit data regions add --workspace {tmp_path / 'ws'} vcr PATH"  # the one of this workspace
    assert out.splitlines()[-2:] == [f"Next: {step}", str(tmp_path / "ws" / "data" / "vcr")]
    assert document(capsys, "data", "import", "vcr", vcr, *place, "--dev-cut", "0.2")["unchanged"]
    (row,) = document(capsys, "data", "list", *place)["datasets"]
    assert (row["dataset"], row["task"], row["embedded"], row["regions"]) == ("vcr", "vcr", False, False)
    assert sum(row["questions"][name] for name in ("train", "dev")) == 240
    code, out, _ = madkit(capsys, "data", "list", *place)
    assert max(map(len, out.splitlines())) <= 80
    facts = document(capsys, "data", "show", "vcr", *place, "-n", "3")
    assert set(facts["splits"]) == {"train", "dev", "test", "submission"}
    assert facts["splits"]["test"]["official"] == "val"
    assert not facts["splits"]["submission"]["labelled"]
    assert len(facts["examples"]) == 3
    assert {line["what"] for line in facts["examples"][0]} >= {"id", "text", "choice", "right choice"}


def test_a_damaged_picture_is_named_and_no_object_of_python(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("madkit.core.archives.read_bytes", lambda path: b"no picture")
    code, _, err = madkit(capsys, "data", "show", "vcr", "--workspace", imported, "--save", tmp_path / "page.png")
    assert code == 1
    assert "cannot be read (no format that Pillow knows)." in err
    assert "BytesIO" not in err


def test_examples_are_drawn_with_their_boxes(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.png"
    place = ("--workspace", imported)
    code, out, _ = madkit(capsys, "data", "show", "vcr", *place, "-n", "3", "--save", page)
    assert (code, out.splitlines()[-1]) == (0, str(page))
    with Image.open(page) as picture:
        assert picture.width == 2 * 640 + 16
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or []}
    assert {(0xC0, 0x39, 0x2B), (0x1F, 0x6F, 0xB2), (0x1E, 0x84, 0x49)} <= colours  # frames of three boxes
    code, _, err = madkit(capsys, "data", "show", "vcr", *place, "--save", tmp_path / "page.jpg")
    assert (code, "saved as PNG" in err) == (2, True)
    code, _, err = madkit(capsys, "data", "show", "vcr", *place, "-n", "0", "--save", page)
    assert (code, "no examples to draw" in err) == (2, True)


def test_examples_by_id(imported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ("--workspace", imported)
    both = document(capsys, "data", "show", "vcr", *place, "--split", "test", "--id", "dev-3")["examples"]
    assert [lines[0]["text"].split(",")[0] for lines in both] == ["dev-3/answer", "dev-3/rationale"]
    code, _, err = madkit(capsys, "data", "show", "vcr", *place, "--split", "test", "--id", "dev-999")
    assert (code, "no example 'dev-999' in test" in err) == (1, True)
    assert "Try: see some: madkit data show" in err
    code, _, err = madkit(capsys, "data", "show", "vcr", *place, "--split", "tset")
    assert (code, "Did you mean 'test'" in err) == (2, True)  # a split that no data set has is wrong usage


def test_a_check_finds_what_changed(
    vcr: Path, workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--workspace", workspace)
    good = document(capsys, "data", "check", "vcr", *place, "--deep")
    assert good["wrong"] == 0
    assert {row["check"] for row in good["checks"]} >= {"owners' files (SHA-256)", "image files", "tags and boxes"}
    owners = Path(shutil.copytree(vcr, tmp_path / "owners"))
    manifest = workspace / "data" / "vcr" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(str(vcr), str(owners)))
    images = sorted((owners / "vcr1images").rglob("*.png"))
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:200])
    lines = (owners / "val.jsonl").read_text()
    (owners / "val.jsonl").write_text(lines.replace("red", "RED"))  # as long as before
    code, out, err = madkit(capsys, "data", "check", "vcr", *place, "--deep", "--json")
    assert code == 3
    wrong = {row["check"]: row for row in json.loads(out)["checks"] if row["wrong"]}
    assert "has changed since the import" in wrong["owners' files (SHA-256)"]["first"][0]
    assert wrong["image files"]["first"] == [f"{images[0]} is missing"]
    assert any("cannot be decoded" in problem for problem in wrong["images decoded"]["first"])
    assert "things are wrong with vcr" in err
    assert madkit(capsys, "data", "check", "vcr", *place)[0] == 3  # missing images need no deep look
    with (owners / "val.jsonl").open("a") as file:
        file.write("\n")
    code, out, _ = madkit(capsys, "data", "check", "vcr", *place, "--json")
    assert "owners' files (size)" in {row["check"] for row in json.loads(out)["checks"] if row["wrong"]}


def test_shots_travel_as_lists(workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ("--workspace", workspace)
    file = tmp_path / "ids.json"
    code, out, _ = madkit(capsys, "data", "shots", "vcr", *place, "--shots", "10pct", "--seed", "1", "-o", file)
    listed = json.loads(file.read_text())
    assert code == 0
    assert out.splitlines() == [f"{len(listed['questions'])} questions", str(file)]
    assert (listed["source"], listed["shots"], listed["seed"]) == ("vcr", "10pct", 1)
    smaller = json.loads(madkit(capsys, "data", "shots", "vcr", *place, "--shots", "5", "--seed", "1")[1])
    assert smaller["questions"] == listed["questions"][:5]
    assert document(capsys, "data", "shots", "vcr", *place, "--import", file, "--name", "Mine")["list"] == "mine"
    assert document(capsys, "data", "shots", "vcr", *place)["lists"] == ["mine"]
    again = json.loads(madkit(capsys, "data", "shots", "vcr", *place, "--shots", "list:mine")[1])
    assert again["questions"] == listed["questions"]
    code, _, err = madkit(capsys, "data", "shots", "vcr", *place, "--shots", "list:mime")
    assert (code, "Did you mean 'mine'" in err) == (1, True)
    code, _, err = madkit(capsys, "data", "shots", "vcr", *place, "--shots", "5", "--import", file)
    assert (code, "give one of them" in err) == (2, True)


def test_suites_are_listed_and_made(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ("--workspace", workspace)
    names = [row["name"] for row in document(capsys, "data", "suite", "vcr", *place)["shifts"]]
    assert {"shortcut-singular", "shortcut-plural", "masked", "source"} <= set(names)
    (made,) = document(capsys, "data", "suite", "vcr", "shortcut-singular", *place)["made"]
    assert (made["kind"], made["name"]) == ("suite", "test-shortcut-singular")
    facts = document(capsys, "data", "show", "vcr", *place, "--split", "test-shortcut-singular")
    assert facts["splits"]["test-shortcut-singular"]["questions"] == made["counts"]["questions"]
    code, _, err = madkit(capsys, "data", "suite", "vcr", "shortcut-singlar", *place)
    assert (code, "Did you mean 'shortcut-singular'" in err) == (2, True)


def test_regions_are_added_checked_made_and_converted(
    vcr: Path, workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--workspace", workspace)
    assert {"lxmert-tsv", "uniter-lmdb"} <= {
        row["format"] for row in document(capsys, "data", "regions", "formats")["formats"]
    }
    build = tmp_path / "built"
    build_mini(build, "mini-vcr", part="tiny", workers=1)
    added = document(capsys, "data", "regions", "add", "vcr", build / "regions.h5", *place)
    assert (added["covered"], added["dim"]) == (added["images"], 768)
    assert document(capsys, "data", "check", "vcr", *place)["wrong"] == 0
    checked = document(capsys, "data", "regions", "check", build / "regions.h5")
    assert (checked["wrong"], checked["format"]) == (0, "butd-hdf5")
    target = tmp_path / "npz"
    converted = document(capsys, "data", "regions", "convert", build / "regions.h5", target, "--to", "uniter-npz")
    assert converted["images"] == checked["images"]
    assert document(capsys, "data", "regions", "add", "vcr", target, *place)["parts"][0]["format"] == "uniter-npz"
    made = document(capsys, "data", "regions", "make", "vcr", *place, "--side", "8")
    assert (made["covered"], made["dim"]) == (made["images"], 192)
    (row,) = document(capsys, "data", "list", *place)["datasets"]
    assert row["regions"]


def test_regions_that_do_not_fit_are_refused(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--workspace", workspace)
    other = tmp_path / "other"
    build_mini(other, "mini-snli-ve", part="tiny", workers=1)
    code, _, err = madkit(capsys, "data", "regions", "add", "vcr", other / "regions.h5", *place)
    assert code == 1
    assert "images of vcr have no region features in" in err
    assert "(butd-hdf5)" in err
    assert "this data set's images" in err
    assert not (workspace / "data" / "vcr" / "regions.json").exists()
    code, _, err = madkit(capsys, "data", "regions", "add", "vcr", *place)
    assert (code, "No region features are named" in err) == (2, True)
    code, _, err = madkit(capsys, "data", "regions", "add", "vcr", tmp_path / "gone.tsv", *place)
    assert (code, "gone.tsv" in err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("data", "import", "vrc", "."), 2, "Did you mean 'vcr'"),
        (("data", "import", "vcr", "/gone"), 1, "nothing at /gone"),
        (("data", "show", "vcr"), 1, "/ws vcr PATH"),
        (("data", "show", "vqq"), 2, "no task or imported data set named 'vqq'"),
        (("data", "check", "snli-ve"), 1, "holds no data for snli-ve"),
        (("data", "import"), 2, "Missing argument"),
    ],
)
def test_wrong_input_is_one_sentence_and_what_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, said: str
) -> None:
    options = () if arguments == ("data", "import") else ("--workspace", tmp_path / "ws")
    found, out, err = madkit(capsys, *arguments, *options)
    assert (found, out) == (code, "")
    assert said in " ".join(err.split())
    assert "Traceback" not in err


def test_an_imported_data_set_is_extracted_and_trained_on(
    vcr: Path, workspace: Path, tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--workspace", workspace)
    shutil.copytree(vcr / "vcr1images", tmp_path / "unused", dirs_exist_ok=True)
    document(capsys, "data", "regions", "make", "vcr", *place)
    teacher = f"local:{tiny_teacher}"
    (store,) = document(capsys, "extract", "--teacher", teacher, "--device", "cpu", *place)["stores"]
    data = Workspace.at(workspace).data / "vcr"
    assert (store["task"], store["dataset"]) == ("vcr", "vcr")
    assert store["images"] == 185 - 31  # those of the official test set are not read
    assert (data / "regions-pixels.h5").is_file()
    code, _, err = madkit(capsys, "distill", "--task", "vcr", "--shots", "10", *place)
    assert (code, "a student has to be named" in err) == (2, True)
    settings = ("--set", "optim.steps=2", "--set", "eval.limit=8", "--threads", "1")
    run = document(
        capsys,
        "distill",
        "--task",
        "vcr",
        "--shots",
        "10",
        "--student",
        "mini-uniter",
        "--arm",
        "mad",
        *settings,
        *place,
    )
    assert (run["source"], run["task"]) == ("vcr", "vcr")
    rows = document(capsys, "evaluate", "--protocol", "smoke", *place)["rows"]
    assert {row["suite"] for row in rows} == {"test"}


def test_adding_says_of_how_many_images_the_features_were_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    attached = Attached([{"format": "uniter-npz", "path": "/features"}], 2048, 110_000, 110_000, [], read=16)
    _print_attached("vcr", attached, False, theirs=True)
    said = "Looked at the features of 16 images; of all: madkit data regions check /features"
    assert capsys.readouterr().out.splitlines()[-1] == said
    _print_attached("vcr", attached, False)
    assert said not in capsys.readouterr().out
