"""UNITER's network on Hugging Face BERT layers (https://github.com/ChenRocks/UNITER, `model/model.py`).

Text embeddings and encoder layers are BERT's own, module for module, so that any BERT checkpoint fits and an official
UNITER file maps key by key. Regions get LN(W f) + LN(W' location) + type embedding, without positions. Text is
padded rather than compacted: positions are counted on text alone and padding is masked, so the result is the same.

madkit's one addition is the tag link: a text token that names a box ("person" in VCR) gets that region's embedding
added, through a LayerNorm of its own whose gain starts at `tag_gain` (VL-BERT's way,
https://github.com/jackroos/VL-BERT). With a gain of zero and a checkpoint that lacks it the network is UNITER's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer, BertPooler

from madkit.students.interface import StudentInputs

REGION_TYPE = 1
LOCATION_DIM = 7


@dataclass(frozen=True, slots=True)
class UniterConfig:
    """Sizes of a UNITER network; the defaults are UNITER-base for VCR (4 types)."""

    vocab_size: int = 28_996
    hidden_size: int = 768
    layers: int = 12
    heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    types: int = 4
    region_dim: int = 2048
    dropout: float = 0.1
    tag_gain: float = 0.0

    def bert(self) -> BertConfig:
        """The BERT part."""
        options: dict[str, Any] = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_positions,
            "type_vocab_size": self.types,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.dropout,
            "attn_implementation": "sdpa",
        }
        return BertConfig(**options)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as config.json holds them."""
        return asdict(self)


def location_features(boxes: Tensor) -> Tensor:
    """UNITER's 7-d location [..., 7] of normalised boxes [..., 4]: x1, y1, x2, y2, w, h, w * h."""
    size = boxes[..., 2:] - boxes[..., :2]
    return torch.cat([boxes, size, size.prod(-1, keepdim=True)], dim=-1)


class RegionEmbeddings(nn.Module):
    """UNITER's `img_embeddings`."""

    def __init__(self, config: UniterConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.img_linear = nn.Linear(config.region_dim, width)
        self.img_layer_norm = nn.LayerNorm(width, eps=1e-12)
        self.pos_linear = nn.Linear(LOCATION_DIM, width)
        self.pos_layer_norm = nn.LayerNorm(width, eps=1e-12)
        self.mask_embedding = nn.Embedding(2, config.region_dim, padding_idx=0)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, features: Tensor, boxes: Tensor, type_embedding: Tensor, masked: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(embeddings [B, R, H], what a tag adds before its own LayerNorm [B, R, H]).

        `masked` [B, R] bool: regions whose features are replaced in pretraining (masked region modelling).
        """
        if masked is not None:
            features = features.masked_fill(masked[..., None], 0) + self.mask_embedding(masked.long())
        seen = self.img_layer_norm(self.img_linear(features)) + self.pos_layer_norm(
            self.pos_linear(location_features(boxes))
        )
        return self.dropout(self.LayerNorm(seen + type_embedding)), seen


class BertLayers(nn.Module):
    """A list of layers under the name that BERT checkpoints give it."""

    def __init__(self, config: BertConfig, count: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(count))


class UniterModel(nn.Module):
    """Text and region embeddings, BERT layers, pooler."""

    def __init__(self, config: UniterConfig) -> None:
        super().__init__()
        self.config = config
        bert = config.bert()
        self.embeddings = BertEmbeddings(bert)
        self.img_embeddings = RegionEmbeddings(config)
        self.tag_layer_norm = nn.LayerNorm(config.hidden_size, eps=1e-12)
        self.encoder = BertLayers(bert, config.layers)
        self.pooler = BertPooler(bert)
        self.apply(_init)
        nn.init.constant_(self.tag_layer_norm.weight, config.tag_gain)

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self.config.hidden_size

    def embed_text(self, inputs: StudentInputs, seen: Tensor) -> Tensor:
        """Text embeddings [S, T, H]; tagged tokens carry their region. `seen` [B, R, H] comes from the regions."""
        words = self.embeddings.word_embeddings(inputs.input_ids)
        tags = inputs.tag_regions
        linked = seen[inputs.image_index[:, None], tags.clamp(min=0)]
        words = words + self.tag_layer_norm(linked) * (tags >= 0)[..., None]
        embedded: Tensor = self.embeddings(inputs_embeds=words, token_type_ids=inputs.token_type_ids)
        return embedded

    def forward(self, inputs: StudentInputs, masked_regions: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(pooled [S, H], hidden states of embeddings and every layer, each [S, T + R, H])."""
        region_type = self.embeddings.token_type_embeddings.weight[REGION_TYPE]
        regions, seen = self.img_embeddings(inputs.region_features, inputs.region_boxes, region_type, masked_regions)
        text = self.embed_text(inputs, seen)
        hidden = torch.cat([text, regions[inputs.image_index]], dim=1)
        mask = torch.cat([inputs.text_mask, inputs.region_mask[inputs.image_index]], dim=1)[:, None, None, :]
        states = [hidden]
        for layer in self.encoder.layer:
            result = layer(hidden, mask)
            hidden = result[0] if isinstance(result, tuple) else result  # a tuple before transformers 5
            states.append(hidden)
        return self.pooler(hidden), tuple(states)


def _init(module: nn.Module) -> None:
    """BERT's initialisation: N(0, 0.02), zero biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        module.weight.data[module.padding_idx].zero_()
