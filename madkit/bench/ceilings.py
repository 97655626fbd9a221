"""What a device can do at most, measured: products of square matrices, and copies."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from madkit.bench.turns import synchronise

_CUDA_EDGE, _CPU_EDGE, _TINY_EDGE = 8192, 2048, 256
_CUDA_COPY, _CPU_COPY, _TINY_COPY = 2_000_000_000, 256_000_000, 8_000_000  # bytes read, and as many written


def device_facts(device: str) -> dict[str, Any]:
    """Return the device and the libraries' versions as plain JSON values."""
    import open_clip
    import torchvision
    import transformers

    facts: dict[str, Any] = {
        "device": device,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "open_clip": open_clip.__version__,
        "transformers": transformers.__version__,
    }
    if torch.device(device).type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return facts | {
            "name": torch.cuda.get_device_name(device),
            "memory_gb": round(total / 1e9, 1),
            "free_gb": round(free / 1e9, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts | {
        "name": _cpu_name(),
        "threads": torch.get_num_threads(),
        "best": torch.backends.cpu.get_cpu_capability(),
    }


def measure_ceilings(device: str, *, tiny: bool = False) -> dict[str, Any]:
    """Measure matrix products of float32 (without TF32) and bfloat16, and copies within the device's memory.

    Returns:
        ``edge`` of the matrices, ``tflops`` by dtype, ``limit_tflops`` (the highest of them: what every side's share is
        of), ``copy_gb_s`` (bytes read plus bytes written). Random values: on GPUs zeros multiply faster.
    """
    cuda = torch.device(device).type == "cuda"
    edge = _TINY_EDGE if tiny else _CUDA_EDGE if cuda else _CPU_EDGE
    size = _TINY_COPY if tiny else _CUDA_COPY if cuda else _CPU_COPY
    tflops = {}
    for dtype in (torch.float32, torch.bfloat16):
        generator = torch.Generator(device).manual_seed(0)
        a, b = (torch.randn(edge, edge, generator=generator, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        seconds = _seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device)  # type: ignore[misc]
        tflops[str(dtype).removeprefix("torch.")] = float(f"{2 * edge**3 / seconds / 1e12:.4g}")
    source = torch.empty(size // 4, device=device).fill_(1.0)
    target = torch.empty_like(source)
    copied = 2 * size / _seconds(lambda: target.copy_(source), device)
    return {
        "edge": edge,
        "tflops": tflops,
        "limit_tflops": max(tflops.values()),
        "copy_gb_s": float(f"{copied / 1e9:.4g}"),
    }


def _seconds(call: Callable[[], object], device: str) -> float:
    """Median time of a call, of seven runs of about 50 ms each."""
    for _ in range(3):
        call()
    synchronise(device)
    started = time.perf_counter()
    call()
    synchronise(device)
    count = max(1, round(0.05 / (time.perf_counter() - started)))
    taken = []
    for _ in range(7):
        started = time.perf_counter()
        for _ in range(count):
            call()
        synchronise(device)
        taken.append((time.perf_counter() - started) / count)
    return median(taken)


def _cpu_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    except OSError:
        return "CPU"
