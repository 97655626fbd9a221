"""Run as a program of its own (``python -m madkit.doctor.probe``): imports the heavy libraries and tries them.

A library that crashes or hangs takes this process with it and not the doctor. The one line it prints is JSON: a section
for each thing tried, each with ``error`` where it failed.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

IMAGE = (640, 480)
REPEATS = 20
DEEP = ("open_clip", "transformers", "accelerate", "timm", "h5py", "pyarrow", "scipy")


def main(arguments: list[str]) -> int:
    """Try everything. Arguments: a folder to write a tiny store in, or "-"; then "deep" to import every library."""
    folder = Path(arguments[0]) if arguments and arguments[0] != "-" else None
    tried: dict[str, Callable[[], dict[str, Any]]] = {"torch": _torch, "torchvision": _torchvision, "jpeg": _jpeg}
    if folder is not None:
        tried["zarr"] = lambda: _zarr(folder)
    if "deep" in arguments[1:]:
        tried["imports"] = _imports
    document = {name: _tried(call) for name, call in tried.items()}
    print(json.dumps(document, allow_nan=False))  # noqa: T201 - the way of this program's answer
    return 0


def _tried(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        found = call()
    except Exception as error:  # any library may raise anything while it is imported
        line = next((line for line in str(error).splitlines() if line.strip()), "")
        found = {"error": f"{type(error).__name__}: {line}".rstrip(": .")}
    return {**found, "seconds": round(time.perf_counter() - began, 2)}


def _torch() -> dict[str, Any]:
    import torch

    devices = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        bf16 = facts.major >= 8  # Ampere; the emulation that torch also counts is slow
        devices.append({"name": facts.name, "gib": facts.total_memory / 2**30, "sm": facts.major * 10, "bf16": bf16})
    works = None
    if devices:
        works = float(torch.ones(8, device="cuda").sum()) == 8.0
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "devices": devices,
        "computes": works,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _torchvision() -> dict[str, Any]:
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9]), 0.5)  # an operator of its compiled part
    return {"version": torchvision.__version__, "ok": kept.tolist() == [1]}


def _jpeg() -> dict[str, Any]:
    import numpy as np
    from PIL import Image

    x, y = np.meshgrid(np.arange(IMAGE[0]), np.arange(IMAGE[1]))
    pixels = np.stack([x % 256, y % 256, (x + y) % 256], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=90)
    data = file.getvalue()
    found: dict[str, Any] = {"pillow": _rate(lambda: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))}
    from madkit.teachers.torchvision_decode import decode_like_pillow

    decoded = decode_like_pillow(data)
    if decoded is not None:
        found["torchvision"] = _rate(lambda: decode_like_pillow(data))
        same = decoded.permute(1, 2, 0).numpy() == np.asarray(Image.open(io.BytesIO(data)))
        found["same"] = bool(same.all())
    return found


def _rate(decode: Callable[[], object]) -> float:
    decode()
    began = time.perf_counter()
    for _ in range(REPEATS):
        decode()
    return round(REPEATS / (time.perf_counter() - began), 1)


def _zarr(folder: Path) -> dict[str, Any]:
    """Write a tiny store as extraction does, read it with madkit and with the Zarr library, and compare."""
    import numpy as np
    import zarr

    from madkit.cache import TokenCache
    from madkit.cache.layout import image_layout, text_layout
    from madkit.cache.plan import StorePlan
    from madkit.cache.writer import StoreWriter

    n, tokens, dim = 6, 4, 8
    lengths = np.array([3, 0, 5], dtype=np.int64)
    plan = StorePlan(
        identity={"teacher": "doctor", "task": "vcr", "source": "doctor", "revision": "-", "shared_space": True}
        | {"logit_scale": 1.0},
        image_ids=[f"image {row}" for row in range(n)],
        image_aliases={},
        texts=[f"text {row}" for row in range(len(lengths))],
        lengths=lengths,
        images=image_layout(n, (2, 2), dim, 0.0005),
        text=text_layout(lengths, dim, 0.0005),
        facts={},
    )
    values = np.arange(n * tokens * dim, dtype=np.float16).reshape(n, tokens, dim)
    with StoreWriter(folder, plan) as writer:
        for part in ("images", "texts"):
            for unit in writer.pending(part):
                rows = plan.items(part, unit)
                size = int(lengths[rows.start : rows.stop].sum())
                arrays: dict[str, Any] = (
                    {"tokens": values[rows.start : rows.stop], "globals": values[rows.start : rows.stop, 0]}
                    if part == "images"
                    else {
                        "tokens": np.ones((size, dim), np.float16),
                        "spans": np.zeros((size, 2), np.int32),
                        "globals": np.ones((len(rows), dim), np.float16),
                    }
                )
                writer.write_unit(part, unit, arrays)
        writer.finish(seconds=0.0)
    array: Any = zarr.open_array(store=str(folder), path="images/tokens", mode="r")
    by_zarr = bool((np.asarray(array[:]) == values).all())
    with TokenCache.open(folder) as cache:
        read = cache.images.tokens(np.arange(n))
        ours = bool((np.asarray(read) == values).all())
    pipeline = str(zarr.config.get("codec_pipeline.path", "")).rpartition(".")[2]
    return {"version": zarr.__version__, "pipeline": pipeline, "ok": by_zarr and ours}


def _imports() -> dict[str, Any]:
    errors = {}
    for name in DEEP:
        try:
            import_module(name)
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return {"errors": errors}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
