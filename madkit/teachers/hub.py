"""Weights from the Hugging Face hub, or one sentence that says how else to get them. Never a long wait."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from madkit.core.console import info
from madkit.core.errors import NotFoundError

CONNECT_TIMEOUT_S = 4.0
_PROXIES = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")


def hub_file(repository: str, names: Sequence[str], *, wanted: str, hint: str) -> Path:
    """Return the first of ``names`` that ``repository`` has, from the local hub cache or downloaded.

    The hub is asked only where it answers: without a network its client would retry for half a minute.

    Args:
        repository: ``owner/name``.
        names: file names, best first.
        wanted: what is wanted, to begin the error's sentence ("the weights of ...").
        hint: how to get the file otherwise.

    Raises:
        NotFoundError: not in the cache, and the hub is switched off, out of reach or without such a file.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    for name in names:
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    switched_off = "the hub is switched off (HF_HUB_OFFLINE)"
    reason = switched_off if constants.HF_HUB_OFFLINE else _why_not(constants.ENDPOINT)
    if reason is None:
        for name in names:
            try:
                info(f"Fetching {name} of {repository} from the hub.")
                return Path(hf_hub_download(repository, name))
            except Exception as error:  # the hub's client raises several unrelated families of exceptions
                reason = f"{repository} could not be fetched ({type(error).__name__})"
    raise NotFoundError(f"{wanted} are not on this machine, and {reason}.", hint=hint)


def _why_not(endpoint: str) -> str | None:
    """Say why the hub cannot be reached, or None. Behind a proxy only a real request can tell."""
    if any(os.environ.get(name) for name in _PROXIES):
        return None
    parts = urlsplit(endpoint)
    host = parts.hostname or endpoint
    try:
        with socket.create_connection((host, parts.port or (80 if parts.scheme == "http" else 443)), CONNECT_TIMEOUT_S):
            return None
    except OSError:
        return f"{host} cannot be reached from here"
