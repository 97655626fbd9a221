"""VL-BERT (https://arxiv.org/abs/1908.08530; https://github.com/jackroos/VL-BERT) on BERT layers.

One stream: the text, the objects (the whole image among them) and a closing [END]. Every text token carries the visual
feature of the box that it names, else that of the whole image; every object carries one shared word, "[IMG]". The
LayerNorms through which features enter have a gain that begins at zero, so a fresh network is BERT and the picture
fades in. Objects share one position, after the text's, and [END] has the next.

The whole image is the mean of the objects, as the authors have it for features that were extracted beforehand. It and
[END] stand behind the objects in memory, which their positions make irrelevant, so that hidden states stay text first,
then regions. Geometry: cx/W, cy/H, w/W and h/H times 100, each as 256 sines and 256 cosines of itself / 1000^(k/256).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertPooler, BertPredictionHeadTransform

from madkit.students.encoder import BertLayers, Encoder, add_readers, bert_config, encoded, init_bert, widen_types
from madkit.students.families import Family, State, WeightSource
from madkit.students.heads import HeadSpec, LinearHead, StudentHead, mask_states
from madkit.students.interface import Encoded, StudentInputs
from madkit.students.text_style import Mark, TextStyle, is_person, query_plan
from madkit.students.vl_bert_keys import OFFICIAL
from madkit.tasks.example import Example

OBJECT_TYPE = 2
GEOMETRY = 2048
_WAVES = 256
# The authors number people by a counter that runs through their whole data set, so a name depends on the visiting
# order; here the counter begins anew with every example.
NAMES = (
    "Casey", "Riley", "Jessie", "Jackie", "Avery", "Jaime", "Peyton", "Kerry", "Jody", "Kendall", "Frankie", "Pat",
    "Quinn",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class VlBertConfig:
    """Sizes of a VL-BERT network; the defaults are those of its base model."""

    vocab_size: int = 30_522
    hidden_size: int = 768
    layers: int = 12
    heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    types: int = 3
    region_dim: int = 2048
    dropout: float = 0.1
    visual_gain: float = 0.0
    layer_norm_eps: float = 1e-12

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as config.json holds them."""
        return asdict(self)


def geometry(boxes: Tensor) -> Tensor:
    """[..., 2048] of boxes [..., 4] in shares of the image: VL-BERT's embedding of where a box lies."""
    low, high = boxes[..., :2], boxes[..., 2:]
    places = torch.cat([(low + high) / 2, high - low], dim=-1) * 100
    waves = 1000 ** (torch.arange(_WAVES, device=boxes.device, dtype=boxes.dtype) / _WAVES)
    angles = places.unsqueeze(-1) / waves
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class ObjectFeatures(nn.Module):
    """The authors' `image_feature_extractor` for features that are there: geometry and feature into one vector."""

    def __init__(self, config: VlBertConfig) -> None:
        super().__init__()
        self.obj_downsample = nn.Sequential(
            nn.Dropout(config.dropout), nn.Linear(GEOMETRY + config.region_dim, config.hidden_size), nn.ReLU()
        )

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        """[B, R, H] of features [B, R, F] at boxes [B, R, 4]."""
        seen: Tensor = self.obj_downsample(torch.cat([geometry(boxes.float()).to(features.dtype), features], dim=-1))
        return seen


class VlBertModel(Encoder):
    """Embeddings, BERT layers, pooler. Modules are named as in the authors' files."""

    config: VlBertConfig

    def __init__(self, config: VlBertConfig) -> None:
        super().__init__(config)
        bert, width = bert_config(config), config.hidden_size
        self.image_feature_extractor = ObjectFeatures(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.position_embeddings = nn.Embedding(config.max_positions, width)
        self.token_type_embeddings = nn.Embedding(config.types, width)
        self.object_linguistic_embeddings = nn.Embedding(1, width)
        self.end_embedding = nn.Embedding(1, width)
        self.visual_ln_text = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.visual_ln_object = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.embedding_LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.encoder = BertLayers(bert, config.layers)
        self.pooler = BertPooler(bert)
        self.apply(init_bert)
        for norm in (self.visual_ln_text, self.visual_ln_object):
            nn.init.constant_(norm.weight, config.visual_gain)

    def forward(self, inputs: StudentInputs, *, distillation_tokens: Tensor | None = None) -> Encoded:
        """Pooled states [S, H], and hidden states of embeddings and every layer, each [S, T + R, H]."""
        T, R = inputs.input_ids.shape[1], inputs.region_features.shape[1]
        hidden = self.embed(inputs)
        ones = inputs.text_mask.new_ones(inputs.input_ids.shape[0], 2)  # the whole image and [END]
        mask = torch.cat([inputs.text_mask, inputs.region_mask[inputs.image_index], ones], dim=1)
        states = self.encoder(*add_readers(hidden, mask, distillation_tokens))
        return encoded(self.pooler(states[-1]), states, T + R, distillation_tokens)

    def embed(self, inputs: StudentInputs) -> Tensor:
        """Embeddings [S, T + R + 2, H]: text, objects, the whole image, [END]."""
        index, tags = inputs.image_index, inputs.tag_regions
        seen = self._see(inputs)  # [B, R + 1, H], once for each image
        R = seen.shape[1] - 1
        named = torch.where(tags >= 0, tags, R)
        text = self.word_embeddings(inputs.input_ids) + self.visual_ln_text(seen[index[:, None], named])
        text = text + self.position_embeddings.weight[: text.shape[1]]
        text = text + self.token_type_embeddings(inputs.token_type_ids)
        last = self.config.max_positions - 1
        after = inputs.text_mask.sum(1)
        kind = self.token_type_embeddings.weight[OBJECT_TYPE]
        objects = (self.object_linguistic_embeddings.weight[0] + self.visual_ln_object(seen))[index]
        objects = objects + (self.position_embeddings(after.clamp(max=last)) + kind).unsqueeze(1)
        end = self.end_embedding.weight[0] + self.position_embeddings((after + 1).clamp(max=last)) + kind
        joined = torch.cat([text, objects, end.unsqueeze(1)], dim=1)
        embedded: Tensor = self.embedding_dropout(self.embedding_LayerNorm(joined))
        return embedded

    def _see(self, inputs: StudentInputs) -> Tensor:
        """Visual features [B, R + 1, H] of the regions and, last, of the whole image: their mean."""
        real = inputs.region_mask.unsqueeze(-1).to(inputs.region_features.dtype)
        mean = (inputs.region_features * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp_min(1)
        whole = inputs.region_boxes.new_tensor([0.0, 0.0, 1.0, 1.0]).expand(mean.shape[0], 1, 4)
        features = torch.cat([inputs.region_features, mean], dim=1)
        seen: Tensor = self.image_feature_extractor(features, torch.cat([inputs.region_boxes, whole], dim=1))
        return seen


class MaskPredictionHead(StudentHead):
    """The authors' VQA head: BERT's prediction transform, dropout and one Linear on the state of the [MASK]."""

    def __init__(self, config: VlBertConfig, spec: HeadSpec) -> None:
        super().__init__(spec)
        self.layers = nn.Sequential(
            BertPredictionHeadTransform(bert_config(config)),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden_size, spec.size),
        )
        self.layers.apply(init_bert)

    def forward(self, encoded: Encoded, inputs: StudentInputs) -> Tensor:
        """Outputs [S, spec.size]."""
        logits: Tensor = self.layers(mask_states(encoded, inputs))
        return logits


# The authors join question and answer for rationales; without a candidate the response is a [MASK].
plan = query_plan(Mark("sep", 0), Mark("mask", 1), Mark("sep", 1))


def people(example: Example) -> Sequence[Mapping[int, str]]:
    """A name for every box that some text calls "person", in the order of the boxes: the same in all sequences."""
    boxes = {
        box
        for segment in (*example.context, *example.candidates)
        for tag in segment.tags
        if is_person(segment, tag)
        for box in tag.boxes
    }
    names = {box: NAMES[number % len(NAMES)] for number, box in enumerate(sorted(boxes))}
    return [names] * max(1, len(example.candidates))


def make_head(config: VlBertConfig, spec: HeadSpec) -> StudentHead:
    """The authors' heads: VQA's answer is read at the [MASK], everything else at the pooled [CLS]."""
    if spec.kind == "vqa":
        return MaskPredictionHead(config, spec)
    return LinearHead(config.hidden_size, spec, config.dropout)


def from_text(state: State, config: VlBertConfig) -> State:
    """BERT's tensors under the authors' names; a third type is a copy of the first."""
    renamed = {
        "embeddings.word_embeddings.weight": "word_embeddings.weight",
        "embeddings.position_embeddings.weight": "position_embeddings.weight",
        "embeddings.token_type_embeddings.weight": "token_type_embeddings.weight",
        "embeddings.LayerNorm.weight": "embedding_LayerNorm.weight",
        "embeddings.LayerNorm.bias": "embedding_LayerNorm.bias",
    }
    own = {renamed.get(key, key): value for key, value in state.items()}
    types = "token_type_embeddings.weight"
    return {**own, types: widen_types(own[types], config.types)}


SIZES = {
    "base": VlBertConfig(),
    "large": VlBertConfig(hidden_size=1024, layers=24, heads=16, intermediate_size=4096),
    "mini": VlBertConfig(
        vocab_size=806, hidden_size=128, layers=3, heads=4, intermediate_size=512, max_positions=64, region_dim=768,
    ),
}  # fmt: skip
FAMILY = Family(
    name="vl-bert",
    title="one stream where every word carries a picture, uncased BERT layers",
    paper="https://arxiv.org/abs/1908.08530",
    config=VlBertConfig,
    model=VlBertModel,
    sizes=SIZES,
    text=TextStyle(plan, people),
    make_head=make_head,
    inputs="text with names for people, a [MASK] where no candidate follows; regions with sines of their location",
    from_text=from_text,
    official=OFFICIAL,
    weights=(
        WeightSource("bert-base-uncased, bert-large-uncased", "--init", "Apache-2.0", "objects fade in"),
        WeightSource(
            "vl-bert-base-e2e.model and its kin", "madkit students convert FILE --family vl-bert", "MIT (code)",
            "from the authors' drives",
        ),
    ),
)  # fmt: skip
