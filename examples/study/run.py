"""The study behind docs/results.md: tune every arm on the development split, train, evaluate, write the rows down.

    madkit extract --teacher mini --workspace W
    python examples/study/run.py adapt --workspace W
    python examples/study/run.py tune --workspace W --processes 2
    python examples/study/run.py variants --workspace W --processes 2
    python examples/study/run.py train --workspace W --processes 2
    python examples/study/run.py evaluate --workspace W
    python examples/study/run.py table

Every stage can be killed and called again: what is there is not made again. `adapt` tries to adapt the teacher to every
labelled subset, extracts with those that the development split finds better than the untouched one, and appends to
docs/results/adaptation.jsonl; arms that take an adapted teacher find it by themselves. `tune` appends to
docs/results/tuning.jsonl, `variants` to docs/results/variants.jsonl, `evaluate` writes docs/results/study.jsonl, and
`table` fills the tables of docs/results.md and draws its pictures from these files alone. `--tasks`, `--shots` and
`--arms` limit a call to a part of the grid. A workspace need not hold the whole study: `evaluate` replaces the rows of
a task and number of labels of which it has every run that stands there, and leaves the others (joined.py).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from madkit.core.errors import MadkitError, NotFoundError
from madkit.core.files import write_text_atomic
from madkit.core.workspace import Workspace
from madkit.distill.sweep.sweep import RunReport, RunSpec, run_many

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "docs" / "results"
HEADLINES = ("Q->AR", "accuracy")
AS_LONG = "finetune-long"  # what arms with a pre-phase are held against, too: it makes as many updates


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("stage", choices=["adapt", "tune", "variants", "train", "evaluate", "table"])
    parser.add_argument("--workspace", type=Path, default=Path("madkit-workspace"))
    parser.add_argument("--grid", type=Path, default=HERE / "grid.yaml")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSONL files")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--tasks", nargs="*")
    parser.add_argument("--shots", nargs="*")
    parser.add_argument("--arms", nargs="*")
    asked = parser.parse_args(arguments)
    grid = load_grid(asked.grid)
    limit(grid, asked.tasks, asked.shots, asked.arms)
    workspace = Workspace.at(asked.workspace)
    try:
        if asked.stage == "adapt":
            adapt_teachers(grid, workspace, asked.results / "adaptation.jsonl")
        elif asked.stage == "tune":
            tune(grid, workspace, asked.results / "tuning.jsonl", asked.processes)
        elif asked.stage == "variants":
            try_variants(grid, workspace, asked.results / "variants.jsonl", asked.processes)
        elif asked.stage == "train":
            specs = [spec for spec, _ in study_runs(grid, chosen(grid, read(asked.results / "tuning.jsonl")))]
            run_many(workspace, specs, processes=asked.processes, threads_each=1)
        elif asked.stage == "evaluate":
            from strays import refuse_strays  # beside this file

            specs = [spec for spec, _ in study_runs(grid, chosen(grid, read(asked.results / "tuning.jsonl")))]
            refuse_strays(workspace, specs, grid["shots"], grid["tasks"])
            evaluate_all(grid, workspace, asked.results / "study.jsonl")
        else:
            from picture import draw_pictures  # beside this file
            from tables import fill_page, headlines, ordered

            fill_page(asked.results, asked.results.parent / "results.md")
            rows = headlines(read(asked.results / "study.jsonl"))
            draw_pictures(rows, ordered({row["label"] for row in rows}), asked.results.parent / "images")
    except MadkitError as error:
        print(f"{error.message} {error.hint or ''}")
        return error.exit_code
    return 0


# -- the grid ----------------------------------------------------------------------------------------------------------


def load_grid(path: Path) -> dict[str, Any]:
    """The grid, with its budget checked: as many candidates for every arm."""
    grid: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for shots in ("", *grid["tuning"].get("instead", {})):
        sizes = {arm: len(candidates) for arm, candidates in candidates_of(grid, shots).items()}
        if len(set(sizes.values())) > 1:
            raise SystemExit(f"{path}: the arms have different budgets: {sizes}")
    return grid


def limit(
    grid: dict[str, Any], tasks: Sequence[str] | None, shots: Sequence[str] | None, arms: Sequence[str] | None
) -> None:
    """Leave that part of the grid that was asked for."""
    grid["tasks"] = [task for task in grid["tasks"] if not tasks or task in tasks]
    grid["shots"] = {name: seeds for name, seeds in grid["shots"].items() if not shots or name in shots}
    grid["wanted"] = list(arms) if arms else None


def wanted(grid: Mapping[str, Any], arm: str) -> bool:
    """Whether this call is about an arm."""
    return grid["wanted"] is None or arm in grid["wanted"]


def seeded(grid: Mapping[str, Any], arm: str, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """`settings` with the number of the pre-phase, for arms that have one."""
    from madkit.distill.settings.arms import load_arm

    if load_arm(arm, settings).pre_phase is None:
        return dict(settings)
    return {**settings, "pre_phase.seed": seed % int(grid["pre_phases"])}


# -- the teacher, adapted to every labelled subset ---------------------------------------------------------------------


def adapt_teachers(grid: Mapping[str, Any], workspace: Workspace, path: Path) -> None:
    """Adapt the teacher to each subset that has no row in `path`, extract where it got better, and append what it was.

    Better is what `madkit adapt` finds on the development split; where no step is, the teacher stays as it was.
    """
    from madkit.adapt.stage import adapt
    from madkit.extract.stage import extract

    known = {(row["task"], row["shots"], row["seed"]) for row in read(path)}
    subsets = [(shots, seed) for shots in tuned_at(grid) for seed in grid["tuning"]["seeds"]]
    subsets += [(shots, seed) for shots, seeds in grid["shots"].items() for seed in seeds]
    for task in grid["tasks"]:
        for shots, seed in subsets:
            if (task, shots, seed) in known:
                continue
            made = adapt(workspace, teacher=grid["teacher"], task=task, shots=shots, seed=seed, threads=1).manifest
            if made["kept_step"]:
                extract(workspace, None, [task], adapter=made["name"])
            told = {key: made[key] for key in ("steps", "kept_step", "before", "after")}
            append(path, {"task": task, "shots": shots, "seed": seed, **told})


# -- tuning: the development split alone -------------------------------------------------------------------------------


def tune(grid: Mapping[str, Any], workspace: Workspace, path: Path, processes: int) -> None:
    """Train every candidate that has no row in `path` yet, and append its score on the development split."""
    known = {key_of(row) for row in read(path)}
    specs = []
    for task, shots in product(grid["tasks"], tuned_at(grid)):
        for arm, candidates in candidates_of(grid, shots).items():
            for settings, seed in product(candidates if wanted(grid, arm) else (), grid["tuning"]["seeds"]):
                row = {"task": task, "arm": arm, "shots": shots, "seed": seed, "settings": settings}
                if key_of(row) not in known:
                    overrides = seeded(grid, arm, settings, seed)
                    specs.append(RunSpec(task, arm, shots, seed, grid["student"], grid["teacher"], overrides))

    def note(report: RunReport) -> None:
        spec = report.spec
        settings = {key: value for key, value in spec.overrides.items() if key != "pre_phase.seed"}
        row = {"task": spec.task, "arm": spec.arm, "shots": spec.shots, "seed": spec.seed, "settings": settings}
        append(path, {**row, "dev": report.dev})

    run_many(workspace, specs, processes=processes, threads_each=1, on_done=note)


def try_variants(grid: Mapping[str, Any], workspace: Workspace, path: Path, processes: int) -> None:
    """Train every variant that has no row in `path` yet, and append its score on the development split."""
    asked = grid["variants"]
    teachers = {name: run.get("teacher", grid["teacher"]) for name, run in asked["runs"].items()}
    names = {
        json.dumps([run["arm"], teachers[name], run["settings"]], sort_keys=True): name
        for name, run in asked["runs"].items()
    }
    known = {(row["task"], row["variant"], row["seed"]) for row in read(path)}
    specs = [
        RunSpec(task, run["arm"], asked["shots"], seed, grid["student"], teachers[name], settings)
        for task in asked["tasks"]
        if task in grid["tasks"]
        for name, run in asked["runs"].items()
        for seed in run.get("seeds", asked["seeds"])
        if (task, name, seed) not in known
        for settings in [seeded(grid, run["arm"], run["settings"], seed)]
    ]

    def note(report: RunReport) -> None:
        spec = report.spec
        settings = {key: value for key, value in spec.overrides.items() if key != "pre_phase.seed"}
        name = names[json.dumps([spec.arm, spec.teacher, settings], sort_keys=True)]
        append(path, {"task": spec.task, "variant": name, "shots": spec.shots, "seed": spec.seed, "dev": report.dev})

    run_many(workspace, specs, processes=processes, threads_each=1, on_done=note)


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def key_of(row: Mapping[str, Any]) -> str:
    """What a tuning row is about."""
    return json.dumps([row["task"], row["arm"], row["shots"], row["seed"], row["settings"]], sort_keys=True)


def headline(dev: Mapping[str, float]) -> float:
    """The score that decides."""
    return next(dev[name] for name in HEADLINES if name in dev)


def tuned_at(grid: Mapping[str, Any]) -> list[str]:
    """The subsets at which settings are chosen for the subsets of this call."""
    return list(dict.fromkeys(grid["tuning"]["at"][shots] for shots in grid["shots"]))


def candidates_of(grid: Mapping[str, Any], shots: str) -> dict[str, list[dict[str, Any]]]:
    """What each arm is tuned over where settings are chosen at `shots`."""
    tuning = grid["tuning"]
    return {**tuning["arms"], **tuning.get("instead", {}).get(shots, {})}


def chosen(grid: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """(task, tuned at, arm) -> settings with the best mean score over the tuning seeds; of equals the grid's first.

    Arms whose candidates are not all scored are left out: they are not ready to be trained.
    """
    tuning = grid["tuning"]
    scores = {key_of(row): headline(row["dev"]) for row in rows}
    best: dict[tuple[str, str, str], dict[str, Any]] = {}
    for task, shots in product(grid["tasks"], tuned_at(grid)):
        for arm, candidates in candidates_of(grid, shots).items():
            means = []
            for settings in candidates:
                row = {"task": task, "arm": arm, "shots": shots, "settings": settings}
                found = [scores.get(key_of({**row, "seed": seed})) for seed in tuning["seeds"]]
                means.append(None if None in found else sum(value for value in found if value is not None))
            if all(mean is not None for mean in means):
                best[task, shots, arm] = candidates[max(range(len(means)), key=lambda place: (means[place], -place))]
        for arm, leader in grid["follow"].items():
            if (task, shots, leader) in best:
                best[task, shots, arm] = best[task, shots, leader]
    return best


# -- the runs of the tables --------------------------------------------------------------------------------------------


def study_runs(
    grid: Mapping[str, Any], best: Mapping[tuple[str, str, str], dict[str, Any]]
) -> Iterator[tuple[RunSpec, str]]:
    """Every run of the study with the name under which the tables list it, cheap subsets first."""
    for shots, seeds in grid["shots"].items():
        for seed in seeds:
            for task in grid["tasks"]:
                for (of, at, arm), settings in best.items():
                    if (of, at) != (task, grid["tuning"]["at"][shots]) or not wanted(grid, arm):
                        continue
                    for name, more in arms_of(grid, arm):
                        overrides = seeded(grid, arm, {**settings, **more}, seed)
                        yield RunSpec(task, arm, shots, seed, grid["student"], grid["teacher"], overrides), name


def arms_of(grid: Mapping[str, Any], arm: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """An arm, and its control where it has one."""
    yield arm, {}
    if arm in grid["controls"]:
        yield f"{arm}, permuted", dict(grid["controls"][arm])


# -- the test suites, read once ----------------------------------------------------------------------------------------


def evaluate_all(grid: Mapping[str, Any], workspace: Workspace, path: Path) -> None:
    """Evaluate the runs of the study and write the rows of the results documents to `path`."""
    from joined import joined  # beside this file

    from madkit.distill.settings.arms import arm_names, load_arm

    seeds = sorted({seed for seeds in grid["shots"].values() for seed in seeds})
    protocol = {
        "about": "The study of docs/results.md.",
        "tasks": grid["tasks"],
        "shots": list(grid["shots"]),
        "seeds": seeds,
    }
    in_two_phases = [arm for arm in arm_names() if load_arm(arm, {}).pre_phase is not None]
    document = results_of(workspace, "study", protocol)
    longer = {**protocol, "arms": [AS_LONG, *in_two_phases], "baseline": AS_LONG}
    try:
        beside = results_of(workspace, "study-long", longer)["rows"]
    except NotFoundError:  # a workspace that holds none of these arms
        beside = []
    about = {
        "madkit": document["environment"],
        "created": document["created"],
        "metric_version": document["metric_version"],
    }
    rows = [{"kind": "row", **row} for row in document["rows"]]
    rows += [{"kind": f"against {AS_LONG}", **row} for row in beside if row["headline"]]
    lines, told = joined(read(path), about, rows)
    for line in told:
        print(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, "".join(json.dumps(line) + "\n" for line in lines))


def results_of(workspace: Workspace, name: str, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The results document of a protocol, which is kept in the workspace under `name`."""
    from madkit.evaluate.stage import evaluate

    file = workspace.root / f"{name}.yaml"
    write_text_atomic(file, yaml.safe_dump(dict(protocol), sort_keys=False))
    return evaluate(workspace, str(file)).document()


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


if __name__ == "__main__":
    raise SystemExit(main())
