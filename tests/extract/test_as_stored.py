"""What is said of a store holds for its own arithmetic: the check of a sample, and the command that goes on with it."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from madkit.cache import TokenCache
from madkit.cli.main import main
from madkit.core.errors import CacheError
from madkit.core.files import read_json
from madkit.teachers.load import MINI_FOLDER

torch.set_num_threads(1)
Call = Callable[..., tuple[int, str]]


@pytest.fixture
def madkit(capsys: pytest.CaptureFixture[str], workspace: Path) -> Call:
    """Run a command in the workspace; its exit code and what it printed on stdout."""

    def call(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main([*map(str, arguments), "--workspace", str(workspace)])
        return code, capsys.readouterr().out

    return call


@pytest.fixture
def sharp_teacher(tmp_path: Path) -> Path:
    """The embedded teacher with attention so sharp that bfloat16 moves some tokens by more than a store may."""
    folder = tmp_path / "sharp"
    shutil.copytree(MINI_FOLDER, folder)
    weights = load_file(folder / "model.safetensors")
    for name, values in weights.items():
        if name.endswith(("attn.in_proj_weight", "attn.in_proj_bias")):
            weights[name] = torch.cat([3 * values[: 2 * len(values) // 3], values[2 * len(values) // 3 :]])
    save_file(weights, folder / "model.safetensors")
    return folder


def test_a_store_of_few_digits_is_checked_in_its_own_arithmetic(madkit: Call, sharp_teacher: Path) -> None:
    code, told = madkit(
        "extract", "--teacher", f"local:{sharp_teacher}", "--task", "snli-ve", "--compute-dtype", "bfloat16", "--json"
    )
    assert code == 0
    name = Path(json.loads(told)["stores"][0]["path"]).name
    code, told = madkit("cache", "verify", name, "--sample", "10", "--json")
    assert code == 0
    (row,) = json.loads(told)["stores"]
    assert row["sample"]["images"]["worst"] > 0.9999
    assert row["sample"]["images"]["n"] == 360


def test_the_command_goes_on_with_this_very_store(madkit: Call, workspace: Path) -> None:
    """What is chosen automatically depends on the machine, so the command says what was chosen."""
    how = ["--compute-dtype", "bfloat16", "--decoder", "torchvision", "--view", "whole"]
    code, told = madkit("extract", "--teacher", "mini", "--task", "snli-ve", "--shard-mb", "0.01", *how, "--json")
    assert code == 0
    path = Path(json.loads(told)["stores"][0]["path"])
    manifest = read_json(path / "manifest.json")
    (path / "manifest.json").unlink()
    with pytest.raises(CacheError, match="is unfinished") as caught:
        TokenCache.open(path)
    command = shlex.split((caught.value.hint or "").partition(": madkit ")[2])
    code, told = madkit(*command, "--json")
    assert code == 0
    (store,) = json.loads(told)["stores"]
    assert (Path(store["path"]), store["computed"]) == (path, 0)
    assert read_json(path / "manifest.json")["files"] == manifest["files"]
