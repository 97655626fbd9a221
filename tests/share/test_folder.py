"""An exported student: it stands alone, gives the same logits, tells no paths, and is never half there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from madkit import load_student
from madkit.core.errors import DataError, NotFoundError, RunError, UsageProblem
from madkit.core.files import write_json_atomic
from madkit.evaluate.answering import answer
from madkit.evaluate.predict import predict
from madkit.share.folder import export_run, files_of
from madkit.students.load import save_student

from .conftest import SharedRun, lines, manifest_of


def test_the_folder_gives_the_same_logits_to_the_last_bit(run: SharedRun, tmp_path: Path) -> None:
    done = export_run(run.workspace, str(run.path), tmp_path / "out")
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    run.path.rename(run.path.with_name("gone"))
    try:
        examples, regions = run.data.examples("test")[:24], run.data.regions()
        first, second = (
            predict(folder, examples, regions, spec=run.data.spec)
            for folder in (run.path.with_name("gone") / "student", tmp_path / "elsewhere")
        )
    finally:
        run.path.with_name("gone").rename(run.path)
    assert done.written
    assert first == second
    assert len({tuple(row["logits"]) for row in first}) > 5, "answers that do not differ would prove nothing"
    ours, theirs = load_student(run.path / "student"), load_student(tmp_path / "elsewhere")
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())
    assert ours.head_spec == theirs.head_spec


def test_predict_takes_the_folder(run: SharedRun, tmp_path: Path) -> None:
    export_run(run.workspace, run.path.name, tmp_path / "out")
    answer(run.workspace, run.path.name, "dev", output=tmp_path / "a.jsonl")
    answer(run.workspace, str(tmp_path / "out"), "dev", output=tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert len(lines(tmp_path / "a.jsonl")) == len(run.data.examples("dev"))
    with pytest.raises(UsageProblem, match="is an exported student") as found:
        answer(run.workspace, str(tmp_path / "out"), "dev")
    assert found.value.hint == "say where to: -o dev.jsonl"


def test_predict_takes_data_of_another_revision_by_name(run: SharedRun, tmp_path: Path) -> None:
    write_json_atomic(run.path / "manifest.json", run.manifest(data_revision="of another machine"))
    export_run(run.workspace, run.path.name, tmp_path / "out")
    with pytest.raises(NotFoundError, match="does not hold revision of another machine") as found:
        answer(run.workspace, str(tmp_path / "out"), output=tmp_path / "a.jsonl")
    assert "--task NAME" in str(found.value.hint)
    shutil.copytree(run.data.root, run.workspace.data / "mine")
    try:
        done = answer(run.workspace, str(tmp_path / "out"), task="mine", output=tmp_path / "a.jsonl")
    finally:
        shutil.rmtree(run.workspace.data / "mine")
    assert done.questions == len(run.data.examples("test")) == len(lines(tmp_path / "a.jsonl"))


def test_nothing_of_the_machine_is_told(run: SharedRun, tmp_path: Path) -> None:
    manifest = run.manifest(teacher="local:/home/somebody/clip+hf:org/text", student="/home/somebody/uniter")
    write_json_atomic(run.path / "manifest.json", manifest)
    export_run(run.workspace, str(run.path), tmp_path / "out")
    told = manifest_of(tmp_path / "out")
    assert told["teacher"] == "local:clip+hf:org/text"
    assert told["student"] == "uniter"
    assert told["config"]["answers"] == "answers.txt"
    assert told["environment"] == {"madkit": "0.1.0", "torch": "2.15.0"}
    for path in (tmp_path / "out").iterdir():
        assert b"somebody" not in path.read_bytes(), path.name
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_a_folder_that_is_there_is_left_alone(run: SharedRun, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_run(run.workspace, str(run.path), out)
    (out / "README.md").write_text("my own words")
    (out / "notes.txt").write_text("mine")
    again = export_run(run.workspace, str(run.path), out)
    assert not again.written
    assert (out / "README.md").read_text() == "my own words"
    assert "notes.txt" not in again.files
    fresh = export_run(run.workspace, str(run.path), out, licence="mit", overwrite=True)
    assert fresh.written
    assert "license: mit" in (out / "README.md").read_text()
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "neither lock nor temporary folder stays"


def test_another_student_is_not_overwritten_unasked(run: SharedRun, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_run(run.workspace, str(run.path), out)
    (run.path / "student" / "labels.json").unlink()
    student = load_student(run.path / "student")
    with torch.no_grad():
        next(student.parameters()).add_(1)
    save_student(student, run.path / "student")
    with pytest.raises(UsageProblem, match="holds another student"):
        export_run(run.workspace, str(run.path), out)
    export_run(run.workspace, str(run.path), out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == sorted([*files_of(out), "README.md", "manifest.json"])
    assert "labels.json" not in files_of(out)


def test_a_damaged_export_is_not_taken_for_whole(run: SharedRun, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_run(run.workspace, str(run.path), out)
    (out / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"config\.json is not the file that was exported"):
        export_run(run.workspace, str(run.path), out)


def test_bad_places_and_runs_are_refused(run: SharedRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(UsageProblem, match="is a file"):
        export_run(run.workspace, str(run.path), tmp_path / "file")
    with pytest.raises(UsageProblem, match="holds other files"):
        export_run(run.workspace, str(run.path), tmp_path / "full")
    with pytest.raises(NotFoundError, match="Did you mean"):
        export_run(run.workspace, run.path.name[:-1], tmp_path / "out")
    with pytest.raises(UsageProblem, match="is no exported student"):
        files_of(tmp_path / "full")
    write_json_atomic(run.path / "manifest.json", run.manifest(status="running"))
    with pytest.raises(RunError, match="is not finished"):
        export_run(run.workspace, str(run.path), tmp_path / "out")
    write_json_atomic(run.path / "manifest.json", run.manifest())
    shutil.rmtree(run.path / "student")
    with pytest.raises(RunError, match="holds no exported student"):
        export_run(run.workspace, str(run.path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_not_shared(run: SharedRun, tmp_path: Path) -> None:
    student = load_student(run.path / "student")
    with torch.no_grad():
        next(student.head.parameters()).view(-1)[0] = float("nan")
    save_student(student, run.path / "student")
    with pytest.raises(DataError, match=r"holds NaN or infinite weights \(1 tensors"):
        export_run(run.workspace, str(run.path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_first_weights_and_the_licence_follow_from_where_a_student_began(run: SharedRun, tmp_path: Path) -> None:
    def exported(name: str) -> str:
        export_run(run.workspace, str(run.path), tmp_path / name)
        return (tmp_path / name / "README.md").read_text()

    assert "license: unknown" in exported("a"), "nothing is known of where `tiny` began"
    beginning = run.workspace.root / "students" / "tiny" / "beginning.json"
    beginning.parent.mkdir(parents=True)
    beginning.write_text(json.dumps({"source": "google-bert/bert-base-cased"}))
    card = exported("b")
    assert "base_model: google-bert/bert-base-cased" in card
    assert "license: unknown" in card
    beginning.write_text(json.dumps({"source": "mini-uniter"}))
    card = exported("c")
    assert "base_model" not in card
    assert "license: apache-2.0" in card
