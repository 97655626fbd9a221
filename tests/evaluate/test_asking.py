"""Questions of a user's own, asked without an import: the same answers as imported data gets, and what is wrong with a
line, an image or a feature in one sentence.
"""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from madkit.cli.main import main
from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.evaluate import asking, partial_answers
from madkit.evaluate import predict as predicting
from madkit.evaluate.asking import Told, row_of
from madkit.evaluate.asking import predict as ask
from madkit.students.load import load_student, save_student
from madkit.tasks.formats.box_links import write_links

COUNT = 24
# most of this is the same for every task, and said of one
SNLI_VE = pytest.mark.parametrize("tiny", ["snli-ve"], indirect=True)
VCR = pytest.mark.parametrize("tiny", ["vcr"], indirect=True)


def name_of(example: Any) -> str:
    """The image below the folder of images: VCR's have folders of their own."""
    name: str = example.image.id if example.image.id.endswith(".png") else example.image.path.name
    return name


def line_of(example: Any) -> dict[str, Any]:
    """An example as a user would write it."""
    row: dict[str, Any] = {"id": example.id, "image": name_of(example)}
    row["context"] = [write_links(segment) for segment in example.context]
    if example.boxes:
        row |= {"boxes": [list(box) for box in example.boxes], "width": example.width, "height": example.height}
    if example.candidates:
        row["choices"] = [write_links(segment) for segment in example.candidates]
    return row


class Mine:
    """A folder with a JSONL file and images, the features of which lie in a file."""

    def __init__(self, tiny: Any, base: Path) -> None:
        self.tiny, self.base = tiny, base
        self.examples = tiny.data.examples("test")[:COUNT]
        self.student = tiny.run / "student"
        self.images = base / "photos"
        self.images.mkdir()
        for example in self.examples:
            (self.images / name_of(example)).parent.mkdir(exist_ok=True)
            shutil.copy(example.image.path, self.images / name_of(example))
        self.rows = [line_of(example) for example in self.examples]
        self.regions = base / "features.h5"
        shutil.copy(tiny.data.root / "regions.h5", self.regions)
        shutil.copy(tiny.data.root / "regions_imgid2idx.json", base / "features_imgid2idx.json")

    def write(self, *rows: dict[str, Any]) -> Path:
        path = self.base / "questions.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows or self.rows))
        return path

    def ask(self, **options: Any) -> Told:
        path = options.pop("path", None) or self.write()
        how = {"images": self.images, "regions": self.regions, "device": "cpu", **options}
        return ask(self.student, path, **how)


@pytest.fixture
def mine(tiny: Any, tmp_path: Path) -> Mine:
    return Mine(tiny, tmp_path)


def test_answers_are_those_of_imported_data(mine: Mine) -> None:
    wanted = predicting.predict(mine.student, mine.examples, mine.tiny.data.regions(), spec=mine.tiny.data.spec)
    told = mine.ask()
    assert [row["id"] for row in told.rows] == [example.id for example in mine.examples]
    assert (told.left_out, told.resumed) == ([], 0)
    spec = mine.tiny.data.spec
    for row, theirs in zip(told.rows, wanted, strict=True):
        named = spec.labels[theirs["prediction"]] if spec.labels else theirs["prediction"]
        assert row["prediction"] == named
        chances = torch.tensor(theirs["logits"]).softmax(0).tolist()
        if spec.kind == "multiple-choice":
            assert row["scores"] == pytest.approx(chances, abs=1e-5)
        elif spec.kind == "classification":
            assert row["scores"] == pytest.approx(dict(zip(spec.labels, chances, strict=True)), abs=1e-5)
        else:
            assert row["scores"] == pytest.approx(dict(zip(theirs["top"], chances, strict=True)), abs=1e-5)
        values = list(row["scores"].values()) if isinstance(row["scores"], dict) else row["scores"]
        assert sum(values) == pytest.approx(1, abs=1e-4)
        assert row["probability"] == max(values)


@VCR
def test_rows_of_a_program_and_a_loaded_student_do_as_well(mine: Mine) -> None:
    student = load_student(mine.student)
    told = ask(student, mine.rows, images=mine.images, regions=[mine.regions], device="cpu", raw=True)
    from_file = mine.ask(raw=True)
    assert told.rows == from_file.rows
    with pytest.raises(DataError, match=r"^question 2: there is no key 'imagge'"):
        ask(student, [mine.rows[0], {**mine.rows[1], "imagge": "x"}], images=mine.images, regions=mine.regions)
    with pytest.raises(DataError, match=r"^question 1: its keys must be strings, found 3"):
        ask(student, [{3: "x"}], regions=mine.regions)
    with pytest.raises(UsageProblem, match="no questions"):
        ask(student, [], regions=mine.regions)


@SNLI_VE
def test_the_command_writes_lines_or_a_file(mine: Mine, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["predict", str(mine.student), str(mine.write()), "--images", str(mine.images), "--device", "cpu"]
    base += ["--regions", str(mine.regions), "--workspace", str(mine.base / "nothing")]
    assert main(base) == 0
    lines = capsys.readouterr().out
    assert [json.loads(line) for line in lines.splitlines()] == mine.ask().rows
    out = mine.base / "new" / "answers.jsonl"
    assert main([*base, "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert out.read_text() == lines
    assert (document["questions"], document["path"], document["left_out"]) == (COUNT, str(out), [])
    assert [path.name for path in out.parent.iterdir()] == ["answers.jsonl"]
    assert main([*base, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answers"] == mine.ask().rows
    assert main([*base, "--output", str(out.with_suffix(".csv"))]) == 0  # the name says the format
    assert "24 questions answered, as csv." in capsys.readouterr().out
    assert len(out.with_suffix(".csv").read_text().splitlines()) == COUNT + 1
    assert not (mine.base / "nothing").exists(), "no workspace is needed"


@SNLI_VE
def test_what_was_answered_survives_an_interruption(mine: Mine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mine.ask().rows
    real, seen = predicting.Answering.batches, []

    def killed_after_two(self: Any, examples: Any, **options: Any) -> Any:
        self._budget = 1
        for number, (batch, rows) in enumerate(real(self, examples, **options)):
            if number == 2 and not seen:
                seen.append(number)
                signal.raise_signal(signal.SIGTERM)
            yield batch, rows

    monkeypatch.setattr(predicting.Answering, "batches", killed_after_two)
    out = mine.base / "answers.jsonl"
    with pytest.raises(Exception, match="Stopped by SIGTERM after this batch") as stopped:
        mine.ask(keep=out)
    assert stopped.value.exit_code == 75
    kept = out.with_name("answers.jsonl.partial").read_text().splitlines()
    assert len(kept) == 1 + 3
    asked: list[int] = []

    def counted(self: Any, examples: Any, **options: Any) -> Any:
        asked.append(len(examples))
        return real(self, examples, **options)

    monkeypatch.setattr(predicting.Answering, "batches", counted)
    # edited since: a first question is new, one that was answered is another, all others are as they were
    first = {**mine.rows[0], "id": "new"}
    told = mine.ask(keep=out, path=mine.write(first, *mine.rows))
    assert (told.resumed, asked) == (3, [COUNT - 3 + 1])
    assert [row["id"] for row in told.rows] == ["new", *(row["id"] for row in whole)]
    for ours, theirs in zip(told.rows[1:], whole, strict=True):
        assert ours["prediction"] == theirs["prediction"]
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-4)


@SNLI_VE
def test_answers_of_another_student_are_not_taken_over(mine: Mine, capsys: pytest.CaptureFixture[str]) -> None:
    out = mine.base / "answers.jsonl"
    mine.ask(keep=out)
    assert mine.ask(keep=out).resumed == COUNT
    student = load_student(mine.student)
    with torch.no_grad():
        next(student.parameters()).mul_(1.01)
    save_student(student, mine.base / "other")
    told = ask(mine.base / "other", mine.write(), images=mine.images, regions=mine.regions, keep=out, device="cpu")
    assert told.resumed == 0
    assert "begins anew" in capsys.readouterr().err
    assert ask(student, mine.write(), images=mine.images, regions=mine.regions, keep=out, device="cpu").resumed == 0
    again = ask(student, mine.write(), images=mine.images, regions=mine.regions, keep=out, device="cpu")
    assert (again.resumed, again.rows) == (COUNT, told.rows)
    with torch.no_grad():
        next(student.parameters()).mul_(1.01)  # trained on, where it is
    again = ask(student, mine.write(), images=mine.images, regions=mine.regions, keep=out, device="cpu")
    assert again.resumed == 0
    (out.with_name("answers.jsonl.partial")).write_text("no journal")
    assert mine.ask(keep=out).resumed == 0
    partial_answers.PartialAnswers(out, {}).done()
    assert not out.with_name("answers.jsonl.partial").exists()


@SNLI_VE
def test_splits_of_the_lines(mine: Mine) -> None:
    path = mine.write({**mine.rows[0], "split": "test"}, {**mine.rows[1], "split": "validation"})
    assert [row["id"] for row in mine.ask(path=path).rows] == [mine.rows[0]["id"], mine.rows[1]["id"]]
    assert [row["id"] for row in mine.ask(path=path, split="dev").rows] == [mine.rows[1]["id"]]
    with pytest.raises(UsageProblem, match=r"is of the split 'tset'\. Did you mean 'test'") as found:
        mine.ask(path=path, split="tset")
    assert found.value.hint == "its lines are of: test, dev"


def broken_features(mine: Mine, name: str) -> None:
    index = json.loads((mine.base / "features_imgid2idx.json").read_text())
    with h5py.File(mine.regions, "r+") as file:
        start, end = file["pos_boxes"][index[name]]
        file["image_features"][start:end] = np.nan


@SNLI_VE
def test_broken_features_stop_it_or_are_left_out(mine: Mine) -> None:
    name = mine.examples[5].image.id
    broken_features(mine, name)
    about = [number for number, example in enumerate(mine.examples) if example.image.id == name]
    with pytest.raises(DataError, match=rf"questions\.jsonl, line {about[0] + 1}: .*NaN") as found:
        mine.ask()
    assert "--allow-missing" in str(found.value.hint)
    told = mine.ask(allow_missing=True)
    assert [one.id for one in told.left_out] == [mine.examples[number].id for number in about]
    assert len(told.rows) == COUNT - len(about)


@SNLI_VE
def test_missing_features_stop_it_before_anything_is_computed(mine: Mine, capsys: pytest.CaptureFixture[str]) -> None:
    path = mine.write(*mine.rows[:2], {**mine.rows[2], "image": "nowhere.png"})
    with pytest.raises(DataError, match=r"line 3: there are no region features in .*features\.h5 .*nowhere\.png"):
        mine.ask(path=path)
    base = ["predict", str(mine.student), str(path), "--regions", str(mine.regions), "--device", "cpu", "--json"]
    assert main([*base, "--allow-missing"]) == 0
    out, err = capsys.readouterr()
    assert "Warning: 1 question is left out" in err
    assert [one["where"] for one in json.loads(out)["left_out"]] == [f"{path}, line 3"]
    with pytest.raises(DataError, match="no region features"):
        mine.ask(path=mine.write({**mine.rows[2], "image": "nowhere.png"}), allow_missing=True)


@SNLI_VE
def test_wrong_lines_are_named(mine: Mine) -> None:
    def said(text: str, match: str, **options: Any) -> None:
        path = mine.base / "questions.jsonl"
        path.write_text(text)
        with pytest.raises(DataError, match=match):
            mine.ask(path=path, **options)

    first, second = (json.dumps(row) for row in mine.rows[:2])
    said(f"{first}\n{second[:20]}", r"questions\.jsonl, line 2: the last line is not complete JSON")
    said(f"{first}\n{first}\n", r"line 2: 'id' .* was used before, on line 1")
    said("", "holds no lines")
    said('{"madkit": 1}\n', "holds a header and no lines")
    box = {"boxes": [[5, 5, 900, 9]], "width": 96, "height": 96}
    said(json.dumps({**mine.rows[0], **box}), r"line 1: 'boxes\[0\]'")
    other = "vqa" if mine.tiny.data.spec.kind != "vqa" else "classification"
    said(f'{{"madkit": 1, "kind": "{other}"}}\n{first}\n', f"line 1: the file's questions are {other}")


@SNLI_VE
def test_labels_that_are_there_have_to_be_possible(mine: Mine) -> None:
    assert len(mine.ask(path=mine.write({**mine.rows[0], "label": "neutral"})).rows) == 1
    for label, words in (("neutrall", "Did you mean 'neutral'"), (1, "nothing says which class that is")):
        with pytest.raises(DataError, match=rf"line 1: 'label' .*{words}"):
            mine.ask(path=mine.write({**mine.rows[0], "label": label}))
    header = {"madkit": 1, "labels": ["neutral", "entailment", "contradictoin"]}
    with pytest.raises(DataError, match=r"line 1: the student has no class 'contradictoin'. Did you mean"):
        mine.ask(path=mine.write(header, mine.rows[0]))


@VCR  # whose lines have the very boxes that the embedded features are of
def test_pixels_of_the_boxes_where_there_are_no_features(mine: Mine, capsys: pytest.CaptureFixture[str]) -> None:
    given, made = mine.ask(), mine.ask(regions="pixels")
    for ours, theirs in zip(made.rows, given.rows, strict=True):
        assert ours["scores"] == pytest.approx(theirs["scores"], abs=2e-3), "the file holds them in half precision"
    shutil.copy(mine.tiny.run / "manifest.json", mine.base)
    shutil.copytree(mine.student, mine.base / "student")
    assert ask(mine.base / "student", mine.write(), images=mine.images, device="cpu").rows == made.rows
    assert "--regions pixels" in capsys.readouterr().err
    with pytest.raises(UsageProblem, match="reads region features of 768 values, and none are given"):
        ask(load_student(mine.student), mine.write(), images=mine.images)
    (mine.images / name_of(mine.examples[1])).write_bytes(b"no image")
    (mine.images / name_of(mine.examples[8])).unlink()
    lost = [mine.examples[number].image.id for number in (1, 8)]
    with pytest.raises(DataError, match=r"line \d+: the image .* does not exist"):
        mine.ask(regions="pixels")
    told = mine.ask(regions="pixels", allow_missing=True)
    assert {one.id for one in told.left_out} == {one.id for one in mine.examples if one.image.id in lost}
    assert any("is no image that can be read (no known format)" in one.problem for one in told.left_out)


@VCR
def test_pixels_of_boxes_that_are_meant_in_another_size(mine: Mine) -> None:
    wanted = mine.ask(regions="pixels").rows
    half = {"width": 48, "height": 48}
    mine.rows = [row | half | {"boxes": [[value / 2 for value in box] for box in row["boxes"]]} for row in mine.rows]
    assert mine.ask(regions="pixels").rows == wanted
    mine.rows[3] |= {"width": 600}
    image = mine.rows[3]["image"]
    mine.rows = [row for row in mine.rows if row["image"] != image or row["width"] == 600]
    with pytest.raises(DataError, match=r"line \d+: .*\.png is 96 x 96, the data say 600 x 48"):
        mine.ask(regions="pixels")
    assert len(mine.ask(regions="pixels", allow_missing=True).left_out) == 1


@SNLI_VE
def test_scores_that_are_not_finite_are_refused(mine: Mine) -> None:
    student = load_student(mine.student)
    with torch.no_grad():
        next(student.head.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match=r"line \d+: the scores of the student tiny are NaN or infinite"):
        ask(student, mine.write(), images=mine.images, regions=mine.regions, device="cpu")


@VCR
def test_bfloat16_is_near_single_precision(mine: Mine) -> None:
    full, half = mine.ask(raw=True, precision="fp32"), mine.ask(raw=True, precision="bf16")
    for ours, theirs in zip(half.rows, full.rows, strict=True):
        assert ours["scores"] == pytest.approx(theirs["scores"], rel=0.05, abs=0.1)
    assert half.rows != full.rows
    with pytest.raises(UsageProblem, match=r"no precision 'fp23'\. Did you mean 'fp32'"):
        mine.ask(precision="fp23")


@SNLI_VE
def test_what_cannot_be_meant(mine: Mine, capsys: pytest.CaptureFixture[str]) -> None:
    path, student = str(mine.write()), str(mine.student)
    for arguments, code, words in (
        ([student, str(mine.base)], 2, "is a folder"),
        ([student, str(mine.base / "none.jsonl")], 1, "does not exist"),
        ([student, path, "--task", "vcr"], 2, "--task names imported data"),
        ([student, "--images", "."], 2, "--images is for a file of questions"),
        ([student, path, "--images", str(mine.base / "none")], 1, "folder of the images"),
        ([student, path, "--images", path], 2, "neither a folder of images nor a zip"),
        ([student, path, "--device", "gpu", "--images", "none"], 2, "no device named 'gpu'"),
        ([student, path, "--out", str(mine.base / "questions.jsonl" / "x")], 1, "File exists"),
        ([student, path, "--format", "vcr-csv"], 2, "official test set"),
        ([student, path, "--format", "csv"], 2, "needs a file"),
        ([student, path, "--out", str(mine.base)], 2, "is a folder"),
        ([student, path, "--out", "a.parquet"], 2, "written as .parquet"),
        ([student, path, "--out", "a.csv", "--format", "jsonl"], 2, "Try: --out a.jsonl"),
        ([student, path, "--regions", str(mine.base / "features.h6")], 1, "Did you mean 'features.h5'"),
        ([student, path, "--regions", "pixel"], 1, "Did you mean 'pixels'"),
        ([student, path, "--regions", str(mine.regions), "--regions-format", "buttd-tsv"], 2, "Did you mean"),
        ([student, path, "--regions", str(mine.regions), "--device", "gpu"], 2, "no device named 'gpu'"),
        ([student, path, "--regions", "pixels", "--regions", str(mine.regions)], 2, "stands alone"),
        ([str(mine.base), path], 1, "neither a run nor a student"),
        (["./nothing", path], 1, "no run './nothing'"),
    ):  # fmt: skip
        assert main(["predict", *arguments]) == code, arguments
        err = capsys.readouterr().err
        assert words in err, (arguments, err)
        assert err.count("Error: ") == 1
        assert "Traceback" not in err


@SNLI_VE
def test_a_run_that_is_not_finished_is_not_asked(mine: Mine, capsys: pytest.CaptureFixture[str]) -> None:
    run = mine.base / "run"
    shutil.copytree(mine.tiny.run, run)
    shutil.move(run / "student", mine.base / "kept")
    for arguments in ([str(mine.write())], ["-o", str(mine.base / "out")]):
        assert main(["predict", str(run), *arguments, "--workspace", str(mine.tiny.workspace.root)]) == 1
        assert "holds no student" in capsys.readouterr().err
    shutil.move(mine.base / "kept", run / "student")
    (run / "manifest.json").write_text((run / "manifest.json").read_text().replace('"complete"', '"running"'))
    assert main(["predict", str(run), str(mine.write())]) == 1
    assert "The run run is not finished." in capsys.readouterr().err
    (run / "manifest.json").write_text('{"kind": "run", "sta')
    assert main(["predict", str(run), str(mine.write())]) == 1
    assert "Traceback" not in capsys.readouterr().err


@SNLI_VE
def test_features_of_another_width_are_refused(mine: Mine) -> None:
    with h5py.File(mine.regions, "r+") as file:
        values = file["image_features"][:, :100]
        del file["image_features"]
        file["image_features"] = values
    with pytest.raises(DataError, match=r"reads region features of 768 values; the data has 100"):
        mine.ask()


@VCR
def test_a_zip_of_images_will_do(mine: Mine) -> None:
    shutil.make_archive(str(mine.base / "photos"), "zip", mine.images)
    assert mine.ask(images=mine.base / "photos.zip", regions="pixels").rows == mine.ask(regions="pixels").rows
    with pytest.raises(NotFoundError, match="folder of the images"):
        mine.ask(images=mine.base / "photo.zip")


def test_the_public_name() -> None:
    import madkit

    assert madkit.predict is ask is asking.predict
    spec = asking.Questions([{"image": "a", "text": "b"}], load_head()).spec
    row = row_of({"id": "x", "logits": [1.0, 3.0], "prediction": 1}, spec)
    assert row == {"id": "x", "prediction": "b", "probability": 0.880797, "scores": {"a": 0.119203, "b": 0.880797}}


def load_head() -> Any:
    from madkit.students.heads import HeadSpec

    return HeadSpec("classification", ("a", "b"))
