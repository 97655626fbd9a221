"""Settings of an extraction, and the automatic choices among them with their reasons."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from madkit.cache.layout import DEFAULT_SHARD_MB
from madkit.core.devices import device_of
from madkit.core.environment import usable_cpus
from madkit.core.errors import UsageProblem
from madkit.core.launcher import local_world_size
from madkit.core.registry import suggest
from madkit.extract.decode import check_decoder
from madkit.extract.selection import check_dtype, selected_count

IMAGE_BATCH = {"cpu": 32, "cuda": 256}
TEXT_BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}
COMPUTE_DTYPES = ("auto", "float32", "mixed", "float16", "bfloat16")
VIEWS = ("teacher", "whole")
COMPILE_CHOICES = ("auto", "on", "off")


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """How to extract, apart from what.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: threads that decode images; 0 for a choice by the number of cores.
        shard_mb: size of a shard in MB (10^6 bytes), the unit of work that a kill can cost.
        image_batch: images per forward pass; 0 for the device's default.
        text_tokens: tokens per forward pass, padding included; 0 for the device's default.
        allow_missing: complete a store though images cannot be read or texts have no tokens.
        tokens: ``all``, ``selected:K`` image tokens (see :mod:`madkit.extract.selection`), or ``global`` vectors only.
        store_dtype: ``float16`` or ``int8``.
        decoder: ``auto``, ``torchvision`` or ``pillow`` (see :mod:`madkit.extract.decode`).
        compute_dtype: what the teacher computes in: ``auto``, ``float32``, ``mixed``, ``float16`` or ``bfloat16``.
        compile: whether the image encoder's blocks are compiled: ``auto``, ``on`` or ``off``.
        view: what a teacher sees of an image: ``teacher`` (as it was trained), or ``whole``.
    """

    device: str = "auto"
    workers: int = 0
    shard_mb: float = DEFAULT_SHARD_MB
    image_batch: int = 0
    text_tokens: int = 0
    allow_missing: bool = False
    tokens: str = "all"
    store_dtype: str = "float16"
    decoder: str = "auto"
    compute_dtype: str = "auto"
    compile: str = "auto"
    view: str = "teacher"

    def __post_init__(self) -> None:
        if not 0 < self.shard_mb < float("inf"):
            raise UsageProblem(f"A shard of {self.shard_mb:g} MB is impossible.", hint="--shard-mb 32")
        selected_count(self.tokens)
        check_dtype(self.store_dtype)
        check_decoder(self.decoder)
        _check("compute dtype", "--compute-dtype", self.compute_dtype, COMPUTE_DTYPES)
        _check("choice of compiling", "--compile", self.compile, COMPILE_CHOICES)
        _check("view", "--view", self.view, VIEWS)
        if self.tokens == "global" and self.store_dtype != "float16":
            raise UsageProblem("Global vectors are always stored as float16.", hint="leave out --store-dtype")
        if self.workers < 0 or self.image_batch < 0 or self.text_tokens < 0:
            raise UsageProblem("Numbers of threads, images and tokens cannot be negative.")


def _check(what: str, option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageProblem(
            f"There is no {what} '{value}'.{suggest(value, known)}",
            hint=f"{option} {', '.join(known[:-1])} or {known[-1]}",
        )


def resolve_device(name: str) -> tuple[str, str]:
    """Return the torch device for ``--device`` and the reason for it.

    Raises:
        UsageProblem: no such device, or none of its kind on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda", f"{torch.cuda.get_device_name(0)} found"
        return "cpu", "no GPU that PyTorch can use"
    device_of(name)
    return name, "as asked for"


def decode_threads(workers: int) -> int:
    """Return how many threads decode images: as given, else one per usable core, at most 16.

    Processes of one machine share its cores.
    """
    return workers or max(1, min(16, usable_cpus() // local_world_size()))
