"""A teacher under adaptation: its two encoders with gradients, and which of their weights are trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from madkit.adapt.config import AdaptConfig
from madkit.adapt.lora import add_lora, check_targets, chosen_layers, linear_layers, lora_matrices, open_attention
from madkit.adapt.lora import train_dropout as lora_dropout
from madkit.core.errors import ConfigError
from madkit.core.seeds import derive_seed
from madkit.teachers.adapter import SIDES
from madkit.teachers.interface import Teacher, TextTeacher, TokenizedText, VisionTeacher
from madkit.teachers.side_modules import head_names, read, see, side_parameters, text_module, vision_module

LOGIT_SCALE = "logit_scale"
FIRST_SCALE = 1 / 0.07  # where CLIP's temperature starts (arXiv 2103.00020, section 2.5), for pairs without one
MAX_SCALE = 100.0  # where CLIP's ends, same place


class TrainedPair(nn.Module):
    """Both sides of a teacher, of which some weights are trained; the teacher changes with it.

    Attributes:
        vision: the vision side.
        text: the text side.
        new_heads: whether the teacher had no common space and gets linear layers into one.
    """

    def __init__(self, teacher: Teacher, config: AdaptConfig, seed: int) -> None:
        """Take a teacher in float32.

        Raises:
            ConfigError: it reads images or texts only, or has nothing of the kind that is to be trained.
        """
        super().__init__()
        if teacher.vision is None or teacher.text is None:
            reads = "texts" if teacher.vision is None else "images"
            raise ConfigError(
                f"The teacher '{teacher.name}' reads {reads} only, and adapting compares images with texts.",
                hint="join it with another as VISION+TEXT (see: madkit teachers list)",
            )
        self.vision: VisionTeacher = teacher.vision
        self.text: TextTeacher = teacher.text
        self.new_heads = not teacher.shared_space
        self.sides = nn.ModuleDict({"vision": vision_module(self.vision), "text": text_module(self.text)})
        self.eval().requires_grad_(False)
        self._weights = {side: side_parameters(self.sides[side], side) for side in SIDES}
        if config.gradient_checkpointing:
            for side in SIDES:
                checkpoint_blocks(self.sides[side])
        self.heads = nn.ModuleDict()
        if self.new_heads:
            width = config.head_dim or min(self.vision.dim, self.text.dim)
            self.heads = nn.ModuleDict(
                {side: _new_head(getattr(self, side).dim, width, derive_seed(seed, "head", side)) for side in SIDES}
            )
        elif config.head_dim is not None:
            raise ConfigError(
                f"The two sides of '{teacher.name}' have a common space, so head_dim means nothing.",
                hint="leave head_dim out",
            )
        first = FIRST_SCALE if self.new_heads else teacher.logit_scale
        self.log_scale = nn.Parameter(torch.tensor(math.log(first)), requires_grad=False)
        self._trained = self._choose(teacher.name, config, seed)
        learned = config.objective.logit_scale or ("learned" if self.new_heads else "fixed")
        if learned == "learned":
            self._trained[LOGIT_SCALE] = self.log_scale
        for parameter in self._trained.values():
            parameter.requires_grad_(True)

    def _choose(self, name: str, config: AdaptConfig, seed: int) -> dict[str, nn.Parameter]:
        """Trained weights by their names in an adapter's file."""
        found: dict[str, nn.Parameter] = {
            f"{side}/head/{part}": value for side, head in self.heads.items() for part, value in head.named_parameters()
        }
        if config.train == "lora":
            return found | self._lora(name, config, seed)
        for side in SIDES:
            weights = self._weights[side]
            names = list(weights) if config.train == "all" else [] if self.new_heads else head_names(weights)
            found |= {f"{side}/weight/{weight}": weights[weight] for weight in names}
        if not found:
            raise ConfigError(
                f"The teacher '{name}' has no projection layers that could be trained alone.",
                hint="--train lora or --train all",
            )
        return found

    def _lora(self, name: str, config: AdaptConfig, seed: int) -> dict[str, nn.Parameter]:
        layers: dict[str, list[str]] = {}
        for side in SIDES:
            open_attention(self.sides[side])
            layers[side] = linear_layers(self.sides[side], self._weights[side])
        everything = [layer for names in layers.values() for layer in names]
        check_targets(everything, config.lora.targets)
        chosen = {side: chosen_layers(names, config.lora.targets) for side, names in layers.items()}
        if not any(chosen.values()):
            raise ConfigError(
                f"The teacher '{name}' has no linear layers in its blocks.", hint="--train heads or --train all"
            )
        # One module may hold both sides (CLIP of transformers), and is then changed once.
        by_module: dict[int, list[str]] = {}
        for side in SIDES:
            by_module.setdefault(id(self.sides[side]), []).extend(chosen[side])
        for side in SIDES:
            names = by_module.pop(id(self.sides[side]), [])
            if names:
                add_lora(self.sides[side], names, config.lora, derive_seed(seed, "lora", side))
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        found: dict[str, nn.Parameter] = {}
        for side in SIDES:
            for weight, (a, b) in lora_matrices(self.sides[side]).items():
                if weight in self._weights[side]:
                    found |= {f"{side}/lora_a/{weight}": a, f"{side}/lora_b/{weight}": b}
        return found

    @property
    def trained(self) -> Mapping[str, nn.Parameter]:
        """Trained parameters by their names in an adapter's file, and `logit_scale` (its logarithm) where learnt."""
        return self._trained

    @property
    def scale(self) -> Tensor:
        """Factor on cosines, a scalar."""
        return self.log_scale.exp().clamp(max=max(MAX_SCALE, float(self.log_scale.detach().exp())))

    def trains(self, side: str) -> bool:
        """Whether anything of a side is trained."""
        return any(name.startswith(f"{side}/") for name in self._trained)

    def clamp_scale(self) -> None:
        """Keep a learnt factor within CLIP's bound."""
        with torch.no_grad():
            if LOGIT_SCALE in self._trained:
                self.log_scale.clamp_(0.0, math.log(MAX_SCALE))

    def start_step(self) -> None:
        """Put the layers that drop into training mode; everything else computes as it will when it is frozen again."""
        lora_dropout(self)

    def forward(self, images: Tensor, texts: Sequence[TokenizedText]) -> tuple[Tensor, Tensor]:
        """Global vectors of uint8 images [I, 3, H, W] and of texts, [I, D] and [T, D], in the common space."""
        return self.project(self.see(images), self.read(texts))

    def see(self, images: Tensor) -> Tensor:
        """Global vectors of uint8 images [I, 3, H, W] as their encoder gives them."""
        return see(self.vision, images).global_

    def read(self, texts: Sequence[TokenizedText]) -> Tensor:
        """Global vectors of T texts as their encoder gives them."""
        return read(self.text, texts).global_

    def project(self, seen: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
        """Both encoders' vectors in the common space."""
        if self.new_heads:
            return self.heads["vision"](seen), self.heads["text"](said)
        return seen, said

    @property
    def frozen_encoders(self) -> bool:
        """Whether nothing but new layers is trained, so that the encoders need to read everything only once."""
        return all("/head/" in name or name == LOGIT_SCALE for name in self._trained)


def _new_head(dim: int, width: int, seed: int) -> nn.Linear:
    """A linear layer whose output has about the length of its input, drawn from `seed` alone."""
    head = nn.Linear(dim, width)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(width, dim, generator=generator) * dim**-0.5)
        head.bias.zero_()
    return head


def checkpoint_blocks(module: nn.Module) -> None:
    """Let the repeated blocks of an encoder forget their activations and compute them again for the gradient.

    The libraries' own switches work in training mode only, which would also switch on their dropout.
    """
    for name, child in module.named_modules():
        inside = [int(part) for part in name.split(".") if part.isdigit()]
        if len(inside) == 1 and name.rpartition(".")[2].isdigit() and next(child.parameters(), None) is not None:
            owner: Any = child
            owner.forward = _forgetful(owner.forward)


def _forgetful(forward: Callable[..., Any]) -> Callable[..., Any]:
    def again(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return again
