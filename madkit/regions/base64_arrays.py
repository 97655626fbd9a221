"""Float arrays as base64 text, the way most region files hold them."""

from __future__ import annotations

import binascii
from typing import Any

import numpy as np
from numpy.typing import NDArray

from madkit.core.errors import DataError

_AGAIN = "the file is damaged or was cut off; get it again"


def decode_floats(text: bytes, name: str, count: int, columns: int | None, where: str) -> NDArray[Any]:
    """Little-endian float32 [count, columns] in base64.

    Args:
        text: the base64; line breaks in it are skipped, any other foreign character is an error.
        name: of the array, for the message.
        count: number of boxes.
        columns: per box; None for as many as the text holds.
        where: file and image, for the message.

    Raises:
        DataError: broken base64, or another number of values than `count` boxes have.
    """
    if b"\n" in text or b"\r" in text:
        text = text.replace(b"\n", b"").replace(b"\r", b"")
    try:
        raw = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        raise DataError(f"{where}: '{name}' is no valid base64 ({error}).", hint=_AGAIN) from None
    if columns is None:
        columns = max(1, len(raw) // (4 * count)) if count else 0
    expected = 4 * count * columns
    if len(raw) != expected:
        raise DataError(
            f"{where}: '{name}' holds {len(raw)} bytes; {count} boxes with {columns} float32 each need {expected}.",
            hint=_AGAIN,
        )
    # A copy, because an array on top of bytes is read-only, which PyTorch warns about.
    return np.frombuffer(raw, dtype="<f4").reshape(count, columns).astype(np.float32)
