"""What a folder of sentence-transformers says beside its model: how words are pooled, how many are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from madkit.core.files import read_json
from madkit.teachers.hf_text import ALL_MEAN, CLASS_TOKEN, LAST_TOKEN, MAXIMUM

_MODES = {
    "pooling_mode_mean_tokens": ALL_MEAN,
    "pooling_mode_cls_token": CLASS_TOKEN,
    "pooling_mode_max_tokens": MAXIMUM,
    "pooling_mode_lasttoken": LAST_TOKEN,
}


def sentence_pooling(folder: Path) -> str | None:
    """Return how a sentence encoder pools its words, as its ``modules.json`` and ``1_Pooling/config.json`` say.

    None where the folder is none of a sentence encoder, or pools in a way that makes no vector as wide as a word
    (several ways side by side) or that madkit does not have. Layers after the pooling (normalisation, dense layers) are
    left out: global vectors are as wide as words, and not normalised.
    """
    path = folder / _pooling_folder(folder) / "config.json"
    config: Any = read_json(path) if path.is_file() else None
    if not isinstance(config, dict):
        return None
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    return _MODES.get(chosen[0]) if len(chosen) == 1 else None


def _pooling_folder(folder: Path) -> str:
    path = folder / "modules.json"
    modules: Any = read_json(path) if path.is_file() else []
    for module in modules if isinstance(modules, list) else []:
        if isinstance(module, dict) and str(module.get("type", "")).endswith(".Pooling"):
            return Path(str(module.get("path", ""))).name
    return "1_Pooling"


def longest_sentence(folder: Path) -> int | None:
    """Return the longest input that a sentence encoder was made for, special tokens included."""
    path = folder / "sentence_bert_config.json"
    config: Any = read_json(path) if path.is_file() else None
    stated = config.get("max_seq_length") if isinstance(config, dict) else None
    return int(stated) if stated else None
