"""ViLT (https://arxiv.org/abs/2102.03334; https://github.com/dandelin/ViLT) out of transformers' own modules.

One stream over text and raw patches of pixels, in pre-norm layers. A "region" is a patch: its features are its
normalised pixels in the order channel, row, column, its box is its cell. Projecting them is the patch convolution, so
everything that works on regions (batches, alignment, distillation) works on patches. Positions are the trained grid's,
interpolated (bilinear, corners aligned) to the grid that an image's cells say.

The picture's class token stands behind the patches in memory and is not among the hidden states. Modules are named as
in transformers' `ViltModel`. The last level of hidden states is after the final LayerNorm.

The authors never drop attention weights, whatever the rate of the rest (`attn_drop_rate` of their
`vilt/modules/vision_transformer.py`, which nothing sets), so there is no dropout of them here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViltConfig as HfViltConfig
from transformers.models.vilt.modeling_vilt import ViltEmbeddings, ViltEncoder, ViltPooler, ViltSelfAttention

from madkit.students.encoder import Encoder, add_readers, encoded, init_bert, widen_types
from madkit.students.families import Family, State, Weights, WeightSource
from madkit.students.heads import TaskHead
from madkit.students.interface import Encoded, StudentInputs
from madkit.students.text_style import TextStyle, segment_plan

PREFIX = "vilt."
HEADS = ("classifier.", "mlm_score.", "rank_output.")
TEXT, IMAGE = 0, 1


@dataclass(frozen=True, slots=True)
class ViltConfig:
    """Sizes of a ViLT network; the defaults are ViT-B/32's at 384 pixels with 40 text tokens."""

    vocab_size: int = 30_522
    hidden_size: int = 768
    layers: int = 12
    heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 40
    types: int = 2
    modality_types: int = 2
    image_size: int = 384
    longest_size: int = 639  # int(1333 / 800 * 384), the authors' rule
    patch_size: int = 32
    dropout: float = 0.0
    layer_norm_eps: float = 1e-12

    @property
    def region_dim(self) -> int:
        """Pixels of a patch, three channels each."""
        return 3 * self.patch_size**2

    def hugging_face(self) -> HfViltConfig:
        """The same sizes as transformers names them."""
        options: dict[str, Any] = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_positions,
            "type_vocab_size": self.types,
            "modality_type_vocab_size": self.modality_types,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": 0.0,
            "layer_norm_eps": self.layer_norm_eps,
            "pad_token_id": 0,
        }
        return HfViltConfig(**options)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as config.json holds them."""
        return asdict(self)


class ViltModel(Encoder):
    """Embeddings, pre-norm layers, final LayerNorm, pooler."""

    config: ViltConfig

    def __init__(self, config: ViltConfig) -> None:
        super().__init__(config)
        theirs = config.hugging_face()
        self.embeddings = ViltEmbeddings(theirs)
        self.encoder = ViltEncoder(theirs)
        for part in self.encoder.modules():
            if isinstance(part, ViltSelfAttention):
                part.register_module("dropout", nn.Identity())  # that no setting of the rate reaches it
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = ViltPooler(theirs)
        self.apply(init_bert)
        patches = self.embeddings.patch_embeddings.projection
        nn.init.normal_(patches.weight, std=0.02)
        if patches.bias is not None:
            nn.init.zeros_(patches.bias)
        for table in (self.embeddings.cls_token, self.embeddings.position_embeddings):
            nn.init.normal_(table, std=0.02)

    def forward(self, inputs: StudentInputs, *, distillation_tokens: Tensor | None = None) -> Encoded:
        """Pooled states [S, H], and hidden states of embeddings and every layer, each [S, T + R, H]."""
        T, R = inputs.input_ids.shape[1], inputs.region_features.shape[1]
        kinds = self.embeddings.token_type_embeddings.weight
        text = self.embeddings.text_embeddings(inputs.input_ids, inputs.token_type_ids) + kinds[TEXT]
        image = (self._see(inputs) + kinds[IMAGE])[inputs.image_index]
        hidden = torch.cat([text, image], dim=1)
        one = inputs.text_mask.new_ones(text.shape[0], 1)  # the picture's class token
        real = torch.cat([inputs.text_mask, inputs.region_mask[inputs.image_index], one], dim=1)
        hidden, real = add_readers(hidden, real, distillation_tokens)
        mask = (1.0 - real[:, None, None, :].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
        states = [hidden]
        for layer in self.encoder.layer:
            hidden = layer(hidden, mask)[0]
            states.append(hidden)
        states[-1] = self.layernorm(hidden)
        return encoded(self.pooler(states[-1]), states, T + R, distillation_tokens)

    def _see(self, inputs: StudentInputs) -> Tensor:
        """Patches and, last, the class token: [B, R + 1, H], once for each image."""
        own = self.embeddings
        projection = own.patch_embeddings.projection
        seen = F.linear(inputs.region_features, projection.weight.flatten(1), projection.bias)
        seen = seen + self._positions(inputs.region_boxes)
        first = (own.cls_token + own.position_embeddings[:, :1]).expand(seen.shape[0], -1, -1)
        embedded: Tensor = own.dropout(torch.cat([seen, first], dim=1))
        return embedded

    def _positions(self, boxes: Tensor) -> Tensor:
        """[B, R, H]: the trained grid of positions, read where the cells `boxes` [B, R, 4] lie in their own grid."""
        side = self.config.image_size // self.config.patch_size
        table = self.embeddings.position_embeddings[:, 1:].transpose(1, 2).view(1, -1, side, side)
        size = (boxes[..., 2:] - boxes[..., :2]).clamp_min(1e-6)
        cells = (1 / size).round()  # columns, rows of the image's grid
        place = (boxes[..., :2] * cells).round()
        corner = 2 * place / (cells - 1).clamp_min(1) - 1  # -1 the first cell, 1 the last
        read = F.grid_sample(
            table.expand(boxes.shape[0], -1, -1, -1), corner.unsqueeze(2).to(table.dtype), align_corners=True,
            padding_mode="border",
        )  # fmt: skip
        return read.squeeze(-1).transpose(1, 2)


def from_text(state: State, config: ViltConfig) -> State:
    """A text encoder's embeddings; its layers are post-norm and of no use here. Positions are cut to the student's."""
    own = {f"embeddings.text_{key}": value for key, value in state.items() if key.startswith("embeddings.")}
    positions, types = (f"embeddings.text_embeddings.{kind}_embeddings.weight" for kind in ("position", "token_type"))
    kinds = widen_types(own[types], config.types)
    return {**own, positions: own[positions][: config.max_positions], types: kinds}


def read_vilt(described: Mapping[str, Any], state: State) -> Weights:
    """A checkpoint of transformers' ViLT classes (`dandelin/vilt-b32-mlm` and its kin); heads are left."""
    own = {key.removeprefix(PREFIX): value for key, value in state.items() if not key.startswith(HEADS)}
    own = {key: value for key, value in own.items() if not key.endswith(("position_ids", ".token_type_ids"))}
    kinds = own["embeddings.token_type_embeddings.weight"]
    config = ViltConfig(
        vocab_size=int(described.get("vocab_size", 30_522)),
        hidden_size=int(described.get("hidden_size", 768)),
        layers=int(described.get("num_hidden_layers", 12)),
        heads=int(described.get("num_attention_heads", 12)),
        intermediate_size=int(described.get("intermediate_size", 3072)),
        max_positions=int(described.get("max_position_embeddings", 40)),
        types=int(described.get("type_vocab_size", 2)),
        modality_types=len(kinds),
        image_size=int(described.get("image_size", 384)),
        patch_size=int(described.get("patch_size", 32)),
        dropout=float(described.get("hidden_dropout_prob", 0.0)),
        layer_norm_eps=float(described.get("layer_norm_eps", 1e-12)),
    )
    used = {PREFIX + key for key in own} | set(own)
    return Weights(config, own, tuple(key for key in state if key not in used))


_MINI = ViltConfig(
    vocab_size=806, hidden_size=128, layers=3, heads=4, intermediate_size=512, max_positions=64, image_size=96,
    longest_size=159, patch_size=16,
)  # fmt: skip
FAMILY = Family(
    name="vilt",
    title="one stream over text and raw patches of pixels",
    paper="https://arxiv.org/abs/2102.03334",
    config=ViltConfig,
    model=ViltModel,
    sizes={"base": ViltConfig(), "mini": _MINI},
    text=TextStyle(segment_plan((0, 1))),
    make_head=lambda config, spec: TaskHead(config.hidden_size, spec),
    inputs="text; the image's pixels in patches, no detector",
    from_text=from_text,
    readers={"vilt": read_vilt},
    visual="pixels",
    weights=(
        WeightSource("dandelin/vilt-b32-mlm", "--init", "Apache-2.0", "pretrained"),
        WeightSource("dandelin/vilt-b32-finetuned-vqa", "--init", "Apache-2.0", "fine-tuned on VQA v2; head left"),
    ),
)
