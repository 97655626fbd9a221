"""Bad input as people have it, through the command line: one sentence with file and place, what to type, nothing kept.

The formats' own tests try more of each kind; this is the list of what must hold for the command as a whole.
"""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from madkit.bench.vqa_files import write_vqa_files
from madkit.cli.main import main
from madkit.tasks.mini.build import build_mini

Row = dict[str, Any]
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def owners(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VCR, SNLI-VE and VQA v2 in their owners' layouts."""
    root = tmp_path_factory.mktemp("owners")
    build_mini(root / "vcr", "mini-vcr", part="tiny", workers=1)
    build_mini(root / "snli-ve", "mini-snli-ve", part="tiny", workers=1)
    for folder in ("vcr", "snli-ve"):
        (root / folder / "manifest.json").unlink()
    for path in (root / "snli-ve" / "flickr30k-images").glob("*.png"):
        path.rename(path.with_suffix(".jpg"))
    paths = write_vqa_files(root / "vqa-v2", 60, seed=1)
    for subset in ("train2014", "val2014"):
        (root / "vqa-v2" / subset).mkdir()
        for row in json.loads(paths[f"{subset}_questions"].read_text())["questions"]:
            (root / "vqa-v2" / subset / f"COCO_{subset}_{row['image_id']:012d}.jpg").touch()
    return root


def edit(name: str, number: int, change: Callable[[Row], object]) -> Damage:
    """Change one row of a JSONL file, or one entry of the list in a JSON file."""

    def damage(root: Path) -> None:
        path = root / name
        if path.suffix == ".jsonl":
            lines = path.read_text().splitlines()
            row = json.loads(lines[number])
            change(row)
            lines[number] = json.dumps(row)
            path.write_text("\n".join(lines) + "\n")
            return
        content = json.loads(path.read_text())
        rows = content.get("annotations") or content["questions"]
        change(rows[number])
        path.write_text(json.dumps(content))

    return damage


def truncate(name: str) -> Damage:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:-40])


def zip_up(name: str, *, cut: int = 0) -> Damage:
    def damage(root: Path) -> None:
        target = root / "zipped.zip"
        with zipfile.ZipFile(target, "w") as file:
            file.write(root / name, name)
        (root / name).unlink()
        if cut:
            target.write_bytes(target.read_bytes()[:-cut])

    return damage


def recode(name: str, encoding: str, extra: str = "") -> Damage:
    return lambda root: (root / name).write_bytes(((root / name).read_text() + extra).encode(encoding))


def metadata(change: Callable[[Row], object]) -> Damage:
    """Change the boxes of the first image of VCR's validation file."""

    def damage(root: Path) -> None:
        first = json.loads((root / "val.jsonl").read_text().splitlines()[0])
        path = root / "vcr1images" / first["metadata_fn"]
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def drop_entry(name: str) -> Damage:
    def damage(root: Path) -> None:
        content = json.loads((root / name).read_text())
        (content.get("annotations") or content["questions"]).pop(5)
        (root / name).write_text(json.dumps(content))

    return damage


def repeat_entry(name: str) -> Damage:
    def damage(root: Path) -> None:
        content = json.loads((root / name).read_text())
        content["questions"].insert(30, content["questions"][5])
        (root / name).write_text(json.dumps(content))

    return damage


def one_id_for_two_images(root: Path) -> None:
    """Let the first image of val2014 have the number of one of train2014, as no version of COCO has."""
    train, val = (f"v2_OpenEnded_mscoco_{part}_questions.json" for part in ("train2014", "val2014"))
    number = json.loads((root / train).read_text())["questions"][0]["image_id"]
    first = json.loads((root / val).read_text())["questions"][0]["image_id"]
    for name in (val, "v2_mscoco_val2014_annotations.json"):
        path = root / name
        path.write_text(path.read_text().replace(f'"image_id": {first},', f'"image_id": {number},'))
    for path in (root / "val2014").glob(f"*{first:012d}.jpg"):
        path.rename(path.with_name(f"COCO_val2014_{number:012d}.jpg"))


def exchange(first: str, second: str) -> Damage:
    def damage(root: Path) -> None:
        (root / first).rename(root / "away")
        (root / second).rename(root / first)
        (root / "away").rename(root / second)

    return damage


def remove_images(pattern: str, count: int) -> Damage:
    def damage(root: Path) -> None:
        for path in sorted(root.glob(pattern))[-count:]:
            path.unlink()

    return damage


VAL, TRAIN = "val.jsonl", "snli_ve_train.jsonl"
QUESTIONS = "v2_OpenEnded_mscoco_train2014_questions.json"
ANNOTATIONS = "v2_mscoco_train2014_annotations.json"

CASES: dict[str, tuple[str, Damage, list[str]]] = {
    "truncated JSONL": ("vcr", truncate(VAL), ["val.jsonl, line 60", "truncated"]),
    "truncated JSON": ("vqa-v2", truncate(ANNOTATIONS), ["train2014_annotations.json", "truncated"]),
    "truncated zip": ("vcr", zip_up(VAL, cut=30), ["zipped.zip", "download it again"]),
    "one choice": (
        "vcr", edit(VAL, 4, lambda row: row.update(answer_choices=row["answer_choices"][:1])),
        ["val.jsonl, line 5", "answer_choices", "found 1"],
    ),
    "five choices": (
        "vcr", edit(VAL, 4, lambda row: row.update(rationale_choices=[*row["rationale_choices"], ["x"]])),
        ["val.jsonl, line 5", "rationale_choices", "found 5"],
    ),
    "label out of range": (
        "vcr", edit(VAL, 2, lambda row: row.update(answer_label=4)), ["line 3", "answer_label", "found 4"],
    ),
    "label that is no class": (
        "snli-ve", edit(TRAIN, 2, lambda row: row.update(gold_label="maybe")), ["line 3", "gold_label", "maybe"],
    ),
    "tag beyond the boxes": (
        "vcr", edit(VAL, 1, lambda row: row.update(question=["Is", [9], "here", "?"])), ["line 2", "question", "tag 9"],
    ),
    "duplicate annot_id": (
        "vcr", edit(VAL, 7, lambda row: row.update(annot_id="dev-0")), ["line 8", "annot_id", "line 1"],
    ),
    "duplicate pairID": (
        "snli-ve", lambda root: recode(TRAIN, "utf-8", (root / TRAIN).read_text().splitlines()[3] + "\n")(root),
        ["snli_ve_train.jsonl, line 241", "line 4"],
    ),
    "duplicate question_id": ("vqa-v2", repeat_entry(QUESTIONS), ["questions[30]", "question_id", "used before"]),
    "missing images": (
        "vcr", remove_images("vcr1images/mini_dev_00/*.png", 7), ["7 of ", "images are missing", "--allow-missing"],
    ),
    "missing metadata": ("vcr", remove_images("vcr1images/mini_dev_00/*.json", 1), ["metadata file", "does not exist"]),
    "question without annotation": (
        "vqa-v2", drop_entry(ANNOTATIONS), [QUESTIONS, "1 question", ANNOTATIONS],
    ),
    "annotation without question": ("vqa-v2", drop_entry(QUESTIONS), [ANNOTATIONS, "1 annotation", QUESTIONS]),
    "one id for two images": ("vqa-v2", one_id_for_two_images, ["image id", "train2014_", "val2014_", "one version"]),
    "train and val exchanged": (
        "vqa-v2", exchange(ANNOTATIONS, "v2_mscoco_val2014_annotations.json"),
        ["annotations.json", "data_subtype", "val2014", "train2014"],
    ),
    "UTF-16": ("snli-ve", recode(TRAIN, "utf-16"), ["snli_ve_train.jsonl", "UTF-16", "UTF-8"]),
    "Latin-1": (
        "snli-ve", recode(TRAIN, "latin-1", '{"sentence2": "caf\xe9"}\n'), ["snli_ve_train.jsonl, line 241", "UTF-8"],
    ),
    "box outside the image": (
        "vcr", metadata(lambda about: about["boxes"].__setitem__(0, [0, 0, 500, 20, 1])),
        [".json", "boxes[0]", "outside the image"],
    ),
    "NaN in a box": (
        "vcr", metadata(lambda about: about["boxes"].__setitem__(0, [0, 0, float("nan"), 20, 1])),
        ["boxes[0]", "not a finite number"],
    ),
    "width and height swapped": (
        "vcr", metadata(lambda about: about.update(boxes=[[0, 0, 90, 20, 1]] * len(about["boxes"]), width=50)),
        ["boxes[0]", "width and height may be swapped"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_files_end_in_one_sentence(
    owners: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    name, damage, said = CASES[case]
    root = Path(shutil.copytree(owners / name, tmp_path / "files"))
    damage(root)
    capsys.readouterr()
    assert main(["data", "import", name, str(root), "--dev-cut", "0.3", "--workspace", str(tmp_path / "ws")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    error = [line for line in err.splitlines() if line.startswith("Error: ")]
    hint = [line for line in err.splitlines() if line.startswith("Try: ")]
    assert (len(error), len(hint)) == (1, 1), err
    for words in said:
        assert words in error[0] + hint[0], err
    assert not [path for path in (tmp_path / "ws").rglob("*") if path.is_file()]


def test_the_same_files_without_damage_are_imported(owners: Path, tmp_path: Path) -> None:
    for name in ("vcr", "snli-ve", "vqa-v2"):
        arguments = ["data", "import", name, str(owners / name), "--dev-cut", "0.3", "--workspace", str(tmp_path)]
        assert main(arguments) == 0


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("pickle-ran-code"),))


def spoil(path: Path, change: Callable[[h5py.File], object]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def set_feature(file: h5py.File) -> None:
    file["image_features"][3, 5] = np.nan


def swap_columns(file: h5py.File) -> None:
    spatial = file["spatial_features"][:]
    file["spatial_features"][:] = spatial[:, [1, 0, 3, 2, 4, 5]]


@pytest.mark.parametrize(
    ("change", "said"),
    [(set_feature, "NaN"), (swap_columns, "width")],
)
def test_bad_region_features_are_found_by_the_check(
    owners: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[h5py.File], object],
    said: str,
) -> None:
    for name in ("regions.h5", *(path.name for path in (owners / "vcr").glob("regions*.json"))):
        shutil.copy(owners / "vcr" / name, tmp_path / name)
    spoil(tmp_path / "regions.h5", change)
    assert main(["data", "regions", "check", str(tmp_path / "regions.h5"), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["wrong"] >= 1
    assert said in found["first"][0]
    assert "regions.h5" in found["first"][0]


def test_a_pickle_that_would_run_code_is_refused(
    owners: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(owners / "vcr" / "regions.h5", tmp_path / "train36.hdf5")
    (tmp_path / "train36_imgid2idx.pkl").write_bytes(pickle.dumps(RunsCode()))
    assert main(["data", "regions", "check", "train36.hdf5"]) == 1
    assert "train36_imgid2idx.pkl" in capsys.readouterr().err
    assert not Path("pickle-ran-code").exists()
