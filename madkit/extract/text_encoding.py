"""The text side of the engine: texts of similar length share a forward pass, so that next to nothing is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from madkit.extract.choices import Choice
from madkit.extract.image_encoding import device_of
from madkit.extract.ordered import ordered_map
from madkit.teachers.interface import TextTeacher, TokenizedText

SPECIAL = 2
"""Tokens that a teacher puts around a text, or more."""

LAUNCH_TOKENS = {"cpu": 0, "cuda": 6000}
"""What a forward pass costs beside its tokens, in tokens: on a GPU launching its kernels takes about as long."""


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """What is kept of a batch of texts, on the host. Unpacks as (rows, tokens, spans, globals).

    Attributes:
        rows: [n] which texts of the sequence given.
        tokens: [sum of lengths, D] float16, text after text in the order of ``rows``.
        spans: [sum of lengths, 2] int32.
        globals: [n, D] float16.
        finite: whether every value is finite.
    """

    rows: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.float16]
    spans: npt.NDArray[np.int32]
    globals: npt.NDArray[np.float16]
    finite: bool

    def __iter__(self) -> Iterator[npt.NDArray[np.generic]]:
        return iter((self.rows, self.tokens, self.spans, self.globals))


class TextEncoder:
    """Encodes tokenized texts in batches of similar length.

    Args:
        teacher: the frozen encoder.
        token_budget: most tokens of a forward pass, padding included.
        parallel: batches at a time, for the CPU with one thread per operation.

    Attributes:
        choices: what this object chose by itself.
    """

    def __init__(self, teacher: TextTeacher, *, token_budget: int, parallel: int = 1) -> None:
        self.teacher = teacher
        self.token_budget = token_budget
        self.parallel = parallel
        self.device = device_of(teacher)
        self.choices: list[Choice] = []

    def encode_all(self, tokenized: Sequence[TokenizedText]) -> Iterator[EncodedTexts]:
        """Yield every text once, longest first. What a text's batch holds depends on ``tokenized`` alone."""
        lengths = np.array([len(text.ids) for text in tokenized], dtype=np.int64)
        if getattr(self.teacher, "full_width", False):  # a word then takes as much memory as the longest text
            lengths = np.maximum(lengths, self.teacher.context_length - SPECIAL)
        batches = length_batches(lengths, self.token_budget, LAUNCH_TOKENS.get(self.device.type, 0))
        done = ordered_map(
            lambda rows: self._encode(tokenized, rows), batches, threads=self.parallel, window=self.parallel + 1
        )
        for future in done:
            yield future.result()

    @torch.inference_mode()
    def _encode(self, tokenized: Sequence[TokenizedText], rows: list[int]) -> EncodedTexts:
        output = self.teacher.encode_tokenized([tokenized[row] for row in rows])
        real = output.mask.flatten().nonzero().squeeze(1)  # on the host: the device has nothing to count
        flat = output.tokens.flatten(0, 1)
        tokens = flat[real.to(flat.device, non_blocking=True)].to(torch.float16)
        globals_ = output.global_.to(torch.float16)
        finite = torch.isfinite(tokens).all() & torch.isfinite(globals_).all()
        return EncodedTexts(
            np.array(rows, dtype=np.int64),
            tokens.cpu().numpy(),
            output.spans[output.mask].numpy(),
            globals_.cpu().numpy(),
            bool(finite),
        )


def length_batches(lengths: npt.NDArray[np.int64], token_budget: int, launch_tokens: int = 0) -> list[list[int]]:
    """Group texts, longest first, so that rows x longest text (two special tokens included) fits the budget.

    Args:
        lengths: [n] tokens of each text.
        token_budget: most tokens of a batch, padding included; a text that is longer than that has one for itself.
        launch_tokens: what a batch costs beside its tokens, in tokens. Where it is not 0, a batch also ends as soon as
            going on would pad more than a new one costs.
    """
    batches: list[list[int]] = []
    width = padding = 0
    for row in np.argsort(-lengths, kind="stable").tolist():
        shorter = width - int(lengths[row]) - SPECIAL
        if (
            not batches
            or (len(batches[-1]) + 1) * width > token_budget
            or (launch_tokens and padding + shorter > launch_tokens)
        ):
            batches.append([])
            width = int(lengths[row]) + SPECIAL
            padding = shorter = 0
        batches[-1].append(row)
        padding += shorter
    return batches
