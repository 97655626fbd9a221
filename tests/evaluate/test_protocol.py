from __future__ import annotations

import pytest

from madkit.core.errors import ConfigError, NotFoundError, UsageProblem
from madkit.evaluate.protocol import Protocol, load_protocol, names


def test_every_shipped_protocol_loads_and_says_what_it_is_about():
    assert {"smoke", "full"} <= set(names())
    for name in names():
        assert load_protocol(name)[0] == name
        assert load_protocol(name)[1].about.endswith(".")


def test_full_is_everything_and_smoke_is_the_in_domain_test():
    full = load_protocol("full")[1]
    assert {full.tasks, full.shots, full.arms, full.seeds, full.suites} == {"any"}
    assert load_protocol("smoke")[1].suites == ("test",)


def test_near_miss_names_are_suggested():
    with pytest.raises(UsageProblem, match="Did you mean 'smoke'") as caught:
        load_protocol("smok")
    assert "full" in (caught.value.hint or "")


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("tasks: [vcr]\nshots: [200, 1pct]\nseeds: [0, 1]\nbaseline: kd-all\n")
    name, protocol = load_protocol(str(path))
    assert name == "mine"
    assert protocol.shots == ("200", "1pct")
    assert protocol.wants(task="vcr", student="s", shots="200", arm="mad", seed=1)
    assert not protocol.wants(task="vcr", student="s", shots="200", arm="mad", seed=2)
    assert not protocol.wants(task="vqa", student="s", shots="200", arm="mad", seed=1)


def test_every_mistake_of_a_file_is_named_at_once(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("task: [vcr]\nsuites: []\nseeds: soon\n")
    with pytest.raises(ConfigError) as caught:
        load_protocol(str(path))
    text = str(caught.value)
    assert "Did you mean 'tasks'" in text
    assert "the list is empty" in text
    assert "seeds" in text


def test_a_missing_file_is_said_so(tmp_path):
    with pytest.raises(NotFoundError, match="no protocol file"):
        load_protocol(str(tmp_path / "none.yaml"))


def test_defaults_ask_for_everything():
    assert Protocol().wants(task="vqa", student="x", shots="7", arm="custom", seed=99)


def test_tasks_may_name_data_sets_and_are_checked_against_what_there_is():
    protocol = Protocol(tasks=("vqa-cp-v2", "birds"))
    assert protocol.wants(task="vqa", source="vqa-cp-v2", student="s", shots="1", arm="mad", seed=0)
    assert not protocol.wants(task="vqa", source="vqa", student="s", shots="1", arm="mad", seed=0)
    protocol.check_tasks(["vqa-cp-v2", "birds"])
    with pytest.raises(ConfigError, match="Did you mean 'brids'"):
        protocol.check_tasks(["vqa-cp-v2", "brids"])
