"""Teachers made ready for reading data once: the dtype they compute in, checked, and the decoder of their images."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from madkit.core.errors import ConfigError
from madkit.extract.choices import Choice
from madkit.extract.decode import choose_decoder
from madkit.extract.image_encoding import modules_of
from madkit.teachers.check import SAMPLE_TEXTS, pixels_of, vector_errors, vectors_of
from madkit.teachers.interface import Teacher
from madkit.teachers.mixed import MIXED, as_float32, as_mixed, can_be_mixed, has_matrix_units, load_computing
from madkit.teachers.preprocess import Preprocessing

_FALLBACKS = {"cpu": ("float32",), "cuda": ("float16", "bfloat16", "float32")}
# What mixed arithmetic must keep of every vector to be chosen unasked; tokens are stored in 16 bits or 8.
LEAST_COSINE = 0.999
DRAWN = 4
PROBE_TEXT = "Two people sit at a table and look at a map."


def load_frozen(
    name: str,
    *,
    weights: Path | None = None,
    device: str = "cpu",
    compute_dtype: str = "auto",
    adapter: Path | None = None,
) -> tuple[Teacher, Choice]:
    """Load a teacher in the dtype it is to compute in, its weights cast once and checked.

    Args:
        name: see :func:`madkit.teachers.load.load_teacher`, whose errors this raises, too.
        weights: weight file or folder.
        device: a torch device.
        compute_dtype: what to compute in: a dtype's name, ``mixed`` (:mod:`madkit.teachers.mixed`), or ``auto``. That
            is, on a GPU, the first of float16, bfloat16 and float32 that keeps every weight and the vectors of a
            made-up picture and text finite. On a CPU it is ``mixed`` where the processor has matrix units and these
            very weights bear it, float32 otherwise.
        adapter: folder of an adaptation run whose outcome is applied.

    Raises:
        ConfigError: the dtype that was asked for does not hold this teacher's numbers.
    """
    kind = torch.device(device).type
    asked = compute_dtype != "auto"
    chosen = (compute_dtype,) if asked else _FALLBACKS.get(kind, _FALLBACKS["cpu"])
    reason = "as asked for" if asked else f"the default on {kind}"
    problem: str | None = None
    for label in chosen:
        teacher = load_computing(name, label, weights=weights, device=device, adapter=adapter)
        problem = weight_not_finite(teacher) if label == "float32" else not_finite(teacher)
        if problem is None:
            if not asked and kind == "cpu":
                return mixed_if_it_pays(teacher)
            return teacher, Choice("compute dtype", label, reason)
        reason = f"{label} does not do: {problem}"
    if label == "float32":  # no dtype has more range
        raise ConfigError(f"The teacher '{name}' cannot be used: {problem}.", hint="get its weights anew")
    raise ConfigError(
        f"The teacher '{name}' cannot compute in {compute_dtype}: {problem}.", hint="--compute-dtype float32"
    )


def mixed_if_it_pays(teacher: Teacher) -> tuple[Teacher, Choice]:
    """Return a float32 teacher on a CPU in mixed arithmetic, if the processor is made for it and the weights bear it.

    They bear it if no vector of some drawn pictures and some texts suffers. That depends on how sharp a teacher's
    attention is above all, so it is measured. The same weights give the same outcome on the same kind of processor.
    """
    if not has_matrix_units() or not can_be_mixed(teacher):
        return teacher, Choice("compute dtype", "float32", "the default on cpu")
    pixels = pixels_of(teacher, ())
    pixels = None if pixels is None else pixels[:DRAWN]
    exact = vectors_of(teacher, pixels, SAMPLE_TEXTS)
    changed = as_mixed(teacher)
    assert changed is not None  # since it can be
    try:
        found = vectors_of(changed, pixels, SAMPLE_TEXTS)
    except (RuntimeError, TypeError) as error:  # an encoder whose parts do not go together in two dtypes
        reason = f"mixed does not do: {str(error).splitlines()[0]}"
        return as_float32(changed), Choice("compute dtype", "float32", reason)
    errors = {kind: vector_errors(found[kind], exact[kind]) for kind in exact}
    kind, worst = min(errors.items(), key=lambda item: item[1].cosine_worst)
    measured = f"its worst cosine with float32 is {worst.cosine_worst:.5f}, of {worst.vectors:,} {kind}"
    if worst.cosine_worst < LEAST_COSINE or not all(one.finite for one in errors.values()):
        reason = f"mixed does not do: {measured}"
        return as_float32(changed), Choice("compute dtype", "float32", reason)
    made = "float32, but feed-forward layers in bfloat16, which this processor has units for"
    return changed, Choice("compute dtype", MIXED, f"{made}; {measured}")


@torch.inference_mode()
def not_finite(teacher: Teacher) -> str | None:
    """Return what is not finite in a teacher: a weight, or a vector of a made-up picture or text; None if all is."""
    weight = weight_not_finite(teacher)
    if weight is not None:
        return weight
    if teacher.vision is not None:
        height, width = teacher.vision.image_size
        ramp = (torch.arange(height)[:, None] + torch.arange(width)).remainder(256).to(torch.uint8)
        pictures = torch.stack([ramp, torch.full_like(ramp, 255)])
        seen = teacher.vision.encode(pictures.unsqueeze(1).expand(-1, 3, -1, -1))
        if not _finite(seen.tokens) or not _finite(seen.global_):
            return "a picture's vectors are not finite"
    if teacher.text is not None:
        read = teacher.text.encode([PROBE_TEXT])
        padding = ~read.mask.to(read.tokens.device).unsqueeze(-1)  # may hold anything
        if not _finite(read.tokens.masked_fill(padding, 0)) or not _finite(read.global_):
            return "a text's vectors are not finite"
    return None


def weight_not_finite(teacher: Teacher) -> str | None:
    """Return which weight of a teacher is not finite, None if all are."""
    for side in (teacher.vision, teacher.text):
        if side is None:
            continue
        for module in modules_of(side):
            for name, weight in module.named_parameters():
                if not bool(torch.isfinite(weight).all()):
                    return f"the weight {name} is not finite"
    return None


def _finite(values: torch.Tensor) -> bool:
    return bool(torch.isfinite(values.to(torch.float16)).all())


def with_decoder(teacher: Teacher, decoder: str) -> tuple[Teacher, Choice | None]:
    """Return the teacher reading images with a decoder (``auto``, ``torchvision``, ``pillow``), and the choice made.

    The identity of its vision side names the decoder, as it always has.
    """
    preprocessing = _preprocessing(teacher)
    if preprocessing is None or teacher.vision is None:
        return teacher, None
    chosen, reason = choose_decoder(decoder, teacher.vision.name)
    if chosen != preprocessing.decoder:
        teacher = _preprocessed(teacher, replace(preprocessing, decoder=chosen))
    return teacher, Choice("decoder", chosen, reason)


def with_view(teacher: Teacher, view: str) -> tuple[Teacher, Choice | None]:
    """Return the teacher seeing images as it was trained to (``teacher``) or always whole, squeezed to its square.

    Most teachers cut the centre out. A teacher that sees ``whole`` images misses nothing at their borders, at the price
    of proportions that it was not trained on. The choice, None where nothing could be cut off, is told to people.
    """
    preprocessing = _preprocessing(teacher)
    if preprocessing is None or not preprocessing.cuts:
        return teacher, None
    if view == "whole":
        whole = replace(preprocessing, resize_mode="squash", resize_edge=None, crop="round")
        return _preprocessed(teacher, whole), Choice("view", view, "as asked for; images are squeezed, nothing is cut")
    return teacher, Choice("view", view, "as it was trained: the centre of each image; the cache says which part")


def _preprocessing(teacher: Teacher) -> Preprocessing | None:
    """None for a teacher that reads image files in its own way, or reads none."""
    found = getattr(teacher.vision, "preprocessing", None)
    return found if isinstance(found, Preprocessing) else None


def _preprocessed(teacher: Teacher, preprocessing: Preprocessing) -> Teacher:
    vision: Any = copy(teacher.vision)
    vision.preprocessing = preprocessing
    vision.identity = {**vision.identity, "preprocessing": preprocessing.identity()}
    return replace(teacher, vision=vision)


def load_as_stored(
    identity: Mapping[str, Any], *, weights: Path | None = None, device: str = "cpu", adapter: Path | None = None
) -> Teacher:
    """Load the teacher of a store, computing and decoding as it did when the store was made.

    Args:
        identity: the store's.
        weights: weight file or folder.
        device: a torch device.
        adapter: folder of the adaptation run that the store was made with (``adapter_of_store``), if any.
    """
    arithmetic = str(identity.get("compute_dtype", "float32"))
    teacher = load_computing(str(identity["teacher"]), arithmetic, weights=weights, device=device, adapter=adapter)
    side = identity.get("vision")
    stored = side.get("preprocessing") if isinstance(side, Mapping) else None
    stored = stored if isinstance(stored, Mapping) else {}  # a store of another program says it in its own way
    if stored.get("resize_mode") == "squash":
        teacher, _ = with_view(teacher, "whole")
    decoder = stored.get("decoder")
    return teacher if decoder is None else with_decoder(teacher, decoder)[0]
