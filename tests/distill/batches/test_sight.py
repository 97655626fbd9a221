"""Students that see with pixels or with a teacher's tokens: from their beginning to an evaluated run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViltImageProcessor

from madkit.cache import TokenCache, choose_cache
from madkit.cache.token_regions import TokenRegions
from madkit.cli.main import main
from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.distill.stage import distill
from madkit.evaluate.sight import regions_of_run
from madkit.students.load import load_student
from madkit.students.patches import PatchReader, cut, fitted_size
from madkit.tasks.data import open_task

torch.set_num_threads(1)


@pytest.mark.parametrize("student", ["mini-vilt", "mini-clip-vil", "mini-clip-vil-lxmert", "mini-lxmert",
                                     "mini-visualbert", "mini-vl-bert"])  # fmt: skip
@pytest.mark.parametrize("arm", ["finetune", "mad"])
def test_every_family_trains_and_is_evaluated(workspace, student, arm, capsys):
    result = distill(
        workspace, task="vcr", shots="12", arm=arm, student=student, part="tiny",
        config_overrides={"optim.steps": 2, "optim.batch_size": 4, "eval.limit": 8,
                          **({"mad.weighting": "uniform"} if arm == "mad" else {})},
    )  # fmt: skip
    lines = [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    if arm == "mad":
        assert "token_region" in lines[0]["terms"]
    if "clip-vil" in student:
        assert result.manifest["teacher"] == "random"
    command = ["predict", result.path.name, "--split", "dev", "--workspace", str(workspace.root), "--json"]
    assert main(command) == 0
    answered = json.loads(capsys.readouterr().out)
    assert answered["questions"] > 0


@pytest.mark.parametrize("name", ["tiny", "mini-lxmert"])
def test_the_arm_turns_a_student_of_regions_into_one_that_sees_with_the_teacher(workspace, student, name, capsys):
    result = distill(
        workspace, task="vcr", shots="12", arm="clip-vil", student=student if name == "tiny" else name, part="tiny",
        config_overrides={"optim.steps": 2, "optim.batch_size": 4, "eval.limit": 8},
    )  # fmt: skip
    manifest = result.manifest
    assert manifest["teacher_at_inference"]
    assert (manifest["teacher"], manifest["confidence_cache"]) == ("random", None)
    assert manifest["student"].startswith(name)  # it keeps its name: tables compare it with its own baseline
    assert manifest["arm"] == "clip-vil"
    assert "teacher sees every image" in (result.path / "summary.md").read_text()
    assert load_student(result.path / "student").family.visual == "teacher"
    at = ["--workspace", str(workspace.root), "--json"]
    assert main(["predict", result.path.name, "--split", "dev", *at]) == 0
    assert json.loads(capsys.readouterr().out)["questions"] > 0


def test_the_arm_is_refused_to_students_of_pixels(workspace):
    with pytest.raises(UsageProblem, match="sees the pixels themselves"):
        distill(workspace, task="vcr", shots="12", arm="clip-vil", student="mini-vilt", part="tiny")
    assert not (workspace.root / "students").exists()


def test_first_weights_in_the_workspace_go_by_their_name(workspace):
    settings = {"optim.steps": 1, "optim.batch_size": 4, "eval.limit": 8}

    def train(student):
        return distill(
            workspace, task="vcr", shots="12", arm="finetune", student=student, part="tiny", config_overrides=settings
        )

    first = train("mini-visualbert")
    again = train(first.manifest["student"])  # what `madkit evaluate` prints as the next command
    assert again.skipped
    assert again.path == first.path


def test_tokens_are_regions_of_the_grid(workspace):
    data = open_task(workspace, "vcr", part="tiny")
    with choose_cache(workspace, data, None) as cache:
        reader = TokenRegions(cache)
        found = reader.get(cache.images.ids[2])
        np.testing.assert_array_equal(found.features, cache.images.tokens([2])[0].astype(np.float32))
        assert reader.dim == found.features.shape[1]
        np.testing.assert_allclose(found.boxes[4], [1 / 3, 1 / 3, 2 / 3, 2 / 3], atol=1e-6)
        assert isinstance(cache, TokenCache)


def test_a_student_whose_teachers_cache_is_gone_says_how_to_make_it_again(workspace, tmp_path):
    (tmp_path / "config.json").write_text('{"family": "clip-vil"}')
    data = open_task(workspace, "vcr", part="tiny")
    with (
        pytest.raises(NotFoundError, match=r"sees with its teacher's tokens, and their cache .* is gone") as caught,
        regions_of_run(workspace, tmp_path, f"clip-b16-{data.source}-0123456789ab", data, "dev"),
    ):
        pass
    assert caught.value.hint is not None
    assert "madkit extract --teacher clip-b16 --task vcr" in caught.value.hint


def photo(path, size=(70, 45)) -> None:
    draw = np.random.default_rng(0)
    small = draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)


@pytest.mark.parametrize("size", [(70, 45), (45, 70), (40, 200), (33, 33)])
def test_patches_are_those_of_transformers_preprocessing(tmp_path, size):
    photo(tmp_path / "x.png", size)
    found = PatchReader({"x": tmp_path / "x.png"}, patch=8, short=24, longest=39).get("x")
    processor = ViltImageProcessor(size={"shortest_edge": 24}, size_divisor=8)
    with Image.open(tmp_path / "x.png") as image:
        pixels = processor(images=image, return_tensors="np")["pixel_values"][0]
    width, height = fitted_size(*size, 24, 39, 8)
    assert pixels.shape == (3, height, width)
    expected = cut(np.ascontiguousarray(pixels.transpose(1, 2, 0)), 8)
    np.testing.assert_allclose(found.boxes, expected.boxes)
    assert float(np.abs(found.features - expected.features).mean()) < 1 / 127  # two libraries' bicubic filters


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no image")
    reader = PatchReader({"x": tmp_path / "x.jpg", "y": tmp_path / "y.jpg"}, patch=8, short=24, longest=39)
    with pytest.raises(DataError, match=r"x\.jpg cannot be read"):
        reader.get("x")
    with pytest.raises(DataError, match=r"y\.jpg does not exist"):
        reader.get("y")
    with pytest.raises(NotFoundError, match="no image file for 'z'"):
        reader.get("z")
