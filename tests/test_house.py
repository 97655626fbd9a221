"""The plan of the house, read from its source: imports point down only, and what is light stays light."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import madkit

PACKAGE = Path(madkit.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each room may import of the others. Training never runs a teacher; evaluation needs neither teacher nor cache;
# the method is tensors alone.
BELOW: dict[str, set[str]] = {
    "core": set(),
    "regions": {"core"},
    "cache": {"core", "regions"},  # a store's image tokens can be read as regions
    "tasks": {"core", "regions"},
    "shifts": {"core", "regions", "tasks"},
    "mad": {"core"},
    "teachers": {"core"},
    "students": {"core", "regions", "tasks"},
    "adapt": {"core", "tasks", "teachers"},
    "extract": {"core", "cache", "tasks", "teachers"},
    "distill": {"core", "cache", "mad", "regions", "students", "tasks"},
    # a cache only for students that see with a teacher's eyes (clip-vil), which pay it at inference, and to ask what
    # a teacher would answer: by the method's own probe, hence mad
    "evaluate": {"core", "cache", "mad", "regions", "students", "tasks"},
}
BELOW["look"] = {"core", "cache", "mad", "tasks"}
BELOW["share"] = {"core", "evaluate", "students", "tasks", "teachers"}  # of teachers what is known by name alone
BELOW["doctor"] = {"core", "cache", "evaluate", "regions", "tasks", "teachers"}
BELOW["bench"] = set(BELOW)
BELOW["demo"] = set(BELOW)
BELOW["cli"] = set(BELOW)

# The rooms of training, in their order: each may import those before it.
TRAINING = [
    "settings",
    "batches",
    "teacher",
    "loop",
    "objective",
    "runs",
    "pool",
    "teaching",
    "asked",
    "next_commands",
    "stage",
    "sweep",
]

# What any room may know: how teachers are called, and what caches call them. No network is behind it.
NAMES = {"madkit.teachers.known"}

HEAVY = {
    "PIL",
    "accelerate",
    "datasets",
    "fsspec",
    "h5py",
    "jinja2",
    "lmdb",
    "msgpack",
    "numpy",
    "open_clip",
    "pandas",
    "pyarrow",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
    "torchvision",
    "transformers",
    "zarr",
}


def test_the_walk_sees_the_package() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0] for path in MODULES if path.parent != PACKAGE}
    assert {"core", "cli"} <= rooms
    assert rooms <= set(BELOW), "a new room: say above what it may import"


def imports(path: Path, *, whole: bool) -> Iterator[tuple[str, int]]:
    """Yield (module, line) of the run-time imports of ``path``: all, or (not whole) those made while it is imported."""
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo.extend(node.orelse)
            continue
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not whole:
            continue
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or "", node.lineno
            if node.module == "madkit":
                yield from ((f"madkit.{name.name}", node.lineno) for name in node.names)
        todo.extend(ast.iter_child_nodes(node))


def test_the_reader_of_imports_reads(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "import a.b, c\nfrom typing import TYPE_CHECKING\nfrom madkit import tasks\n"
        "if TYPE_CHECKING:\n    import d\ndef f():\n    from e.f import g\n"
    )
    light = {"a.b", "c", "typing", "madkit", "madkit.tasks"}
    assert {name for name, _ in imports(path, whole=False)} == light
    assert {name for name, _ in imports(path, whole=True)} == light | {"e.f"}


@pytest.mark.parametrize("room", sorted(BELOW))
def test_imports_point_down(room: str) -> None:
    wrong = []
    for path in sorted((PACKAGE / room).rglob("*.py")):
        for name, line in imports(path, whole=True):
            parts = name.split(".")
            if name in NAMES:
                continue
            if parts[0] == "madkit" and len(parts) > 1 and parts[1] in BELOW and parts[1] not in BELOW[room] | {room}:
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_within_training_imports_go_one_way() -> None:
    wrong = []
    for path in sorted((PACKAGE / "distill").rglob("*.py")):
        room = path.relative_to(PACKAGE / "distill").parts[0].removesuffix(".py")
        for name, line in imports(path, whole=True):
            parts = name.split(".")
            if parts[:2] != ["madkit", "distill"] or len(parts) < 3 or parts[2] == room:
                continue
            if TRAINING.index(parts[2]) > TRAINING.index(room):
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", ["core", "cli"])
def test_heavy_imports_wait_for_a_function_body(room: str) -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        for path in sorted((PACKAGE / room).rglob("*.py"))
        for name, line in imports(path, whole=False)
        if name.split(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


# Where a distribution's name is not that of what it brings.
BROUGHT_BY = {"PIL": "pillow", "open_clip": "open-clip-torch", "yaml": "pyyaml"}


def test_everything_imported_is_declared() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(one for name, more in extras.items() if name != "test" for one in more)]
    declared = {canonicalize_name(Requirement(one).name) for one in wanted}
    missing = {
        f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        for path in MODULES
        for name, line in imports(path, whole=True)
        if (top := name.split(".")[0]) not in {*sys.stdlib_module_names, "madkit", ""}
        and canonicalize_name(BROUGHT_BY.get(top, top)) not in declared
    }
    assert not missing, "\n".join(sorted(missing))


def test_the_method_knows_tensors_and_no_networks() -> None:
    networks = {"transformers", "open_clip", "torchvision", "timm", "accelerate", "zarr", "h5py", "PIL"}
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        for path in sorted((PACKAGE / "mad").rglob("*.py"))
        for name, line in imports(path, whole=True)
        if name.split(".")[0] in networks
    ]
    assert not wrong, "\n".join(wrong)
