from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from madkit.adapt.config import AdaptConfig, LoraConfig
from madkit.adapt.lora import LinearAttention, add_lora, chosen_layers, linear_layers, lora_matrices, open_attention
from madkit.adapt.trained_pair import TrainedPair
from madkit.core.errors import ConfigError, DataError
from madkit.teachers.adapter import Adapter, apply_adapter
from madkit.teachers.load import load_teacher
from madkit.teachers.side_modules import side_parameters, vision_module


def images(count: int, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masked", ["all alike", "each its own", ""])
def test_attention_over_linear_layers_is_the_modules_own(batch_first: bool, masked: str) -> None:
    torch.manual_seed(0)
    own = nn.MultiheadAttention(16, 4, batch_first=batch_first).eval()
    nn.init.normal_(own.in_proj_bias)
    nn.init.normal_(own.out_proj.bias)
    x = torch.randn(5, 5, 16)
    mask = torch.full((5, 5), -torch.inf).triu(1) if masked else None
    if masked == "each its own":
        mask = torch.where(torch.rand(20, 5, 5) < 0.3, -torch.inf, 0.0)
        mask[:, :, 0] = 0.0  # something is always seen
    expected = own(x, x, x, need_weights=False, attn_mask=mask)[0]
    found, _ = LinearAttention(own)(x, x, x, attn_mask=mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    flags = None if mask is None else mask < 0
    torch.testing.assert_close(LinearAttention(own)(x, x, x, attn_mask=flags)[0], expected, rtol=1e-5, atol=1e-6)


def test_layers_whose_weights_timm_reads_without_calling_them_are_trained() -> None:
    """EVA's attention, as timm makes it: the same numbers, and a gradient for every low-rank matrix."""
    from timm.models.eva import EvaAttention

    torch.manual_seed(0)
    block = nn.ModuleDict({"0": EvaAttention(16, num_heads=2, scale_norm=False).eval()})
    attention = block["0"]
    for bias in (attention.q_bias, attention.v_bias):
        nn.init.normal_(bias)
    x = torch.randn(3, 5, 16)
    expected = attention(x)
    open_attention(block)
    names = linear_layers(block, dict(block.named_parameters()))
    assert names == ["0.qkv", "0.proj"]
    add_lora(block, names, LoraConfig(rank=2), 0)
    torch.testing.assert_close(attention(x), expected)
    attention(x).square().sum().backward()
    matrices = lora_matrices(block)
    assert set(matrices) == {"0.qkv.weight", "0.proj.weight"}
    assert all(b.grad is not None and b.grad.abs().sum() > 0 for _, b in matrices.values())


def noisy_pair(teacher: object, **lora: object) -> TrainedPair:
    """A pair whose low-rank matrices are no longer at their start, where they change nothing."""
    pair = TrainedPair(teacher, AdaptConfig(train="lora", lora=LoraConfig(**lora)), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in pair.trained.items():
            if "/lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return pair


def as_adapter(pair: TrainedPair, teacher: object, scale: float, logit: float = 1.0) -> Adapter:
    base = {"vision": teacher.vision.identity["weights"], "text": teacher.text.identity["weights"]}
    tensors = {name: value.detach().clone() for name, value in pair.trained.items()}
    return Adapter(Path("run"), teacher.name, False, "0" * 64, base, scale, logit, tensors)


def test_merged_weights_are_those_that_peft_merges(tiny_teacher: Path) -> None:
    name = f"local:{tiny_teacher}"
    trained = load_teacher(name)
    pair = noisy_pair(trained, rank=3, alpha=12.0)
    pixels, said = images(4), trained.text.tokenize(["a red dog", "two cats", "the house is blue"])
    with torch.no_grad():
        seen, read = pair(pixels, said)
    adapted = apply_adapter(load_teacher(name), as_adapter(pair, trained, scale=4.0))
    torch.testing.assert_close(adapted.vision.encode(pixels).global_, seen, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(adapted.text.encode_tokenized(said).global_, read, rtol=1e-5, atol=1e-5)

    # peft's own merge of the same matrices beside the same linear layers
    module = copy.deepcopy(vision_module(load_teacher(name).vision))
    open_attention(module)
    layers = linear_layers(module, side_parameters(module, "vision"))
    wrapped = peft.get_peft_model(module, peft.LoraConfig(r=3, lora_alpha=12.0, target_modules=layers))
    mine = lora_matrices(pair.sides["vision"])
    theirs = lora_matrices(wrapped.base_model.model)
    assert mine.keys() == theirs.keys()
    assert len(mine) == 8
    with torch.no_grad():
        for weight, (a, b) in theirs.items():
            a.copy_(mine[weight][0])
            b.copy_(mine[weight][1])
    merged = dict(wrapped.merge_and_unload().named_parameters())
    after = side_parameters(vision_module(adapted.vision), "vision")
    for weight, value in after.items():
        packed = weight.replace("in_proj_", "in_proj.")
        torch.testing.assert_close(value, merged[packed], rtol=1e-5, atol=1e-5)


def test_packed_queries_keys_and_values_change_as_peft_changes_them_in_torchs_own_module(tiny_teacher: Path) -> None:
    block = "transformer.resblocks.0.attn"
    trained = load_teacher(f"local:{tiny_teacher}")
    pair = noisy_pair(trained, rank=3, alpha=12.0)
    plain = vision_module(load_teacher(f"local:{tiny_teacher}").vision)
    wrapped = peft.get_peft_model(copy.deepcopy(plain), peft.LoraConfig(r=3, lora_alpha=12.0, target_modules=[block]))
    layer = wrapped.base_model.model.get_submodule(block)
    a, b = lora_matrices(pair.sides["vision"])[f"{block}.in_proj_weight"]
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(a)
        layer.lora_B["default"].weight.copy_(b)
    merged = wrapped.merge_and_unload().get_submodule(block).in_proj_weight
    adapted = apply_adapter(load_teacher(f"local:{tiny_teacher}"), as_adapter(pair, trained, scale=4.0))
    after = side_parameters(vision_module(adapted.vision), "vision")[f"{block}.in_proj_weight"]
    torch.testing.assert_close(after, merged, rtol=1e-5, atol=1e-5)
    assert not torch.equal(after, plain.get_submodule(block).in_proj_weight)


def test_targets_are_kinds_or_ends_of_names(tiny_teacher: Path) -> None:
    teacher = load_teacher(f"local:{tiny_teacher}")
    pair = noisy_pair(teacher, targets="attention")
    assert {name.rpartition("attn.")[2] for name in pair.trained} == {"in_proj_weight", "out_proj.weight"}
    module = vision_module(load_teacher(f"local:{tiny_teacher}").vision)
    layers = linear_layers(module, side_parameters(module, "vision"))
    assert chosen_layers(layers, ["c_fc"]) == [f"transformer.resblocks.{i}.mlp.c_fc" for i in range(2)]
    assert set(chosen_layers(layers, "mlp")) == {name for name in layers if "mlp" in name}
    with pytest.raises(ConfigError, match=r"No layer of the teacher is called 'c_fx'.*c_fc"):
        noisy_pair(load_teacher(f"local:{tiny_teacher}"), targets=["c_fx"])


def test_without_peft_it_says_what_to_install(tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert importlib.import_module("peft") is peft
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match="needs the library peft") as caught:
        noisy_pair(load_teacher(f"local:{tiny_teacher}"))
    assert "madkit[lora]" in str(caught.value.hint)


def test_a_weight_that_the_teacher_lacks_is_named(tiny_teacher: Path) -> None:
    teacher = load_teacher(f"local:{tiny_teacher}")
    pair = noisy_pair(teacher)
    adapter = as_adapter(pair, teacher, 1.0)
    wrong = {**(adapter.tensors or {}), "vision/weight/nothing": torch.zeros(2)}
    with pytest.raises(DataError, match="no weight that 'weight/nothing' fits"):
        apply_adapter(
            load_teacher(f"local:{tiny_teacher}"),
            Adapter(adapter.path, "x", False, adapter.digest, adapter.base, 1.0, 1.0, wrong),
        )
