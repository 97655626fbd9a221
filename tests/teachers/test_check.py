"""The errors of 16 bits, token by token: what is measured, and what the command says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from madkit.cli.main import main
from madkit.cli.teachers import app
from madkit.core.errors import ConfigError, DataError, NotFoundError, VerificationFailed
from madkit.teachers.check import check_teacher, image_files, read_texts, vector_errors

torch.set_num_threads(1)


def test_errors_of_known_vectors() -> None:
    reference = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    found = torch.tensor([[3.0, 4.0], [0.0, 3.0], [0.0, 1.0]])
    errors = vector_errors(found, reference)
    assert (errors.vectors, errors.finite) == (3, True)
    assert errors.worst == pytest.approx(2**0.5)
    assert errors.mean == pytest.approx((0 + 0.5 + 2**0.5) / 3)
    assert (errors.cosine_worst, errors.cosine_mean) == pytest.approx((0.0, 2 / 3))
    found[1, 0] = float("inf")
    errors = vector_errors(found, reference)
    assert not errors.finite
    assert errors.mean == pytest.approx(2**0.5 / 2)
    assert vector_errors(torch.full((2, 2), float("nan")), reference[:2]).cosine_worst == 0.0


def test_rounding_of_16_bits_is_what_is_measured(tiny_teacher: Path, tmp_path: Path) -> None:
    """fp16 keeps 11 bits of a number and bf16 8, so that errors are about eight times apart; cosines near one."""
    Image.new("RGB", (40, 30), (9, 99, 200)).save(tmp_path / "one.png")
    Image.effect_noise((50, 60), 60).save(tmp_path / "two.png")
    found = check_teacher(f"local:{tiny_teacher}", images=[tmp_path])
    assert (found["images"], found["drawn"], found["texts"], found["finite"]) == (2, False, 8, True)
    rows = {(row["run"], row["kind"]): row for row in found["rows"]}
    assert len(rows) == 8
    for kind in ("image tokens", "image globals", "text tokens", "text globals"):
        half, brain = rows["float16", kind], rows["bfloat16", kind]
        assert half["vectors"] == brain["vectors"] > 0
        assert 1e-5 < half["mean"] <= half["p99"] <= half["worst"] < 1e-2
        assert 3 < brain["mean"] / half["mean"] < 25
        assert 0.999 < half["cosine_worst"] <= half["cosine_p1"] <= half["cosine_mean"] <= 1 + 1e-9
    same = check_teacher(f"local:{tiny_teacher}", dtypes=["float32"])
    assert same["drawn"]
    assert all(row["worst"] == 0 for row in same["rows"])


def test_weights_that_overflow_are_found(tiny_teacher: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(tiny_teacher / "model.safetensors")
    state["visual.proj"] *= 1e6
    save_file(state, tmp_path / "model.safetensors")
    weights = tmp_path / "model.safetensors"
    found = check_teacher(f"local:{tiny_teacher}", weights=weights)
    assert not found["finite"]
    bad = {(row["run"], row["kind"]) for row in found["rows"] if not row["finite"]}
    assert bad == {("float16", "image tokens"), ("float16", "image globals")}
    result = CliRunner().invoke(app, ["check", f"local:{tiny_teacher}", "--weights", str(weights), "--json"])
    assert isinstance(result.exception, VerificationFailed)
    assert "float16 image globals, float16 image tokens" in str(result.exception)
    assert json.loads(result.stdout)["finite"] is False


def test_another_library_is_compared_in_float32(tiny_teacher: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    name = f"local:{tiny_teacher}"
    state = load_file(tiny_teacher / "model.safetensors")
    state["token_embedding.weight"] += 1e-3
    save_file(state, tmp_path / "other.safetensors")
    found = check_teacher(name, against=name, against_weights=tmp_path / "other.safetensors")
    rows = {row["kind"]: row for row in found["rows"]}
    assert rows["image tokens"]["worst"] == 0
    assert rows["text tokens"]["mean"] > 1e-8
    for other, what in [("timm:test_vit", "lacks a side"), ("mini", "as grid and width")]:
        weights = None
        if other != "mini":
            import timm

            weights = tmp_path / "timm.safetensors"
            save_file(timm.create_model("test_vit").state_dict(), weights)
        with pytest.raises(ConfigError, match=f"cannot be compared token by token: .*{what}"):
            check_teacher(name, against=other, against_weights=weights)


def test_what_it_reads(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="holds no images"):
        image_files([tmp_path])
    with pytest.raises(NotFoundError, match="does not exist"):
        image_files([tmp_path / "x.png"])
    (tmp_path / "b.PNG").touch()
    (tmp_path / "a.jpg").touch()
    (tmp_path / "c.txt").write_text("one\n\n two\n")
    assert [path.name for path in image_files([tmp_path, tmp_path / "c.txt"])] == ["a.jpg", "b.PNG", "c.txt"]
    assert read_texts(tmp_path / "c.txt") == ["one", " two"]
    (tmp_path / "c.txt").write_text("\n")
    with pytest.raises(DataError, match="holds no texts"):
        read_texts(tmp_path / "c.txt")
    with pytest.raises(NotFoundError, match="does not exist"):
        read_texts(tmp_path / "d.txt")
    (tmp_path / "e.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"e\.txt is no text in UTF-8"):
        read_texts(tmp_path / "e.txt")


def test_a_device_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str], tiny_teacher: Path) -> None:
    for device, said in (("cuda:7", "This machine has no GPU"), ("gpu", "There is no device named 'gpu'")):
        if device != "gpu" and torch.cuda.is_available():
            continue
        assert main(["teachers", "check", f"local:{tiny_teacher}", "--device", device]) == 2
        assert said in capsys.readouterr().err


def test_tables_fit_80_columns(tiny_teacher: Path) -> None:
    result = CliRunner().invoke(app, ["check", f"local:{tiny_teacher}", "--dtype", "bfloat16"])
    assert result.exit_code == 0
    lines = [line for line in result.stdout.splitlines() if not line.startswith("against")]  # it holds a long path
    assert max(map(len, lines)) <= 80
    assert "bfloat16" in result.stdout
    assert "float16 " not in result.stdout.replace("bfloat16", "")
    for command in (["list"], ["show", "open_clip:RN50/openai"], ["show", "deberta-v3-base"]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0
        assert max(map(len, result.stdout.splitlines())) <= 80
