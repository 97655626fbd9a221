"""UNITER's network on Hugging Face BERT layers (https://github.com/ChenRocks/UNITER, `model/model.py`).

Text embeddings and encoder layers are BERT's own, module for module, so that any BERT checkpoint fits and an official
UNITER file maps key by key. Regions get LN(W f) + LN(W' location) + type embedding, without positions. Text is
padded rather than compacted: positions are counted on text alone and padding is masked, so the result is the same.

madkit's one addition is the tag link: a text token that names a box ("person" in VCR) gets that region's embedding
added, through a LayerNorm of its own whose gain starts at `tag_gain` (VL-BERT's way,
https://github.com/jackroos/VL-BERT). With a gain of zero and a checkpoint that lacks it the network is UNITER's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertEmbeddings, BertPooler

from madkit.students.checkpoints import plain_names
from madkit.students.encoder import BertLayers, Encoder, add_readers, bert_config, encoded, init_bert, widen_types
from madkit.students.families import Family, Official, State, WeightSource
from madkit.students.heads import TaskHead
from madkit.students.inputs import UNITER_TEXT
from madkit.students.interface import Encoded, StudentInputs
from madkit.students.location import location_features

REGION_TYPE = 1
LOCATION_DIM = 7
TYPES = 4
_TYPES = "embeddings.token_type_embeddings.weight"
_PRETRAINING = ("cls.", "feat_regress.", "region_classifier.", "itm_output.")


@dataclass(frozen=True, slots=True)
class UniterConfig:
    """Sizes of a UNITER network; the defaults are UNITER-base for VCR (4 types)."""

    vocab_size: int = 28_996
    hidden_size: int = 768
    layers: int = 12
    heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    types: int = TYPES
    region_dim: int = 2048
    dropout: float = 0.1
    tag_gain: float = 0.0
    layer_norm_eps: float = 1e-12

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as config.json holds them."""
        return asdict(self)


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


class UniterModel(Encoder):
    """Text and region embeddings, BERT layers, pooler."""

    def __init__(self, config: UniterConfig) -> None:
        super().__init__(config)
        bert = bert_config(config)
        self.embeddings = BertEmbeddings(bert)
        self.img_embeddings = RegionEmbeddings(config)
        self.tag_layer_norm = nn.LayerNorm(config.hidden_size, eps=1e-12)
        self.encoder = BertLayers(bert, config.layers)
        self.pooler = BertPooler(bert)
        self.apply(init_bert)
        nn.init.constant_(self.tag_layer_norm.weight, config.tag_gain)

    def embed_text(self, inputs: StudentInputs, seen: Tensor) -> Tensor:
        """Text embeddings [S, T, H]; tagged tokens carry their region. `seen` [B, R, H] comes from the regions."""
        words = self.embeddings.word_embeddings(inputs.input_ids)
        tags = inputs.tag_regions
        linked = seen[inputs.image_index[:, None], tags.clamp(min=0)]
        words = words + self.tag_layer_norm(linked) * (tags >= 0)[..., None]
        embedded: Tensor = self.embeddings(inputs_embeds=words, token_type_ids=inputs.token_type_ids)
        return embedded

    def forward(
        self,
        inputs: StudentInputs,
        masked_regions: Tensor | None = None,
        *,
        distillation_tokens: Tensor | None = None,
    ) -> Encoded:
        """Pooled states [S, H], and hidden states of embeddings and every layer, each [S, T + R, H]."""
        region_type = self.embeddings.token_type_embeddings.weight[REGION_TYPE]
        regions, seen = self.img_embeddings(inputs.region_features, inputs.region_boxes, region_type, masked_regions)
        text = self.embed_text(inputs, seen)
        hidden = torch.cat([text, regions[inputs.image_index]], dim=1)
        mask = torch.cat([inputs.text_mask, inputs.region_mask[inputs.image_index]], dim=1)
        states = self.encoder(*add_readers(hidden, mask, distillation_tokens))
        return encoded(self.pooler(states[-1]), states, hidden.shape[1], distillation_tokens)


def from_text(state: State, config: UniterConfig) -> State:
    """BERT's tensors under UNITER's names, which are BERT's own; two more types are copies of type 0."""
    return {**state, _TYPES: widen_types(state[_TYPES], config.types)}


def rename_official(key: str) -> tuple[str | None, str]:
    """A key of an official UNITER or VILLA file under this network's names (`families.Official.rename`)."""
    name = plain_names([key])[key]
    for official, ours in (("vcr_output.", "choice.layers."), ("vqa_output.", "answers.layers.")):
        if name.startswith(official):
            return ours + name.removeprefix(official), ""
    if name.startswith(_PRETRAINING):
        return None, "a head of pretraining"
    if name.startswith(("embeddings.", "img_embeddings.", "encoder.layer.", "pooler.")):
        return (None, "a table of numbers 0, 1, 2, ...") if name.endswith("position_ids") else (name, "")
    return None, "no part of this network"


def official_size(state: State) -> tuple[int, int]:
    """(layers, hidden width) of a state under BERT's names."""
    layers = {int(name.split(".")[2]) for name in state if name.startswith("encoder.layer.")}
    return max(layers, default=-1) + 1, state["embeddings.word_embeddings.weight"].shape[1]


def official_config(base: UniterConfig, state: State) -> UniterConfig:
    """`base` with the table sizes of a file; types as VCR needs them, and tags without effect."""
    return replace(
        base,
        vocab_size=len(state["embeddings.word_embeddings.weight"]),
        max_positions=len(state["embeddings.position_embeddings.weight"]),
        types=max(TYPES, len(state[_TYPES])),
        region_dim=state["img_embeddings.img_linear.weight"].shape[1],
        tag_gain=0.0,
    )


def adapt_official(state: State, config: UniterConfig) -> tuple[State, dict[str, str]]:
    """The state with a type table of VCR's four rows, and madkit's tag link switched off."""
    rows, notes = len(state[_TYPES]), dict[str, str]()
    if rows < config.types:
        notes[_TYPES] = f"{config.types - rows} rows added, copies of row 0"
    for part in ("weight", "bias"):
        notes[f"tag_layer_norm.{part}"] = "madkit's own, zero: tags have no effect"
    zero = torch.zeros(config.hidden_size)
    return {
        **state,
        _TYPES: widen_types(state[_TYPES], config.types),
        "tag_layer_norm.weight": zero,
        "tag_layer_norm.bias": zero.clone(),
    }, notes


OFFICIAL = Official(
    rename=rename_official,
    size_of=official_size,
    config=official_config,
    adapt=adapt_official,
    lowercase=False,
    binary=True,
    answer_bias="layers.3.bias",
)
SIZES = {
    "base": UniterConfig(),
    "large": UniterConfig(hidden_size=1024, layers=24, heads=16, intermediate_size=4096),
    "mini": UniterConfig(
        vocab_size=806, hidden_size=128, layers=3, heads=4, intermediate_size=512, max_positions=64, region_dim=768,
        tag_gain=1.0,
    ),
}  # fmt: skip
FAMILY = Family(
    name="uniter",
    title="one stream over text and regions, cased BERT layers",
    paper="https://arxiv.org/abs/1909.11740",
    config=UniterConfig,
    model=UniterModel,
    sizes=SIZES,
    text=UNITER_TEXT,
    make_head=lambda config, spec: TaskHead(config.hidden_size, spec),
    inputs="text; regions with 7 numbers of location; types 0, 2, 3 for texts and 1 for regions",
    from_text=from_text,
    weights=(
        WeightSource("bert-base-cased, bert-large-cased", "--init", "Apache-2.0", "text layers; regions start afresh"),
        WeightSource(
            "uniter-base.pt, uniter-large.pt", "madkit students convert FILE --family uniter", "MIT (code)",
            "the authors' storage account answers no more: from a copy of your own",
        ),
    ),
    official=OFFICIAL,
)  # fmt: skip
