"""Encoding the missing units of a store: images through decoder and teacher, texts through tokenizer and teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice

import torch

from madkit.cache.plan import Part
from madkit.cache.writer import StoreWriter
from madkit.core.console import Progress, progress
from madkit.core.errors import DataError
from madkit.core.interrupts import StopSignals
from madkit.extract.items import Items
from madkit.extract.options import IMAGE_BATCH, TEXT_BATCH_TOKENS, ExtractOptions, decode_threads
from madkit.extract.pipeline import WriterThread, encode_images, encode_texts, ordered_map
from madkit.teachers.interface import Teacher, TextTeacher, VisionTeacher


def encode_missing(
    writer: StoreWriter,
    teacher: Teacher,
    items: Items,
    options: ExtractOptions,
    signals: StopSignals | None,
    parallel: int,
) -> None:
    """Encode and store every unit that the writer does not have yet, ``parallel`` batches at a time."""
    job = _Job(writer, teacher.device, options, signals, parallel)
    if teacher.vision is not None:
        job.images(teacher.vision, items)
    if teacher.text is not None:
        job.texts(teacher.text, items)


class _Job:
    """The encoding of one store's missing units."""

    def __init__(
        self, writer: StoreWriter, device: str, options: ExtractOptions, signals: StopSignals | None, parallel: int
    ) -> None:
        kind = torch.device(device).type
        self.writer = writer
        self.plan = writer.plan
        self.signals = signals
        self.parallel = parallel
        self.threads = decode_threads(options.workers)
        self.image_batch = options.image_batch or IMAGE_BATCH.get(kind, 32)
        self.text_tokens = options.text_tokens or TEXT_BATCH_TOKENS.get(kind, 2048)

    def images(self, teacher: VisionTeacher, items: Items) -> None:
        """Decode, encode and store the images of all missing units. One that cannot be read is marked as absent."""
        units = self.writer.pending("images")
        rows = [row for unit in units for row in self.plan.items("images", unit)]
        unreadable: dict[int, str] = {}
        blank = torch.zeros((3, *teacher.image_size), dtype=torch.uint8)
        decoded = ordered_map(
            lambda row: _load(teacher, items, row),
            rows,
            threads=self.threads,
            window=2 * self.image_batch + self.threads,
        )

        def readable() -> Iterator[torch.Tensor]:
            for row, future in zip(rows, decoded, strict=True):
                error = future.exception()
                if isinstance(error, DataError):
                    unreadable[row] = error.message.rstrip(".")
                yield blank if isinstance(error, DataError) else future.result()

        images = readable()
        with self._bar("images", len(rows)) as bar, closing(decoded), WriterThread(self.writer) as thread:
            for unit in self._until_stopped(units):
                count = len(self.plan.items("images", unit))
                arrays = encode_images(
                    teacher,
                    islice(images, count),
                    count,
                    self.image_batch,
                    bar.advance,
                    self.parallel,
                    self.plan.images.tokens,
                )
                thread.put("images", unit, arrays, unreadable.copy())
                unreadable.clear()
        self._raise_if_stopped()

    def texts(self, teacher: TextTeacher, items: Items) -> None:
        """Tokenize, encode and store the texts of all missing units."""
        units = self.writer.pending("texts")
        count = sum(len(self.plan.items("texts", unit)) for unit in units)
        with self._bar("texts", count) as bar, WriterThread(self.writer) as thread:
            for unit in self._until_stopped(units):
                rows = self.plan.items("texts", unit)
                tokenized = teacher.tokenize(items.texts[rows.start : rows.stop])
                thread.put(
                    "texts", unit, encode_texts(teacher, tokenized, self.text_tokens, bar.advance, self.parallel)
                )
        self._raise_if_stopped()

    def _bar(self, part: Part, total: int) -> Progress:
        return progress(f"Extracting {part} of {self.plan.identity['source']}", total, part)

    def _until_stopped(self, units: Sequence[int]) -> Iterator[int]:
        for unit in units:
            if self.signals is not None and self.signals.requested:
                return
            yield unit

    def _raise_if_stopped(self) -> None:
        if self.signals is not None and self.signals.requested:
            raise self.signals.error()


def _load(teacher: VisionTeacher, items: Items, row: int) -> torch.Tensor:
    if row in items.not_there:
        raise DataError(f"{items.not_there[row]}.")
    return teacher.load_image(items.image_paths[row])
