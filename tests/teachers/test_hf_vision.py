"""Vision encoders and pairs of transformers: what the library itself says on the same weights and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hf_models
import numpy as np
import pytest
import torch
from PIL import Image

from madkit.core.errors import ConfigError, NotFoundError
from madkit.teachers.hf_files import quiet
from madkit.teachers.hf_vision import preprocessing_of
from madkit.teachers.interface import Teacher
from madkit.teachers.load import load_teacher

torch.set_num_threads(1)
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
CROP = {"size": {"shortest_edge": 36}, "crop_size": {"height": 28, "width": 28}, "image_mean": MEAN, "image_std": STD}
SQUASH = {"size": {"height": 32, "width": 32}, "image_mean": MEAN, "image_std": STD}


def vision_folder(kind: str, folder: Path) -> Path:
    from transformers import (
        AutoConfig,
        AutoModel,
        BitImageProcessor,
        CLIPImageProcessor,
        SiglipImageProcessor,
        ViTImageProcessor,
    )

    small = {**hf_models.SMALL, "patch_size": 14, "image_size": 28}
    square = {**small, "patch_size": 8, "image_size": 32}
    settings: dict[str, tuple[dict[str, Any], Any]] = {
        "clip_vision_model": (small, CLIPImageProcessor(**CROP)),
        "siglip_vision_model": (square, SiglipImageProcessor(**SQUASH)),
        "dinov2": ({**small, "image_size": 70}, BitImageProcessor(**CROP)),  # position embeddings are interpolated
        "dinov2_with_registers": ({**small, "num_register_tokens": 3}, BitImageProcessor(**CROP)),
        "vit": (square, ViTImageProcessor(**SQUASH)),
        "beit": (square, BitImageProcessor(**SQUASH, do_center_crop=False)),
        "deit": (square, ViTImageProcessor(**SQUASH)),
        "dinov3_vit": ({**square, "num_register_tokens": 4}, ViTImageProcessor(**SQUASH)),
        "aimv2_vision_model": (square, ViTImageProcessor(**SQUASH)),
        "swin": (
            {
                "embed_dim": 16,
                "depths": [1, 1],
                "num_heads": [1, 2],
                "image_size": 32,
                "window_size": 4,
                "patch_size": 4,
            },
            ViTImageProcessor(**SQUASH),
        ),
        "resnet": (
            {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
            ViTImageProcessor(**SQUASH),
        ),
        "vit_mae": (
            {**square, "decoder_num_hidden_layers": 1, "decoder_hidden_size": 16, "decoder_num_attention_heads": 2},
            ViTImageProcessor(**SQUASH),
        ),
    }
    config, processor = settings[kind]
    model = hf_models.randomised(AutoModel.from_config(AutoConfig.for_model(kind, **config)))
    return hf_models.save(folder, model, processor)


KINDS = {"clip_vision_model": 1, "siglip_vision_model": 0, "dinov2": 1, "dinov2_with_registers": 4, "vit": 1}
KINDS |= {"beit": 1, "deit": 2, "dinov3_vit": 5, "aimv2_vision_model": 0, "swin": 0, "resnet": 0}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for number, (width, height) in enumerate([(60, 51), (36, 97), (28, 28)]):
        rng = np.random.default_rng(number)
        small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        paths.append(folder / f"{number}.png")
        small.resize((width, height), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def ours(teacher: Teacher, pictures: list[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """Our uint8 images, and the pixels that the model is given."""
    assert teacher.vision is not None
    images = torch.stack([teacher.vision.load_image(path) for path in pictures])
    return images, teacher.vision.preprocessing.normalise(images, torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_globals_are_the_librarys_own(kind: str, tmp_path: Path, pictures: list[Path]) -> None:
    from transformers import AutoModel

    folder = vision_folder(kind, tmp_path / kind)
    teacher = load_teacher(f"hf:{folder}")
    assert teacher.text is None
    assert teacher.vision is not None
    images, pixels = ours(teacher, pictures)
    found = teacher.vision.encode(images)
    with quiet(), torch.no_grad():
        model = AutoModel.from_pretrained(folder).eval()
        expected = model(pixel_values=pixels)
    hidden = expected.last_hidden_state
    patches = hidden[:, KINDS[kind] :] if hidden.ndim == 3 else hidden.flatten(2).transpose(1, 2)
    if kind == "clip_vision_model":
        patches = getattr(model, "vision_model", model).post_layernorm(patches)
    torch.testing.assert_close(found.tokens, patches, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.global_, expected.pooler_output.flatten(1), atol=1e-5, rtol=1e-5)
    assert teacher.vision.identity["global"] == "pooler_output"
    assert found.grid == teacher.vision.grid == ((4, 4) if 32 in teacher.vision.image_size else (2, 2))


def test_a_masked_autoencoder_sees_every_patch_in_its_place(tmp_path: Path, pictures: list[Path]) -> None:
    """The library hides patches at random; a plain ViT with the same weights hides none."""
    from transformers import AutoModel, ViTConfig, ViTModel

    folder = vision_folder("vit_mae", tmp_path)
    teacher = load_teacher(f"hf:{folder}")
    images, pixels = ours(teacher, pictures)
    assert teacher.vision is not None
    found = teacher.vision.encode(images)
    with quiet(), torch.no_grad():
        model: Any = AutoModel.from_pretrained(folder).eval()
        plain = ViTModel(ViTConfig(**hf_models.SMALL, patch_size=8, image_size=32), add_pooling_layer=False).eval()
        missing = plain.load_state_dict(model.state_dict(), strict=False)
        assert not missing.missing_keys
        expected = plain(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(found.tokens, expected[:, 1:], atol=1e-5, rtol=1e-5)
    assert teacher.vision.identity["global"] == "class token"
    torch.testing.assert_close(found.global_, expected[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["clip_vision_model", "siglip_vision_model", "vit"])
def test_pixels_are_those_of_the_librarys_pillow_pipeline(kind: str, tmp_path: Path, pictures: list[Path]) -> None:
    """Exactly Pillow's; the library's torch pipeline resizes within one step of 255 on average."""
    from transformers import AutoImageProcessor

    folder = vision_folder(kind, tmp_path / kind)
    _, pixels = ours(load_teacher(f"hf:{folder}"), pictures)
    with quiet():
        pillow = AutoImageProcessor.from_pretrained(folder, backend="pil")
        fast = AutoImageProcessor.from_pretrained(folder)
    opened = [Image.open(path).convert("RGB") for path in pictures]
    expected = pillow(opened, return_tensors="pt")["pixel_values"].float()
    assert "Pil" in type(pillow).__name__
    torch.testing.assert_close(pixels, expected, atol=2e-6, rtol=1e-5)
    other = fast(opened, return_tensors="pt")["pixel_values"].float()
    assert float((pixels - other).abs().mean()) * 0.2 < 1 / 255


def test_a_vision_model_without_pooler_gives_its_class_token(tmp_path: Path, pictures: list[Path]) -> None:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(**hf_models.SMALL, patch_size=8, image_size=32)
    model = hf_models.randomised(ViTForImageClassification(config))
    folder = hf_models.save(tmp_path / "classifier", model, ViTImageProcessor(**SQUASH))
    teacher = load_teacher(f"hf:{folder}")
    assert teacher.vision is not None
    assert teacher.vision.identity["global"] == "class token"
    images, pixels = ours(teacher, pictures)
    with torch.no_grad():
        hidden = model.vit(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(teacher.vision.encode(images).global_, hidden[:, 0], atol=1e-5, rtol=1e-5)


def pair_folder(kind: str, folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, SiglipConfig, SiglipImageProcessor, SiglipModel

    if kind == "clip":
        tokenizer = hf_models.clip_bpe()
        text = {**hf_models.SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
        text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        vision = {**hf_models.SMALL, "hidden_size": 48, "patch_size": 14, "image_size": 28, "num_attention_heads": 4}
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
        return hf_models.save(folder, hf_models.randomised(CLIPModel(config)), tokenizer, CLIPImageProcessor(**CROP))
    tokenizer = hf_models.unigram(template="$A </s>")
    text = {**hf_models.SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    vision = {**hf_models.SMALL, "patch_size": 8, "image_size": 32}
    config = SiglipConfig(text_config=text, vision_config=vision)
    return hf_models.save(folder, hf_models.randomised(SiglipModel(config)), tokenizer, SiglipImageProcessor(**SQUASH))


TEXTS = ["a photo of a cat", "It's  TWO dogs!", "", "émigré 😀"]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_pairs_are_the_librarys_own(kind: str, tmp_path: Path, pictures: list[Path]) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = pair_folder(kind, tmp_path)
    teacher = load_teacher(f"hf:{folder}")
    assert teacher.shared_space
    assert teacher.vision is not None
    assert teacher.text is not None
    images, pixels = ours(teacher, pictures)
    seen, read = teacher.vision.encode(images), teacher.text.encode(TEXTS)
    with quiet(), torch.no_grad():
        model: Any = AutoModel.from_pretrained(folder).eval()
        padding: Any = {"padding": "max_length", "max_length": 24} if kind == "siglip" else {"padding": True}
        batch = AutoTokenizer.from_pretrained(folder)(TEXTS, return_tensors="pt", **padding)
        attention = batch["attention_mask"].bool()
        inputs = {"input_ids": batch["input_ids"]} | ({} if kind == "siglip" else {"attention_mask": attention.long()})
        whole = model(pixel_values=pixels, **inputs)
        hidden, words = whole.vision_model_output.last_hidden_state, whole.text_model_output.last_hidden_state
        if kind == "clip":
            vision = getattr(model.vision_model, "vision_model", model.vision_model)
            patches = model.visual_projection(vision.post_layernorm(hidden[:, 1:]))
            tokens = model.text_projection(words)
        else:
            patches = torch.stack([model.vision_model.head(hidden[:, i : i + 1]) for i in range(16)], 1)
            tokens = model.text_model.head(words)
    assert float((seen.tokens - patches).abs().max()) < 1e-5
    width = read.tokens.shape[1]
    assert float((read.tokens - tokens[:, :width])[attention[:, :width]].abs().max()) < 1e-5
    for found, expected in ((seen.global_, whole.image_embeds), (read.global_, whole.text_embeds)):
        torch.testing.assert_close(torch.nn.functional.normalize(found, dim=-1), expected, atol=1e-5, rtol=1e-5)
    assert teacher.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()), rel=1e-5)
    bias = getattr(model, "logit_bias", torch.zeros(1))
    cosines = (
        torch.nn.functional.normalize(seen.global_, dim=-1) @ torch.nn.functional.normalize(read.global_, dim=-1).T
    )
    logits = (teacher.logit_scale * cosines + bias).detach()
    torch.testing.assert_close(logits, whole.logits_per_image, atol=1e-4, rtol=1e-4)


def test_preprocessing_that_madkit_does_not_have_is_refused() -> None:
    base = {**CROP, "do_center_crop": True, "resample": 3}
    assert preprocessing_of(base, name="x").resize_edge == 36
    for change, message in [
        ({"do_center_crop": False}, "keep their shape"),
        ({"resample": 1}, "resampling filter 1"),
        ({"do_rescale": False}, "not scaled"),
        ({"do_pad": True}, "padded"),
        ({"do_resize": False}, "fixed size"),
        ({"size": {"longest_edge": 30}}, "fixed size"),
        ({"size": {"height": 30, "width": 40}}, "squashed to a rectangle"),
        ({"crop_size": {"height": 99, "width": 28}}, "larger than the image"),
    ]:
        with pytest.raises(ConfigError, match=message):
            preprocessing_of({**base, **change}, name="x")


def test_vision_models_that_give_no_grid(tmp_path: Path) -> None:
    from transformers import Siglip2VisionConfig, Siglip2VisionModel, ViTImageProcessor

    config = Siglip2VisionConfig(**hf_models.SMALL, patch_size=8, num_patches=16)
    folder = hf_models.save(tmp_path / "naflex", Siglip2VisionModel(config), ViTImageProcessor(**SQUASH))
    with pytest.raises(ConfigError, match="cannot read 32 x 32 pixels"):
        load_teacher(f"hf:{folder}")
    folder = vision_folder("vit", tmp_path / "vit")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"image processor of .* cannot be read"):
        load_teacher(f"hf:{folder}")
    with pytest.raises(NotFoundError, match="the hub is switched off"):
        load_teacher("dinov2-vit-b14")
