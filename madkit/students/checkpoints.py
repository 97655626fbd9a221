"""Text checkpoints (BERT, RoBERTa and their like) as one state under `BertModel`'s names.

A checkpoint is a folder in Hugging Face's layout: `config.json`, weights (`model.safetensors`, one file or several with
an index, or `pytorch_model.bin`, which is read without running anything in it) and tokenizer files. Old names
(`gamma`, `beta`) and prefixes (`bert.`, `roberta.`, `module.`) are undone. RoBERTa's positions begin at 2: its table
loses its first rows, so that positions count from 0 everywhere; its one type serves for all.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from madkit.core.errors import DataError, NotFoundError
from madkit.core.files import digest_of, read_json, sha256_file

CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_WEIGHTS = ("model.safetensors", _INDEX, "pytorch_model.bin")
_PREFIXES = ("module.", "bert.", "roberta.", "electra.", "uniter.")
_OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}
_TEXT_PARTS = ("embeddings.", "encoder.layer.", "pooler.dense.")
# Kinds of text checkpoints -> positions that their table reserves at its beginning.
TEXT_MODELS = {"bert": 0, "roberta": 2, "camembert": 2, "xlm-roberta": 2}
POSITIONS = "embeddings.position_embeddings.weight"
TYPES = "embeddings.token_type_embeddings.weight"
WORDS = "embeddings.word_embeddings.weight"


@dataclass(frozen=True, slots=True)
class TextCheckpoint:
    """A text encoder's weights: what a student's text layers begin with."""

    folder: Path
    config: Mapping[str, Any]  # hidden_size, num_hidden_layers, ... as in config.json
    state: dict[str, Tensor]  # under BertModel's names, float32
    left: tuple[str, ...]  # keys of other parts: masked-word heads and the like


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file: safetensors, or a torch file that holds a flat dict of tensors.

    A torch file may also hold that dict under `state_dict` or `model`. Nothing in a file is ever run.

    Raises NotFoundError, or DataError for a file that is damaged or would have to be trusted.
    """
    if not path.is_file():
        raise NotFoundError(f"The weights {path} do not exist.")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, json.JSONDecodeError) as error:
            raise DataError(f"{path} is not a safetensors file ({error}).") from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} holds more than tensors, and reading it would run its code ({_cause(error)}).",
            hint="save its state_dict alone, where you trust it: torch.save(model.state_dict(), FILE)",
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from None
    except Exception as error:
        # bytes that are no pickle end its reader in any of a dozen ways: IndexError, AttributeError, struct.error, ...
        raise DataError(f"{path} is not a file of torch weights ({_first_line(error)}).") from None
    for name in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or not found or not all(isinstance(key, str) for key in found):
        raise DataError(f"{path} does not hold a dict of tensors.")
    odd = [key for key, value in found.items() if not isinstance(value, Tensor)]
    if odd:
        raise DataError(f"{path}: {odd[0]} is no tensor, but {type(found[odd[0]]).__name__}.")
    return dict(found)


def read_folder_state(folder: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's folder, float32. Raises as `read_state`."""
    path = _weight_file(folder)
    if path.name != _INDEX:
        state = read_state(path)
    else:
        index = read_json(path)
        names = sorted(set(index.get("weight_map", {}).values()))
        if not names or any(Path(name).name != name for name in names):
            raise DataError(f"{path} does not list the files of its weights.")
        state = {key: value for name in names for key, value in read_state(folder / name).items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def weights_digest(folder: Path) -> str:
    """16 hex digits that stand for a checkpoint's weights, and for its tokenizer."""
    path = _weight_file(folder)
    files = [path]
    if path.name == _INDEX:
        files += [folder / name for name in sorted(set(read_json(path).get("weight_map", {}).values()))]
    words = [folder / name for name in ("vocab.txt", "tokenizer.json", "vocab.json", "merges.txt", CONFIG)]
    return digest_of([sha256_file(file) for file in (*files, *words) if file.is_file()])[:16]


def plain_names(keys: Iterable[str]) -> dict[str, str]:
    """Key -> key without prefixes and old names of LayerNorm's parameters."""
    names = {}
    for key in keys:
        name = key
        while (prefix := next((p for p in _PREFIXES if name.startswith(p)), None)) is not None:
            name = name[len(prefix) :]
        for old, new in _OLD_NAMES.items():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        names[key] = name
    return names


def text_checkpoint(folder: Path) -> TextCheckpoint:
    """Read a text checkpoint.

    Raises:
        NotFoundError: no weights in the folder.
        DataError: another kind of model, or parts of it missing.
    """
    config = read_json(folder / CONFIG)
    kind = config.get("model_type", "bert")
    if kind not in TEXT_MODELS:
        raise DataError(
            f"{folder} holds a model of the type {kind!r}, no text encoder that a student can begin with.",
            hint=f"use one of the type {', '.join(TEXT_MODELS)}",
        )
    if (act := config.get("hidden_act", "gelu")) != "gelu":
        raise DataError(f"{folder / CONFIG}: the activation {act!r} is not the students' gelu.")
    state, left = {}, []
    found = read_folder_state(folder)
    for key, name in plain_names(found).items():
        if name.startswith(_TEXT_PARTS) and not name.endswith("position_ids") and name not in state:
            state[name] = found[key]
        elif not name.endswith("position_ids"):
            left.append(key)
    missing = [key for key in (WORDS, POSITIONS, TYPES) if key not in state]
    if missing:
        raise DataError(f"{folder}: the weights lack {missing[0]}, so they are not those of a text encoder.")
    if skip := TEXT_MODELS[kind]:
        state[POSITIONS] = state[POSITIONS][skip:].clone()
    return TextCheckpoint(folder, config, state, tuple(left))


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a configuration and weights."""
    return (folder / CONFIG).is_file() and any((folder / name).is_file() for name in _WEIGHTS)


def _weight_file(folder: Path) -> Path:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise NotFoundError(f"{folder} holds no weights.", hint=f"a checkpoint has one of {', '.join(_WEIGHTS)}")


def _cause(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line]
    return lines[0].split(" Please use")[0].rstrip(". ") if lines else _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip().rstrip(".")
