"""What every student's network is: a module from `StudentInputs` to `Encoded`, with a frozen config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from madkit.students.interface import Encoded, StudentInputs


class EncoderConfig(Protocol):
    """Sizes of a network: a frozen dataclass of plain values, one class per family."""

    @property
    def vocab_size(self) -> int:
        """Rows of the word table."""

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""

    @property
    def layers(self) -> int:
        """Layers that hidden states are given of, beside the embeddings'."""

    @property
    def max_positions(self) -> int:
        """Text tokens of the longest sequence."""

    @property
    def region_dim(self) -> int:
        """Width of a region's features."""

    @property
    def dropout(self) -> float:
        """Of hidden states and attention."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as config.json holds them: `Config(**config.as_dict())` is the config."""


class BertSizes(EncoderConfig, Protocol):
    """A config whose layers are BERT's."""

    @property
    def heads(self) -> int:
        """Attention heads."""

    @property
    def intermediate_size(self) -> int:
        """Width between the two linear layers of a block."""

    @property
    def types(self) -> int:
        """Rows of the type table."""

    @property
    def layer_norm_eps(self) -> float:
        """Of every LayerNorm."""


def bert_config(config: BertSizes) -> BertConfig:
    """Sizes of a network's BERT part as transformers names them."""
    options: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.types,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "layer_norm_eps": config.layer_norm_eps,
        "attn_implementation": "sdpa",
    }
    return BertConfig(**options)


class Encoder(nn.Module):
    """A cross-modal network. `forward` gives pooled states and the hidden states of every layer."""

    config: EncoderConfig

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self.config.hidden_size

    def pad_with(self, word: int) -> None:
        """Let `word` be the padding: where a word table has a row that learns nothing, it is that one.

        Networks are made with row 0 as it, which is BERT's [PAD]; RoBERTa's is row 1, and its row 0 is <s>.
        """
        for name, table in self.named_modules():
            padded = isinstance(table, nn.Embedding) and table.padding_idx is not None
            if padded and name.rpartition(".")[2] == "word_embeddings":
                table.padding_idx = word

    def forward(self, inputs: StudentInputs, *, distillation_tokens: Tensor | None = None) -> Encoded:
        """Pooled states [S, H] and hidden states, each [S, T + R, H]; positions of padding hold anything.

        `distillation_tokens` [K, H] adds as many tokens to every sequence (`add_readers`), whose states [S, K, H] come
        apart.
        """
        raise NotImplementedError


class BertLayers(nn.Module):
    """A list of BERT layers under the name that BERT checkpoints give it."""

    def __init__(self, config: BertConfig, count: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(count))

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """`hidden` [S, N, H] and the output of every layer; `mask` [S, N] bool, True on real tokens."""
        states = [hidden]
        for layer in self.layer:
            result = layer(hidden, mask[:, None, None, :])
            hidden = result[0] if isinstance(result, tuple) else result  # a tuple before transformers 5
            states.append(hidden)
        return tuple(states)


def add_readers(hidden: Tensor, mask: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sequences [S, N, H] with K distillation tokens behind them, and their mask [S, N + K], True on real tokens.

    A distillation token begins as the embedding of [CLS] plus its own row of `offsets` [K, H]. It is masked like
    padding: it attends to all real tokens, and nothing attends to it. So every other state is what it is without it,
    and a student that learned with such tokens answers without them as it did with them. (DeiT's distillation token,
    https://arxiv.org/abs/2012.12877, is attended to, and stays.)
    """
    if offsets is None:
        return hidden, mask
    readers = (hidden[:, :1] + offsets).to(hidden.dtype)
    return torch.cat([hidden, readers], dim=1), torch.cat([mask, mask.new_zeros(readers.shape[:2])], dim=1)


def encoded(pooled: Tensor, states: Sequence[Tensor], length: int, offsets: Tensor | None) -> Encoded:
    """`states` [S, N, H] cut to their first `length` positions; the last ones apart, if `add_readers` added them."""
    apart = () if offsets is None else tuple(state[:, -len(offsets) :] for state in states)
    if states[0].shape[1] > length:
        states = [state[:, :length] for state in states]
    return Encoded(pooled, tuple(states), apart)


def init_bert(module: nn.Module) -> None:
    """BERT's initialisation, for `Module.apply`: N(0, 0.02), zero biases, zero padding rows."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        module.weight.data[module.padding_idx].zero_()


def widen_types(table: Tensor, rows: int) -> Tensor:
    """A type table [n, H] with `rows` rows: those that are there, then copies of row 0 (UNITER's way for VCR)."""
    kept = table[:rows]
    return torch.cat([kept, table[:1].expand(rows - len(kept), -1)]).clone()
