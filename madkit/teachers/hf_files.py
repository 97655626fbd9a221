"""Folders in the layout of ``save_pretrained``: where they are, their weights, the models they describe.

Weights are read by madkit (safetensors, or PyTorch files with ``weights_only``) and handed to the library, which knows
the names that older files use. Code that a repository brings along is never run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from madkit.core.errors import ConfigError, DataError, NotFoundError
from madkit.core.files import read_json
from madkit.teachers.known import TeacherName
from madkit.teachers.weights import read_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spm.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "preprocessor_config.json",
    "processor_config.json",
    "sentence_bert_config.json",
    "modules.json",
    "*_Pooling/config.json",
)
VOCABULARIES = ("vocab.txt", "vocab.json", "spm.model", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
TORCH_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in evaluation mode in float32, and the names of its tensors that the weights did not hold."""

    model: nn.Module
    missing: frozenset[str]

    def has(self, prefix: str) -> bool:
        """Whether the weights held every tensor whose name begins so (and there is one)."""
        names = [name for name in self.model.state_dict() if name.startswith(prefix)]
        return bool(names) and not self.missing.intersection(names)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that came from the weights."""
        return {name: tensor for name, tensor in self.model.state_dict().items() if name not in self.missing}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the library from printing: what matters is raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(50)  # the standard library's CRITICAL
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def pretrained_folder(parsed: TeacherName, weights: Path | None) -> tuple[Path, Path]:
    """Return (folder with the configuration, file or folder with the weights) of an ``hf:`` teacher.

    Raises:
        NotFoundError: not on this machine, and the hub is switched off or out of reach.
    """
    if weights is not None:
        folder = weights if weights.is_dir() else weights.parent
        if not weights.exists():
            raise NotFoundError(f"The weights {weights} do not exist.", hint="--weights FOLDER as of save_pretrained")
        if not (folder / "config.json").is_file():
            raise NotFoundError(
                f"{folder} has no config.json, so the kind of model is not known.",
                hint="give a folder as save_pretrained writes it: --weights FOLDER",
            )
        return folder, weights
    if is_path(parsed.rest):
        folder = Path(parsed.rest).expanduser()
        if not (folder / "config.json").is_file():
            raise NotFoundError(
                f"The teacher folder {folder} has no config.json.", hint="give a folder as save_pretrained writes it"
            )
        return folder, folder
    from madkit.core.hub_files import hub_folder

    folder = hub_folder(
        parsed.rest,
        parsed.tag,
        CONFIG_FILES,
        (SAFE_WEIGHTS, TORCH_WEIGHTS),
        complete=lambda place: (place / "config.json").is_file() and bool(_weight_files(place)),
        wanted=f"The weights of '{parsed.canonical}' ({parsed.rest})",
        hint=f"this folder is meant? then hf:./{parsed.rest}"
        if Path(parsed.rest).is_dir()
        else f"give a folder as save_pretrained writes it: --weights FOLDER (where there is a network: "
        f"hf download {parsed.rest} --local-dir FOLDER)",
    )
    return folder, folder


def is_path(rest: str) -> bool:
    """Whether what follows ``hf:`` is a folder on this machine and not ORG/NAME."""
    return rest.startswith(("/", "./", "../", "~"))


def read_config(folder: Path) -> Any:
    """Read ``config.json`` as the library's configuration object (DataError, or ConfigError for unknown kinds)."""
    from transformers import AutoConfig

    path = folder / "config.json"
    plain = read_json(path)
    kind = plain.get("model_type") if isinstance(plain, dict) else None
    if not isinstance(kind, str):
        raise DataError(f"{path}: the key 'model_type' is missing.")
    try:
        with quiet():
            return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # unknown kinds, values of wrong types: several unrelated families
        raise ConfigError(f"{path} describes a model that transformers cannot build ({_first(error)}).") from None


def build_skeleton(config: Any) -> nn.Module:
    """Build the model of a configuration without memory, on torch's meta device (ConfigError when impossible)."""
    from transformers import AutoModel

    try:
        with quiet(), torch.device("meta"):
            model: nn.Module = AutoModel.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise ConfigError(
            f"transformers has no plain encoder for models of the kind '{config.model_type}' ({_first(error)})."
        ) from None
    return model.eval().requires_grad_(False)


def load_model(config: Any, source: Path, *, name: str) -> Loaded:
    """Build the model of a configuration with the weights of a file or folder.

    A task's head in the weights is left out; a pooler that the weights lack is allowed, since it is never used then.

    Raises:
        NotFoundError: there are no weights.
        DataError: they are damaged, or of another model.
    """
    files = [source] if source.is_file() else _weight_files(source)
    if not files:
        raise NotFoundError(f"The folder {source} holds no weights.", hint=f"it needs {SAFE_WEIGHTS[0]}")
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(read_weights(file))
    kind: Any = type(build_skeleton(config))
    try:
        with quiet(), torch.random.fork_rng(devices=[]):  # what is missing is drawn at random by the library
            model, found = kind.from_pretrained(
                None, config=config, state_dict=tensors, output_loading_info=True, dtype=torch.float32
            )
    except (RuntimeError, ValueError, KeyError) as error:
        raise DataError(f"The weights {files[0]} do not fit '{name}': {_first(error)}.") from None
    missing = {key for key in found["missing_keys"] if not key.endswith("position_ids")}
    wrong = sorted(key for key in missing if not _is_pooler(key))
    mismatched = sorted(str(key) for key in found.get("mismatched_keys", ()))
    if wrong or mismatched:
        what = f"{len(wrong)} tensors missing, first {wrong[0]}" if wrong else f"other shapes, first {mismatched[0]}"
        raise DataError(f"The weights {files[0]} do not fit '{name}': {what}.")
    return Loaded(model.eval().requires_grad_(False), frozenset(missing))


def _is_pooler(key: str) -> bool:
    return key.startswith("pooler.") or ".pooler." in key


def _weight_files(folder: Path) -> list[Path]:
    for single, index in ((SAFE_WEIGHTS[0], SAFE_WEIGHTS[1]), (TORCH_WEIGHTS[0], TORCH_WEIGHTS[1])):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            shards: Mapping[str, str] = read_json(folder / index).get("weight_map", {})
            files = [folder / Path(name).name for name in sorted(set(shards.values()))]
            if files and all(file.is_file() for file in files):
                return files
    return []


def load_tokenizer(folder: Path, *, name: str) -> Any:
    """Load a folder's fast tokenizer.

    Raises:
        ConfigError: there is none, or a package that would make one from older files is not installed.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    options = {"local_files_only": True, "trust_remote_code": False}
    reason = "it is not a fast one"
    attempts: list[Any] = [AutoTokenizer]
    if (folder / "tokenizer.json").is_file():
        attempts.append(PreTrainedTokenizerFast)
    elif not any((folder / file).is_file() for file in VOCABULARIES):  # the library would make one without words
        attempts, reason = [], "it has no vocabulary"
    for attempt in attempts:
        try:
            with quiet():
                found = attempt.from_pretrained(str(folder), **options)
            if getattr(found, "is_fast", False):
                return found
        except Exception as error:  # missing packages and files raise ImportError, OSError, ValueError, ...
            reason = _first(error)
    raise ConfigError(
        f"The tokenizer of '{name}' in {folder} gives no character spans ({reason}).",
        hint="it needs a tokenizer.json; where there is only a SentencePiece model: pip install sentencepiece protobuf",
    )


def config_json(config: Any) -> dict[str, Any]:
    """Return a configuration as plain JSON values."""
    plain: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return plain


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0].rstrip(".") if lines else type(error).__name__)[:200]
