"""Checkpoints from the Hugging Face hub or its local cache, or one sentence that says why not. Never a long wait."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from madkit.core.console import info
from madkit.core.errors import NotFoundError

_SMALL = ["config.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"]
_WEIGHTS = (["*.safetensors", "*.safetensors.index.json"], ["pytorch_model.bin"])  # the first kind that there is
_CONNECT_TIMEOUT_S = 4.0


def hub_checkpoint(name: str, *, complete: Callable[[Path], bool]) -> Path:
    """The folder of a checkpoint by its name on the hub ("google-bert/bert-base-cased").

    `complete` says whether a folder holds configuration and weights. The hub is asked only where it answers.

    Raises NotFoundError.
    """
    from huggingface_hub import constants, snapshot_download

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        if complete(folder):
            return folder
    except Exception:  # the hub's client raises several unrelated families of exceptions
        pass
    reason = "the hub is switched off (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else _why_not(constants.ENDPOINT)
    if reason is None:
        try:
            for patterns in _WEIGHTS:
                info(f"Fetching {name} from the hub.")
                folder = Path(snapshot_download(name, allow_patterns=[*_SMALL, *patterns]))
                if complete(folder):
                    return folder
            reason = "what the hub has under that name holds no weights"
        except Exception as error:
            reason = f"the hub does not give one ({type(error).__name__})"
    raise NotFoundError(
        f"There is no folder {name!r} and no checkpoint of that name on this machine, and {reason}.",
        hint="--init FOLDER with config.json, weights and vocab.txt or tokenizer.json",
    )


def _why_not(endpoint: str) -> str | None:
    """Why the hub cannot be reached, or None. Behind a proxy only a real request can tell."""
    if any(name.lower() in ("https_proxy", "http_proxy", "all_proxy") and value for name, value in os.environ.items()):
        return None
    parts = urlsplit(endpoint)
    host = parts.hostname or endpoint
    try:
        with socket.create_connection(
            (host, parts.port or (80 if parts.scheme == "http" else 443)), _CONNECT_TIMEOUT_S
        ):
            return None
    except OSError:
        return f"{host} cannot be reached from here"
