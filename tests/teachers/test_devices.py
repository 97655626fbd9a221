"""Teachers on a GPU that is not there: every tensor that they compute with is on it, and nothing is asked back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hf_models
import pytest
import torch
from test_hf_vision import pair_folder, vision_folder
from test_timm import weights_of

from madkit.extract.image_encoding import ImageEncoder
from madkit.teachers.load import load_teacher
from tests.pretended_cuda import pretended_cuda, read_everything

torch.set_num_threads(1)
TEXTS = ["a photo of a cat", "two dogs are under a red house"]


def named(kind: str, folder: Path) -> tuple[str, dict[str, Any]]:
    if kind == "mini":
        return kind, {}
    family, _, name = kind.partition(" ")
    if family == "timm":
        return f"timm:{name}", {"weights": weights_of(name, folder / "model.safetensors")}
    if family == "text":
        tokenizer = hf_models.word_piece() if name != "deberta-v2" else hf_models.unigram()
        return f"hf:{hf_models.save(folder, hf_models.text_model(name, tokenizer), tokenizer)}", {}
    return f"hf:{(pair_folder if family == 'pair' else vision_folder)(name, folder)}", {}


SLOW = (
    *(
        "text bert",
        "text deberta-v2",
        "text nystromformer",
        "image clip_vision_model",
        "image dinov2",
        "pair clip",
        "pair siglip",
    ),
    *("timm test_vit", "timm test_convnext"),
)


@pytest.mark.parametrize("kind", ["mini", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)])
def test_everything_a_teacher_computes_with_is_on_its_device(kind: str, tmp_path: Path) -> None:
    name, options = named(kind, tmp_path)
    with pretended_cuda():
        teacher = load_teacher(name, device="cuda", **options)
        found = read_everything(teacher, TEXTS)
    assert len(found) == (teacher.vision is not None) + 3 * (teacher.text is not None)
    for one in found:
        assert {one.tokens.device.type, one.global_.device.type} == {"cuda"}
        assert {one.tokens.dtype, one.global_.dtype} == {torch.float16}


def test_the_pretended_device_refuses_a_tensor_of_the_host() -> None:
    with pretended_cuda():
        there, here = torch.zeros(2, device="cuda"), torch.zeros(2)
        assert (there + here.to("cuda")).device.type == "cuda"
        assert int((here + 1).sum()) == 2
        with pytest.raises(RuntimeError, match=r"same device|different devices"):  # torch's words change
            there + here


def test_tokens_are_chosen_and_rounded_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pretended_cuda():
        teacher = load_teacher("mini", device="cuda")
        assert teacher.vision is not None
        encoder = ImageEncoder(teacher.vision, batch=4, kept=8)
        found = encoder.encode(torch.zeros(3, 3, *teacher.vision.image_size, dtype=torch.uint8))
    assert tuple(found.tokens.shape) == (3, 8, teacher.vision.dim)
    assert found.positions is not None
    kinds = [(one.device.type, one.dtype) for one in (found.tokens, found.globals, found.positions, found.finite)]
    assert kinds == [("cuda", kind) for kind in (torch.float16, torch.float16, torch.int32, torch.bool)]
