from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from madkit.core.errors import DataError, NotFoundError
from madkit.core.workspace import Workspace
from madkit.tasks.data import TaskData, open_task
from madkit.tasks.importing.run import import_data

HEADER = ["", "pairID", "Flickr30kID", "hypothesis", "gold_label", "explanation"]
# image, number, SNLI-VE's label, e-SNLI-VE's label ("" where the pair was dropped)
TEST = [
    ("4", 0, "entailment", "entailment"),
    ("4", 1, "neutral", "contradiction"),
    ("4", 2, "neutral", ""),
    ("5", 0, "contradiction", "contradiction"),
    ("5", 1, "neutral", "entailment"),
]


def write_table(path: Path, rows: list[tuple[str, int, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for number, (image, place, label) in enumerate(rows):
            text = f"Hypothesis {place} of {image}."
            writer.writerow([number, f"{image}.jpg#{place}r1", f"{image}.jpg", text, label, "It is so,\nbecause."])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    root = tmp_path / "e-vil"
    write_table(root / "esnlive_train.csv", [("1", 0, "neutral"), ("1", 1, "entailment")])
    write_table(root / "esnlive_dev.csv", [("3", 0, "neutral")])
    write_table(
        root / "esnlive_test.csv", [(image, place, new) for image, place, _, new in TEST if new] + [("5", 9, "neutral")]
    )
    for image in "1345":
        (root / "images").mkdir(exist_ok=True)
        (root / "images" / f"{image}.jpg").write_bytes(b"photo")
    return root


@pytest.fixture
def with_snli_ve(files: Path, tmp_path: Path) -> Workspace:
    for split, rows in (
        ("train", [("1", 0, "neutral")]),
        ("dev", [("3", 0, "neutral")]),
        ("test", [t[:3] for t in TEST]),
    ):
        lines = [
            {
                "pairID": f"{image}.jpg#{place}r1",
                "captionID": f"{image}.jpg#{place}",
                "gold_label": label,
                "sentence2": f"Hypothesis {place} of {image}.",
            }
            for image, place, label in rows
        ]
        (tmp_path / "ve").mkdir(exist_ok=True)
        (tmp_path / "ve" / f"snli_ve_{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "ve" / "images").symlink_to(files / "images")
    workspace = Workspace.at(tmp_path / "ws")
    import_data(workspace, "snli-ve", tmp_path / "ve")
    return workspace


def labels(data: TaskData, name: str) -> list[tuple[str, int | None]]:
    return [(example.id, example.label) for example in data.examples(name)]


def test_a_data_set_of_its_own(files: Path, tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path / "ws")
    made = import_data(workspace, "e-snli-ve", files)
    data = open_task(workspace, "e-snli-ve")
    assert (data.source, data.spec.name) == ("e-snli-ve", "snli-ve")
    assert [len(data.examples(split)) for split in data.splits()] == [2, 1, 5]
    assert labels(data, "train") == [("1.jpg#0r1", 2), ("1.jpg#1r1", 1)]
    assert data.examples("dev")[0].image.path == files / "images" / "3.jpg"
    assert made.suites == ()
    assert any("The dev split has 1 pairs, published are 14,339" in note for note in made.notes)


def test_the_suites_of_snli_ve_differ_in_their_labels_alone(files: Path, with_snli_ve: Workspace) -> None:
    before = open_task(with_snli_ve, "snli-ve").revision
    made = import_data(with_snli_ve, "e-snli-ve", files)
    data = open_task(with_snli_ve, "snli-ve")
    assert data.revision == before
    assert {"test-corrected-labels", "test-original-labels"} <= set(data.suites())
    assert labels(data, "test-corrected-labels") == [
        ("4.jpg#0r1", 1), ("4.jpg#1r1", 0), ("5.jpg#0r1", 0), ("5.jpg#1r1", 1)
    ]  # fmt: skip
    assert labels(data, "test-original-labels") == [
        ("4.jpg#0r1", 1), ("4.jpg#1r1", 2), ("5.jpg#0r1", 0), ("5.jpg#1r1", 2)
    ]  # fmt: skip
    pairs = zip(data.examples("test-corrected-labels"), data.examples("test-original-labels"), strict=True)
    assert all((a.image, a.context) == (b.image, b.context) for a, b in pairs)
    assert made.notes[-1] == (
        "4 test pairs are in both SNLI-VE and e-SNLI-VE, 2 of them with another label; 1 pairs of SNLI-VE and 1 of "
        "e-SNLI-VE are in one file only."
    )


def test_a_test_file_alone_makes_the_suites(files: Path, with_snli_ve: Workspace, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (files / "esnlive_test.csv").rename(alone / "esnlive_test.csv")
    made = import_data(with_snli_ve, "e-snli-ve", alone)
    assert made.data is None
    assert made.notes[0] == "There is no train and dev file, so only the test suites of snli-ve are made."
    assert len(made.suites) == 2
    with pytest.raises(DataError, match="test suites of snli-ve, which this workspace does not have"):
        import_data(Workspace.at(tmp_path / "empty"), "e-snli-ve", alone)


def test_no_common_pairs_are_said(files: Path, with_snli_ve: Workspace) -> None:
    write_table(files / "esnlive_test.csv", [("4", 77, "neutral")])
    made = import_data(with_snli_ve, "e-snli-ve", files)
    assert made.suites == ()
    assert "None of the 1 pairs of esnlive_test.csv has the pairID of one of SNLI-VE's 5 test pairs" in made.notes[-1]


def older(rows: list[tuple[str, int, str]], *, header: bool) -> str:
    lines = [["gold_label"] + ["x"] * 8] if header else []
    lines += [
        [label, "a", "b", f"{image}.jpg", "A.", f"Hypothesis {place} of {image}.", f"{image}.jpg#{place}r1", "E.", "e"]
        for image, place, label in rows
    ]
    return "".join("\t".join(line) + "\n" for line in lines)


def test_the_older_files_whose_train_split_is_cut_in_two(files: Path, tmp_path: Path) -> None:
    for path in files.glob("*.csv"):
        path.unlink()
    (files / "esnli_ve_train_1.tsv").write_text(older([("1", 0, "neutral")], header=True))
    (files / "esnli_ve_train_2.tsv").write_text(older([("1", 1, "entailment")], header=False))
    (files / "esnli_ve_dev.tsv").write_text(older([("3", 0, "neutral")], header=True))
    (files / "esnli_ve_test.tsv").write_text(older([("4", 0, "contradiction")], header=True))
    workspace = Workspace.at(tmp_path / "ws")
    import_data(workspace, "e-snli-ve", files)
    data = open_task(workspace, "e-snli-ve")
    assert labels(data, "train") == [("1.jpg#0r1", 2), ("1.jpg#1r1", 1)]
    (files / "esnli_ve_train_2.tsv").write_text(older([("1", 0, "entailment")], header=False))
    with pytest.raises(DataError, match=r"train_2\.tsv: 'pairID' '1.jpg#0r1' stands in esnli_ve_train_1.tsv too"):
        import_data(workspace, "e-snli-ve", files)
    (files / "esnli_ve_train_2.tsv").unlink()
    with pytest.raises(NotFoundError, match=r"esnli_ve_train_1\.tsv is one of two parts"):
        import_data(workspace, "e-snli-ve", files)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"esnlive_test\.csv \(or esnli_ve_test\.tsv\) is missing"):
        import_data(Workspace.at(tmp_path / "ws"), "e-snli-ve", tmp_path)
