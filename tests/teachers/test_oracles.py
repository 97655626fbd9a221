"""Against libraries that nobody here wrote: open_clip's own forward passes and transformers' CLIP, on equal weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hf_models
import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from madkit.teachers.clip_bpe import ClipTokenizer
from madkit.teachers.clip_pair import clip_pair
from madkit.teachers.interface import Teacher
from madkit.teachers.load import load_teacher
from madkit.teachers.preprocess import Preprocessing

torch.set_num_threads(1)
TEXTS = ["a photo of a cat", "It's  TWO dogs & a house, isn't it?", "", "émigré 😀", "so many words " * 25]
SMALL_VISION = {"layers": 3, "width": 64, "head_width": 16, "patch_size": 8, "image_size": 48}
SMALL_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 3}


def small_model(kind: type[nn.Module] = CLIP, **text: Any) -> nn.Module:
    torch.manual_seed(3)
    return kind(embed_dim=40, vision_cfg=SMALL_VISION, text_cfg={**SMALL_TEXT, **text}, quick_gelu=True)


def pair_of(model: nn.Module, size: int = 48) -> Teacher:
    return clip_pair(
        "small", model, ClipTokenizer(), Preprocessing((size, size), (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
    )


def picture(path: Path, width: int, height: int, seed: int = 0, mode: str = "RGB") -> Path:
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(low).resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(path)
    return path


def assert_like_open_clip(teacher: Teacher, model: Any, images: torch.Tensor) -> None:
    """Global vectors equal encode_image and encode_text; tokens equal a plain forward pass read with hooks."""
    assert teacher.vision is not None
    assert teacher.text is not None
    found = teacher.vision.encode(images)
    pixels = teacher.vision.preprocessing.normalise(images, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(found.global_, model.encode_image(pixels), atol=1e-5, rtol=1e-5)
        captured: list[torch.Tensor] = []
        hook = model.visual.transformer.register_forward_hook(lambda *call: captured.append(call[2]))
        model.visual(pixels)
        hook.remove()
        expected = model.visual.ln_post(captured[0])[:, 1:] @ model.visual.proj
        torch.testing.assert_close(found.tokens, expected, atol=1e-5, rtol=1e-5)
        output = teacher.text.encode(TEXTS)
        ids = open_clip.get_tokenizer("ViT-B-32")(TEXTS)
        torch.testing.assert_close(output.global_, model.encode_text(ids), atol=1e-5, rtol=1e-5)
    for row, text in enumerate(TEXTS):
        real = ids[row][1 : int(ids[row].argmax())]
        assert int(output.mask[row].sum()) == len(real)
        covered = output.spans[row][output.mask[row]]
        assert len(covered) == 0 or int(covered.max()) <= len(text)


def test_tokens_and_globals_are_open_clips_own() -> None:
    images = torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for model in (small_model(), small_model(CustomTextCLIP), small_model(CustomTextCLIP, proj_bias=True)):
        assert_like_open_clip(pair_of(model), model, images)
    bidirectional = small_model(CustomTextCLIP, no_causal_mask=True, pool_type="last")
    assert_like_open_clip(pair_of(bidirectional), bidirectional, images)


def test_what_follows_the_end_token_does_not_matter() -> None:
    """Texts are padded to the longest of their batch, not to 77: with a causal mask that is exact."""
    teacher = pair_of(small_model())
    assert teacher.text is not None
    together, alone = teacher.text.encode(TEXTS), teacher.text.encode(TEXTS[:1])
    assert together.tokens.shape[1] == 77
    assert alone.tokens.shape[1] == 7
    torch.testing.assert_close(
        together.tokens[0][together.mask[0]], alone.tokens[0][alone.mask[0]], atol=1e-5, rtol=1e-5
    )


def transformers_clip(embed: int, vision: dict[str, int], text: dict[str, int], activation: str = "quick_gelu") -> Any:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(5)
    config = CLIPConfig(
        projection_dim=embed,
        vision_config={**vision, "projection_dim": embed, "hidden_act": activation},
        text_config={**text, "projection_dim": embed, "hidden_act": activation, "eos_token_id": 49407},
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():  # transformers starts biases and norms at constants, which would hide mistakes
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def compare_with_transformers(teacher: Teacher, reference: Any, images: torch.Tensor) -> None:
    assert teacher.vision is not None
    assert teacher.text is not None
    pixels = teacher.vision.preprocessing.normalise(images, torch.float32)
    with torch.no_grad():
        vision = reference.vision_model(pixels)
        tokens = reference.visual_projection(reference.vision_model.post_layernorm(vision.last_hidden_state))[:, 1:]
        global_ = reference.visual_projection(vision.pooler_output)
        ids = open_clip.get_tokenizer("ViT-B-32")(TEXTS)
        text = reference.text_model(ids)
        words = reference.text_projection(text.last_hidden_state)
        sentence = reference.text_projection(text.pooler_output)
    found, read = teacher.vision.encode(images), teacher.text.encode(TEXTS)
    assert float((found.tokens - tokens).abs().max()) < 1e-4
    assert float((found.global_ - global_).abs().max()) < 1e-4
    assert float((read.global_ - sentence).abs().max()) < 1e-4
    length = read.tokens.shape[1]
    assert float((read.tokens - words[:, :length])[read.mask].abs().max()) < 1e-4


@pytest.mark.parametrize(("activation", "tag"), [("quick_gelu", "openai"), ("gelu", "datacomp_xl_s13b_b90k")])
def test_transformers_clip_on_the_same_weights(
    activation: str, tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transformers file under --weights, through the name path of clip-vit-l14, with a small ViT-L/14."""
    import json

    config = {
        "embed_dim": 40,
        "vision_cfg": {"image_size": 56, "layers": 2, "width": 128, "patch_size": 14},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
    }
    (tmp_path / "ViT-tiny-14.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "ViT-tiny-14.json")
    reference = transformers_clip(
        40,
        {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"image_size": 56, "patch_size": 14},
        {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1}
        | {"vocab_size": 49408, "max_position_embeddings": 77},
        activation,
    )
    save_file({k: v.contiguous() for k, v in reference.state_dict().items()}, tmp_path / "model.safetensors")
    # The tag decides that OpenAI's weights want quick-gelu; here it is given to the small architecture.
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, "ViT-tiny-14", {tag: open_clip.get_pretrained_cfg("ViT-L-14", tag)}
    )
    teacher = load_teacher(f"open_clip:ViT-tiny-14/{tag}", weights=tmp_path)
    assert teacher.vision is not None
    images = torch.stack([teacher.vision.load_image(picture(tmp_path / f"{w}.png", w, 70, w)) for w in (60, 91)])
    compare_with_transformers(teacher, reference, images)
    through_transformers = hf_models.save(tmp_path / "hf", reference, clip_tokenizer(), clip_images())
    compare_teachers(teacher, load_teacher(f"hf:{through_transformers}"), images)


def clip_images() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})


def clip_tokenizer() -> Any:
    """The CLIP vocabulary that open_clip carries, as a tokenizer of transformers."""
    from open_clip.tokenizer import SimpleTokenizer

    plain = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): number for token, number in plain.encoder.items()}
    return hf_models.clip_bpe((vocabulary, list(plain.bpe_ranks)))


def compare_teachers(one: Teacher, other: Teacher, images: torch.Tensor) -> None:
    """The same weights through open_clip and through transformers: tokens, globals, ids, spans, scale."""
    assert one.vision is not None
    assert one.text is not None
    assert other.vision is not None
    assert other.text is not None
    a, b = one.vision.encode(images), other.vision.encode(images)
    assert a.grid == b.grid
    assert float((a.tokens - b.tokens).abs().max()) < 1e-4
    assert float((a.global_ - b.global_).abs().max()) < 1e-4
    long = "two cats & a dog, isn't it? " * 20
    for text in ["a photo of a cat", "It's  TWO dogs & a house, isn't it?", "", "\u00e9migr\u00e9 \U0001f600", long]:
        assert one.text.tokenize([text]) == other.text.tokenize([text])
        said, heard = one.text.encode([text]), other.text.encode([text])
        assert torch.equal(said.spans[said.mask], heard.spans[heard.mask])
        if text:
            assert float((said.tokens[said.mask] - heard.tokens[heard.mask]).abs().max()) < 1e-4
        assert float((said.global_ - heard.global_).abs().max()) < 1e-4
    assert one.shared_space
    assert other.shared_space
    assert one.logit_scale == pytest.approx(other.logit_scale, rel=1e-5)


def test_pixels_equal_open_clips_transform(tmp_path: Path) -> None:
    """uint8 pixels normalised later give what open_clip's transform gives, for any shape and for grey pictures."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    cfg = PreprocessCfg(size=(48, 48))
    ours = Preprocessing.from_config({"size": 48, "mean": cfg.mean, "std": cfg.std})
    transform = image_transform_v2(cfg, is_train=False)
    for number, (width, height) in enumerate([(48, 48), (100, 60), (61, 99), (49, 500), (30, 20)]):
        path = picture(tmp_path / f"{number}.png", width, height, number, "L" if number == 1 else "RGB")
        with Image.open(path) as image:
            expected = transform(image)
        found = ours.normalise(ours.load(path)[None], torch.float32)[0]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_stated_facts_are_those_of_open_clips_models() -> None:
    from madkit.teachers.describe import describe_teacher
    from madkit.teachers.known import KNOWN

    for name, known in KNOWN.items():
        if not known.target.startswith("open_clip:"):
            continue
        found, stated = describe_teacher(name), known.as_row()
        assert found["image_size"] == [stated["image_size"]] * 2
        assert found["parameters_m"] == pytest.approx(stated["parameters_m"], abs=0.05)
        for key in ("dim", "image_tokens", "context_length", "gflops_image", "gflops_text", "bytes_per_image"):
            assert found[key] == stated[key], (name, key)


@pytest.mark.slow
def test_clip_vit_l14_at_full_size(tmp_path: Path) -> None:
    """The real ViT-L/14 with random weights in a local file, as transformers stores it, against transformers."""
    reference = transformers_clip(
        768,
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        | {"image_size": 224, "patch_size": 14},
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        | {"vocab_size": 49408, "max_position_embeddings": 77},
    )
    path = tmp_path / "model.safetensors"
    save_file({k: v.contiguous() for k, v in reference.state_dict().items()}, path)
    teacher = load_teacher("clip-vit-l14", weights=path)
    assert teacher.vision is not None
    assert (teacher.vision.dim, teacher.vision.grid) == (768, (16, 16))
    images = teacher.vision.load_image(picture(tmp_path / "x.png", 300, 260))[None]
    compare_with_transformers(teacher, reference, images)
