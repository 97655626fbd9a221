"""A workspace with the tiny embedded benchmark, a random teacher's cache in the real format, and a random student."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from madkit.cache import TokenCache
from madkit.cache.layout import image_layout, store_folder, text_layout
from madkit.cache.plan import NO_IMAGES, NO_TEXTS, StorePlan
from madkit.cache.writer import StoreWriter
from madkit.core.errors import RunError
from madkit.core.files import FileLock, read_json, write_json_atomic
from madkit.core.seeds import derive_seed
from madkit.core.workspace import Workspace
from madkit.students.heads import HeadSpec, TaskHead
from madkit.students.load import save_student
from madkit.students.student import Student, StudentIdentity
from madkit.students.tokenizer import SPECIALS, StudentTokenizer
from madkit.students.uniter import UniterConfig, UniterModel
from madkit.tasks.data import TaskData, open_task

TASKS = ("vcr", "snli-ve", "vqa")
DIM = 16
GRID = (3, 3)


def noise(*parts: object, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(derive_seed(*parts)).standard_normal(shape).astype(np.float16)


def word_spans(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]


def write_cache(
    workspace: Workspace,
    data: TaskData,
    splits=("train", "dev"),
    parts=("images", "texts"),
    dim=DIM,
    salt: tuple[object, ...] = (),
    **changes: object,
) -> Path:
    """A store of a made-up teacher: every vector is a function of the image's id or the text's words (and `salt`)."""
    examples = [example for split in splits for example in data.examples(split)]
    ids = list(dict.fromkeys(example.image.id for example in examples)) if "images" in parts else []
    texts = list(dict.fromkeys(text for example in examples for text in example.texts())) if "texts" in parts else []
    spans = [word_spans(text) for text in texts]
    lengths = np.asarray([len(found) for found in spans], dtype=np.int64)
    layout = text_layout(lengths, dim, 1.0) if texts else NO_TEXTS
    pictures = image_layout(len(ids), GRID, dim, 1.0) if ids else NO_IMAGES
    identity = {
        "teacher": "random", "task": data.spec.name, "source": data.source, "revision": data.revision,
        "shared_space": True, "logit_scale": 10.0, **changes,
    }  # fmt: skip
    plan = StorePlan(identity, ids, {}, texts, lengths, pictures, layout, {})
    folder = store_folder(workspace.cache, str(identity["teacher"]), data.source, identity)
    with StoreWriter(folder, plan) as writer:
        for unit in writer.pending("images"):
            rows = plan.items("images", unit)
            tokens = np.stack([noise("patch", *salt, ids[row], shape=(9, dim)) for row in rows])
            writer.write_unit("images", unit, {"tokens": tokens, "globals": tokens.mean(1).astype(np.float16)})
        for unit in writer.pending("texts"):
            rows = plan.items("texts", unit)
            words = [
                np.stack([noise("word", *salt, texts[row][a:b].lower(), shape=(dim,)) for a, b in spans[row]])
                for row in rows
            ]
            writer.write_unit(
                "texts",
                unit,
                {
                    "tokens": np.concatenate(words),
                    "spans": np.concatenate([np.asarray(spans[row], dtype=np.int32) for row in rows]),
                    "globals": np.stack([found.mean(0) for found in words]).astype(np.float16),
                },
            )
        writer.finish(seconds=0.0)
    return folder


def write_student(folder: Path, datas: list[TaskData]) -> Path:
    words = sorted(
        {
            text[a:b].lower()
            for data in datas
            for example in data.examples("train")
            for text in example.texts()
            for a, b in word_spans(text)
        }
    )
    vocabulary = folder.with_suffix(".txt")
    vocabulary.write_text("\n".join([*SPECIALS, *words]) + "\n", encoding="utf-8")
    tokenizer = StudentTokenizer(vocabulary, lowercase=True)
    torch.manual_seed(0)
    config = UniterConfig(
        vocab_size=len(tokenizer), hidden_size=32, layers=2, heads=2, intermediate_size=64, max_positions=48,
        region_dim=datas[0].regions().dim, tag_gain=1.0,
    )  # fmt: skip
    student = Student(
        UniterModel(config),
        TaskHead(32, HeadSpec("multiple-choice")),
        tokenizer,
        StudentIdentity("tiny", "uniter", "-"),
    )
    save_student(student, folder, with_head=False)
    return folder


@pytest.fixture(scope="session")
def benchmark(tmp_path_factory) -> tuple[Workspace, Path]:
    """(workspace with data and caches, folder of the student). Shared: runs go into workspaces of their own."""
    torch.set_num_threads(1)
    base = tmp_path_factory.getbasetemp()
    # of several test workers one builds, the others wait for it
    root = (base if "PYTEST_XDIST_WORKER" not in os.environ else base.parent) / "distill"
    workspace, student = Workspace.at(root / "workspace"), root / "tiny-student"
    while not (root / "built").exists():
        try:
            with FileLock(root / ".lock"):
                if not (root / "built").exists():
                    datas = [open_task(workspace, task, part="tiny") for task in TASKS]
                    for data in datas:
                        write_cache(workspace, data)
                    write_student(student, datas)
                    (root / "built").touch()
        except RunError:
            time.sleep(0.2)
    return workspace, student


@pytest.fixture
def workspace(benchmark, tmp_path) -> Workspace:
    """A workspace with the shared data and caches and no runs."""
    shared, _ = benchmark
    mine = tmp_path / "workspace"
    mine.mkdir()
    (mine / "data").symlink_to(shared.data)
    (mine / "cache").symlink_to(shared.cache)
    return Workspace.at(mine)


@pytest.fixture
def student(benchmark) -> Path:
    return benchmark[1]


@pytest.fixture(scope="session")
def make_cache():
    return write_cache


@pytest.fixture
def without_images(tmp_path):
    """A function: the cache of a folder, completed without some images, whose arrays hold zeros."""

    def holed(cache: TokenCache, gone: list[str]) -> TokenCache:
        home = tmp_path / "holed"
        home.mkdir()
        for path in Path(cache.path).iterdir():
            if path.name != "manifest.json":
                (home / path.name).symlink_to(path)
        manifest = read_json(Path(cache.path) / "manifest.json")
        rows = [
            {"row": int(cache.images.rows([image])[0]), "id": image, "error": "cannot be read"}
            for image in sorted(gone, key=cache.images.ids.index)
        ]
        write_json_atomic(home / "manifest.json", {**manifest, "absent": {"images": rows, "texts": []}})
        return TokenCache.open(home)

    return holed


@pytest.fixture(scope="session")
def make_student():
    return write_student


@pytest.fixture
def elsewhere(workspace, tmp_path):
    """Another workspace with the same data and caches."""
    root = tmp_path / "elsewhere"
    root.mkdir()
    for name in ("data", "cache"):
        (root / name).symlink_to((workspace.root / name).resolve())
    return type(workspace).at(root)
