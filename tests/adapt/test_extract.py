from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from madkit.adapt.stage import AdaptResult, adapt
from madkit.cache.manage import choose_cache, describe, list_stores
from madkit.cache.pruning import plan_prune
from madkit.cache.reader import TokenCache, extract_command
from madkit.cli.adapt import _print
from madkit.cli.main import main
from madkit.core.errors import CacheError, NotFoundError
from madkit.distill.teacher.adaptation import pick_teacher
from madkit.extract.dry_run import dry_run
from madkit.extract.recheck import recheck
from madkit.extract.repair import repair
from madkit.extract.stage import extract
from madkit.tasks.data import open_task
from madkit.tasks.id_lists import labelled_examples
from madkit.teachers.adapter import named_teacher

QUICK = {"train": "lora", "optim.batch_size": 8, "optim.steps": 12, "eval.every": 6, "optim.learning_rate": 2e-2}


@pytest.fixture
def adapted(workspace: Any, tiny_teacher: Path) -> str:
    """The name of an adapted teacher in the workspace."""
    adapt(
        workspace, teacher=f"local:{tiny_teacher}", task="snli-ve", shots="full", overrides=QUICK, device="cpu",
        name="colours",
    )  # fmt: skip
    return "colours"


def test_an_adapted_teacher_has_a_cache_of_its_own(workspace: Any, tiny_teacher: Path, adapted: str) -> None:
    name = f"local:{tiny_teacher}"
    (planned,) = dry_run(workspace, None, ["snli-ve"], adapter=adapted)
    (base,) = extract(workspace, name, ["snli-ve"], device="cpu")
    (mine,) = extract(workspace, None, ["snli-ve"], adapter=adapted, device="cpu")
    assert mine.path == planned.path != base.path
    (again,) = extract(workspace, name, ["snli-ve"], adapter=str(workspace.root / "adapters" / adapted), device="cpu")
    assert (again.path, again.computed) == (mine.path, 0)
    with TokenCache.open(mine.path) as here, TokenCache.open(base.path) as there:
        rows = np.arange(4)
        assert not np.array_equal(here.images.globals(rows), there.images.globals(rows))
        assert not np.array_equal(here.texts.globals(rows), there.texts.globals(rows))
        assert here.identity["vision"]["adapter"]["name"] == adapted
        assert extract_command(here.identity) == f"madkit extract --teacher {name} --task snli-ve --adapter {adapted}"

    data = open_task(workspace, "snli-ve")
    with pytest.raises(CacheError, match="2 caches"):
        choose_cache(workspace, data, None)
    for asked, path in ((name, base.path), (adapted, mine.path)):
        with choose_cache(workspace, data, asked) as cache:
            assert cache.path == path
    assert plan_prune(workspace) == [], "neither supersedes the other"
    examples = labelled_examples(data, "full", 0)
    pick = pick_teacher(workspace, data, None, "if-there", examples, shots="full", seed=0)
    assert (pick.store, pick.unadapted) == (mine.path.name, base.path.name)
    assert pick.adapted is not None
    assert (pick.adapted.name, pick.adapted.train, pick.adapted.same_examples) == (adapted, "lora", True)
    assert {row.as_row()["adapter"] for row in list_stores(workspace)} == {None, adapted}


def test_its_cache_is_checked_and_repaired_with_it(workspace: Any, adapted: str) -> None:
    (report,) = extract(workspace, None, ["snli-ve"], adapter=adapted, device="cpu")
    assert recheck(workspace, report.path, 5).ok
    shard = next(path for path in sorted((report.path / "images" / "tokens" / "c").rglob("*")) if path.is_file())
    before = shard.read_bytes()
    shard.write_bytes(before[:-40] + b"x" * 40)
    done = repair(workspace, report.path, device="cpu")
    assert done.items > 0
    assert done.changed == ()
    assert shard.read_bytes() == before

    folder = workspace.root / "adapters" / adapted
    shutil.move(folder, folder.with_name("elsewhere"))
    with pytest.raises(NotFoundError, match="The adapter 'colours' that this cache was made with cannot be read"):
        recheck(workspace, report.path, 1)


def test_another_adapter_of_the_same_name_is_not_taken_for_it(workspace: Any, tiny_teacher: Path, adapted: str) -> None:
    (report,) = extract(workspace, None, ["snli-ve"], adapter=adapted, device="cpu")
    shutil.rmtree(workspace.root / "adapters" / adapted)
    adapt(
        workspace, teacher=f"local:{tiny_teacher}", task="snli-ve", shots="full",
        overrides={**QUICK, "lora.rank": 2}, device="cpu", name=adapted,
    )  # fmt: skip
    with pytest.raises(NotFoundError, match="is not the one that this cache was made with"):
        recheck(workspace, report.path, 1)
    assert describe(report.path).state == "complete"


def test_an_adaptation_without_a_gain_reads_as_its_base_does(workspace: Any, tiny_teacher: Path) -> None:
    overrides = {**QUICK, "train": "heads", "optim.learning_rate": 1e-12, "optim.steps": 2}
    name = f"local:{tiny_teacher}"
    adapt(workspace, teacher=name, task="snli-ve", shots="full", overrides=overrides, device="cpu", name="idle")
    (mine,) = extract(workspace, None, ["snli-ve"], adapter="idle", device="cpu")
    (base,) = extract(workspace, name, ["snli-ve"], device="cpu")
    assert (mine.path, base.computed) == (base.path, 0)


def test_commands(
    workspace: Any, tiny_teacher: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MADKIT_WORKSPACE", str(workspace.root))
    sets = [part for key, value in QUICK.items() if key != "train" for part in ("--set", f"{key}={value}")]
    call = ["adapt", "--teacher", f"local:{tiny_teacher}", "--task", "snli-ve", "--shots", "full", "--name", "mine"]
    assert main([*call, *sets, "--train", "heads", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["name"] == "mine"
    assert document["before"]["accuracy"] <= document["after"]["accuracy"]
    assert main([*call, *sets, "--train", "heads"]) == 0
    shown = capsys.readouterr().out
    best_at_last = document["kept_step"] == document["steps"]
    assert ("more may be better: --set optim.steps=" in shown) == best_at_last
    assert "Nothing to do: the adaptation was complete." in shown
    assert ("madkit extract --adapter mine --task snli-ve" in shown) is not document["untouched"]
    assert main(["extract", "--adapter", "mind", "--task", "snli-ve"]) == 1
    assert "Did you mean 'mine'" in capsys.readouterr().err
    assert named_teacher(workspace, "mini", "mine")[0] == "mini"
    assert f"was made of local:{tiny_teacher}; 'mini' will do if" in capsys.readouterr().err
    assert main(["extract", "--task", "snli-ve"]) == 2
    assert "No teacher was named" in capsys.readouterr().err
    assert main([*call, "--set", "lora.rnak=3"]) == 1
    assert "rank" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kept", "steps", "said"), [(160, 160, True), (144, 160, False), (80, 80, False), (0, 30, False)]
)
def test_a_training_that_was_still_gaining_says_so(
    kept: int, steps: int, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 160 steps: stopped early is not still gaining, and neither is a teacher that stays as it was."""
    scores = {"accuracy": 0.4, "retrieval": 0.1, "loss": 3.0}
    manifest = {
        "kept_step": kept, "steps": steps, "config": {"optim": {"steps": 160}}, "untouched": kept == 0,
        "looks": [{"step": kept, "train": scores, "dev": scores}], "source": "mini-vqa", "name": "mine", "outcome": "",
    }  # fmt: skip
    _print(AdaptResult(Path("mine"), False, manifest))
    assert ("--set optim.steps=320" in capsys.readouterr().out) == said
