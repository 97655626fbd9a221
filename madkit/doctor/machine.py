"""The machine: processor, memory and GPU; and the answers of the probe, which tried the libraries on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from madkit.core.environment import usable_cpus
from madkit.core.free_memory import free_memory
from madkit.doctor.findings import Finding, failed, passed, warned

GROUP = "machine"
LIBRARIES = "libraries"
PROBE = ("-m", "madkit.doctor.probe")
PROBE_TIMEOUT_S = 120.0
LITTLE_MEMORY_GIB = 4.0
# The widest of these is what torch's kernels can use (Linux's names of processor flags).
WIDTHS = (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-BF16"), ("avx512f", "AVX512"), ("avx2", "AVX2"))
NO_TORCH = "pip install --upgrade torch torchvision"
SLOW = "run madkit doctor when the machine is less busy, or put torch and its company on a faster disk"


class Probe:
    """The probe, started at once and read at the end. Use as a context manager: it is never left running."""

    def __init__(self, folder: Path | None, *, deep: bool = False) -> None:
        arguments = [str(folder) if folder is not None else "-", *(["deep"] if deep else [])]
        command = [sys.executable, *PROBE, *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> Probe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def answer(self, timeout_s: float = PROBE_TIMEOUT_S) -> dict[str, Any]:
        """What it found; a single entry "error" where it died or took too long."""
        try:
            out, err = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return {"error": f"importing torch took longer than {timeout_s:.0f} s", "mend": SLOW}
        try:
            found = json.loads(out.splitlines()[-1])
        except (ValueError, IndexError):
            code = self._process.returncode
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            last = next((line for line in reversed(err.splitlines()) if line.strip()), "")
            return {"error": f"importing torch ended with {how}{': ' if last else ''}{last}"}
        return found if isinstance(found, dict) else {"error": "the probe gave no answer"}


def check_libraries(answer: Mapping[str, Any]) -> list[Finding]:
    """What the libraries did when they were tried."""
    if "error" in answer:
        return [failed(LIBRARIES, "torch", str(answer["error"]), str(answer.get("mend", NO_TORCH)))]
    found = [_section(answer, name, NO_TORCH) for name in ("torch", "torchvision")]
    found.append(_jpeg(answer.get("jpeg") or {}))
    if "zarr" in answer:
        store = answer["zarr"]
        said = f"a tiny store written and read back, by zarr {store.get('version')} too ({store.get('pipeline')})"
        if "error" in store or not store.get("ok"):
            why = store.get("error", "what zarr reads is not what was written")
            found.append(failed(LIBRARIES, "zarr pipeline", why, "pip install --upgrade zarr"))
        else:
            found.append(passed(LIBRARIES, "zarr pipeline", said))
    for name, error in ((answer.get("imports") or {}).get("errors") or {}).items():
        package = {"open_clip": "open_clip_torch"}.get(name, name)
        found.append(failed(LIBRARIES, name, str(error), f"pip install --upgrade {package}"))
    return found


def _section(answer: Mapping[str, Any], name: str, mend: str) -> Finding:
    section = answer.get(name) or {"error": "it was not tried"}
    if "error" in section:
        return failed(LIBRARIES, name, f"it cannot be imported ({section['error']})", mend)
    if section.get("ok") is False:
        return failed(LIBRARIES, name, "its operators give wrong results", mend)
    return passed(LIBRARIES, name, f"{section['version']}, imported in {section['seconds']:.1f} s")


def _jpeg(section: Mapping[str, Any]) -> Finding:
    if "error" in section:
        return failed(LIBRARIES, "JPEG decoder", str(section["error"]), "pip install --upgrade pillow")
    if "torchvision" not in section:
        said = f"Pillow alone, {section.get('pillow', 0):,.0f} images/s of 640x480 on one core: torchvision has none"
        return warned(LIBRARIES, "JPEG decoder", said, NO_TORCH)
    rates = f"torchvision {section['torchvision']:,.0f} and Pillow {section['pillow']:,.0f} images/s of 640x480"
    if not section.get("same"):
        mend = "extract with --decoder pillow, and report it with the output of: madkit env"
        return warned(LIBRARIES, "JPEG decoder", f"{rates} on one core, but other pixels", mend)
    same = "the same pixels"
    return passed(LIBRARIES, "JPEG decoder", f"{rates} on one core, {same}")


def check_machine(answer: Mapping[str, Any]) -> list[Finding]:
    """Processor, memory and GPU."""
    return [_processor(answer.get("torch") or {}), _memory(), *_gpus(answer.get("torch") or {})]


def _processor(torch: Mapping[str, Any]) -> Finding:
    cpus = usable_cpus()
    try:
        flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    except OSError:
        flags = set()
    width = next((name for flag, name in WIDTHS if flag in flags), str(torch.get("cpu", "")) or "unknown")
    quota = _quota()
    threads = int(torch.get("threads") or cpus)
    said = f"{cpus} usable, {width}, {threads} compute {'thread' if threads == 1 else 'threads'}"
    if quota is not None and quota + 0.5 < threads:
        mend = f"export OMP_NUM_THREADS={max(1, round(quota))}"
        return warned(GROUP, "processor", f"{said}, but this container gets the time of {quota:g}", mend)
    if os.environ.get("OMP_NUM_THREADS") and threads < cpus:
        return passed(GROUP, "processor", f"{said} (OMP_NUM_THREADS)")
    return passed(GROUP, "processor", said)


def _quota() -> float | None:
    """Processors' worth of time that the control group allows (cgroup v2), None without a limit."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None


def _memory() -> Finding:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total = int(lines["MemTotal"].split()[0]) / 2**20
    except (OSError, KeyError, ValueError):
        return passed(GROUP, "memory", "unknown")
    with suppress(OSError, ValueError):  # no control group, or none that sets a limit
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()) / 2**30)
    found = free_memory()
    if found is None:
        return passed(GROUP, "memory", f"{total:,.1f} GiB")
    free = found / 2**30
    said = f"{free:,.1f} of {total:,.1f} GiB free"
    if free < LITTLE_MEMORY_GIB:
        return warned(GROUP, "memory", said, "end other programs, or use fewer --workers and a smaller batch")
    return passed(GROUP, "memory", said)


def _gpus(torch: Mapping[str, Any]) -> list[Finding]:
    devices = torch.get("devices") or []
    if not devices:
        if any(Path("/proc/driver/nvidia/gpus").glob("*")):
            built = torch.get("cuda") or "no CUDA at all"
            said = f"there is one, but torch cannot use it (built for {built})"
            return [failed(GROUP, "GPU", said, "install a torch built for this driver (nvidia-smi tells its CUDA)")]
        said = "none; the embedded benchmark needs none, students of base size and real data do"
        return [warned(GROUP, "GPU", said, "a machine with an NVIDIA GPU, for real benchmarks")]
    found = []
    for index, device in enumerate(devices):
        name = f"GPU {index}"
        said = f"{device['name']}, {device['gib']:,.0f} GiB"
        if torch.get("computes") is False:
            found.append(failed(GROUP, name, f"{said}, but it gives wrong sums", "restart the machine or its driver"))
        elif device["bf16"]:
            found.append(passed(GROUP, name, f"{said}, bf16"))
        else:
            found.append(warned(GROUP, name, f"{said}, without bf16", "train with --set precision=fp32 (the default)"))
    return found
