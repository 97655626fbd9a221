from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from madkit.cli.distill_sweep import summarise
from madkit.cli.main import main
from madkit.core.errors import ConfigError, RunError, UsageProblem
from madkit.core.files import FileLock, read_jsonl
from madkit.core.workspace import Workspace
from madkit.distill.settings.arms import load_arm, parse_overrides
from madkit.distill.sweep import fitting, sweep
from madkit.distill.sweep.plan import SweepPlan, load_plan, parse_seeds
from madkit.distill.sweep.sweep import RunReport, RunSpec, run_many
from madkit.distill.sweep.worker import answer
from madkit.distill.sweep.worker_process import Plan, WorkerProcess

QUICK = {"optim.steps": 3, "optim.batch_size": 4, "eval.limit": 8}


def test_names_of_nothing_are_found_before_anything_starts(workspace, student, monkeypatch):
    monkeypatch.setattr("madkit.distill.sweep.sweep.WorkerProcess", lambda *_: pytest.fail("a process was started"))
    good = RunSpec("snli-ve", "finetune", "10", 1, str(student), None, QUICK)
    with pytest.raises(UsageProblem, match="Did you mean 'uniter-base'"):
        run_many(workspace, [good, RunSpec("snli-ve", "finetune", "10", 1, "uniter-bse", None, QUICK)])
    with pytest.raises(UsageProblem, match="Did you mean 'finetune'"):
        run_many(workspace, [good, RunSpec("snli-ve", "finetun", "10", 1, str(student), None, QUICK)])


def test_runs_are_trained_side_by_side_and_failures_named(workspace, student, monkeypatch):
    good = [RunSpec("snli-ve", "finetune", "10", seed, str(student), None, QUICK) for seed in (1, 2)]
    bad = RunSpec("snli-ve", "mad", "10", 1, str(student), "clip-vit-b32", QUICK)
    seen = []
    with pytest.raises(RunError) as error:
        run_many(workspace, [good[0], bad, good[1]], processes=2, threads_each=1, on_done=seen.append)
    assert error.value.message.startswith("1 of 3 runs failed: snli-ve mad 10 seed 1: ")
    assert "no token cache of 'clip-vit-b32'" in error.value.message
    assert sorted(report.spec.seed for report in seen) == [1, 2]
    assert all((report.path / "student" / "model.safetensors").is_file() for report in seen)
    # what is complete starts no process
    monkeypatch.setattr("madkit.distill.sweep.sweep.WorkerProcess", lambda *_: pytest.fail("a process was started"))
    heard = []
    (again,) = run_many(workspace, good[:1], on_done=heard.append)
    assert heard == [again]
    assert again.skipped
    assert again.path == next(report.path for report in seen if report.spec.seed == 1)
    assert set(again.dev) == {"accuracy", "n"}


def test_a_wrong_spec_is_found_before_any_process_starts(workspace, student):
    spec = RunSpec("snli-ve", "finetune", overrides={"optim.step": 3})
    with pytest.raises(ConfigError, match="Did you mean 'steps'"):
        run_many(workspace, [spec])


def test_a_worker_that_dies_is_an_answer_and_no_hang(tmp_path):
    worker = WorkerProcess(1)
    worker._process.kill()
    worker._process.wait()
    worker.ask(0, RunSpec("vcr", "finetune"), Plan("mini-vcr", 0, 1), Workspace.at(tmp_path), "auto")
    reply = worker.reply()
    assert reply is not None
    assert "ended with code -9" in reply["error"]
    assert not worker.alive
    worker.stop()


def test_seeds_are_read_as_people_write_them():
    assert parse_seeds("0-4") == [0, 1, 2, 3, 4]
    assert parse_seeds("0-2, 9,1") == [0, 1, 2, 9]
    for wrong in ("", "4-2", "a", "1,,2", "-1"):
        with pytest.raises(UsageProblem, match="does not name seeds"):
            parse_seeds(wrong)


def test_a_plan_is_every_combination_seed_by_seed(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(
        "task: vcr\narm: [mad, finetune]\nshots: [1pct, 200]\nseeds: 0-1\nstudent: x\n"
        "set: {optim.steps: 9}\ngrid: {mad.weight: [0.3, 1.0], optim.ema: [0.9]}\n"
    )
    plan = load_plan(path, {"shots": ["5pct"]}, {"optim.steps": 7, "optim.ema": 0.5})
    specs = plan.specs()
    assert len(specs) == len(set(map(str, specs))) == 6
    assert [spec.seed for spec in specs] == [0] * 3 + [1] * 3
    assert {spec.shots for spec in specs} == {"5pct"}
    assert {spec.arm for spec in specs[:2]} == {"mad", "finetune"}
    assert dict(specs[0].overrides) == {"optim.steps": 7, "optim.ema": 0.5, "mad.weight": 0.3}
    assert plan.tried(specs[2]) == {"mad.weight": 1.0}
    assert specs[1].overrides == {"optim.steps": 7, "optim.ema": 0.5}, "the baseline stays one, and is trained once"
    assert plan.tried(specs[1]) == {}
    assert plan.left_out() == {"mad.weight": ["finetune"]}


def planned(tmp_path, text, **overrides):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    return load_plan(
        path, {"task": ["snli-ve"]}, parse_overrides([f"{key}={value}" for key, value in overrides.items()])
    )


def test_mappings_of_a_plan_go_over_one_another_key_by_key(tmp_path):
    text = (
        "set: {optim: {batch_size: 4, steps: 2}, eval.limit: 8, mad: {k_text: 2, weighting: uniform}}\n"
        "grid: {mad: [{weight: 0.3}, {weight: 1.0}]}\n"
    )
    plan = planned(tmp_path, text, **{"optim": "{learning_rate: 1e-4}", "optim.steps": 3})
    same = {"optim.batch_size": 4, "optim.steps": 3, "eval.limit": 8, "mad.k_text": 2, "mad.weighting": "uniform"}
    assert [load_arm(spec.arm, spec.overrides) for spec in plan.specs()] == [
        load_arm("mad", {**same, "optim.learning_rate": 1e-4, "mad.weight": weight}) for weight in (0.3, 1.0)
    ]
    assert [plan.tried(spec) for spec in plan.specs()] == [{"mad.weight": 0.3}, {"mad.weight": 1.0}]


@pytest.mark.parametrize("grid", ["{mad.weight: [0.3, 1.0]}", "{mad: [{weight: 0.3}, {weight: 1.0}, null]}"])
@pytest.mark.parametrize("given", [{"mad": "{weight: 0.5}"}, {"mad.weight": "0.5"}])
def test_the_command_line_goes_before_a_grid_however_either_is_spelt(tmp_path, grid, given):
    plan = planned(tmp_path, f"grid: {grid}\n", **given)
    (spec,) = plan.specs()
    assert (dict(spec.overrides), plan.tried(spec)) == ({"mad.weight": 0.5}, {})


def test_a_grid_of_mappings_tries_what_the_command_line_leaves_of_them(tmp_path):
    text = "grid: {mad: [{weight: 1, gamma: 2}, {weight: 2}, null], teachers: [{a.b: {weight: 0.5}}, {a.b: 2}]}\n"
    plan = planned(tmp_path, text, **{"mad.weight": 3})
    assert [plan.tried(spec) for spec in plan.specs()] == [
        {**mad, **teachers}
        for mad in ({"mad.gamma": 2}, {})
        for teachers in ({'teachers."a.b".weight': 0.5}, {'teachers."a.b"': 2})
    ]
    (report,) = (RunReport(spec, tmp_path / "run", False, {"accuracy": 50.0}) for spec in plan.specs()[:1])
    assert summarise(plan, [report])[0]["settings"] == ["mad.gamma=2", 'teachers."a.b".weight=0.5']
    off = planned(tmp_path, "set: {mad.k_text: 2}\ngrid: {mad: [{}, null, {weight: 1}]}\n")
    assert [dict(spec.overrides) for spec in off.specs()] == [
        {"mad.k_text": 2, "mad": {}}, {"mad": None}, {"mad.k_text": 2, "mad.weight": 1},
    ]  # fmt: skip
    assert len({str(off.tried(spec)) for spec in off.specs()}) == 3


def test_a_sweep_says_which_settings_are_not_for_an_arm(workspace, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(sweep, "run_many", lambda place, specs, **_: asked.extend(specs))
    base = ["distill", "--sweep", "--task", "snli-ve", "--workspace", str(workspace.root), "--set", "mad.weight=0.3"]
    assert main([*base, "--arm", "finetune", "--arm", "clip-vil", "--arm", "mad"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("mad.weight is not for") == 1
    assert "not for finetune and clip-vil, which have no mad: they are trained without it." in said
    assert [dict(spec.overrides) for spec in asked] == [{}, {}, {"mad.weight": 0.3}]
    asked.clear()
    more = ["--set", "pool.weight=1", "--set", "teachers={mini: {weight: 2}}"]
    assert main([*base, *more, "--arm", "finetune", "--arm", "mad"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "pool.weight is not for finetune, which has no pool: it is trained without it." in said
    assert "teachers.mini.weight is not for finetune, which has no teacher: it is trained without it." in said
    taught = {"mad.weight": 0.3, "pool.weight": 1, "teachers.mini.weight": 2}
    assert [dict(spec.overrides) for spec in asked] == [{}, taught]
    assert main([*base, "--arm", "finetune", "--arm", "finetune-long"]) == 1
    assert "finetune is plain fine-tuning, without a teacher" in " ".join(capsys.readouterr().err.split())


def test_mistakes_in_a_plan_are_all_named(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("arms: mad\nseeds: 4-2\n")
    with pytest.raises(ConfigError) as error:
        load_plan(path, {}, {})
    for part in (
        "3 problems",
        "plan.yaml",
        "arms: unknown key",
        "'arm'",
        "'4-2' does not name seeds",
        "task: required",
    ):
        assert part in error.value.message


@pytest.mark.parametrize(
    ("written", "shots", "seeds"),
    [
        ("shots: 200\n", ("200",), (0,)),
        ("shots: [200, 1pct]\nseeds: 3\n", ("200", "1pct"), (3,)),
        ("seeds: [0-2, 5]\n", ("1pct",), (0, 1, 2, 5)),
    ],
)
def test_numbers_in_a_plan_are_read_as_they_are_meant(tmp_path, written, shots, seeds):
    path = tmp_path / "plan.yaml"
    path.write_text(f"task: vcr\n{written}")
    plan = load_plan(path, {}, {})
    assert (plan.shots, plan.seeds) == (shots, seeds)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("shots: true", "shots: a name is wanted, or a list of names, and True is none"),
        ("shots: [1pct, no]", "shots: a name is wanted, or a list of names, and False is none"),
        ("shots: 0.5", "shots: a name is wanted, or a list of names, and 0.5 is none"),
        ("seeds: true", "seeds: true does not name seeds"),
        ("seeds: [1, true]", "seeds: true does not name seeds"),
        ("seeds: [0-x]", "seeds: '0-x' does not name seeds"),
        ("grid: {mad.weight: []}", "grid.mad.weight: the list of values to try is empty"),
    ],
)
def test_what_cannot_be_meant_in_a_plan_is_one_problem(tmp_path, written, said):
    path = tmp_path / "plan.yaml"
    path.write_text(f"task: vcr\n{written}\n")
    with pytest.raises(ConfigError) as error:
        load_plan(path, {}, {})
    assert error.value.message.startswith("1 problem ")
    assert said in error.value.message


def test_a_value_that_is_tried_twice_is_one_run(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("task: vcr\ngrid: {mad.weight: [0.3, 0.30, 1], optim.learning_rate: [1e-4, 0.0001]}\n")
    plan = load_plan(path, {}, {})
    specs = plan.specs()
    assert [spec.overrides["mad.weight"] for spec in specs] == [0.3, 1]
    reports = [
        RunReport(spec, tmp_path / "run", done, {"accuracy": 50.0})
        for spec, done in zip(specs, (True, False), strict=True)
    ]
    same = [replace(report, spec=specs[0]) for report in reports]
    (row,) = summarise(plan, same)
    assert (row["seeds"], row["sd"], row["trained"]) == ([0], None, 1)
    assert len(summarise(plan, reports)) == 2


def test_processes_fit_the_cores_the_memory_and_the_devices(monkeypatch):
    monkeypatch.setattr(fitting, "visible_gpus", lambda: ())
    monkeypatch.setattr(fitting.os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.setattr(fitting, "free_memory", lambda: 64 * 10**9)
    assert fitting.fit(100, 1).processes == 12
    assert fitting.fit(100, 5).processes == 2
    assert fitting.fit(3, 1).processes == 3
    monkeypatch.setattr(fitting, "free_memory", lambda: 7 * 10**9)
    small = fitting.fit(100, 1)
    assert (small.processes, small.reason) == (3, "7 GB of free memory")
    assert fitting.fit(100, 1, student_bytes=10**9).processes == 1
    monkeypatch.setattr(fitting, "visible_gpus", lambda: ("2", "GPU-abc"))
    several = fitting.fit(100, 1)
    assert (several.processes, several.gpus, several.reason) == (2, ("2", "GPU-abc"), "2 GPUs")


def test_a_cluster_that_sets_its_size_for_everybody_is_no_launcher(monkeypatch, tmp_path, capsys):
    from madkit.cli.distill_sweep import sweep as command

    monkeypatch.setattr(sweep, "run_many", lambda *_, **__: [])
    plan = SweepPlan(task="vcr", arm="finetune", seeds="0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    command(Workspace(tmp_path), plan, processes=1, threads=1, json_=False)
    assert "1 run, 1 at a time" in capsys.readouterr().err
    for name, text in {"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(UsageProblem, match="starts its own processes"):
        command(Workspace(tmp_path), plan, processes=1, threads=1, json_=False)


def test_devices_keep_the_names_that_were_given(monkeypatch):
    monkeypatch.setattr(fitting.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert fitting.visible_gpus() == ("3", "5")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert fitting.visible_gpus() == ("0", "1")


def test_each_process_gets_the_device_with_the_fewest(monkeypatch):
    class Fake:
        busy = True

        def __init__(self, threads: int, gpu: str | None, beside: int) -> None:
            self.gpu = gpu

    monkeypatch.setattr(sweep, "WorkerProcess", Fake)
    workers: list = []
    for _ in range(4):
        assert sweep._idle(workers, 4, 1, ("0", "1")) is workers[-1]
    assert [worker.gpu for worker in workers] == ["0", "1", "0", "1"]
    assert sweep._idle(workers, 4, 1, ("0", "1")) is None


class Answering:
    """A worker whose answers are written beforehand."""

    answers: list[dict] = []
    alive = True

    def __init__(self, threads: int, gpu: str | None = None, beside: int = 1) -> None:
        self.number = self.spec = None
        self.gpu = gpu

    @property
    def busy(self) -> bool:
        return self.number is not None

    def ask(self, number, spec, plan, workspace, part) -> None:
        self.number, self.spec = number, spec

    def reply(self):
        return self.answers.pop(0) if self.busy else None

    def steps_done(self) -> int:
        return 0

    def stop(self) -> None:
        pass


def test_a_run_that_another_process_trains_is_waited_for(workspace, student, monkeypatch, capsys):
    done = {"run": "there", "skipped": True, "dev": {"accuracy": 50.0, "n": 8}}
    monkeypatch.setattr(Answering, "answers", [{"busy": "the run x is in use by process 7."}] * 2 + [done])
    monkeypatch.setattr(sweep, "WorkerProcess", Answering)
    monkeypatch.setattr(sweep, "POLL_S", 0.01)
    monkeypatch.setattr(sweep, "BUSY_S", 0.05)
    (report,) = run_many(workspace, [RunSpec("snli-ve", "finetune", "10", 3, str(student), None, QUICK)])
    assert report.skipped
    assert capsys.readouterr().err.count("Waiting: the run x is in use by process 7.") == 1


def test_a_locked_run_is_busy_and_not_failed(workspace, student):
    request = {"workspace": str(workspace.root), "task": "snli-ve", "shots": "10", "arm": "finetune"}
    request |= {"student": str(student), "config_overrides": dict(QUICK), "threads": 1}
    run = Path(answer(dict(request))["run"])
    manifest = run / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"complete"', '"running"'))
    with FileLock(run / ".lock"):
        reply = answer(dict(request))
    assert set(reply) == {"busy"}
    assert f"in use by process {os.getpid()}" in reply["busy"]


def test_a_worker_ends_when_its_sweep_is_gone():
    """Its stdin closes: an idle one leaves at once, a busy one is told to save."""
    script = (
        "import os, signal, sys, time\n"
        "from madkit.distill.sweep.worker import _Requests\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('told', flush=True), os._exit(75)))\n"
        "requests = _Requests()\n"
        "print('got', requests.next().strip(), flush=True)\n"
        "if sys.argv[1] == 'busy': time.sleep(60)\n"
        "requests.answered()\n"
        "print('done', flush=True)\n"
        "print('next', requests.next(), flush=True)\n"
    )
    for state, code, said in (("busy", 75, "told\n"), ("idle", 0, "next None\n")):
        command = [sys.executable, "-c", script, state]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("x\n")
            process.stdin.flush()
            assert process.stdout.readline() == "got x\n"
            if state == "idle":
                assert process.stdout.readline() == "done\n"
            process.stdin.close()
            assert process.stdout.read() == said
        assert process.returncode == code


SWEEP = ["--task", "snli-ve", "--arm", "finetune", "--arm", "mad", "--shots", "10", "--seeds", "0-1"]


def command(workspace, student, *more: str) -> list[str]:
    sets = [part for key, value in QUICK.items() for part in ("--set", f"{key}={value}")]
    place = ["--student", str(student), "--workspace", str(workspace.root)]
    return ["distill", "--sweep", *SWEEP, "--processes", "2", *place, *sets, *more]


@pytest.mark.slow
def test_a_killed_sweep_leaves_nobody_writing_and_is_finished_by_the_next_call(workspace, student, capsys):
    long = [part.replace("optim.steps=3", "optim.steps=60") for part in command(workspace, student)]
    long += ["--set", "checkpoint.every=5"]
    process = subprocess.Popen([sys.executable, "-m", "madkit", *long], start_new_session=True)
    deadline = time.monotonic() + 400  # a busy machine takes minutes to start three processes with torch
    begun: list[int] = []
    while process.poll() is None and time.monotonic() < deadline and not (len(begun) >= 2 and min(begun) >= 6):
        time.sleep(0.02)
        begun = [path.read_bytes().count(b"\n") for path in workspace.runs.glob("mini-snli-ve/*/metrics.jsonl")]
    assert process.poll() is None
    assert len(begun) >= 2
    assert min(begun) >= 6
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main([*long, "--json"]) == 0  # at once: what is left of the first is waited for
    report = json.loads(capsys.readouterr().out)
    assert len(report["runs"]) == report["asked"] == 4
    for run in report["runs"]:
        folder = Path(run["run"])
        steps = [row["step"] for row in read_jsonl(folder / "metrics.jsonl") if "loss" in row]
        assert steps == list(range(1, 61))
        assert json.loads((folder / "manifest.json").read_bytes())["status"] == "complete"
    assert any(json.loads((Path(run["run"]) / "manifest.json").read_bytes())["resumed_from"] for run in report["runs"])
    assert main([*long, "--json"]) == 0
    assert all(run["skipped"] for run in json.loads(capsys.readouterr().out)["runs"])


def test_the_command_prints_a_table_of_what_is_there_and_names_what_failed(workspace, student, capsys, monkeypatch):
    def some(place, specs, *, on_done, processes, threads_each, gpus):
        assert (processes, threads_each) == (2, 1)
        for number, spec in enumerate(specs):
            if spec.arm == "finetune":
                on_done(
                    RunReport(
                        spec, Path(f"runs/mini-snli-ve/x-{number}"), number == 0, {"accuracy": 50.0 + number, "n": 8}
                    )
                )
        raise RunError("2 of 4 runs failed: mad.")

    monkeypatch.setattr(sweep, "run_many", some)
    assert main(command(workspace, student)) == 1
    captured = capsys.readouterr()
    assert "4 runs, 2 at a time" in captured.err
    assert "2 of 4 runs failed" in captured.err
    assert ["mini-snli-ve", "10", "finetune", "accuracy", "51.00", "±", "1.41", "2"] in [
        line.split() for line in captured.out.splitlines()
    ]
    assert "1 of 2 runs trained now." in captured.out
    # a command to type is never wrapped, and this workspace has a long name
    assert max(len(line) for line in captured.out.splitlines() if "madkit evaluate" not in line) <= 80
    assert main([*command(workspace, student), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [row["mean"] for row in report["rows"]] == [51.0]
    assert report["problem"].startswith("2 of 4")


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        (["--arm", "mad", "--arm", "finetune"], "--arm was given 2 times"),
        (["--seeds", "0-3"], "--seeds is for a sweep"),
        (["--sweep", "--seeds", "x"], "'x' does not name seeds"),
        (["--sweep", "--seeds", "1", "--seed", "7"], "--seed and --seeds both name seeds."),
    ],
)
def test_a_sweep_is_asked_for(workspace, student, capsys, extra, text):
    base = ["distill", "--task", "snli-ve", "--student", str(student), "--workspace", str(workspace.root)]
    assert main([*base, *extra]) in (1, 2)
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(("extra", "seeds"), [(["--seed", "0"], {0}), (["--seed", "7"], {7}), ([], {3, 4})])
def test_a_seed_beside_a_plan_goes_before_the_plans_seeds(workspace, tmp_path, monkeypatch, extra, seeds):
    plan = tmp_path / "plan.yaml"
    plan.write_text("task: snli-ve\nseeds: 3-4\n")
    asked = []
    monkeypatch.setattr(sweep, "run_many", lambda place, specs, **_: asked.extend(specs))
    assert main(["distill", "--plan", str(plan), "--workspace", str(workspace.root), *extra]) == 0
    assert {spec.seed for spec in asked} == seeds
