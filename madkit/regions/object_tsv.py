"""Region TSVs: one row per image, tab-separated, no header, arrays as base64 of little-endian float32.

Two column orders are in use, and they differ in more than length: LXMERT's has the height before the width, the classic
bottom-up-attention one the width before the height. Boxes are absolute corners in pixels.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from madkit.core.errors import DataError
from madkit.regions.assemble import from_pixels, image_size
from madkit.regions.base64_arrays import decode_floats
from madkit.regions.interface import Regions
from madkit.regions.keyed import KeyedReader
from madkit.regions.tsv_index import Advance, RowFile, open_index

_LAYOUT_OF_COLUMNS = {10: "lxmert-tsv", 6: "butd-tsv"}
_NO_HEADER = "region TSVs have no header; remove it, or check the order of the columns"


class ObjectTsvReader(KeyedReader):
    """Reads rows by their position in the file. Safe for threads, and for processes forked after opening.

    A subclass says which columns a row has: the image id first, then `width`, `height`, `num_boxes`, `boxes`,
    `features`, perhaps `objects_conf`, in any order.
    """

    layout: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        path: Path,
        *,
        min_confidence: float | None = None,
        min_boxes: int | None = None,
        max_boxes: int | None = None,
        index_folder: Path | None = None,
        advance: Advance | None = None,
    ) -> None:
        """Open the file, building its index if there is none, and read its first and its last row.

        Args:
            path: the TSV, unpacked.
            min_confidence: which boxes to keep, with the next two; see `Selection`.
            min_boxes: see `Selection`.
            max_boxes: see `Selection`.
            index_folder: where the index is kept when the TSV's own folder cannot be written to.
            advance: called with the bytes of every piece scanned while the index is built.

        Raises:
            UsageProblem: impossible limits.
            NotFoundError: no such file.
            DataError: not this layout, or one of those two rows is wrong (a download cut off shows in the last).
        """
        self._lock = threading.Lock()
        self._file: RowFile | None = None
        self.index = open_index(path, folder=index_folder, advance=advance)
        if self.index.columns != len(self.columns):
            other = _LAYOUT_OF_COLUMNS.get(self.index.columns)
            raise DataError(
                f"{path}, line {self.index.lines[0]}: {self.index.columns} columns where the layout {self.layout} has "
                f"{len(self.columns)} ({', '.join(self.columns)}).",
                hint=f"open it as {other}" if other else None,
            )
        self._rows = {image_id: row for row, image_id in enumerate(self.index.ids)}
        super().__init__(path, min_confidence=min_confidence, min_boxes=min_boxes, max_boxes=max_boxes)
        self.get(self.index.ids[-1])

    def get_many(self, image_ids: Sequence[str]) -> list[Regions]:
        """The regions of many images, in their order; read in the order in which they lie in the file."""
        wanted = sorted(set(image_ids), key=lambda name: self._rows.get(name, -1))
        found = {image_id: self.get(image_id) for image_id in wanted}
        return [found[image_id] for image_id in image_ids]

    def close(self) -> None:
        """Close the file; a later `get` opens it again."""
        with self._lock:
            self._file = None

    def _list_ids(self) -> list[str]:
        return list(self.index.ids)

    def _where(self, image_id: str) -> str:
        return f"{self._path}, line {self.index.lines[self._rows[image_id]]} (image {image_id})"

    def _read(self, image_id: str) -> Regions:
        where = self._where(image_id)
        row = self._rows[image_id]
        start, length = int(self.index.starts[row]), int(self.index.lengths[row])
        try:
            raw = self._opened().read(start, length)
        except OSError as error:
            raise DataError(f"{where}: the file cannot be read ({error.strerror}).") from None
        values = raw.split(b"\t")
        if len(raw) != length or len(values) != len(self.columns) or values[0] != image_id.encode():
            raise DataError(f"{where}: the file changed after it was opened.", hint="run the command again")
        cells = dict(zip(self.columns, values, strict=True))
        return self._selection.apply(self._regions(cells, where), where)

    def _opened(self) -> RowFile:
        with self._lock:
            if self._file is None:
                self._file = RowFile(self._path)
            return self._file

    def _regions(self, cells: dict[str, bytes], where: str) -> Regions:
        size = image_size(_whole(cells, "width", where), _whole(cells, "height", where), where)
        count = _whole(cells, "num_boxes", where)
        boxes = decode_floats(cells["boxes"], "boxes", count, 4, where)
        features = decode_floats(cells["features"], "features", count, getattr(self, "_dim", None), where)
        confidence = None
        if "objects_conf" in cells:
            confidence = decode_floats(cells["objects_conf"], "objects_conf", count, 1, where)
            if (
                count and not confidence.any()
            ):  # no detector says 0 of all; who has no confidences fills the column with zeros
                confidence = None
        return from_pixels(boxes, features, confidence, size, where)


def _whole(cells: dict[str, bytes], name: str, where: str) -> int:
    text = cells[name].strip()
    try:
        return int(text) if text.isdigit() else int(text.decode("ascii").removesuffix(".0"))
    except ValueError:  # no ASCII is one too
        shown = text[:20].decode(errors="replace")
        raise DataError(f"{where}: '{name}' is {shown!r} and no whole number.", hint=_NO_HEADER) from None
