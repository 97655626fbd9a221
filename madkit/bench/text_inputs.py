"""Made-up texts with the lengths of real ones, and a RoBERTa-shaped model that reads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

SEED = 0
MEAN_TOKENS = 20
_WORDS = 3000
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
ROBERTA: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 50265,
}
TINY_ROBERTA = {**ROBERTA, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def common_words() -> list[str]:
    """Return 3,000 words, the most frequent ones first; each is one token of CLIP's vocabulary."""
    from open_clip.tokenizer import SimpleTokenizer

    known = sorted(SimpleTokenizer().encoder.items(), key=lambda pair: pair[1])
    words = [key.removesuffix("</w>") for key, _ in known if re.fullmatch(r"[a-z]{2,12}</w>", key)]
    return words[:_WORDS]


def made_up_texts(words: list[str], count: int) -> list[str]:
    """Return different texts of 20 words on average, special tokens not counted.

    Lengths follow a negative binomial distribution from 4 on (standard deviation 8), cut at 70: many short texts and a
    long tail, as questions, answers and rationales together have. Words follow Zipf's law.
    """
    draw = np.random.default_rng(SEED)
    weights = 1 / (np.arange(len(words)) + 10.0)
    weights /= weights.sum()
    texts: dict[str, None] = {}
    while len(texts) < count:
        mean = MEAN_TOKENS - 4
        length = min(70, 4 + int(draw.negative_binomial(5, 5 / (5 + mean))))
        texts[" ".join(words[int(row)] for row in draw.choice(len(words), length, p=weights))] = None
    return list(texts)


def write_roberta(folder: Path, words: list[str], shape: dict[str, Any]) -> None:
    """Write a RoBERTa of random weights and its tokenizer as ``save_pretrained`` does.

    The byte-level BPE is trained on the words, so that texts have about as many tokens as with CLIP's.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

    from madkit.teachers.hf_files import quiet

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=shape["vocab_size"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(_SPECIAL),
        show_progress=False,
    )
    backend.train_from_iterator([f"{word} {word}" for word in words], trainer)
    ids: dict[str, Any] = {name: backend.token_to_id(name) for name in _SPECIAL}
    backend.post_processor = processors.RobertaProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"]))
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), _SPECIAL, strict=True))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="<s>", sep_token="</s>", model_max_length=512, **names
    )
    config = RobertaConfig(
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=ids["<pad>"],
        bos_token_id=ids["<s>"],
        eos_token_id=ids["</s>"],
        **shape,
    )
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model: Any = RobertaModel(config, add_pooling_layer=False)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
