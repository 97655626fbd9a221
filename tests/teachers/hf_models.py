"""Tiny models of the transformers library with random weights, and tokenizers trained on the spot, as folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

CORPUS = [
    "a photo of a cat on the house",
    "two dogs are under a red house, isn't it?",
    "What color is it? It's blue & yellow!",
    "Émigrés in the café said: no way",
    "déjà vu 123 😀 and 👩‍👩‍👧 too",
    "日本語 の テキスト and Ελληνικά",
] * 4


def word_piece(*, lowercase: bool = True) -> Any:
    """A BERT tokenizer: WordPiece with [CLS] and [SEP]."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=260, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    pairs = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", pairs)
    return wrapped(tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]")


def byte_level() -> Any:
    """A RoBERTa tokenizer: byte-level BPE with <s> and </s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return wrapped(
        tokenizer, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", pad_token="<pad>",
        unk_token="<unk>",
    )  # fmt: skip


def unigram(*, template: str = "[CLS] $A [SEP]") -> Any:
    """A DeBERTa-v3 (or SigLIP) tokenizer: Unigram over SentencePiece's normalisation, words marked with a bar."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "</s>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="[UNK]", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    pairs = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]", "</s>") if token in template]
    tokenizer.post_processor = processors.TemplateProcessing(template, None, pairs)
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    return wrapped(tokenizer, **named, eos_token="</s>")


def word_level() -> Any:
    """A tokenizer of whole words in lower case, those it never saw unknown."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = [" ".join("abcdefghijklmnopqrstuvwxyz0123456789?!.,")]
    tokenizer.train_from_iterator(CORPUS + letters, trainers.WordLevelTrainer(special_tokens=special))
    pairs = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, pairs)
    return wrapped(tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]")


def clip_bpe(known: tuple[dict[str, int], list[tuple[str, str]]] | None = None) -> Any:
    """A CLIP tokenizer of transformers: lower-cased byte-level BPE whose words end in </w>.

    ``known``: vocabulary and merges, with the special tokens last; trained on the spot without it.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    vocabulary, merges = _trained_clip(tokenizer) if known is None else known
    tokenizer.model = models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token="<|endoftext|>")
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    start, end = (tokenizer.token_to_id(token) for token in ("<|startoftext|>", "<|endoftext|>"))
    tokenizer.post_processor = processors.RobertaProcessing(
        ("<|endoftext|>", end), ("<|startoftext|>", start), trim_offsets=False, add_prefix_space=False
    )
    return wrapped(
        tokenizer, bos_token="<|startoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )  # fmt: skip


def _trained_clip(tokenizer: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    from tokenizers import pre_tokenizers, trainers

    trainer = trainers.BpeTrainer(
        vocab_size=700,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    # Training keeps only the word ends that it saw; CLIP's vocabulary has all of them, and the special ids last.
    trained = json.loads(tokenizer.to_str())["model"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*trained["vocab"], *alphabet, *(f"{letter}</w>" for letter in alphabet)]
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [tuple(merge) for merge in trained["merges"]]
    return vocabulary, merges


TOKENIZERS = {
    "WordPiece": word_piece,
    "cased WordPiece": lambda: word_piece(lowercase=False),
    "byte-level BPE": byte_level,
    "Unigram": unigram,
    "CLIP's BPE": clip_bpe,
    "whole words": word_level,
}


class SpecialTokens:
    """Stands in for a tokenizer where ids are given: one special token on each side."""

    prefix, suffix, pad_id, digest = (3,), (2,), 0, "0" * 16

    def tokenize(self, texts: Any) -> Any:
        raise NotImplementedError


def wrapped(tokenizer: Any, **special: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every parameter random values: the library starts biases and norms at constants, which hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.05 * noise if parameter.ndim == 1 else 0.15 * noise)
    return model.eval()


def save(folder: Path, model: Any, *parts: Any) -> Path:
    """Write a model and its tokenizer or image processor as the library does."""
    from madkit.teachers.hf_files import quiet

    with quiet():
        for part in (model, *parts):
            part.save_pretrained(folder)
    return folder


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def text_model(kind: str, tokenizer: Any, *, positions: int = 64, **more: Any) -> Any:
    """A tiny text encoder of a kind: bert, roberta or deberta-v2."""
    from transformers import AutoConfig, AutoModel

    special = {"pad_token_id": tokenizer.pad_token_id}
    if kind == "deberta-v2":
        more = {
            "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0, **more,
        }  # fmt: skip
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), max_position_embeddings=positions, **special, **SMALL, **more
    )
    return randomised(AutoModel.from_config(config))
