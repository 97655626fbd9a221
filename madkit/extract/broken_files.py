"""Which image files cannot be images, seen without decoding them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from madkit.core.archives import open_binary

THREADS = 16


def broken_files(paths: Sequence[Path]) -> list[str]:
    """What is wrong with each file whose header is no image's, and with each PNG whose chunks are not whole.

    A JPEG that was cut off begins like a sound one: only decoding it tells.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        return [wrong for wrong in pool.map(_wrong_with, paths) if wrong]


def _wrong_with(path: Path) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        with open_binary(path) as file, Image.open(file) as image:
            image.verify()
    except UnidentifiedImageError:  # whose message shows an object of Python
        return f"{path}: no format that Pillow knows"
    except MemoryError:
        raise
    except Exception as error:  # decoders raise what they like for damage: that of AVIF a RuntimeError
        return f"{path}: {error}"
    return ""
