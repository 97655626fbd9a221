"""A teacher folder in the layout of the embedded one, with random weights, small enough for any test."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "cat",
    "dog",
    "house",
    "is",
    "on",
    "under",
    "what",
    "color",
    "it",
    "s",
    "no",
    "yes",
    "of",
    "and",
    "two",
    "three",
]


def write_tiny_teacher(folder: Path, *, seed: int = 0, width: int = 32) -> Path:
    """Write config.json, tokenizer.json and model.safetensors: 32-pixel images, 4 x 4 patches, 16 channels.

    The encoders inside are `width` wide, with two heads.
    """
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*WORDS, *letters, *("##" + letter for letter in letters), *"?!.,'-0123456789"]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(["[PAD]", "[UNK]", *pieces]))}
    vocabulary["[SOS]"] = len(vocabulary)
    vocabulary["[EOS]"] = len(vocabulary)
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "embed_dim": 16,
        "vision_cfg": {"layers": 2, "width": width, "head_width": width // 2, "patch_size": 8, "image_size": 32},
        "text_cfg": {
            "context_length": 16,
            "vocab_size": len(vocabulary),
            "width": width,
            "heads": 2,
            "layers": 2,
            "pool_type": "argmax",
        },
        "image_size": 32,
        "context_length": 16,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    }
    (folder / "config.json").write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    return folder
