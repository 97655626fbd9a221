"""Checkpoints from the Hugging Face hub or its local cache, or one sentence that says why not. Never a long wait."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from madkit.core.console import info
from madkit.core.errors import NotFoundError
from madkit.core.hub import SWITCHED_OFF, why_unreachable

_SMALL = ["config.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"]
_WEIGHTS = (["*.safetensors", "*.safetensors.index.json"], ["pytorch_model.bin"])  # the first kind that there is


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
    reason = SWITCHED_OFF if constants.HF_HUB_OFFLINE else why_unreachable(constants.ENDPOINT)
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
