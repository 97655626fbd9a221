"""Exported programs: the student's outputs, on shapes that they were not made with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from madkit.core.errors import DataError, NotFoundError, RunError, UsageProblem
from madkit.students import export
from madkit.students.export import NAMES, export_student, read_facts
from madkit.students.heads import HeadSpec
from madkit.students.load import load_student, save_student
from madkit.students.start import new_student


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    head = HeadSpec("multiple-choice", binary=True)
    save_student(new_student("mini-uniter", init="random", region_dim=10, head=head, layers=1).student, folder)
    return folder


def test_a_program_gives_what_the_student_gives(trained: Path, tmp_path: Path, inputs) -> None:
    made = export_student(trained, tmp_path / "out" / "student.pt2")
    assert made.difference < 1e-5
    assert made.bytes > 800_000
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["student.pt2"]
    facts = read_facts(made.path)
    assert facts["head"] == {"kind": "multiple-choice", "outputs": [], "binary": True}
    assert tuple(facts["inputs"]) == NAMES
    program, student = torch.export.load(made.path).module(), load_student(trained)
    for texts, regions, candidates in (([8] * 8, [3, 6], 4), ([23], [1], 1)):
        batch = inputs(texts, regions, dim=10, words=800, candidates=candidates)
        with torch.no_grad():
            wanted = student(batch).logits
            got = program(*(getattr(batch, name) for name in NAMES)).view_as(wanted)
        assert torch.allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("family", ["vl-bert", "visualbert", "vilt"])
def test_every_network_can_be_exported(family: str, tmp_path: Path) -> None:
    head = HeadSpec("vqa", ("yes", "no"))
    student = new_student(f"mini-{family}", init="random", head=head, layers=1).student
    save_student(student, tmp_path / "student")
    made = export_student(tmp_path / "student", tmp_path / "student.pt2")
    assert made.difference < 1e-5
    assert made.outputs == ("yes", "no")


def test_what_is_no_student_is_met_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no student '/nope'") as error:
        export_student("/nope", tmp_path / "student.pt2")
    assert "madkit students export RUN/student" in str(error.value.hint)


def test_what_cannot_be_exported_leaves_nothing(trained: Path, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(UsageProblem, match=r"does not end in \.pt2"):
        export_student(trained, tmp_path / "student.onnx")
    with pytest.raises(DataError, match="no task head"):
        export_student("mini-uniter", tmp_path / "student.pt2")
    (tmp_path / "there.pt2").touch()
    with pytest.raises(UsageProblem, match="exists"):
        export_student(trained, tmp_path / "there.pt2")

    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("a branch on values\nwith many lines")

    monkeypatch.setattr(export.torch.export, "export", broken)
    with pytest.raises(RunError, match=r"mini-uniter cannot be exported \(a branch on values\)"):
        export_student(trained, tmp_path / "student.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["there.pt2"]
