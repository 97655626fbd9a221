"""What every teacher looks like, whichever library its weights come from.

Vision and text are separate (unimodal), so that any vision teacher can be used with any text teacher; a pair whose
vectors live in one space (CLIP) says so with ``Teacher.shared_space``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class VisionOutput:
    """Tokens of a batch of images.

    Attributes:
        tokens: [B, P, D], patches in row-major order of ``grid``.
        global_: [B, D], the library's own pooled output, not normalised.
        grid: (rows, columns) with rows x columns = P.
    """

    tokens: Tensor
    global_: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True, slots=True)
class TextOutput:
    """Tokens of a batch of texts.

    Attributes:
        tokens: [B, T, D].
        global_: [B, D], the library's own pooled output, not normalised.
        mask: [B, T] bool, true for real tokens: neither special nor padding.
        spans: [B, T, 2] int32, half-open character offsets into the original text; zeros where ``mask`` is false.
    """

    tokens: Tensor
    global_: Tensor
    mask: Tensor
    spans: Tensor


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """One text as its teacher will read it, special tokens left out.

    Attributes:
        ids: token ids, all of them: a text beyond the teacher's limit is read in windows.
        spans: a half-open character span of the original text for each id, starts never decreasing.
        approximate: true where cleaning changed the text so much that some spans point at a word or a stretch of words
            instead of exact characters.
    """

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    approximate: bool = False


class SpanTokenizer(Protocol):
    """A tokenizer that knows which characters of the original text each token stands for."""

    @property
    def digest(self) -> str:
        """Sixteen hex digits over everything that decides ids and spans."""

    @property
    def prefix(self) -> tuple[int, ...]:
        """Ids of the special tokens put before every text."""

    @property
    def suffix(self) -> tuple[int, ...]:
        """Ids of the special tokens put after every text."""

    @property
    def pad_id(self) -> int:
        """Id for padding."""

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenize without special tokens."""


class VisionTeacher(Protocol):
    """A frozen image encoder.

    ``identity`` holds plain JSON values that decide the output: weights digest, resolved preprocessing, layer.
    """

    name: str
    dim: int
    grid: tuple[int, int]
    image_size: tuple[int, int]
    identity: dict[str, Any]

    def load_image(self, path: Path) -> Tensor:
        """Decode, resize and crop an image file to uint8 [3, H, W]. Safe to call from threads.

        Raises:
            DataError: the file is missing or no image.
        """

    def encode(self, images: Tensor) -> VisionOutput:
        """Encode uint8 [B, 3, H, W]; normalisation happens here, on the device."""


class TextTeacher(Protocol):
    """A frozen text encoder. ``identity`` as for vision, with the tokenizer's digest and the context length.

    ``limit`` is how many real tokens fit beside the special ones; longer texts are read in windows.
    """

    name: str
    dim: int
    context_length: int
    limit: int
    identity: dict[str, Any]

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenize without encoding: lengths and spans, for planning."""

    def encode(self, texts: Sequence[str]) -> TextOutput:
        """Tokenize and encode."""

    def encode_tokenized(self, texts: Sequence[TokenizedText]) -> TextOutput:
        """Encode what :meth:`tokenize` gave."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """A vision teacher, a text teacher, or both.

    Attributes:
        name: canonical name, as used in cache folders and manifests.
        shared_space: whether vision and text vectors can be compared by cosine.
        logit_scale: factor on cosines before a softmax (CLIP's exponentiated temperature); 1.0 where there is none.
        device: where the weights are.
        dtype: dtype that the weights compute in.
        feed_forward: dtype of the products of its feed-forward layers, where that is another one
            (:mod:`madkit.teachers.mixed`).
    """

    name: str
    vision: VisionTeacher | None
    text: TextTeacher | None
    shared_space: bool
    logit_scale: float
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    feed_forward: torch.dtype | None = None
