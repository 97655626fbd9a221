"""How far a teacher's vectors in 16 bits are from those in 32, token by token; and two teachers against each other.

The relative error of a vector is ||x - r|| / ||r||, r the reference in float32; the cosine says what is left of it when
only the direction counts. Mean values hide single tokens that overflow or lose their small channels, so the 99th
percentile and the worst token are given, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from madkit.core.errors import ConfigError, DataError, NotFoundError
from madkit.teachers.interface import Teacher
from madkit.teachers.load import load_teacher
from madkit.teachers.mixed import load_computing

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
DRAWN_IMAGES = 8
MOST_IMAGES = 256
BATCH = 8
SAMPLE_TEXTS = (
    "a photo of a cat",
    "Two dogs are chasing a red ball across the lawn, and the smaller one is winning.",
    "Why is [person1] pointing at [person2]?",
    "It's half past 10; isn't the café on 5th Avenue closed by now?",
    "no",
    "Il fait beau aujourd'hui à Genève.",
    "日本の庭園 😀",
    "The man in the blue shirt is about to hand over the keys because the woman has just paid for the car.",
)


@dataclass(frozen=True, slots=True)
class VectorErrors:
    """Errors over the vectors of one kind.

    Attributes:
        vectors: how many were compared.
        mean: mean relative L2 error.
        p99: its 99th percentile.
        worst: its largest value.
        cosine_mean: mean cosine with the reference.
        cosine_p1: its first percentile.
        cosine_worst: its smallest value.
        finite: whether no value was infinite or not a number; the figures above are of the finite vectors.
    """

    vectors: int
    mean: float
    p99: float
    worst: float
    cosine_mean: float
    cosine_p1: float
    cosine_worst: float
    finite: bool


def vector_errors(found: Tensor, reference: Tensor) -> VectorErrors:
    """Compare vectors [N, D] with reference vectors [N, D], N at least one."""
    found, reference = found.detach().double().cpu(), reference.detach().double().cpu()
    fine = found.isfinite().all(1)
    if not bool(fine.any()):
        return VectorErrors(len(found), 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, finite=False)
    kept, expected = found[fine], reference[fine]
    error = (kept - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-30)
    cosine = F.cosine_similarity(kept, expected, dim=1)
    return VectorErrors(
        vectors=len(found),
        mean=float(error.mean()),
        p99=float(error.quantile(0.99)),
        worst=float(error.max()),
        cosine_mean=float(cosine.mean()),
        cosine_p1=float(cosine.quantile(0.01)),
        cosine_worst=float(cosine.min()),
        finite=bool(fine.all()),
    )


def check_teacher(
    name: str,
    *,
    weights: Path | None = None,
    images: Sequence[Path] = (),
    texts: Sequence[str] = SAMPLE_TEXTS,
    dtypes: Sequence[str] = ("float16", "bfloat16"),
    device: str = "cpu",
    against: str | None = None,
    against_weights: Path | None = None,
) -> dict[str, Any]:
    """Compare a teacher in 16 bits, or another teacher, with the teacher in float32.

    Args:
        name: see :func:`madkit.teachers.load.load_teacher`.
        weights: likewise.
        images: image files, or folders of them; pictures are drawn where there are none.
        texts: what the text side reads.
        dtypes: ``float16``, ``bfloat16`` or ``mixed`` (:mod:`madkit.teachers.mixed`).
        device: a torch device.
        against: another teacher, for the same weights in another library; compared in float32, in place of dtypes.
        against_weights: its weights.

    Returns:
        Plain JSON values: ``rows`` with one entry for each compared run and kind of vector (``image tokens``,
        ``image globals``, ``text tokens``, ``text globals``), what was read, and ``finite`` over all.

    Raises:
        NotFoundError: an image or the weights do not exist.
        ConfigError: the other teacher has another grid, width or tokenizer; one that cannot compute ``mixed``.
    """
    teacher = load_teacher(name, weights=weights, device=device, dtype=torch.float32)
    pixels = pixels_of(teacher, images)
    reference = vectors_of(teacher, pixels, texts)
    rows: list[dict[str, Any]] = []
    if against is not None:
        other = load_teacher(against, weights=against_weights, device=device, dtype=torch.float32)
        _comparable(teacher, other, texts)
        rows += _rows(against, vectors_of(other, pixels_of(other, images), texts), reference)
    else:
        for label in dtypes:
            teacher = load_computing(name, label, weights=weights, device=device)
            rows += _rows(label, vectors_of(teacher, pixels, texts), reference)
    return {
        "teacher": teacher.name,
        "device": device,
        "reference": "float32",
        "images": 0 if pixels is None else len(pixels),
        "drawn": pixels is not None and not images,
        "texts": len(texts) if teacher.text is not None else 0,
        "finite": all(row["finite"] for row in rows),
        "rows": rows,
    }


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return the image files that paths name: files themselves, folders by what lies in them.

    Raises:
        NotFoundError: a path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise NotFoundError(f"The folder {path} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise NotFoundError(f"The image {path} does not exist.", hint="give files or folders: --images PATH")
    return found[:MOST_IMAGES]


def read_texts(path: Path) -> list[str]:
    """Read a file of one text per line (NotFoundError, or DataError for one without texts)."""
    if not path.is_file():
        raise NotFoundError(f"The file of texts {path} does not exist.", hint="give a file of one text per line")
    try:
        texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text in UTF-8.", hint="give a file of one text per line") from None
    if not texts:
        raise DataError(f"{path} holds no texts.")
    return texts


def pixels_of(teacher: Teacher, images: Sequence[Path]) -> Tensor | None:
    """Return uint8 [N, 3, H, W] as the teacher reads them; None without a vision side."""
    vision = teacher.vision
    if vision is None:
        return None
    if images:
        return torch.stack([vision.load_image(path) for path in image_files(images)])
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(DRAWN_IMAGES, 3, 7, 7, generator=generator) * 255
    fine = torch.rand(DRAWN_IMAGES, 3, *vision.image_size, generator=generator) * 16 - 8
    smooth = F.interpolate(coarse, size=vision.image_size, mode="bicubic", align_corners=False)
    return (smooth + fine).clamp(0, 255).to(torch.uint8)


def vectors_of(teacher: Teacher, pixels: Tensor | None, texts: Sequence[str]) -> dict[str, Tensor]:
    """Encode images and texts; return [N, D] of each kind on the CPU."""
    found: dict[str, list[Tensor]] = {}
    if teacher.vision is not None and pixels is not None:
        for batch in pixels.split(BATCH):
            seen = teacher.vision.encode(batch)
            found.setdefault("image tokens", []).append(seen.tokens.flatten(0, 1).float().cpu())
            found.setdefault("image globals", []).append(seen.global_.float().cpu())
    if teacher.text is not None:
        for some in _batches(texts):
            read = teacher.text.encode(some)
            found.setdefault("text tokens", []).append(read.tokens[read.mask.to(read.tokens.device)].float().cpu())
            found.setdefault("text globals", []).append(read.global_.float().cpu())
    result = {kind: torch.cat(parts) for kind, parts in found.items()}
    if any(len(vectors) == 0 for vectors in result.values()):
        raise DataError("There is nothing to compare: the texts have no words.", hint="give other texts: --texts FILE")
    return result


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), BATCH):
        yield texts[start : start + BATCH]


def _rows(run: str, found: dict[str, Tensor], reference: dict[str, Tensor]) -> list[dict[str, Any]]:
    return [{"run": run, "kind": kind, **asdict(vector_errors(found[kind], reference[kind]))} for kind in reference]


def _comparable(one: Teacher, other: Teacher, texts: Sequence[str]) -> None:
    """Refuse to compare what cannot be compared (ConfigError)."""
    problem = None
    if (one.vision is None) != (other.vision is None) or (one.text is None) != (other.text is None):
        problem = "one of them lacks a side"
    elif one.vision is not None and other.vision is not None and _shape(one.vision) != _shape(other.vision):
        problem = f"images give {_shape(one.vision)} and {_shape(other.vision)} as grid and width"
    elif one.text is not None and other.text is not None:
        if one.text.dim != other.text.dim:
            problem = f"words are {one.text.dim} and {other.text.dim} wide"
        elif [text.ids for text in one.text.tokenize(texts)] != [text.ids for text in other.text.tokenize(texts)]:
            problem = "their tokenizers split the texts differently"
    if problem is not None:
        raise ConfigError(f"'{one.name}' and '{other.name}' cannot be compared token by token: {problem}.")


def _shape(vision: Any) -> tuple[tuple[int, int], int]:
    return vision.grid, vision.dim
