"""Mixed arithmetic: which layers it changes in which library, what they compute then, and when it is chosen unasked."""

from __future__ import annotations

import copy
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn

from madkit.core.errors import ConfigError
from madkit.extract import frozen
from madkit.extract.frozen import load_as_stored, load_frozen
from madkit.teachers.interface import Teacher
from madkit.teachers.load import load_teacher
from madkit.teachers.mixed import (
    arithmetic_of,
    as_float32,
    as_mixed,
    can_be_mixed,
    feed_forward_layers,
    has_matrix_units,
    load_computing,
)
from madkit.teachers.side_modules import text_module, vision_module

torch.set_num_threads(1)
WIDE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4}


def changed(module: nn.Module) -> dict[str, list[str]]:
    """Narrowing layer's name -> names of its widening layers."""
    names = {layer: name for name, layer in module.named_modules()}
    return {names[one]: [names[each] for each in many] for many, one in feed_forward_layers(module)}


def test_feed_forward_layers_are_found_in_every_library() -> None:
    import timm
    import transformers as hf

    seeing: dict[str, Any] = {**WIDE, "image_size": 32, "patch_size": 16}
    assert changed(hf.BertModel(hf.BertConfig(vocab_size=10, **WIDE))) == {
        f"encoder.layer.{n}.output.dense": [f"encoder.layer.{n}.intermediate.dense"] for n in (0, 1)
    }
    assert changed(hf.RobertaModel(hf.RobertaConfig(vocab_size=10, **WIDE))).keys() == {
        "encoder.layer.0.output.dense",
        "encoder.layer.1.output.dense",
    }
    assert changed(hf.DebertaV2Model(hf.DebertaV2Config(vocab_size=10, **WIDE))).keys() == {
        "encoder.layer.0.output.dense",
        "encoder.layer.1.output.dense",
    }
    clip = changed(hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(projection_dim=64, **seeing)))
    assert sorted(clip.values()) == [[f"vision_model.encoder.layers.{n}.mlp.fc1"] for n in (0, 1)]
    assert len(changed(hf.Dinov2Model(hf.Dinov2Config(mlp_ratio=4, **seeing)))) == 2
    wider = {**seeing, "hidden_size": 384, "num_attention_heads": 6}
    gated = changed(hf.Dinov2Model(hf.Dinov2Config(mlp_ratio=4, use_swiglu_ffn=True, **wider)))
    assert len(gated) == 2
    assert all(".mlp." in one and all(".mlp." in each for each in many) for one, many in gated.items())
    siglip = changed(hf.SiglipVisionModel(hf.SiglipVisionConfig(**seeing)))
    assert len(siglip) == 3  # two layers, and the head that pools
    vit = timm.create_model("vit_small_patch16_224", depth=1, num_classes=0, pretrained=False)
    assert changed(vit) == {"blocks.0.mlp.fc2": ["blocks.0.mlp.fc1"]}  # and not blocks.0.attn.qkv, three times as wide
    assert not changed(timm.create_model("test_resnet", pretrained=False))
    assert not changed(hf.BertModel(hf.BertConfig(vocab_size=10, **{**WIDE, "hidden_size": 128})))  # too small to pay


def images() -> Tensor:
    return torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def seen(teacher: Teacher) -> Tensor:
    assert teacher.vision is not None
    return teacher.vision.encode(images()).tokens


def read(teacher: Teacher) -> Tensor:
    assert teacher.text is not None
    found = teacher.text.encode(["a red cat", "the dog is under the house"])
    return found.tokens[found.mask]


def test_what_is_computed_is_float32_around_open_clips_own_layers_in_bfloat16(wide_teacher: Path) -> None:
    """The library's feed-forward modules, cast as a whole, between casts: the same bits on both sides."""
    exact, ours, theirs = (load_teacher(f"local:{wide_teacher}", dtype=torch.float32) for _ in range(3))
    mixed = as_mixed(ours)
    assert mixed is not None
    assert (arithmetic_of(exact), arithmetic_of(mixed)) == ("float32", "mixed")
    assert theirs.vision is not None
    assert theirs.text is not None
    for module in (vision_module(theirs.vision), text_module(theirs.text)):
        for block in module.transformer.resblocks:
            short = copy.deepcopy(block.mlp).to(torch.bfloat16)
            block.mlp.forward = lambda x, short=short: short(x.to(torch.bfloat16)).float()
    for way in (seen, read):
        found = way(mixed)
        assert found.dtype == torch.float32
        assert torch.equal(found, way(theirs))
        error = (found - way(exact)).norm() / way(exact).norm()
        assert 1e-5 < error < 0.01
    undone = as_float32(mixed)
    assert arithmetic_of(undone) == "float32"
    assert torch.equal(seen(undone), seen(exact))
    assert torch.equal(read(undone), read(exact))


def test_threads_that_encode_at_a_time_give_the_same_bits(wide_teacher: Path) -> None:
    mixed = load_computing(f"local:{wide_teacher}", "mixed")
    alone = seen(mixed)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, alone) for found in pool.map(seen, [mixed] * 16))


def test_it_is_chosen_where_the_processor_is_made_for_it(wide_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"local:{wide_teacher}"
    monkeypatch.setattr(frozen, "has_matrix_units", lambda: False)
    teacher, choice = load_frozen(name)
    assert (arithmetic_of(teacher), choice.value, choice.reason) == ("float32", "float32", "the default on cpu")
    monkeypatch.setattr(frozen, "has_matrix_units", lambda: True)
    teacher, choice = load_frozen(name)
    assert (arithmetic_of(teacher), choice.value) == ("mixed", "mixed")
    assert re.search(r"its worst cosine with float32 is 0\.9999\d, of \d+ (text|image) tokens", choice.reason)
    assert torch.equal(seen(teacher), seen(load_computing(name, "mixed")))
    assert arithmetic_of(load_frozen(name, compute_dtype="float32")[0]) == "float32"
    assert arithmetic_of(load_as_stored({"teacher": name, "compute_dtype": "mixed"})) == "mixed"
    assert arithmetic_of(load_frozen("mini")[0]) == "float32"  # its layers are small


def test_it_is_not_chosen_for_weights_that_do_not_bear_it(
    wide_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention a hundred times as sharp turns the least rounding into other tokens."""
    folder = tmp_path / "sharp"
    shutil.copytree(wide_teacher, folder)
    weights = load((folder / "model.safetensors").read_bytes())
    for name, value in weights.items():
        if name.endswith("attn.in_proj_weight"):
            value[: 2 * 256] *= 30
    save_file(weights, folder / "model.safetensors")
    monkeypatch.setattr(frozen, "has_matrix_units", lambda: True)
    teacher, choice = load_frozen(f"local:{folder}")
    assert (arithmetic_of(teacher), choice.value) == ("float32", "float32")
    assert choice.reason.startswith("mixed does not do: its worst cosine with float32 is 0.")
    assert torch.equal(seen(teacher), seen(load_teacher(f"local:{folder}", dtype=torch.float32)))
    asked, choice = load_frozen(f"local:{folder}", compute_dtype="mixed")
    assert (arithmetic_of(asked), choice.reason) == ("mixed", "as asked for")


def test_teachers_without_such_layers_refuse_it(tiny_teacher: Path) -> None:
    with pytest.raises(ConfigError, match="no feed-forward layers of a size that mixed arithmetic is for"):
        load_computing(f"local:{tiny_teacher}", "mixed")
    sixteen = load_teacher(f"local:{tiny_teacher}", dtype=torch.bfloat16)
    assert not can_be_mixed(sixteen)
    assert as_mixed(sixteen) is None


def test_matrix_units_are_those_that_the_processor_names(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = Path("/proc/cpuinfo")
    if flags.is_file() and hasattr(torch.cpu, "get_capabilities"):  # where the system says it, too
        assert has_matrix_units() == ("amx_bf16" in flags.read_text().split())
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for told, expected in (({"amx_bf16": True}, True), ({"amx_bf16": False}, False), ({"avx2": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda told=told: told, raising=False)
        assert has_matrix_units() is expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in a PyTorch that does not tell
    assert has_matrix_units() is False
