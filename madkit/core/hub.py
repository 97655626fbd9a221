"""Whether the Hugging Face hub answers, found out in seconds: its own client would retry for half a minute."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

CONNECT_TIMEOUT_S = 4.0
SWITCHED_OFF = "the hub is switched off (HF_HUB_OFFLINE)"
PROXIES = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")


def behind_proxy() -> bool:
    """Whether requests go through a proxy, so that no connection of our own tells anything."""
    return any(os.environ.get(name) for name in PROXIES)


def why_unreachable(endpoint: str, timeout_s: float = CONNECT_TIMEOUT_S) -> str | None:
    """Why a server cannot be reached, as a clause; None where it can, or where only a real request can tell (proxy).

    Args:
        endpoint: its URL.
        timeout_s: seconds to wait for a connection.
    """
    if behind_proxy():
        return None
    parts = urlsplit(endpoint)
    host = parts.hostname or endpoint
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        with socket.create_connection((host, port), timeout_s):
            return None
    except OSError:
        return f"{host} cannot be reached from here"
