"""`madkit bench extract --memory`: does an extraction of ten times as many images take more memory?

Each size runs in a fresh process. The encoder is small and its output is as large as that of ViT-B/32 (49 tokens of 512
channels), so that even the smaller of the usual sizes fills several shards.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from madkit.bench.extract_inputs import FLICKR, PictureTask, write_pictures
from madkit.bench.fresh_process import Watch, measure
from madkit.bench.machine import machine_facts, need_space
from madkit.core.console import info
from madkit.core.errors import RunError, UsageProblem

SCHEMA = 1
MOST = 1.10
_DISTINCT = 64
_BYTES = 60_000  # of an image in a store
_MODEL: dict[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": {"layers": 1, "width": 64, "head_width": 32, "patch_size": 32, "image_size": 224},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def bench_memory(sizes: Sequence[int], *, pixels: tuple[int, int] | None = None) -> dict[str, Any]:
    """Extract made-up pictures in fresh processes and compare their memory.

    Args:
        sizes: numbers of images, ascending; two at least.
        pixels: (width, height) of the files; 500 x 375 when left out.

    Returns:
        ``rows`` (images, peak_mb, start_mb: the peak before the extraction began, seconds), ``ratio`` of the last
        peak to the first, ``most`` that it should be, ``kb_per_image``: growth of the peak by image.

    Raises:
        UsageProblem: sizes that cannot be compared.
        RunError: no room on the disk, or a process fails.
    """
    if len(sizes) < 2 or list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
        raise UsageProblem("Two sizes at least are compared, the smaller first.", hint="--memory-images 2000,20000")
    pixels = pixels or FLICKR
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="madkit-bench-", ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        hint = "ask for less (--memory-images), or set TMPDIR to a folder on another disk"
        need_space(scratch, sum(sizes) * _BYTES, hint=hint)
        info(f"Writing {sizes[-1]:,} JPEG files of {pixels[0]} x {pixels[1]}.")
        write_pictures(scratch / "images", sizes[-1], pixels, distinct=_DISTINCT)
        for size in sizes:
            try:
                done = measure(
                    f"{__name__}:extract_pictures",
                    pictures=scratch / "images",
                    images=size,
                    workspace=scratch / f"of-{size}",
                )
            except RunError as error:
                raise RunError(error.message, hint="try smaller numbers: --memory-images 500,5000") from None
            whole = done.laps["extract"]
            rows.append(
                {
                    "images": size,
                    "peak_mb": round(whole.peak_mb, 1),
                    "start_mb": round(done.laps["start"].peak_mb, 1),
                    "seconds": round(whole.wall_s, 1),
                    "stored_mb": round(done.facts["bytes"] / 1e6, 1),
                    "shards": done.facts["shards"],
                }
            )
            info(f"{size:,} images: {whole.peak_mb:,.0f} MB.")
    first, last = rows[0], rows[-1]
    ratio = float(f"{last['peak_mb'] / first['peak_mb']:.4g}")
    return {
        "schema": SCHEMA,
        "machine": machine_facts(),
        "rows": rows,
        "ratio": ratio,
        "most": MOST,
        "within": ratio < MOST,
        "kb_per_image": round((last["peak_mb"] - first["peak_mb"]) * 1000 / (last["images"] - first["images"]), 3),
    }


def extract_pictures(watch: Watch, pictures: str, images: int, workspace: str) -> dict[str, Any]:
    """Laps: start (modules and teacher), extract. What the fresh process does."""
    from contextlib import redirect_stderr
    from dataclasses import replace
    from io import StringIO

    import torch
    from open_clip.model import CLIP

    from madkit.core.workspace import Workspace
    from madkit.extract.options import ExtractOptions
    from madkit.extract.stage import extract_task
    from madkit.teachers.clip_bpe import ClipTokenizer
    from madkit.teachers.clip_pair import clip_pair
    from madkit.teachers.preprocess import Preprocessing

    torch.manual_seed(0)
    pair = clip_pair(
        "open_clip:tiny",
        CLIP(**_MODEL),
        ClipTokenizer(),
        Preprocessing((224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    )
    paths = sorted(Path(pictures).glob("*.jpg"))[:images]
    watch.lap("start")
    with redirect_stderr(StringIO()):
        report = extract_task(
            Workspace.at(workspace), replace(pair, text=None), PictureTask(paths), options=ExtractOptions(device="cpu")
        )
    watch.lap("extract")
    shards = sum(1 for path in report.path.glob("images/tokens/c/**/*") if path.is_file())
    return {"bytes": report.bytes, "shards": shards}
