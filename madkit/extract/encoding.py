"""Encoding the missing units of a store: images through decoder and teacher, texts through tokenizer and teacher."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from madkit.cache.plan import PARTS, Part
from madkit.cache.writer import StoreWriter
from madkit.core.console import Progress, progress
from madkit.core.errors import DataError
from madkit.core.interrupts import StopSignals
from madkit.extract.choices import Choice
from madkit.extract.engine import Engine, make_engine
from madkit.extract.image_encoding import ImageEncoder
from madkit.extract.items import Items
from madkit.extract.options import ExtractOptions
from madkit.extract.ordered import ordered_map
from madkit.extract.pipeline import Slice, WriterThread, encode_images, encode_texts, slices
from madkit.extract.text_encoding import TextEncoder
from madkit.extract.views import look_at
from madkit.teachers.interface import Teacher, TokenizedText, VisionTeacher
from madkit.teachers.preprocess import WHOLE, View


def encode_missing(
    writer: StoreWriter,
    teacher: Teacher,
    items: Items,
    options: ExtractOptions,
    signals: StopSignals | None,
    parallel: int,
    say: Callable[[Sequence[Choice]], None] | None = None,
) -> None:
    """Encode and store every unit that the writer does not have yet.

    Args:
        writer: of the store.
        teacher: reads images, texts, or both.
        items: what there is to encode.
        options: how to extract.
        signals: asked between units whether to stop.
        parallel: batches at a time (see :func:`madkit.extract.pipeline.one_thread_per_operation`).
        say: told what was chosen, and why.
    """
    engine = make_engine(teacher, writer.plan, options, parallel, [part for part in PARTS if writer.pending(part)])
    if say is not None:
        say(engine.choices)
    # On a GPU a shard takes a fraction of a second, which keeping it would double.
    job = _Job(writer, items, engine, signals, keep=torch.device(teacher.device).type == "cpu")
    if engine.images is not None:
        try:
            job.images(engine.images)
        finally:
            engine.images.undo_compile()  # the next store chooses for itself
    if engine.texts is not None:
        job.texts(engine.texts)


@dataclass(frozen=True, slots=True)
class _Job:
    """The encoding of one store's missing units."""

    writer: StoreWriter
    items: Items
    engine: Engine
    signals: StopSignals | None
    keep: bool

    def images(self, encoder: ImageEncoder) -> None:
        """Decode, encode and store the images of all missing units. One that cannot be read is marked as absent."""
        plan, teacher = self.writer.plan, encoder.teacher
        units = self.writer.pending("images")
        blank = torch.zeros((3, *teacher.image_size), dtype=torch.uint8)
        unreadable: dict[int, str] = {}
        views: dict[int, View] = {}
        decoded = ordered_map(
            lambda row: (row, _load(teacher, self.items, row)),
            (row for unit in units for row in plan.items("images", unit)),
            threads=self.engine.decode_threads,
            window=2 * encoder.batch + self.engine.decode_threads,
        )

        def pixels() -> Iterator[Tensor]:
            for future in decoded:
                row, found = future.result()
                if isinstance(found, DataError):
                    unreadable[row] = found.message.rstrip(".")
                    yield blank
                else:
                    image, views[row] = found
                    yield image

        def batches() -> Generator[tuple[Slice, list[Tensor]], None, None]:
            images = pixels()
            for unit in self._until_stopped(units):
                yield from slices(unit, len(plan.items("images", unit)), encoder.batch, images)

        total = sum(len(plan.items("images", unit)) for unit in units)
        with self._bar("images", total) as bar, closing(decoded), self._thread() as thread:
            encoded = encode_images(encoder, batches(), bar.advance, self.engine.parallel)
            for unit, arrays in encoded:
                rows = plan.items("images", unit)
                gone = {row: unreadable.pop(row) for row in rows if row in unreadable}
                seen = np.array([views.pop(row, WHOLE) for row in rows], dtype=np.float32)
                thread.put("images", unit, {**arrays, "views": seen}, gone)
        self._raise_if_stopped()

    def texts(self, encoder: TextEncoder) -> None:
        """Tokenize, encode and store the texts of all missing units; the next unit's are tokenized meanwhile."""
        plan, texts = self.writer.plan, self.items.texts
        units = self.writer.pending("texts")
        total = sum(len(plan.items("texts", unit)) for unit in units)

        def tokenize(unit: int) -> tuple[int, list[TokenizedText]]:
            rows = plan.items("texts", unit)
            return unit, encoder.teacher.tokenize(texts[rows.start : rows.stop])

        ahead = ordered_map(tokenize, self._until_stopped(units), threads=1, window=2)
        with self._bar("texts", total) as bar, closing(ahead), self._thread() as thread:
            for future in ahead:
                unit, tokenized = future.result()
                thread.put("texts", unit, encode_texts(encoder, tokenized, bar.advance))
        self._raise_if_stopped()

    def _thread(self) -> WriterThread:
        return WriterThread(self.writer, keep=self.keep)

    def _bar(self, part: Part, total: int) -> Progress:
        return progress(f"Extracting {part} of {self.writer.plan.identity['source']}", total, part)

    def _until_stopped(self, units: Sequence[int]) -> Iterator[int]:
        for unit in units:
            if self.signals is not None and self.signals.requested:
                return
            yield unit

    def _raise_if_stopped(self) -> None:
        if self.signals is not None and self.signals.requested:
            raise self.signals.error()


def _load(teacher: VisionTeacher, items: Items, row: int) -> tuple[Tensor, View] | DataError:
    if row in items.not_there:
        return DataError(f"{items.not_there[row]}.")
    try:
        return look_at(teacher, items.image_paths[row])
    except DataError as error:
        return error
