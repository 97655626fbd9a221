from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from madkit.core import hub
from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.teachers.digest import weights_digest
from madkit.teachers.known import KNOWN, parse_teacher_name
from madkit.teachers.load import MINI_FOLDER, load_teacher

torch.set_num_threads(1)


@pytest.mark.skipif(not (MINI_FOLDER / "model.safetensors").is_file(), reason="the embedded teacher is not there")
def test_the_embedded_teacher_loads_and_reads() -> None:
    teacher = load_teacher("mini")
    assert teacher.vision is not None
    assert teacher.text is not None
    assert teacher.shared_space
    height, width = teacher.vision.image_size
    seen = teacher.vision.encode(torch.zeros(2, 3, height, width, dtype=torch.uint8))
    read = teacher.text.encode(["A red cat?", ""])
    assert seen.tokens.shape == (2, seen.grid[0] * seen.grid[1], teacher.vision.dim)
    assert seen.global_.shape == read.global_.shape == (2, teacher.text.dim)
    first = read.spans[0][read.mask[0]].tolist()
    assert next("A red cat?"[start:end] for start, end in first) == "A"
    assert int(read.mask[1].sum()) == 0


def test_the_same_weights_in_any_file_are_the_same_teacher(tiny_teacher: Path, tmp_path: Path) -> None:
    state = load_file(tiny_teacher / "model.safetensors")
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w.pt")
    plain = load_teacher(f"local:{tiny_teacher}")
    other = load_teacher(f"local:{tiny_teacher}", weights=str(tmp_path / "w.pt"), device=torch.device("cpu"))
    assert plain.vision is not None
    assert other.vision is not None
    assert plain.vision.identity == other.vision.identity
    state["visual.proj"][0, 0] += 1e-3
    save_file(state, tmp_path / "changed.safetensors")
    changed = load_teacher(f"local:{tiny_teacher}", weights=tmp_path / "changed.safetensors")
    assert changed.vision is not None
    assert changed.text is not None
    assert plain.text is not None
    assert changed.vision.identity["weights"] != plain.vision.identity["weights"]
    assert changed.text.identity == plain.text.identity


def test_digest_sees_names_types_shapes_and_values() -> None:
    base = {"a": torch.arange(6.0), "b": torch.zeros(2)}
    variants = [
        {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2)},
        {"a": torch.arange(6.0).double(), "b": torch.zeros(2)},
        {"c": torch.arange(6.0), "b": torch.zeros(2)},
        {"a": torch.arange(6.0), "b": torch.ones(2)},
    ]
    assert weights_digest(dict(reversed(base.items()))) == weights_digest(base)
    assert len({weights_digest(item) for item in [base, *variants]}) == 5
    assert weights_digest({"x": torch.zeros(3, dtype=torch.bfloat16)}) != weights_digest({"x": torch.zeros(3).half()})


def test_wrong_and_damaged_weights_are_named(tiny_teacher: Path, tmp_path: Path) -> None:
    name = f"local:{tiny_teacher}"
    state = load_file(tiny_teacher / "model.safetensors")
    save_file({key: value for key, value in state.items() if key != "visual.proj"}, tmp_path / "less.safetensors")
    with pytest.raises(DataError, match=r"1 tensors missing, first visual\.proj"):
        load_teacher(name, weights=tmp_path / "less.safetensors")
    save_file({**state, "visual.proj": torch.zeros(2, 2)}, tmp_path / "shape.safetensors")
    with pytest.raises(DataError, match=r"first visual\.proj \(2, 2\) for \(32, 16\)"):
        load_teacher(name, weights=tmp_path / "shape.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tiny_teacher / "model.safetensors").read_bytes()[:999])
    with pytest.raises(DataError, match="not a readable safetensors file"):
        load_teacher(name, weights=tmp_path / "cut.safetensors")
    (tmp_path / "x.pt").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"not a weight file that can be read safely \(it is damaged, or no file of"):
        load_teacher(name, weights=tmp_path / "x.pt")
    with pytest.raises(NotFoundError, match="holds no weights"):
        load_teacher(name, weights=tmp_path / "..")


def test_a_pickle_that_runs_code_is_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    torch.save({"state_dict": Code()}, tmp_path / "evil.pt")
    with pytest.raises(DataError, match=r"read safely \(it would have \S*eval called\)"):
        load_teacher(f"local:{tiny_teacher}", weights=tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_broken_teacher_folders(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    with pytest.raises(NotFoundError, match=r"has no config\.json"):
        load_teacher(f"local:{folder}")
    shutil.copytree(tiny_teacher, folder)
    config = json.loads((folder / "config.json").read_text())
    for broken, message in [
        ({key: value for key, value in config.items() if key != "mean"}, "the key 'mean' is missing"),
        ({**config, "context_length": 12}, "'context_length' differs"),
        ({**config, "vision_cfg": {"colour": 3}}, "does not describe an open_clip model"),
    ]:
        (folder / "config.json").write_text(json.dumps(broken))
        with pytest.raises(DataError, match=message):
            load_teacher(f"local:{folder}")


@pytest.mark.parametrize("name", ["open_clip:RN50/openai", "open_clip:coca_ViT-B-32/laion2b_s13b_b90k"])
def test_weights_of_another_architecture_are_named(name: str, tiny_teacher: Path) -> None:
    with pytest.raises(DataError, match=r"do not fit .* tensors missing"):
        load_teacher(name, weights=tiny_teacher)


def test_names() -> None:
    assert parse_teacher_name("clip-vit-l14").rest == "ViT-L-14"
    assert parse_teacher_name("open_clip:ViT-L-14/openai").canonical == "clip-vit-l14"
    assert parse_teacher_name("open_clip:ViT-B-16/dfn2b").slug == "open_clip-vit-b-16-dfn2b"
    assert parse_teacher_name("local:/some/My Teacher/").slug == "local-my-teacher"
    assert all(parse_teacher_name(name).canonical == name for name in KNOWN)
    for bad in ("", "clip", "local:", "open_clip:", "open_clip:ViT-L-14/", "hf:x"):
        with pytest.raises(UsageProblem, match="no teacher named"):
            parse_teacher_name(bad)
    with pytest.raises(UsageProblem, match="without weights"):
        load_teacher("open_clip:ViT-B-32")


def test_a_hub_out_of_reach_is_found_out_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens on the port, so the client with its retries is never asked."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in hub.PROXIES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(NotFoundError, match=r"127\.0\.0\.1 cannot be reached from here") as found:
        load_teacher("clip-vit-l14")
    assert found.value.hint is not None
    assert "--weights PATH" in found.value.hint
    assert "timm/vit_large_patch14_clip_224.openai" in found.value.hint


def test_listing_teachers_and_stores_needs_no_heavy_import() -> None:
    code = (
        "import sys\n"
        "import madkit.cli.extract, madkit.cli.cache, madkit.cli.teachers, madkit.cache\n"
        "from madkit.teachers.describe import known_rows\n"
        "known_rows()\n"
        "print([name for name in ('torch', 'zarr', 'open_clip', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
