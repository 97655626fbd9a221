"""`madkit bench extract`: images to tokens, against loops written with open_clip and transformers alone.

Every side has the same weights and reads the same images; before any ratio its tokens are compared with the others'.
Compute only: uint8 images that lie on the device, tokens on the device. End to end: JPEG files to files of tokens.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from madkit.bench.agreement import compare, must_agree
from madkit.bench.ceilings import device_facts, measure_ceilings
from madkit.bench.extract_inputs import FLICKR, write_pictures
from madkit.bench.extract_models import TINY, Source, as_teacher, source
from madkit.bench.extract_sides import (
    Extraction,
    OpenClipLoop,
    Reader,
    TransformersLoop,
    compute_work,
    empty,
    madkit_reader,
    open_clip_reader,
    reference,
    stored_tokens,
    transformers_reader,
)
from madkit.bench.machine import busy, cores, machine_facts
from madkit.bench.turns import Side, Speed, take_turns
from madkit.core.console import info
from madkit.core.errors import ConfigError, RunError, UsageProblem
from madkit.extract.frozen import mixed_if_it_pays
from madkit.extract.options import resolve_device
from madkit.teachers.mixed import MIXED

SCHEMA = 1
AGAIN = ", again"
_BFLOAT16, _FLOAT16, _FLOAT32 = torch.bfloat16, torch.float16, torch.float32
_COMPARED = 8  # images whose tokens are compared in float64
_END_COMPARED = 64  # images whose stored tokens are compared
_MOST_OTHER = 0.01  # share of the tokens' variance: bfloat16 leaves 0.0001 unexplained, other tokens about 2
_NOISY = 1.15
_INPUTS = 4  # batches that take turns, so that none of them waits in a cache


@dataclass(frozen=True, slots=True)
class ExtractBenchOptions:
    """What to measure.

    Attributes:
        model: architecture of open_clip, ``ARCH`` or ``ARCH/TAG``; empty for ViT-L-14 on a GPU and ViT-B-32 on a CPU.
        weights: a weight file; None for random weights.
        images: JPEG files of the end-to-end part; 0 for 4,096 on a GPU and 64 on a CPU.
        batch: images per forward pass of every side; 0 for 256 on a GPU and 32 on a CPU.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        repeats: rounds, of two turns for each side; medians are reported.
        tiny: a made-up architecture and small pictures, for tests: no figure of it means anything.
    """

    model: str = ""
    weights: Path | None = None
    images: int = 0
    batch: int = 0
    device: str = "auto"
    repeats: int = 3
    tiny: bool = False

    def __post_init__(self) -> None:
        if self.tiny and self.model:
            raise UsageProblem("--tiny is a model of its own.", hint="leave out --model or --tiny")
        if self.images < 0 or self.batch < 0 or self.repeats < 1:
            raise UsageProblem("Numbers of images and rounds cannot be negative.")


def bench_extract(options: ExtractBenchOptions | None = None) -> dict[str, Any]:
    """Measure, and return the document that `docs/bench.md` describes.

    Raises:
        UsageProblem: options that cannot be meant, no such model or device.
        RunError: a side gives other tokens than the others, or the disk has no room.
    """
    options = options or ExtractBenchOptions()
    device, _ = resolve_device(options.device)
    cuda = torch.device(device).type == "cuda"
    model = TINY if options.tiny else options.model or ("ViT-L-14" if cuda else "ViT-B-32")
    batch = options.batch or (4 if options.tiny else 256 if cuda else 32)
    images = options.images or (8 if options.tiny else 4096 if cuda else 64)
    machine = machine_facts()
    info(f"Building {model} with {'random weights' if options.weights is None else options.weights}.")
    found = source(model, options.weights)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        **when_and_how(),
        "machine": machine,
        "device": device_facts(device),
        "model": found.name.removeprefix("open_clip:"),
        "weights": found.weights,
        "gflop_image": round(found.gflop_image(), 6),
        "options": {"images": images, "batch": batch, "repeats": options.repeats, "tiny": options.tiny},
        "warnings": [],
    }
    warning = busy(machine)
    if warning:
        document["warnings"].append(warning)
    document["ceilings"] = measure_ceilings(device, tiny=options.tiny)
    bench = _Bench(found, device, batch, options.repeats, document)
    document["compute"] = bench.compute(turn_s=0.02 if options.tiny else 1.0)
    document["end_to_end"] = bench.end_to_end(images, (64, 48) if options.tiny else FLICKR)
    warn_of_noise(document, document["compute"], document["end_to_end"])
    return document


def when_and_how() -> dict[str, str]:
    """Return the date and the command that runs, for the document."""
    command = " ".join(["madkit", *sys.argv[1:]]) if "bench" in sys.argv else "madkit.bench"
    return {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "command": command}


class _Bench:
    """One run: the weights, the device, and the document that is being filled."""

    def __init__(self, found: Source, device: str, batch: int, repeats: int, document: dict[str, Any]) -> None:
        self.source, self.device, self.batch, self.repeats, self.document = found, device, batch, repeats, document
        self.cuda = torch.device(device).type == "cuda"
        # madkit's own sides as (dtype, compiled, mixed), and the one that it is without being asked for another: on a
        # GPU what large jobs do
        self.ours = [(_FLOAT16, False, False), (_FLOAT16, True, False)]
        self.unasked = self.ours[-1]
        if not self.cuda:
            self.ours = [(_FLOAT32, False, False), (_BFLOAT16, False, False)]
            self.unasked = self.ours[0]
            _, choice = mixed_if_it_pays(as_teacher(found, device=device, dtype=_FLOAT32))
            info(f"{choice.name}: {choice.value} ({choice.reason}).")
            if choice.value == MIXED:
                self.unasked = (_FLOAT32, False, True)
                self.ours.insert(1, self.unasked)
        size = found.preprocessing["size"]
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def compute(self, turn_s: float) -> dict[str, Any]:
        """Rows of the compute-only part."""
        together = torch.get_num_threads() if not self.cuda else 1
        readers = self._readers()
        draw = torch.Generator().manual_seed(1)
        shape = (3, *self.size)
        few = torch.randint(0, 256, (_COMPARED, *shape), dtype=torch.uint8, generator=draw).to(self.device)
        exact = reference(self.source, few)
        errors: dict[str, Any] = {}
        for name, reader in readers.items():
            found = compare(reader.encode(few).double().cpu().numpy(), exact)
            must_agree(name, "open_clip in float64", "images", found, _MOST_OTHER)
            errors[name] = found.as_row()
        batches: list[Tensor] = [
            torch.randint(0, 256, (self.batch, *shape), dtype=torch.uint8, generator=draw).to(self.device)
            for _ in range(_INPUTS)
        ]
        sides = [
            Side(name, compute_work(reader, batches, together), self.batch * together)
            for name, reader in readers.items()
        ]
        sides.append(Side(sides[0].name + AGAIN, sides[0].work, sides[0].items))
        speeds = take_turns(sides, repeats=self.repeats, device=self.device, turn_s=turn_s, what="Compute only")
        rows = [
            {
                "side": name,
                "dtype": long(reader),
                **speeds[name].as_row(),
                "of_limit": self._of_limit(speeds[name]),
                **errors[name],
            }
            for name, reader in readers.items()
        ]
        return {"rows": with_ratios(rows, self._default("madkit")), "noise": noise(speeds, sides[0].name)}

    def _readers(self) -> dict[str, Reader]:
        peers = [(open_clip_reader, dtype) for dtype in (_FLOAT32, _BFLOAT16)]
        peers.append((transformers_reader, _BFLOAT16 if self.cuda else _FLOAT32))
        readers = []
        for make, dtype in peers:
            try:
                readers.append(make(self.source, self.device, dtype))
            except ConfigError as error:
                self.document["warnings"].append(f"{error.message} That side is left out.")
        more = [(_BFLOAT16, True, False)] if self.cuda else []
        for dtype, compiled, mixed in self.ours + more:
            reader, choices = madkit_reader(
                self.source, self.device, dtype, batch=self.batch, compiled=compiled, mixed=mixed
            )
            readers.append(reader)
            for choice in choices:
                info(f"{reader.name}, {short(reader)}: {choice}.")
        return {f"{reader.name} {short(reader)}": reader for reader in readers}

    def _default(self, name: str) -> str:
        """The row that ratios are of."""
        dtype, compiled, mixed = self.unasked
        return f"{name}{', compiled' if compiled else ''} {MIXED if mixed else short_dtype(dtype)}"

    def _of_limit(self, speed: Speed) -> float:
        flops: float = self.document["gflop_image"] * 1e9 * speed.as_row()["per_second"]
        return float(f"{flops / (self.document['ceilings']['limit_tflops'] * 1e12):.3g}")

    def end_to_end(self, images: int, size: tuple[int, int]) -> dict[str, Any]:
        """Rows of the part from files to files."""
        peer_dtype = _BFLOAT16 if self.cuda else _FLOAT32
        with tempfile.TemporaryDirectory(prefix="madkit-bench-", ignore_cleanup_errors=True) as name:
            scratch = Path(name)
            self._need_space(scratch, images)
            info(f"Writing {images:,} JPEG files of {size[0]} x {size[1]}.")
            paths = write_pictures(scratch / "images", images, size)
            kinds: list[Any] = [
                OpenClipLoop(self.source, self.device, dtype, batch=self.batch, threads=threads)
                for threads in (0, cores())
                for dtype in ((peer_dtype,) if self.cuda else (peer_dtype, _BFLOAT16))
            ]
            with suppress(ConfigError):  # said above
                kinds.append(TransformersLoop(self.source, self.device, peer_dtype, batch=self.batch))
            for dtype, compiled, mixed in self.ours:
                kinds.append(
                    Extraction(self.source, self.device, dtype, batch=self.batch, compiled=compiled, mixed=mixed)
                )
            labels = {f"{kind.name} {short(kind)}": kind for kind in kinds}
            # on a GPU the plain loops are slower by far, and their speed does not depend on the number of files
            mine = {
                label: paths
                if not self.cuda or isinstance(kind, Extraction) or kind.threads
                else paths[: max(64, images // 4)]
                for label, kind in labels.items()
            }
            agreements = self._same_stores(labels, mine, scratch)
            sides = []
            for label, kind in labels.items():
                target = scratch / label.replace(" ", "-")
                sides.append(
                    Side(
                        label,
                        lambda pieces, kind=kind, files=mine[label], target=target: kind.run(files, target),  # type: ignore[misc]
                        len(mine[label]),
                        lambda target=target: empty(target),  # type: ignore[misc]
                    )
                )
            sides.append(Side(sides[0].name + AGAIN, sides[0].work, sides[0].items, sides[0].tidy))
            speeds = take_turns(sides, repeats=self.repeats, device=self.device, what="End to end")
        rows = [
            {
                "side": label,
                "dtype": long(kind),
                **speeds[label].as_row(),
                **agreements.get(label, {}),
            }
            for label, kind in labels.items()
        ]
        rows = with_ratios(rows, self._default("madkit extract"))
        compute = next(row for row in self.document["compute"]["rows"] if row["default"])
        own = next(row for row in rows if row["default"])
        return {
            "rows": rows,
            "noise": noise(speeds, sides[0].name),
            "of_compute": float(f"{own['per_second'] / compute['per_second']:.3g}"),
            "same_dtype": _same_dtype(rows),
            "pixels": list(size),
        }

    def _same_stores(
        self, labels: dict[str, Any], mine: Mapping[str, Sequence[Path]], scratch: Path
    ) -> dict[str, dict[str, Any]]:
        """Run every side once, off the clock, and compare what it stored with what the first one stored."""
        found: dict[str, dict[str, Any]] = {}
        rows = min(_END_COMPARED, *(len(files) for files in mine.values()))
        first = next(iter(labels))
        expected = None
        for label, kind in labels.items():
            target = scratch / label.replace(" ", "-")
            empty(target)
            kind.run(mine[label], target)
            tokens = stored_tokens(target, rows)
            if expected is None:
                expected = tokens
            agreement = compare(tokens, expected)
            must_agree(label, first, "files", agreement, _MOST_OTHER)
            found[label] = agreement.as_row()
            empty(target)
        return found

    def _need_space(self, scratch: Path, images: int) -> None:
        visual: Any = self.source.visual
        tokens = int(visual.grid_size[0]) * int(visual.grid_size[1])
        needed = images * (60_000 + 2 * (tokens + 1) * int(visual.output_dim) * 2)
        free = shutil.disk_usage(scratch).free
        if 1.2 * needed > free:
            raise RunError(
                f"The files need {1.2 * needed / 1e9:.1f} GB, and {scratch.parent} has {free / 1e9:.1f} GB free.",
                hint="ask for less (--images), or set TMPDIR to a folder on another disk",
            )


def long(side: Any) -> str:
    """Return what a side computes in, as `--compute-dtype` names it."""
    return MIXED if side.mixed else str(side.dtype).removeprefix("torch.")


def short(side: Any) -> str:
    """Return fp32, fp16, bf16 or mixed."""
    return MIXED if side.mixed else short_dtype(side.dtype)


def short_dtype(dtype: torch.dtype) -> str:
    """Return fp32, fp16 or bf16."""
    return {_FLOAT32: "fp32", _FLOAT16: "fp16", _BFLOAT16: "bf16"}[dtype]


def with_ratios(rows: list[dict[str, Any]], default: str) -> list[dict[str, Any]]:
    """Return rows with ``default`` (whether it is madkit's own choice) and ``madkit_is``.

    ``madkit_is`` says how many times as fast as the row madkit's choice is, from the rates that the rows show.
    """
    ours = next(row for row in rows if row["side"] == default)
    return [
        {
            **row,
            "default": row["side"] == default,
            "madkit_is": float(f"{ours['per_second'] / row['per_second']:.3g}"),
        }
        for row in rows
    ]


def noise(speeds: dict[str, Speed], name: str) -> dict[str, Any]:
    """Return the ratio of a side to itself, measured under two names: what a ratio of 1 looks like here."""
    one, other = (speeds[key].as_row()["per_second"] for key in (name, name + AGAIN))
    return {"side": name, "per_second": [one, other], "ratio": float(f"{max(one, other) / min(one, other):.3g}")}


def warn_of_noise(document: dict[str, Any], *parts: dict[str, Any]) -> None:
    """Add a warning where a side measured twice differs so much from itself that ratios mean little."""
    worst = max((part["noise"] for part in parts), key=lambda found: float(found["ratio"]))
    if worst["ratio"] > _NOISY:
        document["warnings"].append(
            f"{worst['side']}, measured twice, differs from itself by {worst['ratio']:.2f}x: smaller ratios than that "
            "mean nothing. Use a quiet machine, and more --repeats."
        )


def _same_dtype(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How many times as fast as the faster open_clip loop madkit is where both compute in the same dtype, by dtype."""
    loops: dict[str, float] = {}
    for row in rows:
        if str(row["side"]).startswith(OpenClipLoop.name):
            loops[row["dtype"]] = max(row["per_second"], loops.get(row["dtype"], 0.0))
    ours = {row["dtype"]: row["per_second"] for row in rows if str(row["side"]).startswith("madkit")}
    return {dtype: float(f"{ours[dtype] / loops[dtype]:.3g}") for dtype in loops if dtype in ours}
