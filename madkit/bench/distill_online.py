"""The other way to distil: the teacher's encoders run in every step, on the step's own images and texts.

It is the same teacher that `madkit extract` runs, compiled where the device is a GPU, so that what the cache saves is
not made larger than it is. What it gives replaces the cached vectors of a batch; pooling, selection and loss stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import torch
from torch import Tensor

from madkit.bench.extract_models import Source, as_open_clip, as_teacher
from madkit.distill.batches.micro_batch import Batch
from madkit.extract.image_encoding import ImageEncoder
from madkit.mad.align import pool_regions
from madkit.mad.targets import TeacherTargets
from madkit.teachers.interface import TokenizedText

_BATCHES = 4  # of random pictures that take turns


class OnlineTeacher:
    """Encodes the images and texts of a step.

    Args:
        source: the teacher's weights.
        device: where.
        dtype: what it computes in.
        images: images of a step.
        words: tokens of each text of a step, special ones not counted; a batch is padded to the longest.
        eager: open_clip's own image encoder, not compiled, in place of madkit's.
    """

    def __init__(
        self, source: Source, device: str, dtype: torch.dtype, *, images: int, words: Sequence[int], eager: bool
    ) -> None:
        teacher = as_teacher(source, device=device, dtype=dtype)
        assert teacher.vision is not None
        assert teacher.text is not None
        self.grid = teacher.vision.grid
        self._text = teacher.text
        self._eager = as_open_clip(source, device=device, dtype=dtype) if eager else None
        cuda = torch.device(device).type == "cuda"
        self._encoder = ImageEncoder(teacher.vision, batch=images, compile=cuda and not eager)
        self._dtype = dtype
        size = source.preprocessing["size"]
        edge = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        draw = torch.Generator().manual_seed(0)
        self._pictures = [
            torch.randint(0, 256, (images, 3, *edge), dtype=torch.uint8, generator=draw).to(device)
            for _ in range(_BATCHES)
        ]
        ids = torch.randint(1000, 40000, (len(words), max(words)), generator=draw).tolist()
        self._ids = [
            TokenizedText(tuple(row[:length]), tuple((place, place + 1) for place in range(length)))
            for row, length in zip(ids, words, strict=True)
        ]
        self._turn = count()

    @torch.no_grad()
    def teach(self, batch: Batch) -> Batch:
        """`batch`, on the device and with whole targets, taught by what the encoders say in this moment."""
        targets = batch.teacher
        assert isinstance(targets, TeacherTargets)
        B = targets.image_global.shape[0]
        patches, image_global = self._see(self._pictures[next(self._turn) % _BATCHES][:B])
        read = self._text.encode_tokenized(self._ids)
        S, T = targets.text_mask.shape
        # made-up words: a student's token takes the token of the same number
        index = torch.arange(T, device=read.tokens.device).clamp(max=read.tokens.shape[1] - 1)
        row = torch.arange(S, device=read.tokens.device) % len(read.tokens)
        said = replace(
            targets,
            regions=pool_regions(patches, batch.inputs.region_boxes, self.grid).to(targets.regions.dtype),
            image_global=image_global.float(),
            text_tokens=read.tokens[row][:, index].to(targets.text_tokens.dtype),
            text_global=read.global_[row].float(),
        )
        return replace(batch, teacher=said)

    def _see(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        if self._eager is None:
            found = self._encoder.encode(pictures)
            return found.tokens, found.globals
        pooled, tokens = self._eager(pictures.to(self._dtype) / 255)
        return (tokens if self._eager.proj is None else tokens @ self._eager.proj), pooled
