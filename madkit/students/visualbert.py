"""VisualBERT (https://arxiv.org/abs/1908.03557; https://github.com/uclanlp/visualbert) on BERT layers.

One stream: a region is the projection of its features, plus a visual type, plus a visual position. The position is row
0 of its own table, and where words name the region (VCR's tags) the mean of those words' positions as well. Modules are
named as in transformers' `VisualBertModel`, so its checkpoints fit key by key.

Texts are the authors' (`visualbert/dataloaders` of their repository: `vcr_data_utils.py` and `vqa_dataset.py` at commit
e49b619; `dataloaders/bert_data_utils.py` at ecd15a3). VCR's question is the first text, with the answer behind it where
rationales are asked for, and the candidate is the second: `[CLS] q a [SEP] r [SEP]`, types 0 and 1. VQA's question is
followed by the [MASK] where its answer is read: `[CLS] q [MASK] [SEP]`, all of type 0. The "?" that the authors write
before the [MASK] is the question's own. Entailment and other classes, of which the paper has none, read the same, and
the class is told at [CLS].

The visual type is a trap: the authors' code gives every region type 0, transformers gives type 1 unless it is told
otherwise, and the same weights answer differently. `visual_type` decides; 0 is the default here, as the weights were
trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertPooler

from madkit.students.encoder import BertLayers, Encoder, add_readers, bert_config, encoded, init_bert, widen_types
from madkit.students.families import Family, State, Weights, WeightSource, Words
from madkit.students.heads import HeadSpec, LinearHead, MaskStateHead, StudentHead
from madkit.students.interface import Encoded, StudentInputs
from madkit.students.text_style import Mark, TextStyle, is_person, query_plan
from madkit.tasks.example import Example, Segment

PREFIX = "visual_bert."
HEAD = "cls."
# The list of R2C, from which the authors have it: one name stands in it twice.
NAMES = (
    "Casey", "Riley", "Jessie", "Jackie", "Avery", "Jaime", "Peyton", "Kerry", "Jody", "Kendall", "Peyton", "Skyler",
    "Frankie", "Pat", "Quinn",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class VisualBertConfig:
    """Sizes of a VisualBERT network; the defaults are those of its VQA checkpoints."""

    vocab_size: int = 30_522
    hidden_size: int = 768
    layers: int = 12
    heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    types: int = 2
    region_dim: int = 2048
    dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    visual_type: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as config.json holds them."""
        return asdict(self)


class VisualBertEmbeddings(nn.Module):
    """Words, positions and types of text; projection, position and type of regions; one LayerNorm over both."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.visual_type = config.visual_type
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_positions, width)
        self.token_type_embeddings = nn.Embedding(config.types, width)
        self.visual_token_type_embeddings = nn.Embedding(config.types, width)
        self.visual_position_embeddings = nn.Embedding(config.max_positions, width)
        self.visual_projection = nn.Linear(config.region_dim, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, inputs: StudentInputs) -> Tensor:
        """Embeddings [S, T + R, H]."""
        T, R = inputs.input_ids.shape[1], inputs.region_features.shape[1]
        positions = self.position_embeddings.weight[:T]
        text = self.word_embeddings(inputs.input_ids) + self.token_type_embeddings(inputs.token_type_ids) + positions
        seen = self.visual_projection(inputs.region_features)[inputs.image_index]  # projected once for each image
        kind = self.visual_token_type_embeddings.weight[self.visual_type]
        regions = seen + self.visual_position_embeddings.weight[0] + kind
        named = (inputs.tag_regions[:, None, :] == torch.arange(R, device=text.device)[:, None]).to(text.dtype)
        words = torch.matmul(named, positions) / named.sum(-1, keepdim=True).clamp_min(1)  # [S, R, H]
        joined = torch.cat([text, regions + words], dim=1)
        embedded: Tensor = self.dropout(self.LayerNorm(joined))
        return embedded


class VisualBertModel(Encoder):
    """Embeddings, BERT layers, pooler."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__(config)
        bert = bert_config(config)
        self.embeddings = VisualBertEmbeddings(config)
        self.encoder = BertLayers(bert, config.layers)
        self.pooler = BertPooler(bert)
        self.apply(init_bert)
        tables = self.embeddings  # a fresh network begins as the authors' does: visual tables copy the text ones
        tables.visual_token_type_embeddings.weight.data.copy_(tables.token_type_embeddings.weight.data)
        tables.visual_position_embeddings.weight.data.copy_(tables.position_embeddings.weight.data)

    def forward(self, inputs: StudentInputs, *, distillation_tokens: Tensor | None = None) -> Encoded:
        """Pooled states [S, H], and hidden states of embeddings and every layer, each [S, T + R, H]."""
        mask = torch.cat([inputs.text_mask, inputs.region_mask[inputs.image_index]], dim=1)
        states = self.encoder(*add_readers(self.embeddings(inputs), mask, distillation_tokens))
        return encoded(self.pooler(states[-1]), states, mask.shape[1], distillation_tokens)


def people(example: Example) -> Sequence[Mapping[int, str]]:
    """The authors' names of VCR's people: in the order in which the context first mentions them. Candidates keep these,
    and each counts those whom it alone mentions from the first name again, so that two people may share a name.
    """
    known = _named(example.context, {})
    return [_named((candidate,), known) for candidate in example.candidates] or [known]


def _named(segments: Sequence[Segment], known: Mapping[int, str]) -> dict[int, str]:
    tags = (tag for one in segments for tag in sorted(one.tags, key=lambda tag: tag.start) if is_person(one, tag))
    new = dict.fromkeys(box for tag in tags for box in tag.boxes if box not in known)
    return {**known, **{box: NAMES[number % len(NAMES)] for number, box in enumerate(new)}}


def make_head(config: VisualBertConfig, spec: HeadSpec) -> StudentHead:
    """The authors' heads: VQA's answer is read at the [MASK], everything else at the pooled [CLS]."""
    kind = MaskStateHead if spec.kind == "vqa" else LinearHead
    return kind(config.hidden_size, spec, config.dropout)


def from_text(state: State, config: VisualBertConfig) -> State:
    """BERT's tensors, and the visual tables as copies of the text ones (the authors' `special_visual_initialize`)."""
    kinds = widen_types(state["embeddings.token_type_embeddings.weight"], config.types)
    return {
        **state,
        "embeddings.token_type_embeddings.weight": kinds,
        "embeddings.visual_token_type_embeddings.weight": kinds.clone(),
        "embeddings.visual_position_embeddings.weight": state["embeddings.position_embeddings.weight"].clone(),
    }


def read_visual_bert(described: Mapping[str, Any], state: State) -> Weights:
    """A checkpoint of transformers' VisualBERT classes (`uclanlp/visualbert-vcr` and its kin).

    The head of `VisualBertForMultipleChoice` is kept; heads over answers are left, since the checkpoints do not name
    the answers.
    """
    own = {key.removeprefix(PREFIX): value for key, value in state.items() if not key.startswith(HEAD)}
    own = {key: value for key, value in own.items() if not key.endswith("position_ids")}
    left = [key for key in state if key.startswith(HEAD) or key.endswith("position_ids")]
    config = VisualBertConfig(
        vocab_size=int(described.get("vocab_size", 30_522)),
        hidden_size=int(described.get("hidden_size", 768)),
        layers=int(described.get("num_hidden_layers", 12)),
        heads=int(described.get("num_attention_heads", 12)),
        intermediate_size=int(described.get("intermediate_size", 3072)),
        max_positions=int(described.get("max_position_embeddings", 512)),
        types=int(described.get("type_vocab_size", 2)),
        region_dim=int(described.get("visual_embedding_dim", 512)),
        dropout=float(described.get("hidden_dropout_prob", 0.1)),
        layer_norm_eps=float(described.get("layer_norm_eps", 1e-12)),
    )
    head, head_state = None, {}
    weight = state.get(f"{HEAD}weight")
    if weight is not None and weight.shape[0] == 1:
        head = HeadSpec("multiple-choice")
        head_state = {f"layers.1.{part}": state[HEAD + part] for part in ("weight", "bias")}
        left = [key for key in left if key not in (f"{HEAD}weight", f"{HEAD}bias")]
    return Weights(config, own, tuple(left), head, head_state)


_MINI = VisualBertConfig(
    vocab_size=806, hidden_size=128, layers=3, heads=4, intermediate_size=512, max_positions=64, region_dim=768
)
FAMILY = Family(
    name="visualbert",
    title="one stream over text and regions, uncased BERT layers, regions without location",
    paper="https://arxiv.org/abs/1908.03557",
    config=VisualBertConfig,
    model=VisualBertModel,
    sizes={"base": VisualBertConfig(), "mini": _MINI},
    text=TextStyle(query_plan(Mark("mask", 0), Mark("sep", 0)), people),
    make_head=make_head,
    inputs="text with names for people, a [MASK] where no candidate follows; regions without location; words that name "
    "a region",
    from_text=from_text,
    readers={"visual_bert": read_visual_bert},
    # none of uclanlp's has a tokenizer; transformers' documentation of the model pairs them with this one
    words=Words("google-bert/bert-base-uncased", 30_522, former="bert-base-uncased"),
    weights=(
        WeightSource("uclanlp/visualbert-vcr", "--init", "Apache-2.0 (code)", "fine-tuned on VCR; 512-d features"),
        WeightSource("uclanlp/visualbert-vqa-coco-pre", "--init", "Apache-2.0 (code)", "2048-d features"),
        WeightSource("bert-base-uncased", "--init", "Apache-2.0", "text layers; visual tables copy the text ones"),
    ),
)
