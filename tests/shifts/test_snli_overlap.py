from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from madkit.core.errors import DataError, NotFoundError
from madkit.core.workspace import Workspace
from madkit.shifts import Made, ShiftOptions, make_shift
from madkit.shifts.snli_overlap import normalised
from madkit.tasks.data import TaskData, open_task
from madkit.tasks.importing.run import import_data


def row(pair: str, premise: str, hypothesis: str) -> dict[str, Any]:
    return {
        "pairID": pair,
        "captionID": pair.split("r")[0],
        "gold_label": "neutral",
        "sentence1": premise,
        "sentence2": hypothesis,
    }


# SNLI-VE's pairs, and which of SNLI's splits they come from.
DEV = [row("3.jpg#0r1", "A dog.", "It runs."), row("3.jpg#1r1", "A cat.", "It sits!")]
TEST = [
    row("4.jpg#0r1", "A man.", "He sings."),
    row("4.jpg#1r1", "Two men.", "They sing."),
    row("4.jpg#2r1", "A bird.", "It flies."),
]
SNLI = {
    # the last one repeats a dev pair's sentences under another id and in another spelling
    "train": [DEV[0], TEST[0], TEST[2], row("9.jpg#0r1", "a  CAT", "It sits")],
    "dev": [DEV[1]],
    "test": [TEST[1], row("9.jpg#5r1", "A bird.", "It sits.")],
}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


@pytest.fixture
def data(tmp_path: Path) -> TaskData:
    files = tmp_path / "ve"
    for split, rows in (("train", [row("1.jpg#0r1", "A.", "B.")]), ("dev", DEV), ("test", TEST)):
        write(files / f"snli_ve_{split}.jsonl", rows)
    for image in "134":
        (files / f"{image}.jpg").touch()
    workspace = Workspace.at(tmp_path / "ws")
    import_data(workspace, "snli-ve", files)
    return open_task(workspace, "snli-ve")


@pytest.fixture
def snli(tmp_path: Path) -> Path:
    for split, rows in SNLI.items():
        write(tmp_path / "snli_1.0" / f"snli_1.0_{split}.jsonl", rows)
    return tmp_path / "snli_1.0"


def make(data: TaskData, snli: Path | None) -> dict[str, Made]:
    made = make_shift(Workspace.at(data.root.parents[1]), data, "snli-overlap", ShiftOptions(snli=snli))
    return {one.name: one for one in made}


def table(made: Made) -> list[list[str]]:
    return [line.split("\t") for line in made.path.read_text().splitlines()]


HEADER = ["pairID", "in_snli_train", "text_in_snli_train"]
EXPECTED_DEV = [HEADER, ["3.jpg#0r1", "yes", "yes"], ["3.jpg#1r1", "no", "yes"]]
EXPECTED_TEST = [HEADER, ["4.jpg#0r1", "yes", "yes"], ["4.jpg#1r1", "no", "no"], ["4.jpg#2r1", "yes", "yes"]]


def test_ids_and_sentences(data: TaskData, snli: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make(data, snli)
    assert table(made["snli-overlap-dev"]) == EXPECTED_DEV
    assert table(made["snli-overlap-test"]) == EXPECTED_TEST
    counts = {"pairs": 3, "in SNLI train": 2, "text in SNLI train": 2, "premise unknown": 0}
    assert (made["snli-overlap-test"].kind, made["snli-overlap-test"].counts) == ("list", counts)
    assert "2 of 3 test pairs of snli-ve lie in SNLI's train split" in capsys.readouterr().err
    summary = json.loads((data.root / "lists" / "snli-overlap.json").read_text())
    assert summary["counts"]["dev"]["text in SNLI train"] == 2
    assert summary["parent_revision"] == data.revision


def test_a_zip_or_the_train_file_alone(data: TaskData, snli: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "snli_1.0.zip", "w") as file:
        for path in sorted(snli.iterdir()):
            file.write(path, f"snli_1.0/{path.name}")
    assert table(make(data, tmp_path / "snli_1.0.zip")["snli-overlap-dev"]) == EXPECTED_DEV
    alone = tmp_path / "alone" / "train.jsonl"
    alone.parent.mkdir()
    (snli / "snli_1.0_train.jsonl").rename(alone)
    # premises of pairs that are not in it come from SNLI-VE's own files
    assert table(make(data, alone)["snli-overlap-dev"]) == EXPECTED_DEV
    (tmp_path / "ve" / "snli_ve_test.jsonl").unlink()
    without = make(data, alone)["snli-overlap-test"]
    assert table(without)[2] == ["4.jpg#1r1", "no", ""]
    assert without.counts["premise unknown"] == 1


def test_a_finished_list_is_not_made_again(data: TaskData, snli: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make(data, snli)
    stamps = [one.path.stat().st_mtime_ns for one in first.values()]
    capsys.readouterr()
    assert make(data, snli) == first
    assert [one.path.stat().st_mtime_ns for one in first.values()] == stamps
    assert "listed already" in capsys.readouterr().err
    first["snli-overlap-dev"].path.unlink()
    assert make(data, snli)["snli-overlap-dev"].path.is_file()


def test_data_made_from_snli_knows_where_snli_is(snli: Path, tmp_path: Path) -> None:
    dev = ["3", *(str(100 + i) for i in range(999))]
    (snli / "flickr30k_train_val.lst").write_text("\n".join(["9", *dev]))
    (snli / "flickr30k_test.lst").write_text("4")
    for image in "349":
        (snli / f"{image}.jpg").touch()
    workspace = Workspace.at(tmp_path / "ws")
    import_data(workspace, "snli-ve", snli)
    made = make(open_task(workspace, "snli-ve"), None)
    assert table(made["snli-overlap-dev"]) == EXPECTED_DEV


def test_without_snli(data: TaskData, tmp_path: Path) -> None:
    for place, message in ((None, "is not there."), (tmp_path / "ve", f"is not there below {tmp_path / 've'}.")):
        with pytest.raises(NotFoundError) as caught:
            make(data, place)
        assert str(caught.value) == f"The overlap needs SNLI's own snli_1.0_train.jsonl, which {message}"
        assert caught.value.hint == "madkit data suite snli-ve snli-overlap --snli PATH/snli_1.0.zip"
    with pytest.raises(NotFoundError, match="There is nothing at"):
        make(data, tmp_path / "nowhere")


def test_broken_lines_of_snli(data: TaskData, snli: Path) -> None:
    bad = {key: value for key, value in DEV[0].items() if key != "sentence2"}
    write(snli / "snli_1.0_train.jsonl", [DEV[1], bad])
    with pytest.raises(DataError, match=r"snli_1\.0_train\.jsonl, line 2: the key 'sentence2' is missing"):
        make(data, snli)
    assert not (data.root / "lists").exists()


def test_other_ids_than_snlis(data: TaskData, snli: Path) -> None:
    for split in SNLI:
        write(snli / f"snli_1.0_{split}.jsonl", [row(f"{split}-7.jpg#0r1", "A.", "B.")])
    with pytest.raises(DataError, match="No dev or test pair of snli-ve has the pairID of a pair of SNLI"):
        make(data, snli)


def test_what_two_copies_of_a_sentence_may_differ_in() -> None:
    assert normalised("  A dog's  TAIL, wagging\u00a0… ") == "a dog s tail wagging"
    assert normalised("caf\u0065\u0301") == normalised("caf\u00e9")
    assert normalised("two dogs") != normalised("two dog")
