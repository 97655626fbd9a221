"""Reading weight files: safetensors, PyTorch files without arbitrary code, TorchScript archives, and CLIP as stored by
the ``transformers`` library, all into open_clip's names.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from madkit.core.errors import DataError, NotFoundError

# Names that publishers give to the one file of weights in a folder, best first.
WEIGHT_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)

TRANSFORMERS_MARK = "vision_model.embeddings.class_embedding"


def weights_file(path: Path) -> Path:
    """Return the weight file at ``path``: the file itself, or the usual one in a folder (NotFoundError otherwise)."""
    if path.is_file():
        return path
    if path.is_dir():
        for name in WEIGHT_FILES:
            if (path / name).is_file():
                return path / name
        raise NotFoundError(
            f"The folder {path} holds no weights.", hint=f"give the file itself, or a folder with {WEIGHT_FILES[0]}"
        )
    raise NotFoundError(f"The weights {path} do not exist.", hint="give a file or folder that exists: --weights PATH")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a weight file into named tensors on the CPU.

    Pickles are read with ``weights_only=True``: a file that wants to run code is refused.

    Raises:
        DataError: the file is damaged, wants to run code, or holds no tensors.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path, device="cpu"))
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is not a readable safetensors file ({error}).") from None
    found = _read_pickle(path)
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise DataError(f"{path} holds no tensors.")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def _read_pickle(path: Path) -> Mapping[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both ways warn about being the wrong one for the other's files
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged or foreign file provokes
            try:  # OpenAI's own CLIP files are TorchScript archives
                found = torch.jit.load(str(path), map_location="cpu").state_dict()
            except (RuntimeError, ValueError):
                raise DataError(
                    f"{path} is not a weight file that can be read safely ({_why(error)}).",
                    hint="use a safetensors file of the same weights",
                ) from None
    if not isinstance(found, Mapping):
        raise DataError(f"{path} holds a {type(found).__name__}, not named tensors.")
    return found


def _why(error: Exception) -> str:
    """Say in a few words what PyTorch says in a paragraph, or with the bare key of a look-up that failed."""
    called = re.search(r"\bGLOBAL (\S+)", str(error))
    if called is not None:
        return f"it would have {called[1]} called"
    return "it is damaged, or no file of PyTorch's"


def load_clip_weights(model: nn.Module, tensors: Mapping[str, Tensor], *, path: Path, name: str) -> None:
    """Put ``tensors`` into an open_clip model; every tensor must fit, none may be left over.

    Raises:
        DataError: the weights belong to another model; the message names the first tensors that differ.
    """
    own = model.state_dict()
    state = _in_open_clips_names(model, tensors)
    for key in [key for key in state if key not in own and _UNUSED.search(key)]:
        del state[key]
    if "text.positional_embedding" in own and "positional_embedding" in state:
        from open_clip.model import convert_to_custom_text_state_dict

        state = convert_to_custom_text_state_dict(dict(state))
    for key in ("logit_scale", "logit_bias"):
        if key in state and key in own and state[key].numel() == own[key].numel():
            state[key] = state[key].reshape(own[key].shape)
    missing = sorted(key for key in own.keys() - state.keys() if not key.endswith(_COUNTER))
    extra = sorted(state.keys() - own.keys())
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or extra or shapes:
        details = []
        if missing:
            details.append(f"{len(missing)} tensors missing, first {missing[0]}")
        if extra:
            details.append(f"{len(extra)} too many, first {extra[0]}")
        if shapes:
            key = shapes[0]
            details.append(
                f"{len(shapes)} of another shape, first {key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
            )
        raise DataError(f"The weights {path} do not fit '{name}': {'; '.join(details)}.")
    model.load_state_dict(state, strict=False)  # all that may be missing are counters, as was found above


# What files hold beyond the weights: constants of TorchScript archives, and tables and heads of text encoders that no
# output depends on (older versions of transformers kept position numbers and sinusoids among the weights).
_UNUSED = re.compile(
    r"^(input_resolution|context_length|vocab_size)$"
    r"|(^|\.)(embeddings\.position_ids|embed_positions\.weights|embeddings\.token_type_ids)$"
    r"|^text\.transformer\.pooler\."
)
_COUNTER = "num_batches_tracked"  # of batch norms: used in training only, and not in every file


def _in_open_clips_names(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename what transformers' CLIP and Apple's MobileCLIP call otherwise."""
    if TRANSFORMERS_MARK in tensors:
        return from_transformers_clip(tensors)
    if any(key.startswith("image_encoder.model.") for key in tensors):
        from open_clip.convert import convert_state_dict

        converted: dict[str, Tensor] = convert_state_dict(model, dict(tensors))
        return converted
    return dict(tensors)


_RENAMES = (
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.weight$", "visual.conv1.weight"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.", r"visual.transformer.resblocks.\1."),
    (r"^text_model\.embeddings\.token_embedding\.weight$", "token_embedding.weight"),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.(\d+)\.", r"transformer.resblocks.\1."),
    (r"\.layer_norm1\.", ".ln_1."),
    (r"\.layer_norm2\.", ".ln_2."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)


def from_transformers_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of transformers' ``CLIPModel`` to open_clip's, joining q, k, v and transposing projections."""
    result: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key.endswith("position_ids"):
            continue
        if key in ("visual_projection.weight", "text_projection.weight"):
            result["visual.proj" if key.startswith("visual") else "text_projection"] = value.T.contiguous()
            continue
        if ".self_attn.q_proj." in key:
            parts = [tensors[key.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            key, value = key.replace(".self_attn.q_proj.", ".attn.in_proj_"), torch.cat(parts)
        elif ".self_attn.k_proj." in key or ".self_attn.v_proj." in key:
            continue
        for pattern, replacement in _RENAMES:
            key = re.sub(pattern, replacement, key)
        result[key] = value
    return result
