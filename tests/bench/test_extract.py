"""The benchmark of images in miniature: every side is measured, and a side that gives other tokens is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from madkit.bench import extract, extract_memory, extract_sides
from madkit.bench.agreement import compare
from madkit.bench.extract import ExtractBenchOptions, bench_extract
from madkit.bench.extract_inputs import PictureTask, write_pictures
from madkit.bench.extract_memory import bench_memory
from madkit.bench.extract_models import as_open_clip, as_transformers, source
from madkit.bench.fresh_process import Measured, Watch
from madkit.cli.main import main
from madkit.core.errors import ConfigError, NotFoundError, RunError, UsageProblem
from madkit.extract.items import collect_items

TINY = ExtractBenchOptions(tiny=True, repeats=1, device="cpu")
SIDES = ["open_clip fp32", "open_clip bf16", "transformers fp32", "madkit fp32", "madkit bf16"]
PEERS = [
    "open_clip loop fp32", "open_clip loop bf16", "open_clip loop, threads fp32", "open_clip loop, threads bf16",
    "transformers loop fp32",
]  # fmt: skip
LOOPS = [*PEERS, "madkit extract fp32", "madkit extract bf16"]


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return bench_extract(TINY)


def test_every_side_is_measured_and_ratios_are_those_of_the_numbers(document: dict[str, Any]) -> None:
    json.dumps(document, allow_nan=False)
    compute, end = document["compute"], document["end_to_end"]
    assert [row["side"] for row in compute["rows"]] == SIDES
    assert [row["side"] for row in end["rows"]] == LOOPS
    for part, default in ((compute, "madkit fp32"), (end, LOOPS[5])):
        ours = next(row for row in part["rows"] if row["default"])
        assert ours["side"] == default
        for row in part["rows"]:
            assert row["turns"] == 2
            assert row["finite"]
            assert row["unexplained"] < 0.01
            assert row["madkit_is"] == pytest.approx(ours["per_second"] / row["per_second"], rel=0.01)
            low, high = row["quartiles"]
            assert low <= row["per_second"] <= high
        one, other = part["noise"]["per_second"]
        assert part["noise"]["ratio"] == pytest.approx(max(one, other) / min(one, other), rel=0.01)
    default_rate = next(row for row in compute["rows"] if row["default"])["per_second"]
    assert end["of_compute"] == pytest.approx(end["rows"][5]["per_second"] / default_rate, rel=0.02)
    rates = {row["side"]: row["per_second"] for row in end["rows"]}
    assert end["same_dtype"] == {
        "float32": pytest.approx(rates[LOOPS[5]] / max(rates[LOOPS[0]], rates[LOOPS[2]]), rel=0.01),
        "bfloat16": pytest.approx(rates[LOOPS[6]] / max(rates[LOOPS[1]], rates[LOOPS[3]]), rel=0.01),
    }
    limit = document["ceilings"]["limit_tflops"] * 1e12 / (document["gflop_image"] * 1e9)
    for row in compute["rows"]:
        assert row["of_limit"] == pytest.approx(row["per_second"] / limit, rel=0.02)
    assert {"date", "command", "machine", "device", "options", "warnings"} <= set(document)


def test_errors_are_those_of_the_number_formats(document: dict[str, Any]) -> None:
    error = {row["side"]: row["error"] for row in document["compute"]["rows"]}
    assert error["open_clip fp32"] < 1e-5
    assert error["transformers fp32"] < 1e-5
    assert 1e-5 < error["madkit fp32"] < 1e-3  # rounded to float16 at the end
    assert 1e-3 < error["open_clip bf16"] < 3e-2
    assert 1e-3 < error["madkit bf16"] < 3e-2


def test_the_tables_fit_a_terminal(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extract, "bench_extract", lambda options: document)
    assert main(["bench", "extract", "--tiny"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    for said in (*SIDES, *LOOPS, "img/s", "limit", "The same side measured twice"):
        assert said in printed
    assert main(["bench", "extract", "--tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(document))


def _other(make: Callable[..., Any], change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    def made(*arguments: Any, **named: Any) -> Any:
        reader = make(*arguments, **named)
        return replace(reader, encode=lambda images: change(reader.encode(images)))

    return made


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings are not what a test is about."""
    limits = {"edge": 1, "tflops": {"float32": 1.0}, "limit_tflops": 1.0, "copy_gb_s": 1.0}
    monkeypatch.setattr(extract, "measure_ceilings", lambda device, tiny: limits)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("change", [lambda tokens: tokens.flip(1), lambda tokens: tokens * 1.2], ids=["order", "scale"])
def test_a_side_with_other_tokens_is_refused(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    monkeypatch.setattr(extract, "transformers_reader", _other(extract.transformers_reader, change))
    with pytest.raises(RunError, match="transformers fp32 gives other tokens of the same images"):
        bench_extract(TINY)


@pytest.mark.usefixtures("at_once")
def test_a_loop_that_stores_other_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract._Bench, "compute", lambda self, turn_s: {})

    class Blurred(extract_sides.TransformersLoop):
        def run(self, paths: Any, folder: Path) -> None:
            super().run(list(reversed(paths)), folder)

    monkeypatch.setattr(extract, "TransformersLoop", Blurred)
    with pytest.raises(RunError, match="transformers loop fp32 gives other tokens of the same files"):
        bench_extract(TINY)


class _Counted(extract_sides.OpenClipLoop):
    """Notes how many threads PyTorch would take where an image is made ready."""

    def _one(self, path: Path) -> torch.Tensor:
        self.seen = getattr(self, "seen", set()) | {torch.get_num_threads()}
        return super()._one(path)


def test_the_loop_with_threads_reads_the_same_and_its_threads_start_none(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "images", 5, (64, 48))
    found = source("tiny")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        told = []
        for threads in (0, 2):
            loop = _Counted(found, "cpu", torch.float32, batch=2, threads=threads)
            extract_sides.empty(tmp_path / loop.name)
            loop.run(paths, tmp_path / loop.name)
            told.append((loop.name, loop.seen, torch.get_num_threads()))
        assert told == [("open_clip loop", {2}, 2), ("open_clip loop, threads", {1}, 2)]
        plain, ahead = (extract_sides.stored_tokens(tmp_path / name, 5) for name, _, _ in told)
        assert plain.shape[0] == 5
        assert np.array_equal(plain, ahead)
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("at_once")
def test_an_encoder_that_transformers_has_not_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*arguments: Any, **named: Any) -> Any:
        raise ConfigError("The transformers library has no such encoder.")

    for owner, name in ((extract, "transformers_reader"), (extract, "TransformersLoop")):
        monkeypatch.setattr(owner, name, nothing)
    document = bench_extract(TINY)
    assert [row["side"] for row in document["compute"]["rows"]] == [side for side in SIDES if "transf" not in side]
    assert [row["side"] for row in document["end_to_end"]["rows"]] == [*LOOPS[:4], *LOOPS[5:]]
    assert any("no such encoder. That side is left out." in warning for warning in document["warnings"])


@pytest.mark.parametrize("quick", [False, True])
def test_the_same_weights_give_the_same_tokens_in_both_libraries(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from madkit.bench import extract_models

    monkeypatch.setitem(extract_models._TINY_MODEL, "quick_gelu", quick)
    found = source("tiny")
    # norms and biases start as constants, which hide mistakes
    generator = torch.Generator().manual_seed(1)
    for value in found.visual.parameters():
        value += 0.1 * torch.randn(value.shape, generator=generator)
    pixels = torch.randn(3, 3, 32, 32, generator=generator)
    with torch.inference_mode():
        visual = as_open_clip(found, device="cpu", dtype=torch.float32)
        pooled, tokens = visual(pixels)
        model = as_transformers(found, device="cpu", dtype=torch.float32)
        other = model(pixel_values=pixels)
        patches = model.visual_projection(model.vision_model.post_layernorm(other.last_hidden_state[:, 1:]))
    torch.testing.assert_close(patches, tokens @ visual.proj, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other.image_embeds, pooled, atol=1e-5, rtol=1e-5)
    assert compare(patches.numpy(), (tokens @ visual.proj).numpy()).unexplained < 1e-9


def test_weights_come_from_a_seed_or_a_file(tmp_path: Path) -> None:
    assert torch.equal(source("tiny").visual.state_dict()["proj"], source("tiny").visual.state_dict()["proj"])
    # 2 layers of width 64 and 17 tokens, by the closed form: 24 h^2 n + 4 n^2 h each; patches; the class token's vector
    closed = 2 * (24 * 64**2 * 17 + 4 * 17**2 * 64) + 2 * 16 * 3 * 8 * 8 * 64 + 2 * 64 * 32
    assert source("tiny").gflop_image() * 1e9 == closed
    with pytest.raises(NotFoundError, match="nowhere"):
        source("ViT-B-32", tmp_path / "nowhere.pt")
    with pytest.raises(UsageProblem, match="ViT-B-32"):
        source("ViT-B-23")
    with pytest.raises(ConfigError, match="plain CLIP, and 'RN50' is CLIP with ModifiedResNet"), torch.device("meta"):
        source("RN50")
    with pytest.raises(UsageProblem, match="tiny"):
        ExtractBenchOptions(model="ViT-B-32", tiny=True)


def test_pictures_differ_and_are_read_as_a_task(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "a", 5, (64, 48), distinct=3)
    assert [path.name for path in paths] == [f"00000{number}.jpg" for number in range(5)]
    with Image.open(paths[0]) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (64, 48), "RGB")
        assert np.asarray(image).std() > 10
    contents = [path.read_bytes() for path in paths]
    assert len(set(contents)) == 3
    assert contents[3:] == contents[:2]
    assert [path.read_bytes() for path in write_pictures(tmp_path / "b", 3, (64, 48))] == contents[:3]
    data = PictureTask(paths)
    assert [example.image.path for example in data.examples("train")] == paths
    assert callable(collect_items)


def test_memory_is_compared_between_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peaks = iter([100.0, 104.0])

    def here(target: str, **arguments: Any) -> Any:
        watch = Watch()
        name = target.partition(":")[2]
        facts = getattr(extract_memory, name)(watch, **{key: _plain(value) for key, value in arguments.items()})
        peak = next(peaks)
        laps = {lap: replace(taken, peak_mb=peak) for lap, taken in watch.laps.items()}
        return Measured(laps, facts)

    monkeypatch.setattr(extract_memory, "measure", here)
    monkeypatch.setattr(extract_memory, "FLICKR", (64, 48))
    assert main(["bench", "extract", "--memory", "--memory-images", "3,8", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(row["images"], row["peak_mb"], row["shards"]) for row in document["rows"]] == [
        (3, 100.0, 1),
        (8, 104.0, 1),
    ]
    assert document["ratio"] == 1.04
    assert document["within"]
    assert document["kb_per_image"] == 800.0
    assert document["rows"][1]["stored_mb"] >= 0.4  # 8 images of 49 tokens of 512 float16
    monkeypatch.setattr(extract_memory, "measure", _no_memory)
    for numbers in ("3,8", "3,9000000000"):  # the process is killed; the disk is too small
        with pytest.raises(RunError) as caught:
            bench_memory([int(number) for number in numbers.split(",")])
        assert "--memory-images" in (caught.value.hint or "")
    for wrong in ("2000", "20,10", "some"):
        assert main(["bench", "extract", "--memory", "--memory-images", wrong]) == 2
    assert "--memory-images 2000,20000" in capsys.readouterr().err


def _no_memory(target: str, **arguments: Any) -> Any:
    raise RunError(f"Measuring {target} failed: the system killed it, perhaps for memory.", hint="--questions 10000")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def test_devices_that_are_not_there_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    if not torch.cuda.is_available():
        assert main(["bench", "extract", "--tiny", "--device", "cuda"]) == 2
        assert "--device cpu" in capsys.readouterr().err
    assert main(["bench", "text", "--tiny", "--device", "gpu"]) == 2
    assert "There is no device named 'gpu'" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_is_that_of_fresh_processes() -> None:
    document = bench_memory([4, 16], pixels=(64, 48))
    assert [row["images"] for row in document["rows"]] == [4, 16]
    assert document["ratio"] < 1.10
