"""The two training loops of docs/library.md, at the smallest size: students come nearer to their teacher."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from madkit.core.workspace import Workspace
from madkit.extract.stage import extract

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest part of the embedded benchmark, as its teacher read it: what the examples do first."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("loops")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        extract(Workspace.at(root), "mini", ["snli-ve"], splits=["train", "test"], part="tiny", device="cpu")
    return root


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--part", "tiny", *map(str, arguments)])
    load(name).main()


def test_a_plain_loop_comes_nearer_to_its_teacher(workspace, monkeypatch, capsys):
    run("plain_pytorch_loop", monkeypatch, "--workspace", workspace, "--steps", 12, "--batch", 16)
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()[:2]) for line in lines] == ["step 0:", "step 11:", "test accuracy"]
    first, last = (dict(re.findall(r"(\w+) ([\d.]+)", line.partition(": ")[2])) for line in lines[:2])
    assert set(first) == {"task", "global_image", "global_text", "token_text", "token_region", "affinity_sentence"}
    for name in ("global_image", "global_text", "token_text", "token_region"):
        assert float(last[name]) < float(first[name]), name


def test_the_trainer_of_transformers_comes_nearer_to_its_teacher(workspace, monkeypatch, capsys, tmp_path):
    from transformers import VisualBertForVisualReasoning

    example, terms = load("hf_trainer"), []
    log = example.MADTrainer.log

    def keep(self, logs, *args, **kwargs):
        if "token_text" in logs:
            terms.append(dict(logs))
        log(self, logs, *args, **kwargs)

    monkeypatch.setattr(example.MADTrainer, "log", keep)
    arguments = example.transformers.TrainingArguments
    monkeypatch.setattr(
        example.transformers,
        "TrainingArguments",
        lambda *args, **kwargs: arguments(*args, **{**kwargs, "logging_steps": 4, "use_cpu": True}),
    )
    out = tmp_path / "student"
    monkeypatch.setattr(sys, "argv", ["x", "--part", "tiny", "--workspace", str(workspace), "--steps", "8"])
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--out", str(out)])
    example.main()
    assert [set(entry) for entry in terms] == [
        {"task", "global_image", "global_text", "token_text", "token_region"}
    ] * 2
    for name in ("global_image", "global_text", "token_text", "token_region"):
        assert terms[1][name] < terms[0][name], name
    assert capsys.readouterr().out.splitlines()[-1].startswith("test accuracy ")
    student = VisualBertForVisualReasoning.from_pretrained(out)
    assert not [name for name, _ in student.named_parameters() if "criterion" in name]


@pytest.mark.parametrize("name", ["plain_pytorch_loop", "hf_trainer"])
def test_the_page_shows_what_an_example_prints(name):
    page = (EXAMPLES.parent / "docs" / "library.md").read_text(encoding="utf-8")
    assert f"python examples/{name}.py" in page
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 150


def test_what_the_page_types_in_python_is_there(capsys):
    page = (EXAMPLES.parent / "docs" / "library.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names, loop, several, confidence, below = blocks
    exec(names, {})
    for block in (loop, several, confidence):
        ast.parse(block)
    exec("".join(line for line in several.splitlines(keepends=True) if line.startswith("from ")), {})
    exec(below, {})
    printed = capsys.readouterr().out
    assert "0.5714, 0.4286" in printed
    assert "tensor([[[2.]]])" in printed
