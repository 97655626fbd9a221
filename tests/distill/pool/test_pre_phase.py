"""The pre-phase with other losses than sentence affinity: terms, heads, layers, and what it refuses."""

from __future__ import annotations

import errno
import fcntl
import math
from types import SimpleNamespace

import pytest

from madkit.core.errors import ConfigError, RunError
from madkit.core.files import FileLock, read_jsonl
from madkit.distill.pool import pre_phase as pre_phase_room
from madkit.distill.runs.folder import RunBusy
from madkit.distill.stage import distill
from madkit.students.heads import HeadSpec
from madkit.students.load import load_student

TOKENS = {"weight": 0.5, "affinity_weight": 0.0, "weighting": "uniform"}
TERMS = {"global_image", "global_text", "token_text", "token_region", "token_tag"}
AT_LAYERS = {f"{term}@{layer}" for term in TERMS for layer in (0, 2)}


def phase(workspace, student, objective, *, task="vcr"):
    settings = {f"pre_phase.objective.{name}": value for name, value in objective.items()}
    settings |= {"pre_phase.steps": 2, "pre_phase.batch_size": 8, "pre_phase.eval_every": 1}
    settings |= {"optim.steps": 1, "optim.batch_size": 2, "eval.limit": 2}
    result = distill(
        workspace, task=task, shots="10pct", arm="affinity", student=student, seed=1, config_overrides=settings,
        threads=1, part="auto",
    )  # fmt: skip
    folder = result.path.parent / result.manifest["pre_phase"]
    return folder, read_jsonl(folder / "metrics.jsonl")


@pytest.mark.parametrize(
    ("objective", "terms"),
    [
        ({**TOKENS, "schedule": "cosine", "warmup": 0.5, "global_source": "query"}, TERMS),
        ({**TOKENS, "distance": "info-nce", "head": "mlp", "layer": [0, 2]}, AT_LAYERS),
        pytest.param({**TOKENS, "distance": "smooth-l1", "tokens": "all"}, TERMS, marks=pytest.mark.slow),
        pytest.param({**TOKENS, "distance": "mse", "tokens": "random"}, TERMS, marks=pytest.mark.slow),
        ({"affinity_form": "word"}, {"affinity_word"}),
        (
            {**TOKENS, "affinity_weight": 1.0, "affinity_form": "both", "tokens": "global", "head": "mlp"},
            {"affinity_sentence", "affinity_word", "global_image", "global_text"},
        ),
    ],
)  # fmt: skip
def test_any_loss_trains_a_student_before_the_labels(workspace, student, objective, terms):
    folder, rows = phase(workspace, student, objective)
    losses = [row for row in rows if "loss" in row]
    assert [set(row["terms"]) for row in losses] == [terms, terms]
    assert all(math.isfinite(row["loss"]) for row in losses)
    assert all(value > 0 for row in losses for value in row["terms"].values())
    # what stops it is not scaled by the schedule: under a warm-up the first look would be at nothing
    looks = [row["dev"]["held_out"] for row in rows if "dev" in row]
    assert len(looks) == 2
    assert min(looks) > 0
    before, after = (
        load_student(one, head=HeadSpec("multiple-choice")).encoder.state_dict()
        for one in (student, folder / "student")
    )
    assert any((before[name] != value).any() for name, value in after.items())


def test_weights_by_confidence_are_refused_before_labels(workspace, student):
    with pytest.raises(ConfigError, match="nobody's confidence"):
        phase(workspace, student, {**TOKENS, "weighting": "teacher-student"})


def test_a_layer_that_is_not_there_is_named(workspace, student):
    with pytest.raises(ConfigError, match="no layer 7"):
        phase(workspace, student, {**TOKENS, "layer": 7}, task="snli-ve")


def test_tags_alone_are_refused_where_no_text_has_one(workspace, student):
    alone = {**TOKENS, "tokens": "all", "text_weight": 0, "region_weight": 0}
    alone |= {"global_image_weight": 0, "global_text_weight": 0}
    with pytest.raises(ConfigError, match="name no boxes"):
        phase(workspace, student, alone, task="snli-ve")


def test_processes_that_wait_for_another_job_hear_of_every_attempt(tmp_path, monkeypatch):
    """In one message until the lock is free they would be given up, after ten minutes under NCCL."""
    path = tmp_path / "pre-phase-1"
    other = FileLock(path.with_name(f".{path.name}.lock"), error=RunError, what="it")
    other.acquire()
    heard: list[list[bool]] = []

    def broadcast(values: list[bool]) -> list[bool]:
        heard.append(list(values))
        if len(heard) == 3:
            other.release()
        return values

    monkeypatch.setattr(pre_phase_room, "broadcast_object_list", broadcast)
    monkeypatch.setattr(pre_phase_room, "WAIT_S", 0.001)
    main = SimpleNamespace(is_main_process=True, num_processes=2)
    with pre_phase_room._Turn(path, main), pytest.raises(RunError):
        other.acquire()
    assert heard == [[False], [False], [False], [True]]
    other.acquire()
    monkeypatch.setattr(pre_phase_room, "broadcast_object_list", lambda values: [True])
    with pre_phase_room._Turn(path, SimpleNamespace(is_main_process=False, num_processes=2)):
        pass  # this process follows, and the lock stays whose it is
    with pytest.raises(RunError):
        FileLock(path.with_name(f".{path.name}.lock"), error=RunError, what="it").acquire()
    other.release()


def test_a_file_system_without_locks_is_said_and_not_waited_for(tmp_path, monkeypatch):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(RunError, match="its file system has no file locks") as error,
        pre_phase_room._Turn(tmp_path / "pre-phase-1", SimpleNamespace(is_main_process=True, num_processes=1)),
    ):
        pass
    assert not isinstance(error.value, RunBusy)  # which a sweep would wait for
