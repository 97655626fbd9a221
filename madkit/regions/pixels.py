"""Features without a detector: the pixels of the boxes themselves, small, as the embedded benchmark has them.

They know nothing of what an object is; they are there so that a data set without region features can be used at all.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from madkit.core.archives import read_bytes
from madkit.core.errors import DataError, MadkitError, UsageProblem
from madkit.regions.area import resize_area
from madkit.regions.butd_writer import Item, write_butd_hdf5
from madkit.regions.declared import DeclaredBoxes, placed
from madkit.regions.geometry import check_absolute
from madkit.regions.interface import Floats, Regions

Image = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.floating] | Sequence[Sequence[float]]

SIDE, GRID = 16, 3
_AHEAD = 32  # images that are decoded before they are asked for


def pixel_features(image: Image, boxes: npt.NDArray[np.int64], side: int) -> Floats:
    """Every box's pixels averaged to side x side RGB, in [-0.5, 0.5].

    Args:
        image: uint8 [H, W, 3].
        boxes: [n, 4] whole pixels x1, y1, x2, y2 inside the image, x2 and y2 exclusive.
        side: of the small picture.

    Returns:
        float32 [n, side * side * 3]; row by row, the three colours of a pixel together.
    """
    rows = [
        resize_area(image[y1:y2, x1:x2], side, side).reshape(-1).astype(np.float32) / 255.0 - 0.5
        for x1, y1, x2, y2 in boxes
    ]
    return np.asarray(rows, dtype=np.float32).reshape(-1, side * side * 3)


def pixel_regions(
    image: Image, boxes: Boxes | None, side: int = SIDE, grid: int = GRID, *, where: str = "the image"
) -> Regions:
    """Regions of an image whose features are pixels.

    Args:
        image: uint8 [H, W, 3].
        boxes: [n, 4] corners in pixels of this image; each takes all pixels that it touches. None or none at all: the
            whole image and the cells of a grid over it.
        side: a region becomes side x side x 3 numbers.
        grid: cells in a row and in a column.
        where: for the messages of errors.

    Returns:
        Regions with features [n, side * side * 3] in [-0.5, 0.5], without confidences, with the image's size.

    Raises:
        UsageProblem: a side or grid below 1.
        DataError: no RGB image, or boxes that cannot be in it.
    """
    if side < 1 or grid < 1:
        raise UsageProblem(f"side {side} and grid {grid} must be at least 1.")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise DataError(f"{where}: {image.dtype} pixels of shape {image.shape}, not uint8 [height, width, 3].")
    height, width = image.shape[:2]
    absolute = np.asarray(boxes if boxes is not None else [], dtype=np.float64)
    if absolute.size == 0:
        absolute = _grid(width, height, grid)
    if absolute.ndim != 2 or absolute.shape[1] != 4:
        raise DataError(f"{where}: boxes of shape {absolute.shape}, not [n, 4].")
    shares = check_absolute(absolute, width, height, where)
    limits = np.array([width, height, width, height])
    touched = np.concatenate([np.floor(absolute[:, :2]), np.ceil(absolute[:, 2:])], axis=1)
    inside = np.clip(touched, 0, limits).astype(np.int64)
    # a box on the far edge keeps its last pixel
    inside[:, :2] = np.minimum(inside[:, :2], limits[:2] - 1)
    inside[:, 2:] = np.maximum(inside[:, 2:], inside[:, :2] + 1)
    return Regions(shares, pixel_features(image, inside, side), None, (width, height))


def _grid(width: int, height: int, grid: int) -> npt.NDArray[np.float64]:
    """The whole image, then its cells row by row."""
    xs, ys = np.linspace(0, width, grid + 1), np.linspace(0, height, grid + 1)
    cells = [(xs[j], ys[i], xs[j + 1], ys[i + 1]) for i in range(grid) for j in range(grid)]
    return np.array([(0, 0, width, height), *cells], dtype=np.float64)


def read_image(path: Path) -> Image:
    """An image file, or one in a zip, as uint8 [H, W, 3]; as stored, without turning it by its EXIF note.

    Raises NotFoundError, or DataError for a file that is no whole image.
    """
    return _read(path, DeclaredBoxes((), (0, 0)))[0]


def file_regions(path: Path, boxes: DeclaredBoxes | None, side: int = SIDE, grid: int = GRID) -> Regions:
    """`pixel_regions` of an image file, or one in a zip, whose boxes are meant in the size that is declared for it.

    Raises NotFoundError, or DataError for a file that is no whole image or no copy of one of the declared size, and for
    boxes that cannot be in it.
    """
    image, corners = _read(path, boxes or DeclaredBoxes((), (0, 0)))
    return pixel_regions(image, corners, side, grid, where=str(path))


def _read(path: Path, boxes: DeclaredBoxes) -> tuple[Image, npt.NDArray[np.float64]]:
    from PIL import Image as PillowImage
    from PIL import UnidentifiedImageError

    data = read_bytes(path)
    try:
        with PillowImage.open(io.BytesIO(data)) as opened:
            image, corners = placed(opened, boxes, str(path))
            return np.asarray(image.convert("RGB")), corners
    except MadkitError:
        raise
    except UnidentifiedImageError:  # its text is the address of a buffer
        raise DataError(f"{path} is no image that can be read (no known format).", hint="get the file again") from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, zlib.error ... for damaged files
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} is no image that can be read ({reason}).", hint="get the file again") from None


def make_pixel_regions(
    path: Path,
    items: Iterable[tuple[str, Path, DeclaredBoxes | None]],
    *,
    side: int = SIDE,
    grid: int = GRID,
    workers: int = 2,
    advance: Callable[[int], None] | None = None,
) -> int:
    """Write the pixel features of many images as an HDF5 file that "butd-hdf5" reads.

    Args:
        path: the file to write; it appears when it is whole.
        items: (image id, image file, which may lie in a zip, boxes or None) of every image.
        side: as in `pixel_regions`.
        grid: as in `pixel_regions`.
        workers: threads that decode images.
        advance: called with 1 after every image.

    Returns:
        The number of images.

    Raises:
        NotFoundError: an image file does not exist.
        DataError: a damaged image, one of another shape than is declared, boxes that cannot be in it, a repeated id, no
            images. Nothing is left behind.
    """

    def make(item: tuple[str, Path, DeclaredBoxes | None]) -> Item:
        image_id, file, boxes = item
        regions = file_regions(file, boxes, side, grid)
        size = regions.size
        assert size is not None  # pixels have one
        return image_id, regions.boxes * np.asarray(size * 2, dtype=np.float32), regions.features, size

    def made() -> Iterator[Item]:
        for item in _ahead(make, items, workers):
            yield item
            if advance is not None:
                advance(1)

    return write_butd_hdf5(path, made())


def _ahead(
    make: Callable[[tuple[str, Path, DeclaredBoxes | None]], Item],
    items: Iterable[tuple[str, Path, DeclaredBoxes | None]],
    workers: int,
) -> Iterator[Item]:
    """`map` in order, with a few results made in threads before they are asked for."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Item]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
