"""Batches for networks of any family, and a small text checkpoint of each kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from madkit.students.interface import StudentInputs

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "dog", "cat", "##s", "run", "red", "person", "casey", "?"]
SIZES = {
    "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512,
    "max_position_embeddings": 40, "layer_norm_eps": 1e-5,
}  # fmt: skip


def make_inputs(
    texts: list[int],
    regions: list[int],
    *,
    dim: int = 10,
    words: int = 60,
    candidates: int = 1,
    pad_text: int = 0,
    pad_regions: int = 0,
    types: tuple[int, ...] = (0, 2),
    seed: int = 1,
) -> StudentInputs:
    """Random sequences with these numbers of tokens, over images with these numbers of regions.

    Equal numbers give equal values whatever the padding; padding holds values that would show if they were read.
    """
    count, length, most = len(texts), max(texts) + pad_text, max(regions) + pad_regions
    ids = torch.zeros(count, length, dtype=torch.long)
    kinds = torch.zeros(count, length, dtype=torch.long)
    mask = torch.zeros(count, length, dtype=torch.bool)
    for row, n in enumerate(texts):
        generator = torch.Generator().manual_seed(seed + row)
        ids[row, :n] = torch.randint(5, words, (n,), generator=generator)
        kinds[row, :n] = torch.tensor([types[0]] * min(4, n) + [types[-1]] * max(0, n - 4))
        mask[row, :n] = True
    features, boxes = torch.full((len(regions), most, dim), 7.0), torch.full((len(regions), most, 4), 0.5)
    region_mask = torch.zeros(len(regions), most, dtype=torch.bool)
    for row, r in enumerate(regions):
        generator = torch.Generator().manual_seed(100 * seed + row)
        features[row, :r] = torch.randn(r, dim, generator=generator)
        low = torch.rand(r, 2, generator=generator) * 0.5
        size = 0.1 + 0.3 * torch.rand(r, 2, generator=generator)
        boxes[row, :r] = torch.cat([low, low + size], dim=1)
        region_mask[row, :r] = True
    return StudentInputs(
        input_ids=ids, token_type_ids=kinds, text_mask=mask,
        image_index=torch.arange(len(regions)).repeat_interleave(candidates), region_features=features,
        region_boxes=boxes, region_mask=region_mask, tag_regions=torch.full((count, length), -1),
        n_candidates=candidates,
    )  # fmt: skip


def shake(module: nn.Module, std: float = 0.2) -> nn.Module:
    """Give every parameter a random value, away from the special values of a fresh network."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module.eval()


def write_bert(folder: Path, **changes: object) -> BertModel:
    """A BERT checkpoint of the mini sizes with random weights, and its vocabulary."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    model = shake(BertModel(BertConfig(vocab_size=len(WORDS), **{**SIZES, **changes})), 0.1)
    save_file({f"bert.{key}": value.contiguous() for key, value in model.state_dict().items()},
              folder / "model.safetensors")  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_act": "gelu", **SIZES, **changes}))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    return model


def write_roberta(folder: Path) -> RobertaModel:
    """A RoBERTa checkpoint of the mini sizes with random weights, and its byte-level tokenizer."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "<pad>", "</s>", "<unk>", *letters, "do", "dog", "<mask>"]
    model = shake(RobertaModel(RobertaConfig(
        vocab_size=len(words), pad_token_id=1, type_vocab_size=1, **SIZES)), 0.1)  # fmt: skip
    save_file({f"roberta.{key}": value.contiguous() for key, value in model.state_dict().items()},
              folder / "model.safetensors")  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta", "hidden_act": "gelu", **SIZES}))
    table = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(table, [("d", "o"), ("do", "g")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return model


@pytest.fixture
def inputs() -> Callable[..., StudentInputs]:
    return make_inputs


@pytest.fixture
def shaken() -> Callable[..., nn.Module]:
    return shake


@pytest.fixture
def bert_folder() -> Callable[..., BertModel]:
    return write_bert


@pytest.fixture
def roberta_folder() -> Callable[..., RobertaModel]:
    return write_roberta


@pytest.fixture
def losses_of() -> Callable[..., list[float]]:
    """The task losses of a few steps on one batch of multiple choice: what can learn brings them down."""

    def run(student: nn.Module, batch: StudentInputs, target: list[int], steps: int = 5) -> list[float]:
        optimizer = torch.optim.AdamW(student.train().parameters(), lr=1e-3)
        losses = []
        for _ in range(steps):
            loss = torch.nn.functional.cross_entropy(student(batch).logits, torch.tensor(target))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return losses

    return run
