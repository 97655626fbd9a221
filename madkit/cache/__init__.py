"""Zarr v3 token store: layout, writer, reader, verification, and what is in a workspace."""

from __future__ import annotations

from madkit.cache.manage import choose_cache, find_caches
from madkit.cache.parts import ImageTokens, RaggedTokens, TextTokens
from madkit.cache.reader import TokenCache
from madkit.cache.verify import verify_cache

__all__ = [
    "ImageTokens",
    "RaggedTokens",
    "TextTokens",
    "TokenCache",
    "choose_cache",
    "find_caches",
    "verify_cache",
]
