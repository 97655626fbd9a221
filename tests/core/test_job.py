"""Processes of one job: real ones (gloo, forked), and what a failure of one of them becomes in all."""

from __future__ import annotations

import importlib
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from madkit.core.errors import MadkitError, RunError, StoppedResumable, UsageProblem
from madkit.core.job import Job


class Talk(Job):
    """The first or second of two processes, which hears what a test says that the other one tells."""

    def __init__(self, number: int, *others: object) -> None:
        super().__init__()
        self.number, self.count, self.others = number, 2, list(others)

    def __enter__(self) -> Talk:
        return self

    def gather(self, value: Any) -> list[Any]:
        other = self.others.pop(0)
        return [value, other] if self.first else [other, value]


def job_of_two(act: Callable[[Job], object], folder: Path) -> tuple[list[int], list[str]]:
    """Exit statuses and stderr of two real processes that run ``act`` in a job."""
    # both are imported once, here: a forked process has them
    importlib.import_module("torch.distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    children = []
    for rank in range(2):
        child = os.fork()
        if not child:
            code = 99
            try:
                os.environ |= {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                sys.stderr = (folder / str(rank)).open("w")
                with Job("evaluate") as job:
                    act(job)
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
            except MadkitError as error:
                print(type(error).__name__, error.message, error.hint, file=sys.stderr)
                code = error.exit_code
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return codes, [(folder / str(rank)).read_text() for rank in range(2)]


def test_two_processes_tell_each_other_what_they_have(tmp_path: Path) -> None:
    def act(job: Job) -> None:
        assert job.gather(job.number * 10) == [0, 10]
        assert job.share("plan" if job.first else None) == "plan"
        made = tmp_path / "made"

        def phase() -> bool:
            there = made.exists()
            made.touch()
            return there

        assert job.one_after_another(phase) is not job.first
        assert job.together(lambda: job.number) == job.number

    assert job_of_two(act, tmp_path) == ([0, 0], ["", ""])


def test_the_first_process_says_what_another_failed_at_as_that_one_would(tmp_path: Path) -> None:
    def act(job: Job) -> None:
        def phase() -> None:
            if not job.first:
                raise UsageProblem("There is no suite tset.", hint="take test")

        job.together(phase)

    codes, printed = job_of_two(act, tmp_path)
    assert codes == [2, 2]
    assert printed == [
        "Warning: Process 1 of the job failed.\nUsageProblem There is no suite tset. take test\n",
        "",
    ]


def test_a_process_that_dies_ends_the_others(tmp_path: Path) -> None:
    def act(job: Job) -> None:
        job.together(lambda: None)
        if not job.first:
            os._exit(7)
        job.together(lambda: None)

    codes, printed = job_of_two(act, tmp_path)
    assert codes == [1, 7]
    assert printed[0].startswith("RunError Another process of this job has ended. run the same command again")


FAILURES = [
    (RunError("no space left"), 1, RunError),
    (StoppedResumable("Stopped by SIGTERM after saving."), 75, StoppedResumable),
    (KeyboardInterrupt(), 130, StoppedResumable),
]


@pytest.mark.parametrize(("told", "code", "error"), FAILURES)
def test_where_another_process_fails_the_first_one_says_so_and_the_others_end(
    told: BaseException, code: int, error: type[MadkitError], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(error) as caught, Talk(0, told) as job:
        job.together(lambda: 3)
    assert code != 1 or caught.value.message == "no space left"
    assert ("Process 1 of the job failed" in capsys.readouterr().err) == (code == 1)
    with pytest.raises(SystemExit) as ended, Talk(1, told) as job:
        job.together(lambda: 3)
    assert ended.value.code == code


def test_the_first_process_raises_its_own_error() -> None:
    with pytest.raises(KeyError, match="nothing"), Talk(0, None) as job:
        job.together(lambda: {}["nothing"])
    assert Talk(0, None).together(lambda: 3) == 3
    own = RunError("mine")

    def fail() -> None:
        raise own

    with pytest.raises(RunError) as caught, Talk(0, RunError("the other's")) as job:
        job.together(fail)
    assert caught.value is own


def test_an_error_comes_before_a_stop() -> None:
    def stop() -> None:
        raise StoppedResumable("Stopped.")

    with pytest.raises(RunError, match="torn"), Talk(0, RunError("torn")) as job:
        job.together(stop)


def test_a_failure_may_be_caught_by_all_and_the_job_goes_on() -> None:
    with Talk(1, RunError("one task"), None) as job:
        with pytest.raises(RunError, match="one task"):
            job.together(lambda: None)
        assert job.together(lambda: 4) == 4


def test_what_cannot_be_sent_is_told_in_words() -> None:
    class Local(Exception):
        """Unknown to every other process."""

    told: list[BaseException] = []

    class Recording(Talk):
        def gather(self, value: Any) -> list[Any]:
            told.append(value)
            return super().gather(value)

    def fail() -> None:
        raise Local("inside")

    with pytest.raises(SystemExit), Recording(1, None) as job:
        job.together(fail)
    assert str(told[0]) == "Local: inside"
    assert "In process 1 of the job:" in told[0].__notes__[0]


def test_a_dead_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*arguments: object, **more: object) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr("torch.distributed.all_gather_object", gone)
    job = Job()
    job.count = 2
    with pytest.raises(RunError, match="has ended"):
        job.gather(1)


def test_a_variable_alone_makes_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    with Job() as job:
        assert (job.count, job.number, job.first) == (1, 0, True)
        assert job.gather(3) == [3]
        assert job.share(3) == 3
        assert job.together(lambda: 4) == 4


def test_accelerate_with_cpu_starts_one_process_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with Job("evaluate") as job:
        assert job.count == 1
    assert "--multi_gpu --num_processes N -m madkit evaluate --device cpu" in capsys.readouterr().err
