"""Vision encoders of timm: what timm itself says on the same weights and pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from madkit.core.errors import ConfigError, DataError, NotFoundError, UsageProblem
from madkit.teachers.known import parse_teacher_name
from madkit.teachers.load import load_teacher
from madkit.teachers.timm_vision import build_timm_model, timm_forward, timm_preprocessing

torch.set_num_threads(1)
# a ViT with a class token, one with registers that pools by the mean, convnets in both layouts
GRIDS = {
    "test_vit": ((10, 10), "forward_head"),
    "test_vit3": ((10, 10), "forward_head"),
    "test_convnext": ((5, 5), "forward_head"),
    "test_resnet": ((5, 5), "forward_head"),
    "test_efficientnet": ((5, 5), "forward_head"),
}


def weights_of(name: str, path: Path) -> Path:
    torch.manual_seed(1)
    model = timm.create_model(name, pretrained=False)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return path


def picture(path: Path, width: int, height: int) -> Path:
    small = np.random.default_rng(width).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.mark.parametrize("name", GRIDS)
def test_features_and_pixels_are_timms_own(name: str, tmp_path: Path) -> None:
    path = weights_of(name, tmp_path / "model.safetensors")
    teacher = load_teacher(f"timm:{name}", weights=path)
    assert teacher.text is None
    assert teacher.vision is not None
    reference = timm.create_model(name, pretrained=False, checkpoint_path=str(path)).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(reference), is_training=False)
    files = [picture(tmp_path / f"{w}.png", w, h) for w, h in ((200, 171), (163, 260))]
    images = torch.stack([teacher.vision.load_image(file) for file in files])
    pixels = teacher.vision.preprocessing.normalise(images, torch.float32)
    torch.testing.assert_close(pixels, torch.stack([transform(Image.open(file)) for file in files]), atol=1e-6, rtol=0)
    found = teacher.vision.encode(images)
    with torch.no_grad():
        features = reference.forward_features(pixels)
        pooled = reference.forward_head(features, pre_logits=True)
    grid, pooling = GRIDS[name]
    assert (found.grid, teacher.vision.identity["global"]) == (grid, pooling)
    if features.ndim == 4:
        for row in range(grid[0]):
            for column in range(grid[1]):
                expected = features[:, :, row, column]
                torch.testing.assert_close(found.tokens[:, row * grid[1] + column], expected, atol=1e-5, rtol=1e-5)
    else:
        torch.testing.assert_close(found.tokens, features[:, reference.num_prefix_tokens :], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.global_, pooled, atol=1e-5, rtol=1e-5)


# Families at full size on random weights: grid, class and register tokens, whether timm's pooled features are taken.
FAMILIES = {
    "resnet18": ((7, 7), 0, True),
    "convnext_atto": ((7, 7), 0, True),
    "swin_tiny_patch4_window7_224": ((7, 7), 0, True),  # channels last
    "mobilenetv3_small_050": ((7, 7), 0, False),  # its head widens what it pooled
    "deit_tiny_distilled_patch16_224": ((14, 14), 2, True),
    "eva02_tiny_patch14_224": ((16, 16), 1, True),
}
SHAPES = {
    "resnet50": (7, 7),
    "convnext_tiny": (7, 7),
    "efficientnet_b0": (7, 7),
    "beit_base_patch16_224": (14, 14),
    "vit_small_patch16_dinov3": (16, 16),
    "vit_small_patch14_reg4_dinov2": (37, 37),
    "coatnet_0_rw_224": (7, 7),
    "mixer_s32_224": (7, 7),
    "hiera_tiny_224": (7, 7),
    "fastvit_t8": (8, 8),
    "volo_d1_224": (14, 14),  # does not say that it has a class token
    "vit_relpos_small_patch16_224": (14, 14),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_timms_own(name: str) -> None:
    grid, before, pooled = FAMILIES[name]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    skeleton = build_timm_model(parse_teacher_name(f"timm:{name}"))
    size = timm_preprocessing(model, name=name).size
    found_grid, forward, facts = timm_forward(model, skeleton, size, name=name)
    assert (found_grid, facts["global"] == "forward_head") == (grid, pooled)
    pixels = torch.randn(1, 3, *size)
    with torch.inference_mode():
        tokens, global_ = forward(pixels)
        features = model.forward_features(pixels)
        expected = model.forward_head(features, pre_logits=True)
    assert tokens.shape == (1, grid[0] * grid[1], model.num_features)
    if features.ndim == 3:
        torch.testing.assert_close(tokens, features[:, before:])
    else:
        place = 2 * grid[1] + 3
        cell = features[0, 2, 3] if "swin" in name else features[0, :, 2, 3]
        torch.testing.assert_close(tokens[0, place], cell)
    torch.testing.assert_close(global_, expected if pooled else tokens.mean(1))


@pytest.mark.parametrize("name", SHAPES)
def test_more_families_give_a_grid(name: str) -> None:
    skeleton = build_timm_model(parse_teacher_name(f"timm:{name}"))
    size = timm_preprocessing(skeleton, name=name).size
    grid, forward, _ = timm_forward(skeleton, skeleton, size, name=name)
    tokens, global_ = forward(torch.zeros(2, 3, *size, device="meta"))
    assert grid == SHAPES[name]
    assert tokens.shape == (2, grid[0] * grid[1], skeleton.num_features)
    assert global_.shape == (2, skeleton.num_features)


def test_features_of_several_sizes_are_no_grid() -> None:
    skeleton = build_timm_model(parse_teacher_name("timm:crossvit_9_240"))
    with pytest.raises(ConfigError, match="are list, in which madkit sees no grid of tokens"):
        timm_forward(skeleton, skeleton, (240, 240), name="x")


def test_names_and_weights_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match=r"no model 'vit_smal_patch14_dinov2'\. Did you mean .*vit_small_patch14"):
        load_teacher("timm:vit_smal_patch14_dinov2")
    with pytest.raises(UsageProblem, match="no weights 'lvd142x' of vit_small_patch14_dinov2"):
        load_teacher("timm:vit_small_patch14_dinov2.lvd142x")
    with pytest.raises(NotFoundError, match="the hub is switched off"):
        load_teacher("timm:vit_small_patch14_dinov2.lvd142m")
    path = weights_of("test_vit", tmp_path / "vit.safetensors")
    with pytest.raises(DataError, match="do not fit 'timm:test_convnext'"):
        load_teacher("timm:test_convnext", weights=path)
    model = timm.create_model("test_vit", pretrained=False)
    model.pretrained_cfg["crop_mode"] = "border"
    with pytest.raises(ConfigError, match="the crop mode 'border'"):
        timm_preprocessing(model, name="x")
