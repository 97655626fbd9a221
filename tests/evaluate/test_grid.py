from __future__ import annotations

import pytest

from madkit.core.errors import NotFoundError
from madkit.distill.runs.folder import RunFolder, RunIdentity
from madkit.distill.settings.arms import ORDER
from madkit.distill.settings.arms import PERMUTED as CONTROL
from madkit.distill.settings.config import DistillConfig
from madkit.evaluate.grid import (
    ARM_ORDER,
    PERMUTED,
    arm_order,
    find_baseline,
    find_runs,
    group_runs,
    read_run,
    shots_order,
)
from madkit.evaluate.missing import missing_cells
from madkit.evaluate.protocol import Protocol
from madkit.tasks.spec import custom_spec


def groups_of(made_up, **protocol):
    runs, _, _ = find_runs(made_up.workspace, Protocol(**protocol))
    return group_runs(runs)


def test_an_empty_workspace_says_how_to_begin(made_up):
    with pytest.raises(NotFoundError, match="no runs") as caught:
        find_runs(made_up.workspace, Protocol())
    assert caught.value.hint == "madkit distill --task vcr --shots 1pct"


def test_a_protocol_that_asks_for_none_of_the_runs_says_by_what(made_up):
    made_up.add_run("mad", 0, shots="24")
    made_up.add_run("finetune", 0, status="running", tag="late")
    with pytest.raises(NotFoundError, match="it names shots 1pct, 5pct, and they have 24") as caught:
        find_runs(made_up.workspace, Protocol(shots=("1pct", "5pct")))
    assert caught.value.hint == "madkit evaluate --protocol full"


def test_only_complete_runs_of_this_schema_count(made_up):
    made_up.add_run(seed=0)
    made_up.add_run(seed=1, status="running")
    made_up.add_run(seed=2, schema=99)
    (made_up.add_run(seed=3) / "manifest.json").write_text("{ half")
    (made_up.add_run(seed=4) / "manifest.json").write_text('{"schema": 1, "status": "complete", "task": "vcr"}')
    runs, problems, unfinished = find_runs(made_up.workspace, Protocol())
    assert [run.seed for run in runs] == [0]
    assert unfinished == 1
    assert len(problems) == 3
    assert any("schema 99" in problem.error for problem in problems)


def test_pre_phase_folders_are_no_runs(made_up):
    folder = made_up.add_run(arm="affinity")
    folder.rename(folder.parent / "pre-phase-0123456789ab")
    with pytest.raises(NotFoundError):
        find_runs(made_up.workspace, Protocol())


def test_seeds_of_one_experiment_are_one_group_whatever_their_pre_phase_seed(made_up):
    for seed in (2, 0, 1):
        made_up.add_run(
            "affinity", seed, config={"pre_phase": {"steps": 10, "seed": seed}, "checkpoint": {"every": seed + 1}}
        )
    (group,) = groups_of(made_up)
    assert group.seeds == (0, 1, 2)
    assert group.label == "affinity"
    assert [run.pre_phase_seed for run in group.runs] == [0, 1, 2]


def test_other_settings_are_another_experiment_and_the_label_says_which(made_up):
    made_up.add_run("mad", 0, tag="one", config={"mad": {"weight": 0.3}, "optim": {"learning_rate": 1e-4}})
    made_up.add_run("mad", 0, tag="two", config={"mad": {"weight": 1.0}, "optim": {"learning_rate": 1e-4}})
    assert sorted(group.label for group in groups_of(made_up)) == ["mad [weight=0.3]", "mad [weight=1.0]"]


def test_one_experiment_has_one_name_at_every_number_of_labels(made_up):
    """A second setting at one number of labels names the first one everywhere: its points make one curve."""
    for shots, weight in (("1pct", 0.3), ("1pct", 1.0), ("full", 0.3)):
        made_up.add_run("mad", 0, shots=shots, tag=f"{shots}{weight}", config={"mad": {"weight": weight}})
    labels = [(group.first.shots, group.label) for group in groups_of(made_up)]
    assert labels == [("1pct", "mad [weight=0.3]"), ("1pct", "mad [weight=1.0]"), ("full", "mad [weight=0.3]")]


def test_settings_chosen_for_each_number_of_labels_leave_the_arm_its_name(made_up):
    for shots, rate in (("1pct", 1e-4), ("full", 8e-4)):
        made_up.add_run("mad", 0, shots=shots, config={"optim": {"learning_rate": rate}})
    assert [group.label for group in groups_of(made_up)] == ["mad", "mad"]


def test_experiments_that_differ_in_much_are_told_apart_by_all_of_it(made_up):
    for shots, seed, layer in (("1pct", 0, 1), ("1pct", 0, 2), ("full", 0, 1)):
        settings = {"weight": layer / 10, "head": f"head {layer}", "layer": layer}
        made_up.add_run("mad", seed, shots=shots, tag=f"{shots}{layer}", config={"mad": settings})
    first, second, full = (group.label for group in groups_of(made_up))
    assert first.startswith("mad [head=head 1, layer=1 #")
    assert (full, len({first, second})) == (first, 2)


def test_the_baseline_is_the_one_whose_settings_agree_most(made_up):
    made_up.add_run("finetune", 0, tag="slow", config={"optim": {"learning_rate": 1e-5, "steps": 10}})
    made_up.add_run("finetune", 0, tag="fast", config={"optim": {"learning_rate": 1e-3, "steps": 10}})
    made_up.add_run("mad", 0, config={"optim": {"learning_rate": 1e-3, "steps": 10}, "mad": {"weight": 1}})
    groups = groups_of(made_up)
    mad = next(group for group in groups if group.first.arm == "mad")
    found = find_baseline(mad, groups, "finetune")
    assert found is not None
    assert found.label == "finetune [learning_rate=0.001]"
    assert find_baseline(found, groups, "finetune") is None


def test_no_baseline_of_other_data_shots_or_seeds(made_up):
    made_up.add_run("finetune", 0, shots="5pct")
    made_up.add_run("finetune", 7)
    made_up.add_run("finetune", 0, data_revision="bbbb000011112222", tag="x")
    made_up.add_run("mad", 0)
    groups = groups_of(made_up)
    mad = next(group for group in groups if group.first.arm == "mad")
    assert find_baseline(mad, groups, "finetune") is None


def test_orders():
    assert sorted(["full", "10pct", "200", "1pct", "5pct", "50"], key=shots_order) == [
        "50",
        "200",
        "1pct",
        "5pct",
        "10pct",
        "full",
    ]
    arms = ["mine", "mad-permuted", "mad-no-selection", "mad", "finetune"]
    assert sorted(arms, key=arm_order) == ["finetune", "mad", "mad-permuted", "mad-no-selection", "mine"]
    assert list(ARM_ORDER) == list(ORDER)
    assert PERMUTED == CONTROL


def adapted(name, **facts):
    return {"name": name, "base": "mini", "train": "lora", "kind": "0a", "same_examples": True, "outside": 0, **facts}


def test_teachers_adapted_on_each_seeds_own_subset_are_one_experiment(made_up):
    for seed in (0, 1):
        name = f"mini-s{seed}"
        made_up.add_run("mad", seed, teacher=name, cache_key=f"{name}-key", adapted=adapted(name))
        made_up.add_run("mad", seed, teacher="mini", cache_key="mini-key", tag="plain")
    groups = groups_of(made_up)
    assert [group.seeds for group in groups] == [(0, 1), (0, 1)]
    assert {group.first.teacher for group in groups} == {"mini", "mini, adapted (lora)"}
    assert {group.label for group in groups} == {"mad [teacher=mini]", "mad [teacher=mini, adapted (lora)]"}
    assert {run.config["cache_key"] for group in groups for run in group.runs} == {
        "mini-s0-key", "mini-s1-key", "mini-key",
    }  # fmt: skip


def test_a_teacher_that_its_adaptation_kept_belongs_with_those_that_got_better(made_up):
    made_up.add_run("mad", 0, teacher="mini-s0", cache_key="mini-s0-key", adapted=adapted("mini-s0"))
    made_up.add_run("mad", 1, teacher="mini", cache_key="mini-key", adapted=adapted("mini-s1", untouched=True))
    (group,) = groups_of(made_up)
    assert (group.seeds, group.label, group.first.teacher) == ((0, 1), "mad", "mini, adapted (lora)")


def test_another_way_of_adapting_is_another_experiment(made_up):
    made_up.add_run("mad", 0, teacher="a", adapted=adapted("a"))
    made_up.add_run("mad", 1, teacher="b", adapted=adapted("b", kind="1b"))
    assert [group.seeds for group in groups_of(made_up)] == [(0,), (1,)]


@pytest.mark.parametrize("outside", [34, None])
def test_a_teacher_that_saw_other_labels_is_marked(made_up, outside):
    made_up.add_run("mad", teacher="a", adapted=adapted("a", same_examples=False, outside=outside))
    made_up.add_run("mad", teacher="mini", tag="plain")
    assert {group.label for group in groups_of(made_up)} == {"mad", "mad (teacher saw other labels)"}


def test_a_student_that_pays_its_teacher_is_marked(made_up):
    made_up.add_run("clip-vil", config={"arm": "clip-vil", "visual_input": "teacher"}, teacher_at_inference=True)
    (group,) = groups_of(made_up)
    assert group.label == "clip-vil (teacher at inference)"


def test_a_control_never_stands_for_the_arm(made_up):
    """Whether or not the run's own name says so."""
    made_up.add_run("finetune")
    made_up.add_run("mad", 0, config={"arm": "mad", "permute_teacher": True})
    made_up.add_run("mad-permuted", 1, config={"arm": "mad", "permute_teacher": True})
    groups = groups_of(made_up)
    assert {group.first.arm: group.seeds for group in groups} == {"finetune": (0,), "mad-permuted": (0, 1)}
    protocol = Protocol(arms=["finetune", "mad"], seeds=[0])
    assert {cell.arm for cell in missing_cells(groups, protocol)} == {"mad"}


def test_the_manifest_of_a_run_describes_its_task_and_the_name_does_not_depend_on_it(made_up):
    spec = custom_spec("birds", "classification", labels=("owl", "tit"))
    identity = RunIdentity(
        task="birds", source="birds", data_revision="0" * 16, is_mini=False, student="s", student_digest="1" * 16,
        arm="finetune", shots="1pct", seed=0, teacher=None, cache_key=None, examples="2" * 16,
    )  # fmt: skip
    config = DistillConfig(arm="finetune")
    folder = RunFolder.of(made_up.workspace, identity, config, spec.to_dict())
    assert folder.path == RunFolder.of(made_up.workspace, identity, config).path
    folder.finish({})
    run = read_run(folder.path)
    assert run is not None
    assert run.spec == spec


def test_a_run_with_a_damaged_description_is_said_so(made_up):
    folder = made_up.add_run(spec={"name": "birds"})
    runs, problems, _ = find_runs(made_up.workspace, Protocol())
    assert not runs
    assert folder.name in problems[0].where
    assert "damaged" in problems[0].error


def test_a_run_from_before_a_setting_existed_is_the_same_experiment(made_up):
    made_up.add_run("mad", 0, config={"mad": {"weight": 0.3}, "optim": {"clip": 1.0}})
    since = {"mad": {"weight": 0.3}, "optim": {"clip": 1.0, "optimizer": "adamw", "momentum": 0.9}, "answers": None}
    made_up.add_run("mad", 1, config=since)
    made_up.add_run("mad", 2, config={**since, "optim": {**since["optim"], "optimizer": "sgd"}})
    groups = groups_of(made_up)
    assert sorted((group.label, group.seeds) for group in groups) == [
        ("mad [optimizer=adamw]", (0, 1)),
        ("mad [optimizer=sgd]", (2,)),
    ]


def test_runs_from_before_a_students_setup_was_noted_belong_with_those_since(made_up):
    for seed, setup in ((0, None), (1, "aa"), (2, "aa")):
        made_up.add_run("mad", seed, student_setup=setup)
    (group,) = groups_of(made_up)
    assert (group.label, group.seeds) == ("mad", (0, 1, 2))
    made_up.add_run("mad", 1, student_setup="bb", tag="changed")
    assert [group.seeds for group in groups_of(made_up)] != [(0, 1, 2)], "two setups are two experiments"


def test_soft_labels_of_a_teacher_that_had_learnt_the_labels_are_another_experiment(made_up):
    adapted = {"name": "a", "base": "mini", "train": "lora", "kind": "lora", "same_examples": True, "outside": 0}
    config = {"arm": "soft-labels", "pool": {"soft_labels": {"weight": 1.0}}, "confidence": {"teacher": "unadapted"}}
    for tag, asked in (("before", None), ("since", "mini-mini-snli-ve-0123456789ab")):
        made_up.add_run("soft-labels", 0, tag=tag, teacher="a", adapted=adapted, confidence_cache=asked, config=config)
    assert [len(group.runs) for group in groups_of(made_up)] == [1, 1]
