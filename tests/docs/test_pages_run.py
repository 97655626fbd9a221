"""The tutorial and the how-tos as scripts: what they type is run in their order, in one folder, on less data.

The embedded benchmark is its tiny part, steps are two, and the runs of a sweep are made one after the other in this
process. Blocks that cannot run say why in the page (``<!-- not run: why -->``).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from madkit.cli.main import main
from madkit.tasks.mini.build import build_mini

from .typed import ROOT, blocks

SLOW = ("tutorial",)  # it takes as long as all the others together
ORDER = (
    "tutorial.md", "howto/own-data.md", "howto/own-teacher.md", "howto/own-student.md", "howto/predict.md",
    "howto/own-loop.md", "howto/stopped.md", "howto/little-disk.md", "howto/remote-cache.md", "howto/offline.md",
    "howto/reproduce.md",
)  # fmt: skip
MARKED = [
    pytest.param(page, id=Path(page).stem, marks=pytest.mark.slow if Path(page).stem in SLOW else []) for page in ORDER
]
SHOTS = "24"  # of the tiny part 1 % would be two questions
NEEDS_WEIGHTS = {"madkit teachers check clip-vit-b32": 1}  # what ends otherwise than with 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("documentation")
    build_mini(home / "madkit-workspace" / "data" / "mini" / "mini-snli-ve", "mini-snli-ve", part="tiny", workers=1)
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("MADKIT_CACHE_DIR", str(home / "mirror"))
        yield home


def test_every_how_to_is_run() -> None:
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs" / "howto").glob("*.md")}
    assert pages - {"howto/many-gpus.md"} <= set(ORDER)
    assert not [
        block for block in blocks((ROOT / "docs/howto/many-gpus.md").read_text()) if block.calls and not block.why
    ]


@pytest.mark.parametrize("page", MARKED)
def test_a_page_runs(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    ran = 0
    for block in blocks(text):
        if block.language == "yaml" and (
            named := re.search(rf"`([\w-]+\.yaml)`:\s+```yaml\n{re.escape(block.body)}", text)
        ):
            (folder / named[1]).write_text(block.body.replace("1pct", SHOTS), encoding="utf-8")
        elif block.language == "python" and not block.why:
            exec(compile(block.body, page, "exec"), {"__name__": "documentation"})
            ran += 1
        ran += sum(run(call, folder, capsys) for call in block.calls) if not block.why else 0
    assert ran


def run(call: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> int:
    calls = adapted(call, folder)
    for one in calls:
        code = main(shlex.split(one)[1:])
        out, err = capsys.readouterr()
        assert code == NEEDS_WEIGHTS.get(call, 0), f"{one}\n{out}\n{err}"
    return len(calls)


def adapted(call: str, folder: Path) -> list[str]:
    """A call on less: few steps, the folder's own runs, and a sweep's first seed, arm by arm."""
    for name in re.findall(r"mini-[\w-]+-s\d-[0-9a-f]{8}", call):
        call = call.replace(name, own_run(name, folder))
    call = call.replace("/tmp/madkit-caches", str(folder / "caches"))
    if not call.startswith("madkit distill "):
        return [call]
    call = re.sub(r"--steps \d+|$", " --steps 2", call, count=1)
    call = re.sub(r"pre_phase\.steps=\d+", "pre_phase.steps=2", call.replace("--shots 1pct", f"--shots {SHOTS}"))
    if "--sweep" not in call:
        return [call]
    arms = re.findall(r"--arm (\S+)", call)
    call = re.sub(r"--sweep|--arm \S+|--seeds \S+", "", call)
    return [f"{call} --arm {arm}" for arm in arms]


def own_run(name: str, folder: Path) -> str:
    pattern = f"{re.sub(r'-(1pct|[0-9]+)-s[0-9]-[0-9a-f]{8}$', '', name)}-*-s{name[-10]}-*"
    found = (folder / "madkit-workspace" / "runs").glob(f"*/{pattern}")
    return max(found, key=lambda path: path.stat().st_mtime).name
