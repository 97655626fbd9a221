"""How an extraction runs on the device at hand: sizes, threads, compiling; each with its reason.

Everything here follows from the store's plan and the options, never from what is left to do: an extraction that goes on
runs as the one that was stopped did, and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from madkit.cache.plan import PARTS, Part, StorePlan
from madkit.core.console import info
from madkit.core.errors import ConfigError
from madkit.extract.choices import Choice
from madkit.extract.image_encoding import ImageEncoder, modules_of
from madkit.extract.options import IMAGE_BATCH, TEXT_BATCH_TOKENS, ExtractOptions, decode_threads
from madkit.extract.text_encoding import TextEncoder
from madkit.teachers.interface import Teacher, VisionTeacher
from madkit.teachers.side_modules import side_parameters

COMPILE_S = 20.0
"""About how long compiling a block takes, warm-up included."""
GPU_FLOPS, COMPILE_GAIN = 3.5e14, 0.25
"""Operations a second that a large GPU does in an encoder that is not compiled, and the part that compiling saves."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What encodes a store's units.

    Attributes:
        images: encodes images; None where there are none to do.
        texts: encodes texts; None where there are none to do.
        decode_threads: threads that read images.
        parallel: batches at a time on the CPU.
        choices: what was chosen, and why.
    """

    images: ImageEncoder | None
    texts: TextEncoder | None
    decode_threads: int
    parallel: int
    choices: tuple[Choice, ...]


def make_engine(
    teacher: Teacher, plan: StorePlan, options: ExtractOptions, parallel: int, parts: Collection[Part] = PARTS
) -> Engine:
    """Choose what ``options`` leave open, compile what is to be compiled, and say so.

    Args:
        teacher: on its device, reading images as it is to.
        plan: of the store to fill.
        options: how to extract.
        parallel: batches at a time (see :func:`madkit.extract.pipeline.one_thread_per_operation`).
        parts: what there is anything to do for.

    Raises:
        ConfigError: compiling was asked for, and nothing here can compile.
    """
    kind = torch.device(teacher.device).type
    choices: list[Choice] = []
    threads = decode_threads(options.workers)
    images = texts = None
    if kind == "cpu":
        choices.append(Choice("batches at a time", str(parallel), "one thread each: nobody waits inside an operation"))
    if teacher.vision is not None and plan.images.n and "images" in parts:
        why = "as asked for" if options.workers else "one for each core, at most 16"
        choices.append(Choice("decoding threads", str(threads), why))
        images, chosen = _images(teacher.vision, plan, options, kind)
        choices += chosen
    if teacher.text is not None and plan.text.n and "texts" in parts:
        budget = options.text_tokens or TEXT_BATCH_TOKENS.get(kind, 2048)
        why = "as asked for" if options.text_tokens else f"the default on {kind}; texts sorted by length"
        choices.append(Choice("tokens of texts a batch", f"{budget:,}", why))
        # On a GPU the second thread prepares its batch while the first waits for the device.
        texts = TextEncoder(teacher.text, token_budget=budget, parallel=parallel if kind == "cpu" else 2)
        choices += texts.choices
    return Engine(images, texts, threads, parallel, tuple(choices))


def _images(
    vision: VisionTeacher, plan: StorePlan, options: ExtractOptions, kind: str
) -> tuple[ImageEncoder, list[Choice]]:
    most = options.image_batch or IMAGE_BATCH.get(kind, 32)
    batch, why = most, "as asked for" if options.image_batch else f"the default on {kind}"
    unit = min(plan.images.unit, plan.images.n)
    if kind != "cpu":  # one shape, so a batch that divides the shard wastes least
        batch = even_batch(unit, most)
        why += "" if batch == most else f", evened out over the {unit} images of a shard"
    compiling, reason = choose_compile(options.compile, vision, plan.images.n, kind)
    encoder, failure = _compiled(vision, batch, plan.images.tokens, options.compile) if compiling else (None, None)
    if encoder is None:
        encoder = ImageEncoder(vision, batch=batch, kept=plan.images.tokens)
    if failure is not None:
        compiling, reason = False, f"compiling failed: {failure}"
    choices = [Choice("images a batch", str(batch), why), Choice("compiling", "on" if compiling else "off", reason)]
    return encoder, choices + encoder.choices


def even_batch(unit: int, most: int) -> int:
    """Return the size, at most ``most``, of the fewest equal batches that hold a unit.

    >>> even_batch(81, 256), even_batch(600, 256), even_batch(0, 256)
    (81, 200, 1)
    """
    if unit <= 0:
        return 1
    return -(-unit // -(-unit // most))


def choose_compile(wanted: str, vision: VisionTeacher, images: int, kind: str) -> tuple[bool, str]:
    """Return whether to compile the image encoder's blocks, and why.

    Args:
        wanted: ``auto``, ``on`` or ``off``.
        vision: the encoder.
        images: all images of the store, done or not.
        kind: type of the device.
    """
    if wanted != "auto":
        return wanted == "on", "as asked for"
    if kind != "cuda":
        return False, f"on {kind} matrix products take nearly all the time, and these stay as they are"
    saved = images * encoder_flops(vision) / GPU_FLOPS * COMPILE_GAIN
    if saved <= COMPILE_S:
        return False, f"{images:,} images would gain less than compiling takes"
    return True, f"saves about {saved:,.0f} s on a large GPU"


def encoder_flops(vision: VisionTeacher) -> float:
    """Estimate the operations for one image: two for each weight and token, attention and convolutions left aside."""
    weights = {
        id(weight): weight.numel()
        for module in modules_of(vision)
        for weight in side_parameters(module, "vision").values()
    }
    return 2.0 * sum(weights.values()) * (vision.grid[0] * vision.grid[1] + 1)


def _compiled(vision: VisionTeacher, batch: int, kept: int, wanted: str) -> tuple[ImageEncoder | None, str | None]:
    """Return an encoder with compiled blocks, or why there is none."""
    info(f"Compiling the blocks of {vision.name} ...")
    encoder = ImageEncoder(vision, batch=batch, kept=kept, compile=True)
    try:
        encoder.warm_up()
    except Exception as error:  # whatever a compiler chain may raise
        encoder.undo_compile()
        first = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")[:200]
        if wanted == "on":
            raise ConfigError(
                f"The blocks of '{vision.name}' cannot be compiled here ({first}).", hint="--compile off"
            ) from None
        return None, first
    return encoder, None
