"""`madkit bench data`: import and lazy reading against what published code bases do with the same files.

Every figure of speed is a ratio to a peer that ran in turns with madkit on the same machine, each in a fresh process;
seconds and MB stand beside it.
"""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from madkit.bench import fresh_process
from madkit.bench.fresh_process import Lap, Measured
from madkit.bench.machine import available_memory, busy, forget_cached, machine_facts, need_space
from madkit.core.console import Progress, progress
from madkit.core.errors import RunError, UsageProblem

SCHEMA = 1
QUESTIONS, TSV_GB, REPEATS = 60_000, 0.25, 3
_QUESTION_BYTES, _INDEX_BYTES = 920, 260  # of files and of index, per question
_READS = 10_000
_ROW_READS = 200
_CONVERTED = 128  # images in the comparison of layouts
_CONVERTED_BYTES = 330_000  # of one image in both layouts
_SAMPLE = 200  # questions whose soft scores are compared
_FEWEST = 1_000  # questions; of much fewer the development split could come out empty
_PARSED = 5  # memory that parsed annotations take, in sizes of their files
_DECODED = 0.85  # memory that decoded rows take, in sizes of the TSV
_STEPS, _PEERS = "madkit.bench.data_steps", "madkit.bench.peers"
_TERMINATED = 143


@dataclass(frozen=True, slots=True)
class DataBenchOptions:
    """What to measure.

    `questions`: of the made-up VQA v2 (0: none). `tsv_gb`: size of the made-up region TSV in 10^9 bytes (0: none).
    `keep`: folder where the made-up files stay and are found again; by default they are removed. `repeats`: how often
    each side runs, in turns; medians are reported.
    """

    questions: int = QUESTIONS
    tsv_gb: float = TSV_GB
    keep: Path | None = None
    repeats: int = REPEATS


def bench_data(options: DataBenchOptions) -> dict[str, Any]:
    """Run the benchmark and return its document (`docs/bench.md` says what is in it).

    Raises:
        UsageProblem: nothing to measure, or impossible sizes.
        RunError: no room on the disk, a measurement that fails, or content that madkit and the peer read differently.
    """
    if options.questions < 0 or options.tsv_gb < 0 or not (options.questions or options.tsv_gb):
        raise UsageProblem("There is nothing to measure.", hint="--questions 60000 or --tsv-gb 0.25")
    if 0 < options.questions < _FEWEST:
        raise UsageProblem("Of so few questions nothing can be told.", hint=f"--questions {_FEWEST} or more")
    machine = machine_facts()
    warning = busy(machine)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": machine,
        "warnings": [warning] if warning else [],
        "repeats": options.repeats,
    }
    with _scratch(options.keep) as scratch:
        files = options.keep or scratch
        hint = "ask for less (--questions, --tsv-gb), or use another disk: --keep DIR"
        need_space(scratch, _needed(options, files), hint=hint)
        each = 3 * options.repeats
        runs = (1 + each if options.questions else 0) + (5 + each if options.tsv_gb else 0)
        with progress("Measuring", runs, "runs") as bar:
            bench = _Bench(options.repeats, scratch, bar, document["warnings"])
            if options.questions:
                document["vqa"] = bench.vqa(options.questions, _vqa_folder(files, options.questions))
            if options.tsv_gb:
                path = _tsv_file(files, options.tsv_gb)
                document["tsv"] = bench.tsv(path, round(options.tsv_gb * 1e9))
                document["layouts"] = bench.layouts(path)
    return document


@contextmanager
def _scratch(keep: Path | None) -> Iterator[Path]:
    """A folder that is gone afterwards, whatever ends the benchmark: an error, Ctrl-C, or SIGTERM."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(_TERMINATED)

    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, leave) if main else None
    try:
        with tempfile.TemporaryDirectory(prefix="madkit-bench-", dir=keep, ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def _needed(options: DataBenchOptions, files: Path) -> int:
    """Bytes of disk that are still to be written."""
    needed = _INDEX_BYTES * options.questions
    if options.questions and not _vqa_folder(files, options.questions).is_dir():
        needed += _QUESTION_BYTES * options.questions
    if options.tsv_gb:
        needed += _CONVERTED * _CONVERTED_BYTES
        if not _tsv_file(files, options.tsv_gb).is_file():
            needed += round(options.tsv_gb * 1e9)
    return needed


def _vqa_folder(files: Path, questions: int) -> Path:
    return files / f"vqa-{questions}"


def _tsv_file(files: Path, gigabytes: float) -> Path:
    return files / f"lxmert-{gigabytes:g}gb.tsv"


@dataclass(slots=True)
class _Row:
    """One line of the comparison: the same outcome, reached in two ways."""

    name: str
    madkit: list[Lap] = field(default_factory=list)
    peer: list[Lap] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        ours, theirs = _middle(self.madkit), _middle(self.peer)
        return {
            "name": self.name,
            "madkit": ours,
            "peer": theirs,
            "times_faster": None if theirs is None or ours is None else _ratio(theirs["wall_s"], ours["wall_s"]),
            "times_less_cpu": None if theirs is None or ours is None else _ratio(theirs["cpu_s"], ours["cpu_s"]),
        }


@dataclass(frozen=True, slots=True)
class _Bench:
    repeats: int
    scratch: Path
    bar: Progress
    warnings: list[str]

    def vqa(self, questions: int, folder: Path) -> dict[str, Any]:
        """Import, and what comes after it at every start, against loading both files of both splits whole."""
        from madkit.bench.vqa_files import write_vqa_files

        if not folder.is_dir():
            self.bar.update(f"writing {questions:,} questions")
            write_vqa_files(self.scratch / "unfinished", questions)
            (self.scratch / "unfinished").rename(folder)
        self.bar.advance()
        splits = [
            [str(next(folder.glob(f"*{subset}_{kind}.json"))) for kind in ("questions", "annotations")]
            for subset in ("train2014", "val2014")
        ]
        size = sum(Path(path).stat().st_size for split in splits for path in split)
        fits = self._fits(size * _PARSED, "parsed VQA files")
        rows = [_Row(name) for name in ("import", "open, first example", "1pct subset", f"{_READS:,} random reads")]
        single: dict[str, list[float]] = {"madkit": [], "peer": []}
        sample = _some_ids(Path(splits[0][0])) + _some_ids(Path(splits[1][0]))
        facts: dict[str, Any] = {}
        for number in range(self.repeats):
            workspace = self.scratch / f"workspace-{number}"
            loaded = None
            if fits:
                loaded = self._run("the peer loads VQA", f"{_PEERS}:vqa", splits=splits, reads=_READS, sample=sample)
            made = self._run("importing VQA", f"{_STEPS}:import_vqa", files=folder, workspace=workspace)
            used = self._run("reading VQA", f"{_STEPS}:use_vqa", workspace=workspace, reads=_READS, sample=sample)
            shutil.rmtree(workspace)
            facts = {**made.facts, "open_s": used.laps["open"].wall_s}
            rows[0].madkit.append(made.until("import"))
            opened = used.until("open")
            rows[1].madkit.append(opened)
            rows[2].madkit.append(opened + used.laps["subset"])
            rows[3].madkit.append(opened + used.laps["reads"])
            single["madkit"].append(_READS / used.laps["reads"].wall_s)
            if loaded is not None:
                _same(loaded.facts["questions"], made.facts["questions"], "number of questions")
                _same(loaded.facts["labels"], used.facts["labels"], "soft scores")
                whole = loaded.laps["load"]
                for row, extra in zip(rows, (None, None, "subset", "reads"), strict=True):
                    row.peer.append(whole if extra is None else whole + loaded.laps[extra])
                single["peer"].append(_READS / max(loaded.laps["reads"].wall_s, 1e-9))
            sample = []  # once is enough
        return {
            "questions": questions,
            "bytes": size,
            "index_bytes": facts["bytes"],
            "open_s": _rounded(facts["open_s"]),
            "rows": [row.document() for row in rows],
            "reads_per_s": {name: round(median(found)) if found else None for name, found in single.items()},
        }

    def tsv(self, path: Path, size: int) -> dict[str, Any]:
        """Index, open and read rows, against decoding the whole file."""
        from madkit.bench.lxmert_file import write_lxmert_file
        from madkit.regions.tsv_index import index_path

        if not path.is_file():
            self.bar.update(f"writing a TSV of {size / 1e9:g} GB")
            write_lxmert_file(path, size)
        self.bar.advance()
        fits = self._fits(round(size * _DECODED), "decoded TSV")
        rows = [_Row("build the index"), _Row("open, first row"), _Row(f"{_ROW_READS} random rows")]
        facts: dict[str, Any] = {}
        for _ in range(self.repeats):
            index_path(path).unlink(missing_ok=True)
            loaded = None
            if fits:
                forget_cached(path)
                loaded = self._run("the peer loads the TSV", f"{_PEERS}:tsv", path=path)
            forget_cached(path)
            built = self._run("indexing the TSV", f"{_STEPS}:index_tsv", path=path)
            read = self._run("reading the TSV", f"{_STEPS}:read_tsv", path=path, reads=_ROW_READS)
            facts = {**built.facts, **read.facts}
            rows[0].madkit.append(built.until("index"))
            rows[1].madkit.append(read.until("open"))
            rows[2].madkit.append(read.until("reads"))
            if loaded is not None:
                _same(loaded.facts["rows"], built.facts["rows"], "number of rows")
                _same(loaded.facts["sum"], read.facts["sum"], "features of the last row")
                for row in rows:
                    row.peer.append(loaded.laps["load"])
        times = {name: _spread(facts[name]) for name in ("cold", "cached", "bare")}
        return {
            "bytes": path.stat().st_size,
            "images": facts["rows"],
            "rows": [row.document() for row in rows],
            "row_ms": times,
            "row_times_slower_than_bare": _ratio(times["cached"]["p50"], times["bare"]["p50"]),
        }

    def layouts(self, path: Path) -> list[dict[str, Any]]:
        """Reads per second of three layouts with the same rows, against loops of NumPy and h5py."""
        made = self._run("converting", f"{_STEPS}:convert_rows", path=path, folder=self.scratch, images=_CONVERTED)
        found = []
        for layout, place in (
            ("lxmert-tsv", path),
            ("uniter-npz", self.scratch / "uniter-npz"),
            ("butd-hdf5", self.scratch / "butd.hdf5"),
        ):
            step = f"{_STEPS}:read_layout"
            rates = self._run(
                f"reading {layout}",
                step,
                layout=layout,
                path=place,
                images=made.facts["images"],
                rounds=self.repeats,
            ).facts
            found.append(
                {
                    "layout": layout,
                    "images": rates["images"],
                    "reads_per_s": round(rates["madkit"], 1),
                    "plain_reads_per_s": round(rates["plain"], 1),
                    "of_plain": _ratio(rates["madkit"], rates["plain"]),
                }
            )
        return found

    def _run(self, what: str, target: str, **arguments: Any) -> Measured:
        self.bar.update(what)
        measured = fresh_process.measure(target, **arguments)
        self.bar.advance()
        return measured

    def _fits(self, needed: int, what: str) -> bool:
        """Whether the peer's data fit into memory; the document says so where they do not."""
        free = available_memory()
        if needed <= 0.8 * free:
            return True
        self.warnings.append(
            f"The peer was left out: its {what} would need some {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of "
            "memory are free."
        )
        return False


def _middle(laps: Sequence[Lap]) -> dict[str, float] | None:
    if not laps:
        return None
    return {
        "wall_s": _rounded(median(lap.wall_s for lap in laps)),
        "cpu_s": _rounded(median(lap.cpu_s for lap in laps)),
        "peak_mb": round(max(lap.peak_mb for lap in laps), 1),
    }


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """p50, p99 and the longest, None where nothing was measured."""
    if not values:
        return {"p50": None, "p99": None, "max": None}
    ordered = sorted(values)
    last = len(ordered) - 1
    picked = {"p50": ordered[last // 2], "p99": ordered[round(0.99 * last)], "max": ordered[last]}
    return {name: _rounded(value) for name, value in picked.items()}


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else _rounded(above / below)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _same(theirs: object, ours: object, what: str) -> None:
    if theirs != ours:
        raise RunError(f"madkit and the peer read different things: the {what} do not agree.", hint="please report it")


def _some_ids(questions: Path) -> list[int]:
    """Ids of a few questions from the whole file."""
    ids = [row["question_id"] for row in json.loads(questions.read_bytes())["questions"]]
    return ids[:: max(1, len(ids) // (_SAMPLE // 2))][: _SAMPLE // 2]
