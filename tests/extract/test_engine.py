"""What the engine chooses, and that nothing it chooses changes a unit's bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from madkit.cli.main import main
from madkit.core.errors import ConfigError, UsageProblem
from madkit.core.workspace import Workspace
from madkit.extract import engine as engine_module
from madkit.extract.engine import choose_compile, encoder_flops, even_batch
from madkit.extract.frozen import load_frozen, not_finite, with_decoder
from madkit.extract.image_encoding import ImageEncoder, modules_of, repeated_blocks
from madkit.extract.options import ExtractOptions
from madkit.extract.pipeline import one_thread_per_operation
from madkit.extract.reports import StoreReport
from madkit.extract.stage import extract
from madkit.extract.text_encoding import TextEncoder, length_batches
from madkit.teachers.interface import Teacher
from madkit.teachers.load import load_teacher

torch.set_num_threads(1)
TEXTS = ["a", "two dogs", "A cat is on the house", "what color is it?", "", "no yes of and two three", "red " * 30]


@pytest.fixture
def teacher(tiny_teacher: Path) -> Teacher:
    return load_teacher(f"local:{tiny_teacher}")


def run(workspace: Path, teacher: Path, **more: Any) -> StoreReport:
    return extract(
        Workspace(workspace), f"local:{teacher}", ["snli-ve"], **{"device": "cpu", "shard_mb": 0.002, **more}
    )[0]


def payload(store: Path) -> dict[str, bytes]:
    files = json.loads((store / "manifest.json").read_text())["files"]
    return {name: (store / name).read_bytes() for name in files}


def images_of(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_bytes_do_not_depend_on_threads(workspace: Path, tiny_teacher: Path) -> None:
    other = workspace.with_name("other")
    shutil.copytree(workspace, other)
    one = run(workspace, tiny_teacher, workers=1)
    torch.set_num_threads(3)
    try:
        three = run(other, tiny_teacher, workers=5)
    finally:
        torch.set_num_threads(1)
    assert {choice.name: choice.value for choice in three.choices}["batches at a time"] == "3"
    assert payload(one.path) == payload(three.path)


def test_a_unit_that_is_done_again_has_the_bytes_it_had(workspace: Path, tiny_teacher: Path) -> None:
    """Whatever other units are there: what a batch holds follows from its unit alone."""
    report = run(workspace, tiny_teacher)
    before = payload(report.path)
    for array in ("images/tokens", "texts/globals"):
        (report.path / [name for name in before if name.startswith(f"{array}/c/")][-1]).unlink()
    again = run(workspace, tiny_teacher)
    assert 0 < again.computed < again.items
    assert payload(again.path) == before


def test_choices_are_said_once_and_kept(
    workspace: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["extract", "--teacher", f"local:{tiny_teacher}", "--task", "snli-ve", "--workspace", str(workspace)]
    assert main([*command, "--device", "cpu", "--decoder", "pillow", "--json"]) == 0
    said = capsys.readouterr()
    (report,) = json.loads(said.out)["stores"]
    manifest = json.loads((Path(report["path"]) / "manifest.json").read_text())
    assert manifest["choices"] == report["choices"]
    values = {choice["name"]: choice["value"] for choice in report["choices"]}
    assert values == {
        "device": "cpu",
        "compute dtype": "float32",
        "decoder": "pillow",
        "view": "teacher",
        "batches at a time": "1",
        "decoding threads": values["decoding threads"],
        "images a batch": "32",
        "compiling": "off",
        "tokens of texts a batch": "2,048",
    }
    for choice in report["choices"][2:]:
        assert said.err.count(f"{choice['name']}: {choice['value']} ({choice['reason']})") == 1
    assert main([*command, "--device", "cpu", "--decoder", "pillow", "--json"]) == 0
    again = capsys.readouterr()
    assert json.loads(again.out)["stores"][0]["choices"] == []  # nothing to do, nothing chosen
    assert "decoder:" not in again.err


def test_decoder_and_dtype_name_the_store(workspace: Path, tiny_teacher: Path) -> None:
    plain, pillow, half = (
        run(workspace, tiny_teacher, **more).path for more in ({}, {"decoder": "pillow"}, {"compute_dtype": "bfloat16"})
    )
    assert len({plain, pillow, half}) == 3
    identity = json.loads((half / "manifest.json").read_text())["identity"]
    assert identity["compute_dtype"] == "bfloat16"
    assert identity["vision"]["preprocessing"]["decoder"] == "torchvision"
    identity = json.loads((pillow / "manifest.json").read_text())["identity"]
    assert identity["vision"]["preprocessing"]["decoder"] == "pillow"


def test_mistyped_choices() -> None:
    for name, wrong in (("decoder", "torchvison"), ("compute_dtype", "float23"), ("compile", "onn")):
        with pytest.raises(UsageProblem, match="Did you mean"):
            ExtractOptions(**{name: wrong})


def test_a_teacher_that_overflows_is_not_used(tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    loaded: list[torch.dtype] = []
    poisoned = {torch.float16}

    def load(name: str, *, dtype: torch.dtype, **more: Any) -> Teacher:
        teacher = load_teacher(name, **{**more, "device": "cpu"}, dtype=dtype)
        loaded.append(dtype)
        if dtype in poisoned:
            (module, *_) = modules_of(teacher.vision)
            with torch.no_grad():
                next(module.parameters()).view(-1)[0] = torch.inf
        return teacher

    monkeypatch.setattr("madkit.teachers.mixed.load_teacher", load)
    name = f"local:{tiny_teacher}"
    teacher, choice = load_frozen(name, device="cuda")
    assert (loaded, teacher.dtype) == ([torch.float16, torch.bfloat16], torch.bfloat16)
    assert choice.value == "bfloat16"
    assert choice.reason.startswith("float16 does not do: the weight ")
    poisoned.add(torch.bfloat16)
    teacher, choice = load_frozen(name, device="cuda")
    assert (teacher.dtype, choice.reason[:8]) == (torch.float32, "bfloat16")
    with pytest.raises(ConfigError, match="cannot compute in float16: the weight"):
        load_frozen(name, device="cpu", compute_dtype="float16")
    poisoned.add(torch.float32)
    with pytest.raises(ConfigError, match=r"cannot be used: the weight .* is not finite"):
        load_frozen(name, device="cpu")
    poisoned.clear()
    assert load_frozen(name, device="cuda")[1].reason == "the default on cuda"
    assert load_frozen(name, device="cpu")[0].dtype == torch.float32


def test_activations_that_overflow_are_seen(teacher: Teacher) -> None:
    assert not_finite(teacher) is None
    vision: Any = teacher.vision
    with torch.no_grad():
        vision.visual.ln_post.weight.fill_(1e30)
    assert not_finite(teacher) == "a picture's vectors are not finite"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_close(tiny_teacher: Path, teacher: Teacher, dtype: torch.dtype) -> None:
    short, _ = load_frozen(f"local:{tiny_teacher}", compute_dtype=str(dtype).removeprefix("torch."))
    assert teacher.vision is not None
    assert short.vision is not None
    whole, rounded = (ImageEncoder(each.vision, batch=8).encode(images_of(8)) for each in (teacher, short))
    error = (rounded.tokens.float() - whole.tokens.float()).norm() / whole.tokens.float().norm()
    assert 1e-5 < error < (4e-3 if dtype == torch.float16 else 4e-2)


def test_selection_and_padding_of_the_last_batch(teacher: Teacher) -> None:
    assert teacher.vision is not None
    encoder = ImageEncoder(teacher.vision, batch=8, kept=5)
    encoder._one_shape = True  # as on a GPU
    shapes = []
    real = teacher.vision.encode
    teacher.vision.encode = lambda images: (shapes.append(len(images)), real(images))[1]
    part, whole = encoder.encode(images_of(8)[:3]), encoder.encode(images_of(8))
    assert shapes == [8, 8]
    assert (part.tokens.shape, part.globals.shape) == ((3, 5, 16), (3, 16))
    assert part.positions is not None
    assert whole.positions is not None
    assert part.positions.dtype == torch.int32
    torch.testing.assert_close(part.positions, whole.positions[:3])
    torch.testing.assert_close(part.tokens, whole.tokens[:3])
    assert ImageEncoder(teacher.vision, batch=8, kept=0).encode(images_of(2)).tokens.shape == (2, 0, 16)
    assert bool(whole.finite)


@given(st.integers(1, 3000), st.integers(1, 512))
def test_even_batches(unit: int, most: int) -> None:
    batch = even_batch(unit, most)
    assert 1 <= batch <= most
    number = -(-unit // batch)
    assert number == -(-unit // most)  # no batch more
    assert number * batch - unit < number  # the last one lacks less than one image of each


def test_when_compiling_pays(teacher: Teacher) -> None:
    assert teacher.vision is not None
    assert choose_compile("on", teacher.vision, 1, "cpu") == (True, "as asked for")
    assert not choose_compile("auto", teacher.vision, 10**9, "cpu")[0]
    assert not choose_compile("auto", teacher.vision, 10**4, "cuda")[0]
    assert choose_compile("auto", teacher.vision, 10**12, "cuda")[0]


@pytest.mark.parametrize("full", [True, False])
def test_a_budget_counts_the_padding_of_teachers_that_read_texts_at_full_width(teacher: Teacher, full: bool) -> None:
    """SigLIP and CoCa: nine texts of one word fill nine full lengths, not nine times three tokens."""
    text: Any = teacher.text
    text.full_width = full
    widths = []
    real = text._encode_short

    def seen(texts: Any) -> Any:
        output = real(texts)
        widths.append(output.tokens.shape[0] * output.tokens.shape[1])
        return output

    text._encode_short = seen
    budget = 2 * text.context_length + 1
    found = sorted(
        row for part in TextEncoder(text, token_budget=budget).encode_all(text.tokenize(["a"] * 9)) for row in part.rows
    )
    assert found == list(range(9))
    assert widths == ([2 * text.context_length] * 4 + [text.context_length] if full else [27])
    assert max(widths) <= budget


def test_blocks_that_repeat(teacher: Teacher) -> None:
    vision: Any = teacher.vision
    assert repeated_blocks(vision) == list(vision.visual.transformer.resblocks)
    assert repeated_blocks(nn.Linear(3, 3)) == []
    with pytest.raises(ValueError, match="holds no module"):
        modules_of(object())


def test_blocks_of_a_pair_are_those_that_see_images() -> None:
    """transformers' CLIP and SigLIP hold both halves in one module, the text half first."""
    pair, halves = nn.Module(), {}
    for name, layers in (("text_model", 3), ("vision_model", 2)):
        blocks = halves[name] = nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(layers))
        pair.add_module(name, nn.ModuleDict({"encoder": nn.ModuleDict({"layers": blocks})}))
    side: Any = SimpleNamespace(model=pair, grid=(1, 1))
    assert repeated_blocks(side) == list(halves["vision_model"])
    assert encoder_flops(side) == 2.0 * 2 * 6 * 2  # operations, layers, weights of each, tokens


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_one_thread_per_operation(device: str) -> None:
    """Threads that resize images would each start as many of their own, whatever device they read for."""
    torch.set_num_threads(3)
    try:
        with one_thread_per_operation(device) as parallel:
            assert (torch.get_num_threads(), parallel) == (1, 3 if device == "cpu" else 1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)


COMPILERS = [
    "eager",  # all but the generation of code
    pytest.param("inductor", marks=pytest.mark.slow),
]


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no compiler")
@pytest.mark.parametrize("backend", COMPILERS)
def test_compiled_blocks_give_the_same(teacher: Teacher, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module, **more: real(module, backend=backend, **more))
    assert teacher.vision is not None
    expected = ImageEncoder(teacher.vision, batch=4).encode(images_of(4))
    encoder = ImageEncoder(teacher.vision, batch=4, compile=True)
    encoder.warm_up()
    found = encoder.encode(images_of(4)[:3])
    torch.testing.assert_close(found.tokens, expected.tokens[:3], atol=2e-3, rtol=1e-3)
    blocks = repeated_blocks(teacher.vision)
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert [choice.value for choice in encoder.choices] == [str(len(blocks))]
    encoder.undo_compile()
    assert all(block._compiled_call_impl is None for block in blocks)
    torch.testing.assert_close(encoder.encode(images_of(4)).tokens, expected.tokens)


def test_a_compiler_that_fails(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    assert teacher.vision is not None

    def broken(encoder: ImageEncoder) -> None:
        raise RuntimeError("no compiler found.\nlong story")

    monkeypatch.setattr(ImageEncoder, "warm_up", broken)
    assert engine_module._compiled(teacher.vision, 4, 16, "auto") == (None, "no compiler found")
    assert all(block._compiled_call_impl is None for block in repeated_blocks(teacher.vision))
    with pytest.raises(ConfigError, match=r"cannot be compiled here \(no compiler found\)"):
        engine_module._compiled(teacher.vision, 4, 16, "on")


@pytest.mark.parametrize("parallel", [1, 3])
def test_texts_sorted_by_length_come_out_as_one_by_one(teacher: Teacher, parallel: int) -> None:
    assert teacher.text is not None
    tokenized = teacher.text.tokenize(TEXTS)
    rows = []
    for found in TextEncoder(teacher.text, token_budget=24, parallel=parallel).encode_all(tokenized):
        number, tokens, spans, globals_ = found
        at = 0
        for place, row in enumerate(found.rows):
            alone = teacher.text.encode([TEXTS[row]])
            end = at + len(tokenized[row].ids)
            np.testing.assert_allclose(tokens[at:end], alone.tokens[0][alone.mask[0]].half(), atol=2e-3)
            np.testing.assert_array_equal(spans[at:end], alone.spans[0][alone.mask[0]])
            np.testing.assert_allclose(globals_[place], alone.global_[0].half(), atol=2e-3)
            at = end
        assert at == len(found.tokens)
        rows += number.tolist()
    assert sorted(rows) == list(range(len(TEXTS)))


@given(st.lists(st.integers(0, 200), max_size=80), st.integers(1, 300), st.integers(0, 400))
def test_length_batches(lengths: list[int], budget: int, launch: int) -> None:
    batches = length_batches(np.array(lengths, dtype=np.int64), budget, launch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        width = max(lengths[row] for row in batch) + 2
        assert len(batch) == 1 or len(batch) * width <= budget
        padding = sum(width - lengths[row] - 2 for row in batch)
        assert not launch or padding <= launch


def test_a_decoder_only_changes_what_reads_files(teacher: Teacher) -> None:
    changed, choice = with_decoder(teacher, "torchvision")
    assert choice is not None
    assert (choice.value, changed.text) == ("torchvision", teacher.text)
    before, after = teacher.vision, changed.vision
    assert before is not None
    assert after is not None
    assert before.identity["preprocessing"]["decoder"] == "pillow"  # the teacher that was given is as it was
    assert after.identity == {
        **before.identity,
        "preprocessing": {**before.identity["preprocessing"], "decoder": "torchvision"},
    }
    assert with_decoder(changed, "torchvision")[0] is changed


def test_compiled_blocks_do_not_outlive_their_store(
    workspace: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed or second extraction would otherwise compute in another way than one that starts afresh."""
    real = nn.Module.compile
    compiled: list[nn.Module] = []

    def compile_(module: nn.Module, **more: Any) -> None:
        compiled.append(module)
        real(module, backend="eager", **more)

    monkeypatch.setattr(nn.Module, "compile", compile_)
    report = run(workspace, tiny_teacher, compile="on")
    assert {choice.name: choice.value for choice in report.choices}["compiling"] == "on"
    assert compiled
    assert all(block._compiled_call_impl is None for block in compiled)
    compiled.clear()
    unit = next(name for name in payload(report.path) if name.startswith("texts/globals/c/"))
    (report.path / unit).unlink()
    again = run(workspace, tiny_teacher, compile="on")
    assert again.computed > 0
    assert not compiled  # only texts were to do
