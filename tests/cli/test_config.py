"""`madkit config`: what is shipped can be read, copied out, edited, checked and given back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from madkit.cli.main import main
from madkit.cli.shipped import KINDS, copy_out, shipped
from madkit.distill.settings.arms import arm_names, load_arm
from madkit.distill.settings.recipes import load_recipe
from madkit.evaluate.protocol import load_protocol


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["config", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def document(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    code, out, _ = call(capsys, *arguments, "--json")
    assert code == 0
    return json.loads(out)


def test_names_are_of_one_kind_only() -> None:
    names = [one.name for one in shipped()]
    assert len(names) == len(set(names))
    assert {one.kind for one in shipped()} == set(KINDS)
    assert all(one.about for one in shipped())


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    rows = document(capsys, "list")["configurations"]
    assert [row["name"] for row in rows if row["kind"] == "arm"] == arm_names()
    assert document(capsys, "list", "--kind", "protocol")["configurations"] == [
        row for row in rows if row["kind"] == "protocol"
    ]
    code, out, _ = call(capsys, "list")
    assert code == 0
    assert "mad-no-selection" in out
    code, _, err = call(capsys, "list", "--kind", "protocl")
    assert code == 2
    assert "Did you mean 'protocol'?" in err


def test_show_prints_the_file_with_its_comments(capsys: pytest.CaptureFixture[str]) -> None:
    for one in shipped():
        assert document(capsys, "show", one.name)["text"] == one.path.read_text(encoding="utf-8")
    code, out, _ = call(capsys, "show", "kd-all")
    assert (code, out[:2]) == (0, "# ")
    code, _, err = call(capsys, "show", "mad-no-selectio")
    assert code == 2
    assert "Did you mean 'mad-no-selection'?" in err
    code, _, err = call(capsys, "show", "nowhere.yaml")
    assert code == 1
    assert "Try: " in err


def test_show_resolved_tells_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "show", "mad-affinity", "--resolved")
    keys = {key["name"]: key for key in found["keys"]}
    assert keys["mad.k_text"]["value"] == keys["mad.k_text"]["default"] == 4
    assert keys["pre_phase.objective.weight"]["value"] == 0.0
    assert keys["adversarial.steps"]["absent"]
    assert keys["adaptation"]["choices"] == ["named", "if-there", "required", "never"]
    assert yaml.safe_load(found["text"])["optim"]["batch_size"] == 32


@pytest.mark.parametrize("one", shipped(), ids=lambda one: one.name)
def test_a_copy_is_taken_where_the_name_was(one: Any, tmp_path: Path) -> None:
    _, path = copy_out(one.name, tmp_path, force=False)
    assert path == tmp_path / f"my-{one.name}.yaml"
    if one.kind == "arm":
        theirs = load_arm(one.name).model_dump()
        assert load_arm(str(path)).model_dump() == {**theirs, "arm": f"my-{one.name}"}
    elif one.kind == "recipe":
        assert load_recipe(str(path)).settings == load_recipe(one.name).settings
        assert load_recipe(str(path)).recipe == f"my-{one.name}"
    else:
        assert load_protocol(str(path)) == (f"my-{one.name}", load_protocol(one.name)[1])


@pytest.mark.parametrize("extra", [[], ["--resolved"]])
def test_the_control_of_an_arm_is_shown_as_it_is_trained(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, extra: list[str]
) -> None:
    path = tmp_path / "shown.yaml"
    path.write_text(document(capsys, "show", "mad-permuted", *extra)["text"])
    shown = load_arm(str(path))
    assert shown.model_dump() == {**load_arm("mad-permuted").model_dump(), "arm": "mad-permuted"}
    assert document(capsys, "check", "mad-permuted")["differs"]["permute_teacher"] is True
    _, copy = copy_out("mad-permuted", tmp_path, force=False)
    assert load_arm(str(copy)).model_dump() == {**shown.model_dump(), "arm": "my-mad-permuted"}
    code, _, err = call(capsys, "show", "finetune-permuted")
    assert code == 1
    assert "nothing to permute" in err
    assert call(capsys, "show", "mda-permuted")[0] == 2


def test_init_never_replaces_a_file_unasked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = document(capsys, "init", "mad", "Mine.yaml")
    assert (made["kind"], made["command"]) == ("arm", "madkit distill --task vcr --arm Mine.yaml")
    Path("Mine.yaml").write_text("arm: kept\n")
    code, _, err = call(capsys, "init", "mad", "Mine.yaml")
    assert code == 2
    assert "--force" in err
    assert Path("Mine.yaml").read_text() == "arm: kept\n"
    assert call(capsys, "init", "mad", "Mine.yaml", "--force")[0] == 0
    assert load_arm("Mine.yaml").arm == "mine"
    code, _, err = call(capsys, "init", "mad", "mine")
    assert code == 2
    assert "madkit config init mad mine.yaml" in err
    assert call(capsys, "init", "full")[0] == 0
    assert Path("my-full.yaml").is_file()


def test_check(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arm = tmp_path / "mine.yaml"
    arm.write_text("mad: {k_text: 9}\noptim: {learning_rate: 1.0e-4}\n")
    found = document(capsys, "check", arm)
    assert found["kind"] == "arm"
    assert found["differs"] == {"arm": "mine", "mad.k_text": 9, "optim.learning_rate": 1e-4}
    assert "valid arm; 3 keys differ from their defaults." in call(capsys, "check", arm)[1]
    arm.write_text("arm: mine\n")
    assert "valid arm; 1 key differs from its default." in call(capsys, "check", arm)[1]
    arm.write_text("mad: {k_txt: 9, gamma: -1}\noptm: {}\n")
    code, _, err = call(capsys, "check", arm)
    assert code == 1
    for text in ("'k_text'", "mad.gamma", "'optim'"):
        assert text in err
    for name, kind in (("uniter-base-vcr", "recipe"), ("low-shot", "protocol"), ("affinity", "arm")):
        _, path = copy_out(name, tmp_path, force=True)
        assert document(capsys, "check", path)["kind"] == kind


def test_a_file_whose_name_cannot_be_an_arms_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "My arm.yaml"
    path.write_text("mad: {k_text: 9}\n")
    code, _, err = call(capsys, "check", path)
    assert code == 1
    assert "arm: NAME" in err


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from madkit.cli.main import main; main(['config', 'show', 'mad', '--resolved']);"
        "main(['config', 'list']);"
        "print([m for m in ('torch', 'transformers', 'zarr', 'accelerate', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
