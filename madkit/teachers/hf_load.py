"""From an ``hf:`` name to a teacher: which kind of model a folder holds, and its two sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from madkit.core.errors import ConfigError, DataError
from madkit.teachers.digest import weights_digest
from madkit.teachers.fast_tokenizer import FastTokenizer
from madkit.teachers.grid_vision import GridVision
from madkit.teachers.hf_files import (
    Loaded,
    build_skeleton,
    load_model,
    load_tokenizer,
    pretrained_folder,
    read_config,
)
from madkit.teachers.hf_pair import pair_text, pair_vision
from madkit.teachers.hf_text import POOLER, REAL_MEAN, HfText, TextEncoder
from madkit.teachers.hf_vision import has_pooler, image_preprocessing, vision_forward, vision_layout
from madkit.teachers.interface import Teacher
from madkit.teachers.known import KNOWN, TeacherName
from madkit.teachers.preprocess import Preprocessing
from madkit.teachers.sentence import longest_sentence, sentence_pooling

UNLIMITED = 1_000_000  # tokenizers without a limit state one with thirty digits
DEFAULT_CONTEXT = 512
# Given no mask, these warn of padding, for which the library reads ids of every batch back from the device.
ALWAYS_MASKED = frozenset(
    (
        *(
            "big_bird",
            "canine",
            "convbert",
            "deberta",
            "deberta-v2",
            "funnel",
            "ibert",
            "layoutlm",
            "lilt",
            "longformer",
        ),
        *("luke", "markuplm", "megatron-bert", "mra", "nystromformer", "rembert", "roformer", "splinter"),
        *("squeezebert", "yoso"),
    )
)


def load_hf(parsed: TeacherName, weights: Path | None, device: str, dtype: torch.dtype) -> Teacher:
    """Load a model of the ``transformers`` library as a teacher with one side, or both for CLIP and SigLIP.

    Raises:
        NotFoundError: the folder or its weights are not here, and not at the hub either.
        DataError: damaged weights, or weights of another model.
        ConfigError: a kind of model, tokenizer or preprocessing that madkit cannot read tokens from.
    """
    folder, source = pretrained_folder(parsed, weights)
    config = read_config(folder)
    sides = sides_of(config)
    known = KNOWN.get(parsed.canonical)
    if known is not None and sides != known.sides:
        reads = {"vision": "images", "text": "texts", "pair": "images and texts"}
        raise DataError(
            f"The weights {weights or source} are of a model that reads {reads[sides]}, and '{parsed.canonical}' reads "
            f"{reads[known.sides]}.",
            hint=f"give the weights of '{parsed.canonical}', or name the folder itself: hf:PATH",
        )
    preprocessing = None if sides == "text" else image_preprocessing(folder, name=parsed.canonical)
    loaded = load_model(config, source, name=parsed.canonical)
    if sides == "pair":
        return _pair(parsed, loaded, preprocessing, folder, device, dtype)
    vision = text = None
    if preprocessing is not None:
        vision = _vision(parsed, loaded, preprocessing, device, dtype)
    else:
        text = _text(parsed, loaded, folder, device, dtype)
    return Teacher(parsed.canonical, vision, text, shared_space=False, logit_scale=1.0, device=device, dtype=dtype)


def _text(parsed: TeacherName, loaded: Loaded, folder: Path, device: str, dtype: torch.dtype) -> HfText:
    tokenizer, length = hf_tokenizer(parsed.canonical, folder, context_length(loaded.model, folder))
    pooling = sentence_pooling(folder) or (POOLER if loaded.has("pooler.") else REAL_MEAN)
    digest = weights_digest(loaded.tensors())
    model = loaded.model.to(device=device, dtype=dtype)
    return HfText(parsed.canonical, text_encoder(model, pooling), tokenizer, length, digest)


def text_encoder(model: nn.Module, pooling: str) -> TextEncoder:
    """Return the way through a plain text model of the library."""
    config: Any = model.config

    def forward(ids: Tensor, attention: Tensor | None) -> tuple[Tensor, Tensor]:
        output: Any = model(input_ids=ids, attention_mask=attention)
        hidden: Tensor = output.last_hidden_state
        return hidden, output.pooler_output if pooling == POOLER else hidden[:, 0]

    dim, vocabulary, masked = int(config.hidden_size), int(config.vocab_size), config.model_type in ALWAYS_MASKED
    return TextEncoder(model, forward, dim, vocabulary, pooling=pooling, always_masked=masked)


def _vision(
    parsed: TeacherName, loaded: Loaded, preprocessing: Preprocessing, device: str, dtype: torch.dtype
) -> GridVision:
    layout = vision_layout(build_skeleton(loaded.model.config), preprocessing.size, name=parsed.canonical)
    pooled = has_pooler(loaded.missing, layout)
    facts = {"library": "transformers", "weights": weights_digest(loaded.tensors())}
    model = loaded.model.to(device=device, dtype=dtype)
    forward, facts["layer"], facts["global"] = vision_forward(model, layout, pooled=pooled)
    return GridVision(parsed.canonical, model, forward, preprocessing, layout.grid, layout.dim, facts)


def _pair(
    parsed: TeacherName,
    loaded: Loaded,
    preprocessing: Preprocessing | None,
    folder: Path,
    device: str,
    dtype: torch.dtype,
) -> Teacher:
    assert preprocessing is not None
    config: Any = loaded.model.config
    owner: Any = build_skeleton(config)
    layout = vision_layout(owner.vision_model, preprocessing.size, name=parsed.canonical)
    tokenizer, length = hf_tokenizer(parsed.canonical, folder, int(config.text_config.max_position_embeddings))
    tensors = loaded.tensors()
    seeing = {key: value for key, value in tensors.items() if key.startswith(("vision_model.", "visual_projection."))}
    reading = {key: value for key, value in tensors.items() if key not in seeing}
    scale = float(tensors["logit_scale"].float().exp().reshape(-1)[0])
    facts = {"library": "transformers", "weights": weights_digest(seeing)}
    model = loaded.model.to(device=device, dtype=dtype)
    forward, facts["layer"], facts["global"] = pair_vision(model, layout.before)
    encoder = pair_text(model)
    return Teacher(
        parsed.canonical,
        GridVision(parsed.canonical, model, forward, preprocessing, layout.grid, encoder.dim, facts),
        HfText(parsed.canonical, encoder, tokenizer, length, weights_digest(reading)),
        shared_space=True,
        logit_scale=scale,
        device=device,
        dtype=dtype,
    )


def hf_tokenizer(name: str, folder: Path, limit: int) -> tuple[FastTokenizer, int]:
    """Return a folder's tokenizer and the longest input, special tokens included: the model's or the tokenizer's."""
    found = load_tokenizer(folder, name=name)
    stated = int(found.model_max_length or UNLIMITED)
    pad = found.pad_token_id if found.pad_token_id is not None else found.eos_token_id
    tokenizer = FastTokenizer(name, found.backend_tokenizer, pad_id=int(pad or 0))
    length = min(limit, stated) if stated < UNLIMITED else limit
    if length <= tokenizer.specials:
        raise ConfigError(f"'{name}' reads at most {length} tokens, of which {tokenizer.specials} are special ones.")
    return tokenizer, length


def context_length(model: nn.Module, folder: Path) -> int:
    """Return how many tokens a text model reads at most, as its position embeddings and sentence settings say.

    RoBERTa and its relatives count positions from behind the padding id, so that many of the table stay unused.
    """
    config: Any = model.config
    length = int(getattr(config, "max_position_embeddings", None) or DEFAULT_CONTEXT)
    for name, module in model.named_modules():
        if name.endswith("embeddings.position_embeddings") and isinstance(module, nn.Embedding):
            behind = 0 if module.padding_idx is None else module.padding_idx + 1
            length = min(length, module.num_embeddings - behind)  # some tables have more rows than are ever used
    return min(length, longest_sentence(folder) or length)


def sides_of(config: Any) -> str:
    """Return ``pair``, ``vision`` or ``text`` (ConfigError for models that are none of them)."""
    if config.model_type in ("clip", "siglip"):
        return "pair"
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(
            f"Models of the kind '{config.model_type}' have a decoder, and madkit reads encoders.",
            hint="use an encoder such as roberta-base or bert-base",
        )
    inputs = getattr(build_skeleton(config), "main_input_name", "")
    if inputs == "pixel_values":
        return "vision"
    if inputs == "input_ids" and hasattr(config, "hidden_size") and hasattr(config, "vocab_size"):
        return "text"
    raise ConfigError(f"madkit cannot read tokens from models of the kind '{config.model_type}'.")
