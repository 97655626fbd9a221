"""Low-rank updates of the linear layers inside a teacher's blocks, through the library ``peft``.

open_clip's attention keeps query, key and value in one matrix that ``torch.nn.MultiheadAttention`` reads without
calling a layer, which ``peft`` can only follow by changing the frozen weight in every forward pass. While a LoRA is
trained, such a module is therefore computed by two plain linear layers over the same weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madkit.adapt.config import LoraConfig
from madkit.core.errors import ConfigError
from madkit.core.registry import suggest

_ATTENTION = re.compile(r"attn|attention|self", re.IGNORECASE)
_NAME = "default"


class LinearAttention(nn.Module):
    """Self-attention of a ``torch.nn.MultiheadAttention``, over its own weights, as two linear layers."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        width = attention.embed_dim
        bias = attention.in_proj_bias is not None
        self.heads = attention.num_heads
        self.batch_first = attention.batch_first
        self.in_proj = nn.Linear(width, 3 * width, bias=bias, device="meta")
        self.out_proj = nn.Linear(width, width, bias=attention.out_proj.bias is not None, device="meta")
        self.in_proj.weight, self.out_proj.weight = attention.in_proj_weight, attention.out_proj.weight
        if bias:
            self.in_proj.bias = attention.in_proj_bias
        if attention.out_proj.bias is not None:
            self.out_proj.bias = attention.out_proj.bias

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Attend [B, L, D] (or [L, B, D]) to itself; the mask, as the module's, is [L, L] or [B x heads, L, L]."""
        x = query if self.batch_first else query.transpose(0, 1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.in_proj(x).chunk(3, dim=-1))
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = ~attn_mask  # this function's meaning is the opposite of the module's
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.unflatten(0, (-1, self.heads))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), None


def _replaceable(module: nn.Module) -> bool:
    return (
        type(module) is nn.MultiheadAttention
        and module._qkv_same_embed_dim
        and module.bias_k is None
        and not module.add_zero_attn
        and module.dropout == 0.0
    )


def open_attention(module: nn.Module) -> None:
    """Replace every self-attention of ``module`` whose layers cannot be called by one whose layers can.

    timm's EVA, BEiT and Swin v2 read the weight of query, key and value beside a bias of their own, unless they are
    told to add that bias afterwards: the same sum, up to rounding.
    """
    for owner in list(module.modules()):
        if hasattr(owner, "qkv_bias_separate"):
            owner.qkv_bias_separate = True  # type: ignore[assignment]
        for name, child in list(owner.named_children()):
            if _replaceable(child) and _in_block(owner, module):
                setattr(owner, name, LinearAttention(child).train(child.training))  # type: ignore[arg-type]


def _in_block(owner: nn.Module, module: nn.Module) -> bool:
    """Whether a child stands in a repeated block: SigLIP's pooling head has an attention outside of them."""
    path = next(path for path, found in module.named_modules() if found is owner)
    return any(part.isdigit() for part in path.split("."))


def linear_layers(module: nn.Module, side_weights: Mapping[str, nn.Parameter]) -> list[str]:
    """Names of the linear layers in the blocks of one side, as they are after `open_attention`.

    Args:
        module: of the side.
        side_weights: the side's weights by name.
    """
    mine = {id(value) for value in side_weights.values()}
    return [
        name
        for name, child in module.named_modules()
        if isinstance(child, nn.Linear) and id(child.weight) in mine and any(part.isdigit() for part in name.split("."))
    ]


def chosen_layers(names: list[str], targets: str | list[str]) -> list[str]:
    """The layers among `names` that `targets` means.

    Raises:
        ConfigError: an end of a name that no layer has.
    """
    if targets == "all":
        return names
    if isinstance(targets, str):
        wanted = targets == "attention"
        return [name for name in names if bool(_ATTENTION.search(name)) == wanted]
    return [name for name in names if any(name == end or name.endswith(f".{end}") for end in targets)]


def check_targets(names: list[str], targets: str | list[str]) -> None:
    """Raise ConfigError for an end of a name that no layer of either side has."""
    for end in targets if not isinstance(targets, str) else ():
        if not chosen_layers(names, [end]):
            ends = sorted({name.rpartition(".")[2] for name in names})
            raise ConfigError(
                f"No layer of the teacher is called '{end}'.{suggest(end, ends)}",
                hint=f"--set 'lora.targets=[...]' with some of: {', '.join(ends)}; or attention, mlp, all",
            )


def add_lora(module: nn.Module, names: list[str], config: LoraConfig, seed: int) -> None:
    """Put low-rank matrices beside the linear layers `names`; the new ones start at a change of zero.

    Raises:
        ConfigError: the library peft is not installed.
    """
    try:
        peft: Any = import_module("peft")
    except ImportError:
        raise ConfigError(
            "Low-rank adaptation needs the library peft, which is not installed.",
            hint="pip install 'madkit[lora]'; or --train heads, or --train all",
        ) from None
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="|".join(re.escape(name) for name in names),  # whole names: a list would match their ends
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(settings, module, adapter_name=_NAME)


def lora_matrices(module: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Name of each changed weight, as the teacher itself calls it, to its matrices A [r, in] and B [out, r]."""
    found = {}
    for path, layer in module.named_modules():
        if path and hasattr(layer, "lora_A") and _NAME in layer.lora_A:
            owner, _, last = path.rpartition(".")
            packed = last == "in_proj" and isinstance(module.get_submodule(owner), LinearAttention)
            name = f"{path}_weight" if packed else f"{path}.weight"
            found[name] = (layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight)
    return found


def train_dropout(module: nn.Module) -> None:
    """Let the dropout of low-rank layers drop while everything else stays in evaluation mode."""
    for layer in module.modules():
        dropout = getattr(layer, "lora_dropout", None)
        if isinstance(dropout, nn.Module):
            dropout.train()
