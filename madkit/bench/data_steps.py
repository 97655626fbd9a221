"""The steps of `bench data` on madkit's side; each runs in a process of its own and imports what it needs itself."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from madkit.bench.fresh_process import Watch
from madkit.bench.machine import drop_cached, forget_cached

_SEED = 0


def import_vqa(watch: Watch, files: str, workspace: str) -> dict[str, Any]:
    """Laps: modules, import."""
    from madkit.core.workspace import Workspace
    from madkit.tasks.importing import ImportOptions
    from madkit.tasks.importing.run import import_data

    watch.lap("modules")
    made = import_data(Workspace.at(workspace), "vqa-v2", Path(files), ImportOptions(without_images=True))
    watch.lap("import")
    assert made.data is not None
    splits = made.data.manifest["splits"]
    size = sum(path.stat().st_size for path in made.data.root.glob("*.arrow"))
    return {"questions": sum(split["questions"] for split in splits.values()), "bytes": size}


def use_vqa(watch: Watch, workspace: str, reads: int, sample: Sequence[int] = ()) -> dict[str, Any]:
    """Laps: modules, open (the first example of every split), subset (1pct of train), reads (random ones of train)."""
    from madkit.core.workspace import Workspace
    from madkit.tasks.data import open_task
    from madkit.tasks.index import ExampleTable
    from madkit.tasks.shots import select_shots

    watch.lap("modules")
    data = open_task(Workspace.at(workspace), "vqa", build=False)
    for split in data.splits():
        data.examples(split)[0]
    watch.lap("open")
    train = data.examples("train")
    subset = select_shots(train, "1pct", seed=_SEED, revision=data.revision)
    watch.lap("subset")
    draw = random.Random(_SEED)
    rows = [draw.randrange(len(train)) for _ in range(reads)]
    watch.lap("between")
    for row in rows:
        train[row]
    watch.lap("reads")
    wanted = set(map(str, sample))
    labels: dict[str, dict[str, float]] = {}
    for split in data.splits() if wanted else ():
        table = data.examples(split)
        assert isinstance(table, ExampleTable)
        for row in range(len(table)):
            if table.question_id(row) in wanted:
                labels[table.question_id(row)] = dict(table[row].answers or {})
    return {"subset": len(subset), "labels": labels}


def index_tsv(watch: Watch, path: str) -> dict[str, Any]:
    """Laps: modules, index."""
    from madkit.regions.tsv_index import open_index

    watch.lap("modules")
    index = open_index(Path(path), advance=_nothing)
    watch.lap("index")
    return {"rows": len(index.ids), "built": index.built}


def read_tsv(watch: Watch, path: str, reads: int) -> dict[str, Any]:
    """Laps: modules, open (with a first row), reads (rows that are not in the page cache).

    Facts: milliseconds of every random row, `cold` (dropped from the page cache before; absent where that cannot be
    done, or where pages stay all the same, as on a tmpfs), `cached`, and `bare` (the same rows by `pread` and decoding
    alone); the `sum` of the last row's features.
    """
    import numpy as np

    from madkit.regions import open_regions

    watch.lap("modules")
    file = Path(path)
    reader = open_regions("lxmert-tsv", file)
    ids = list(reader.ids())
    reader.get(ids[len(ids) // 2])
    watch.lap("open")
    chosen = random.Random(_SEED).sample(ids, min(reads, len(ids)))
    cold: list[float] = []
    goes = drop_cached(file)  # asking takes milliseconds, so once
    for image in chosen:
        dropped = forget_cached(file)
        taken = _milliseconds(reader.get, [image])
        cold += taken if dropped and goes else []
    watch.lap("reads")
    cached = _milliseconds(reader.get, chosen * 2)[len(chosen) :]
    from madkit.bench.plain_reads import PlainTsv

    plain = PlainTsv(file)
    bare = _milliseconds(plain.get, chosen * 2)[len(chosen) :]
    last = float(reader.get(ids[-1]).features.sum(dtype=np.float64))
    return {"rows": len(ids), "cold": cold, "cached": cached, "bare": bare, "sum": last}


def convert_rows(watch: Watch, path: str, folder: str, images: int) -> dict[str, Any]:
    """Write the first rows of a TSV in the layouts that are compared."""
    from madkit.regions import convert_regions, open_regions

    reader = open_regions("lxmert-tsv", Path(path))
    ids = reader.ids()[:images]
    convert_regions(reader, Path(folder) / "uniter-npz", "uniter-npz", ids=ids)
    convert_regions(reader, Path(folder) / "butd.hdf5", "butd-hdf5", ids=ids)
    watch.lap("convert")
    return {"images": len(ids)}


def read_layout(watch: Watch, layout: str, path: str, images: int, rounds: int) -> dict[str, Any]:
    """Random reads of all images by madkit's reader and by a plain loop, in turns.

    Facts: `madkit` and `plain`, reads per second, the median of the rounds.
    """
    from madkit.bench.plain_reads import PLAIN
    from madkit.regions import open_regions

    reader = open_regions(layout, Path(path))
    plain = PLAIN[layout](Path(path))
    ids = list(reader.ids())[:images]
    random.Random(_SEED).shuffle(ids)
    rates: dict[str, list[float]] = {"madkit": [], "plain": []}
    for number in range(rounds + 1):
        for name, get in (("madkit", reader.get), ("plain", plain.get)):
            started = time.perf_counter()
            for image in ids:
                get(image)
            if number:  # the first round fills caches
                rates[name].append(len(ids) / (time.perf_counter() - started))
    watch.lap("reads")
    return {name: sorted(found)[len(found) // 2] for name, found in rates.items()} | {"images": len(ids)}


def _milliseconds(get: Callable[[str], object], images: Sequence[str]) -> list[float]:
    taken = []
    for image in images:
        started = time.perf_counter()
        get(image)
        taken.append((time.perf_counter() - started) * 1000)
    return taken


def _nothing(_: int) -> None:
    pass
