"""Images as patches of pixels, in the form of region features: what ViLT sees with.

The steps are ViLT's evaluation transform: the shorter side to `short` pixels, the longer one to at most `longest`, both
then down to multiples of the patch; bicubic and antialiased (Pillow); pixels to -1..1.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from madkit.core import archives
from madkit.core.errors import DataError, NotFoundError
from madkit.regions.interface import Floats, Regions


def fitted_size(width: int, height: int, short: int, longest: int, patch: int) -> tuple[int, int]:
    """(width, height) that an image is resized to: multiples of `patch`, at least one."""
    scale = short / min(width, height)
    size = (width * scale, height * scale)
    if max(size) > longest:
        shrink = longest / max(size)
        size = (size[0] * shrink, size[1] * shrink)
    columns, rows = (max(1, int(side + 0.5) // patch) for side in size)
    return columns * patch, rows * patch


def cut(pixels: Floats, patch: int) -> Regions:
    """Patches of an image [H, W, 3], row by row: features [R, 3 * patch * patch] in the order channel, row, column.

    Boxes are the cells. H and W are multiples of `patch`.
    """
    rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
    cells = pixels.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 4, 1, 3)
    y, x = (place.reshape(-1) for place in np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"))
    boxes = np.stack([x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], axis=1).astype(np.float32)
    return Regions(boxes, np.ascontiguousarray(cells.reshape(rows * columns, -1), dtype=np.float32))


class PatchReader:
    """A reader of region features whose regions are the patches of image files. Safe to use from several threads.

    Args:
        files: image id -> file (a virtual path into a zip will do).
        patch: side of a patch in pixels.
        short: pixels of the shorter side.
        longest: pixels that the longer side has at most.
    """

    def __init__(self, files: Mapping[str, Path], *, patch: int, short: int, longest: int) -> None:
        self._files = dict(files)
        self._patch, self._short, self._longest = patch, short, longest

    @property
    def dim(self) -> int:
        """Numbers of a patch."""
        return 3 * self._patch**2

    def ids(self) -> Sequence[str]:
        """The ids of all images."""
        return list(self._files)

    def get(self, image_id: str) -> Regions:
        """The patches of an image. Raises NotFoundError for an unknown id, DataError for a file that is no image."""
        from PIL import Image, UnidentifiedImageError

        if image_id not in self._files:
            raise NotFoundError(f"There is no image file for '{image_id}'.")
        path = self._files[image_id]
        try:
            with Image.open(io.BytesIO(archives.read_bytes(path))) as opened:
                image = opened.convert("RGB")
                size = fitted_size(*image.size, self._short, self._longest, self._patch)
                image = image.resize(size, Image.Resampling.BICUBIC)
        except NotFoundError:
            raise DataError(f"The image {path} does not exist.") from None
        except UnidentifiedImageError:  # its text is the address of a buffer
            raise DataError(f"The image {path} cannot be read (no known format).") from None
        except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
            raise DataError(f"The image {path} cannot be read ({error or type(error).__name__}).") from None
        return cut(np.asarray(image, dtype=np.float32) / np.float32(127.5) - np.float32(1.0), self._patch)

    def get_many(self, image_ids: Sequence[str]) -> list[Regions]:
        """The patches of many images."""
        return [self.get(image_id) for image_id in image_ids]

    def close(self) -> None:
        """Nothing is kept open."""
