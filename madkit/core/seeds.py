"""Randomness as pure functions of names: no global state, the same numbers on every machine and library version."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from madkit.core.files import canonical_json

if TYPE_CHECKING:
    import numpy as np


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed that depends on the values of ``parts`` alone (SHA-256 of their canonical JSON).

    ``derive_seed("shots", 1)`` and ``derive_seed("shots", "1")`` differ; 63 bits fit a signed integer of torch.
    """
    digest = hashlib.sha256(canonical_json(list(parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def permutation(n: int, *parts: object) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return a permutation of ``range(n)``, int64 [n], that depends on ``n`` and ``parts`` alone.

    It sorts raw PCG64 output, whose stream NumPy guarantees for ever; ``Generator.permutation`` may change between
    versions (NEP 19), and a resumed run must see the order that the killed one saw.
    """
    import numpy as np

    return np.argsort(_raw(n, parts), kind="stable").astype(np.int64, copy=False)


def first_of_permutation(count: int, n: int, *parts: object) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the first ``count`` of `permutation`, int64, without putting all of the others in order."""
    import numpy as np

    if count >= n:
        return permutation(n, *parts)
    raw = _raw(n, parts)
    low = np.flatnonzero(raw <= np.partition(raw, count)[count])  # of equals the first, as in a stable sort
    return low[np.argsort(raw[low], kind="stable")[:count]].astype(np.int64, copy=False)


def _raw(n: int, parts: tuple[object, ...]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    import numpy as np

    return np.asarray(np.random.PCG64(derive_seed(*parts)).random_raw(n), dtype=np.uint64)
