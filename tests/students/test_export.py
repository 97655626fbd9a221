"""Exported programs: the student's outputs, on shapes that they were not made with."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch

from madkit.core.errors import DataError, NotFoundError, RunError, UsageProblem
from madkit.students import export, onnx_file
from madkit.students.export import NAMES, export_student, read_facts
from madkit.students.families import FAMILIES, family_of
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


NETWORKS = {"uniter": 1, "vl-bert": 1, "visualbert": 1, "vilt": 1, "lxmert": None}  # layers; LXMERT has three kinds


def saved(family: str, folder: Path) -> None:
    layers = {} if NETWORKS[family] is None else {"layers": NETWORKS[family]}
    student = new_student(f"mini-{family}", init="random", head=HeadSpec("vqa", ("yes", "no")), **layers).student
    save_student(student, folder)


def test_every_family_is_one_of_these_networks() -> None:
    assert {family_of(name).model for name in FAMILIES.names()} == {family_of(name).model for name in NETWORKS}


@pytest.mark.parametrize(
    "family", ["vl-bert", "visualbert", "vilt", pytest.param("lxmert", marks=pytest.mark.slow)]
)  # uniter is above
def test_every_network_can_be_exported(family: str, tmp_path: Path) -> None:
    saved(family, tmp_path / "student")
    made = export_student(tmp_path / "student", tmp_path / "student.pt2")
    assert made.difference < 1e-5
    assert made.outputs == ("yes", "no")


@pytest.mark.slow
@pytest.mark.parametrize("family", NETWORKS)
def test_every_network_can_be_written_as_onnx(family: str, tmp_path: Path) -> None:
    saved(family, tmp_path / "student")
    made = export_student(tmp_path / "student", tmp_path / "student.onnx")
    assert made.difference < 1e-5
    assert [path.name for path in tmp_path.glob("*onnx*")] == ["student.onnx"], "its weights lie in it"
    assert read_facts(made.path)["head"]["outputs"] == ["yes", "no"]
    session = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    assert {one.name for one in session.get_inputs()} <= set(NAMES)
    assert [one.name for one in session.get_outputs()] == ["scores"]


def test_the_folder_of_a_run_will_do(trained: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "student").symlink_to(trained)
    asked: list[Path] = []

    def stop(source: Path) -> None:
        asked.append(source)
        raise DataError("enough")

    monkeypatch.setattr(export, "load_student", stop)
    with pytest.raises(DataError, match="enough"):
        export_student(tmp_path / "run", tmp_path / "student.pt2")
    assert asked == [tmp_path / "run" / "student"]


def test_onnx_without_its_packages_is_one_sentence(trained: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(onnx_file, "PACKAGES", ("no_such_package",))
    with pytest.raises(RunError, match="needs the package no_such_package, which is not installed") as error:
        export_student(trained, tmp_path / "student.onnx")
    assert error.value.hint == 'pip install "madkit[onnx]"'
    assert not list(tmp_path.iterdir())


def test_what_is_no_student_is_met_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no student '/nope'") as error:
        export_student("/nope", tmp_path / "student.pt2")
    assert "madkit students export RUN --out" in str(error.value.hint)


def test_what_cannot_be_exported_leaves_nothing(trained: Path, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(UsageProblem, match=r"does not end in \.pt2"):
        export_student(trained, tmp_path / "student.onx")
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
