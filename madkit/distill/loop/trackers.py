"""Experiment trackers beside `metrics.jsonl`, through Accelerate's `log_with`: TensorBoard, Weights & Biases, others.

`metrics.jsonl` is the journal; trackers are fed from it, each time after a checkpoint was written, up to the
checkpoint's step. `trackers/<name>.json` says how far a tracker has been fed. So a run that was killed and goes on
sends every step once, whatever the kill took, and a tracker that is asked for later gets the run from its first step.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType

from madkit.core.errors import RunError, UsageProblem
from madkit.core.files import read_json, read_jsonl, write_json_atomic
from madkit.core.registry import suggest

PROJECT = "madkit"
_PACKAGES = {"comet_ml": "comet-ml"}


def check_trackers(names: Sequence[str]) -> None:
    """Raise UsageProblem for a name that Accelerate does not know, RunError for one whose package is not installed."""
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = sorted(LOGGER_TYPE_TO_CLASS)
            raise UsageProblem(
                f"There is no tracker '{name}'.{suggest(name, known)}", hint=f"one of {', '.join(known)}"
            )
        built_in = name in {str(kind.value) for kind in LoggerType}
        if built_in and name not in {str(getattr(kind, "value", kind)) for kind in get_available_trackers()}:
            raise RunError(
                f"The tracker '{name}' needs a package that is not installed.",
                hint=f"pip install {_PACKAGES.get(name, name)}",
            )


class Trackers:
    """The trackers of one run. Use as a context manager; `feed` after each checkpoint. Only the main process speaks.

    Args:
        names: as Accelerate has them; see `check_trackers`.
        folder: the run's folder.
        identity: what stands for the run where several are compared, with a name.
        config: the resolved configuration, nested.
        accelerator: whose trackers they become while the block lasts.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        identity: Mapping[str, Any],
        config: Mapping[str, Any],
        accelerator: Accelerator,
    ) -> None:
        self.names = list(dict.fromkeys(names)) if accelerator.is_main_process else []
        self._folder = folder
        self._root = folder / "trackers"
        self._values = flat({**identity, **config})
        self._accelerator = accelerator

    def _mark(self, name: str) -> Path:
        return self._root / f"{name}.json"

    def _fed(self, name: str) -> int:
        return int(read_json(self._mark(name))["step"]) if self._mark(name).exists() else -1

    def __enter__(self) -> Trackers:
        for name in self.names:
            self._start(name)
        return self

    def _start(self, name: str) -> None:
        accelerator, fed = self._accelerator, self._fed(name)
        if name == "wandb" and "WANDB_MODE" not in os.environ:
            os.environ["WANDB_MODE"] = "offline"  # nothing leaves this machine unless the user says so
        place = self._root / name
        place.mkdir(parents=True, exist_ok=True)
        own = _settings(name, self._folder, place, fed)
        # one at a time: each has its own folder, and its own answer to whether it knows the configuration already
        before, accelerator.trackers = accelerator.trackers, []
        accelerator.log_with = [name]
        accelerator.project_configuration.logging_dir = str(place)
        project = "." if name == "tensorboard" else PROJECT  # TensorBoard names a run by its folder
        accelerator.init_trackers(project, config=self._values if fed < 0 else None, init_kwargs={name: own})
        accelerator.trackers = before + accelerator.trackers

    def feed(self, step: int) -> None:
        """Send the journal's lines up to and with `step` that have not been sent."""
        if not self.names:
            return
        rows = read_jsonl(self._folder / "metrics.jsonl")
        every = list(self._accelerator.trackers)
        try:
            for name, tracker in zip(self.names, every[-len(self.names) :], strict=True):
                fed = self._fed(name)
                self._accelerator.trackers = [tracker]
                for row in rows:
                    if fed < row["step"] <= step:
                        self._accelerator.log(_line(row), step=row["step"])
                write_json_atomic(self._mark(name), {"step": max(step, fed)})
        finally:
            self._accelerator.trackers = every

    def __exit__(self, *_: object) -> None:
        # not `end_training`, which would also end the process group that later runs of this process need
        for tracker in self._accelerator.trackers[-len(self.names) :] if self.names else ():
            tracker.finish()
        if self.names:
            del self._accelerator.trackers[-len(self.names) :]


def _settings(name: str, folder: Path, place: Path, fed: int) -> dict[str, Any]:
    if name == "tensorboard":
        # what a kill left behind of later steps is hidden
        return {"purge_step": fed + 1} if fed >= 0 else {}
    if name == "wandb":
        run = re.sub(r"[^a-zA-Z0-9_-]", "-", folder.name)
        return {"dir": str(place), "name": folder.name, "id": run, "resume": "allow", "group": folder.parent.name}
    return {}


def _line(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of `metrics.jsonl`: `train/loss`, `train/lr`, `terms/<name>`, `dev/<metric>`."""
    if "dev" in row:
        return {f"dev/{name}": float(value) for name, value in row["dev"].items() if isinstance(value, (int, float))}
    values = {"train/loss": row["loss"], "train/lr": row["lr"]}
    return {**values, **{f"terms/{name}": value for name, value in row["terms"].items()}}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested values under dotted keys, as trackers take them: what is neither number nor text becomes text."""
    found: dict[str, bool | int | float | str] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found.update(flat(value, f"{key}."))
        elif isinstance(value, (bool, int, float, str)):
            found[key] = value
        else:
            found[key] = json.dumps(value, default=str)
    return found
