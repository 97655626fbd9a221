"""LXMERT (https://arxiv.org/abs/1908.07490; https://github.com/airsplay/lxmert) out of transformers' own modules.

Two streams: language layers over the text, object layers over the regions, and cross layers where each attends to the
other. Regions are (LN(W f) + LN(W' corners)) / 2. Object layers see the image alone, so they run once for each image
whatever the number of candidates. Modules are named as in transformers' `LxmertModel`.

Hidden states are given level by level: the embeddings, one level for each language layer, beside which stands the
object layer that is as far through its own stream, and one for each cross layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LxmertConfig as HfLxmertConfig
from transformers.models.lxmert.modeling_lxmert import LxmertEmbeddings, LxmertEncoder, LxmertPooler

from madkit.students.encoder import Encoder, add_readers, init_bert, widen_types
from madkit.students.families import Family, State, Weights, WeightSource
from madkit.students.heads import TaskHead
from madkit.students.interface import Encoded, StudentInputs
from madkit.students.location import location_features
from madkit.students.text_style import TextStyle, segment_plan

PREFIX = "lxmert."
HEADS = ("cls.", "obj_predict_head.", "answer_head.")


@dataclass(frozen=True, slots=True)
class LxmertConfig:
    """Sizes of an LXMERT network; the defaults are the paper's."""

    vocab_size: int = 30_522
    hidden_size: int = 768
    language_layers: int = 9
    object_layers: int = 5
    cross_layers: int = 5
    heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    types: int = 2
    region_dim: int = 2048
    location_dim: int = 4
    dropout: float = 0.1

    @property
    def layers(self) -> int:
        """Levels of hidden states beside the embeddings'."""
        return self.language_layers + self.cross_layers

    def hugging_face(self) -> HfLxmertConfig:
        """The same sizes as transformers names them."""
        options: dict[str, Any] = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "l_layers": self.language_layers,
            "r_layers": self.object_layers,
            "x_layers": self.cross_layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_positions,
            "type_vocab_size": self.types,
            "visual_feat_dim": self.region_dim,
            "visual_pos_dim": self.location_dim,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.dropout,
        }
        return HfLxmertConfig(**options)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as config.json holds them."""
        return asdict(self)


class LxmertModel(Encoder):
    """Embeddings, three stacks of layers, pooler."""

    config: LxmertConfig

    def __init__(self, config: LxmertConfig) -> None:
        super().__init__(config)
        theirs = config.hugging_face()
        self.embeddings = LxmertEmbeddings(theirs)
        self.encoder = LxmertEncoder(theirs)
        self.pooler = LxmertPooler(theirs)
        self.apply(init_bert)

    def forward(self, inputs: StudentInputs, *, distillation_tokens: Tensor | None = None) -> Encoded:
        """Pooled states [S, H], and hidden states of every level, each [S, T + R, H]."""
        index = inputs.image_index
        text = self.embeddings(inputs.input_ids, inputs.token_type_ids)
        seen = self.encoder.visn_fc(
            inputs.region_features, location_features(inputs.region_boxes, self.config.location_dim)
        )
        T = text.shape[1]
        text, real = add_readers(text, inputs.text_mask, distillation_tokens)  # they stand in the text's stream
        text_mask, region_mask = _additive(real, text), _additive(inputs.region_mask, text)
        texts, regions = [text], [seen]
        for layer in self.encoder.layer:
            text = layer(text, text_mask)[0]
            texts.append(text)
        for layer in self.encoder.r_layers:
            seen = layer(seen, region_mask)[0]
            regions.append(seen)
        seen, region_mask = seen[index], region_mask[index]
        states = [
            torch.cat([one[:, :T], regions[_beside(level, len(texts) - 1, len(regions) - 1)][index]], dim=1)
            for level, one in enumerate(texts)
        ]
        for layer in self.encoder.x_layers:
            text, seen = layer(text, text_mask, seen, region_mask)[:2]
            texts.append(text)
            states.append(torch.cat([text[:, :T], seen], dim=1))
        apart = () if distillation_tokens is None else tuple(one[:, T:] for one in texts)
        return Encoded(self.pooler(text), tuple(states), apart)


def _beside(level: int, levels: int, others: int) -> int:
    """The level of the other stream that is as far through as `level` of `levels`; the last beside the last."""
    return others if level == levels else level * others // max(1, levels)


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """[N, 1, 1, L] to add to attention scores: 0 on real positions, the dtype's least value elsewhere."""
    added: Tensor = (1.0 - mask[:, None, None, :].to(like.dtype)) * torch.finfo(like.dtype).min
    return added


def from_text(state: State, config: LxmertConfig) -> State:
    """BERT's embeddings, pooler and as many of its layers as there are language layers."""
    kept = {key: value for key, value in state.items() if not key.startswith("encoder.")}
    for number in range(config.language_layers):
        start = f"encoder.layer.{number}."
        kept |= {key: value for key, value in state.items() if key.startswith(start)}
    types = "embeddings.token_type_embeddings.weight"
    return {**kept, types: widen_types(kept[types], config.types)}


def read_lxmert(described: Mapping[str, Any], state: State) -> Weights:
    """A checkpoint of transformers' LXMERT classes; heads are left, since checkpoints do not name the answers."""
    own = {key.removeprefix(PREFIX): value for key, value in state.items() if not key.startswith(HEADS)}
    config = LxmertConfig(
        vocab_size=int(described.get("vocab_size", 30_522)),
        hidden_size=int(described.get("hidden_size", 768)),
        language_layers=int(described.get("l_layers", 9)),
        object_layers=int(described.get("r_layers", 5)),
        cross_layers=int(described.get("x_layers", 5)),
        heads=int(described.get("num_attention_heads", 12)),
        intermediate_size=int(described.get("intermediate_size", 3072)),
        max_positions=int(described.get("max_position_embeddings", 512)),
        types=int(described.get("type_vocab_size", 2)),
        region_dim=int(described.get("visual_feat_dim", 2048)),
        location_dim=int(described.get("visual_pos_dim", 4)),
        dropout=float(described.get("hidden_dropout_prob", 0.1)),
    )
    return Weights(config, own, tuple(key for key in state if key.startswith(HEADS)))


_MINI = LxmertConfig(
    vocab_size=806, hidden_size=128, language_layers=3, object_layers=2, cross_layers=2, heads=4,
    intermediate_size=512, max_positions=64, region_dim=768,
)  # fmt: skip
FAMILY = Family(
    name="lxmert",
    title="two streams over text and regions, joined by cross layers",
    paper="https://arxiv.org/abs/1908.07490",
    config=LxmertConfig,
    model=LxmertModel,
    sizes={"base": LxmertConfig(), "mini": _MINI},
    text=TextStyle(segment_plan((0, 1))),
    make_head=lambda config, spec: TaskHead(config.hidden_size, spec),
    inputs="text; regions with their corners",
    from_text=from_text,
    readers={"lxmert": read_lxmert},
    weights=(
        WeightSource("unc-nlp/lxmert-base-uncased", "--init", "MIT (code)", "pretrained; 36 regions of 2048 numbers"),
        WeightSource("bert-base-uncased", "--init", "Apache-2.0", "language layers; the others start afresh"),
    ),
)
