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
from madkit.teachers.load import load_teacher

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


def test_maps_with_channels_last_and_wider_heads(tmp_path: Path) -> None:
    name = "swin_tiny_patch4_window7_224"
    from madkit.teachers.known import parse_teacher_name
    from madkit.teachers.timm_vision import build_timm_model, timm_forward

    skeleton = build_timm_model(parse_teacher_name(f"timm:{name}"))
    assert timm_forward(skeleton, skeleton, (224, 224), name=name)[0] == (7, 7)
    wide = build_timm_model(parse_teacher_name("timm:mobilenetv3_small_050"))
    grid, _, facts = timm_forward(wide, wide, (224, 224), name="x")
    assert (grid, facts["global"]) == ((7, 7), "mean of patch tokens")


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
    from madkit.teachers.timm_vision import timm_preprocessing

    model = timm.create_model("test_vit", pretrained=False)
    model.pretrained_cfg["crop_mode"] = "border"
    with pytest.raises(ConfigError, match="the crop mode 'border'"):
        timm_preprocessing(model, name="x")
