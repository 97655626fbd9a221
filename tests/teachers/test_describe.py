"""Facts of teachers: what is stated for short names is what the libraries' own configurations give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hf_models
import pytest
import torch

from madkit.core.errors import NotFoundError, UsageProblem
from madkit.teachers.describe import describe_teacher, known_rows, library_names, matching
from madkit.teachers.describe_encoders import text_gflops
from madkit.teachers.flops import gflops
from madkit.teachers.hf_files import quiet
from madkit.teachers.hf_load import context_length
from madkit.teachers.known import KNOWN, parse_teacher_name

torch.set_num_threads(1)


@pytest.mark.parametrize("name", [name for name, known in KNOWN.items() if known.target.startswith("hf:")])
def test_stated_facts_are_those_of_the_librarys_models(name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    known = KNOWN[name]
    with quiet(), torch.device("meta"):
        model: Any = AutoModel.from_config(AutoConfig.for_model(**known.config)).eval().requires_grad_(False)
    assert known.parameters_m == pytest.approx(sum(p.numel() for p in model.parameters()) / 1e6, abs=0.05)
    if known.image_size is not None:
        vision = getattr(model, "vision_model", model)
        pixels = torch.zeros(1, 3, known.image_size, known.image_size, device="meta")
        tokens = vision(pixel_values=pixels).last_hidden_state.shape
        assert (tokens[1] - (name.startswith("dinov2")), tokens[2]) == (known.image_tokens, known.dim)
        assert known.gflops_image == gflops(lambda: vision(pixel_values=pixels))
    if known.context_length is not None:
        text = getattr(model, "text_model", model)
        stated = {"minilm-l6": 256, "mpnet-base": 384}.get(name)  # in their sentence settings
        assert min(context_length(text, tmp_path), stated or 10**9) == known.context_length
        assert known.gflops_text == text_gflops(text, known.context_length)
        assert text.config.hidden_size == known.dim


@pytest.mark.parametrize(
    ("name", "billions", "tokens"),
    [
        ("clip-vit-b32", 8.8, None), ("clip-vit-l14", 162.0, None), ("clip-vit-h14", 334.6, None),
        ("roberta-base", 3.412, 20), ("roberta-large", 12.119, 20),
    ],
)  # fmt: skip
def test_counts_equal_the_closed_form(name: str, billions: float, tokens: int | None) -> None:
    """L(24 h^2 n + 4 n^2 h) and what stands around it, worked out by hand."""
    from transformers import AutoConfig, AutoModel

    if tokens is None:
        assert describe_teacher(name)["gflops_image"] == billions
        return
    config: Any = AutoConfig.for_model(**KNOWN[name].config)
    width, layers = config.hidden_size, config.num_hidden_layers
    form = layers * (24 * width**2 * tokens + 4 * tokens**2 * width) / 1e9
    assert form == pytest.approx(billions, abs=5e-3)
    with quiet(), torch.device("meta"):
        model: Any = AutoModel.from_config(config, add_pooling_layer=False).eval().requires_grad_(False)
    assert text_gflops(model, tokens) == pytest.approx(form, abs=0.06)  # one decimal


def test_a_product_of_matrices_is_counted() -> None:
    a, b = (torch.zeros(1000, 1000, device="meta") for _ in range(2))
    assert gflops(lambda: a @ b) == 2.0
    assert gflops(lambda: a.sum().item()) is None


def test_folders_timm_and_joined_names(tmp_path: Path) -> None:
    tokenizer = hf_models.byte_level()
    folder = hf_models.save(tmp_path / "text", hf_models.text_model("roberta", tokenizer), tokenizer)
    facts = describe_teacher(f"hf:{folder}")
    assert (facts["dim"], facts["context_length"], facts["bytes_per_text_token"]) == (32, 62, 64)
    facts = describe_teacher("timm:vit_small_patch14_dinov2.lvd142m")
    assert (facts["dim"], facts["image_tokens"], facts["licence"]) == (384, 37 * 37, "apache-2.0")
    facts = describe_teacher(f"dinov2-vit-b14+hf:{folder}")
    assert (facts["vision_dim"], facts["text_dim"], facts["image_tokens"], facts["context_length"]) == (
        768,
        32,
        256,
        62,
    )
    with pytest.raises(NotFoundError, match="the hub is switched off"):
        describe_teacher("hf:someone/something")


@pytest.mark.parametrize(
    ("name", "dim", "tokens", "words", "licence"),
    [
        ("open_clip:RN50/openai", 1024, 49, 77, "MIT"),
        ("open_clip:ViT-B-16-SigLIP/webli", 768, 196, 64, "Apache-2.0"),
        ("open_clip:coca_ViT-B-32/laion2b_s13b_b90k", 512, 49, 76, "MIT"),
        ("open_clip:convnext_base_w", 640, 64, 77, None),
        ("open_clip:xlm-roberta-base-ViT-B-32", 512, 49, 77, None),
        ("open_clip:nllb-clip-base/v1", 512, 49, 77, None),
    ],
)
def test_every_kind_of_open_clip_is_described(
    name: str, dim: int, tokens: int, words: int, licence: str | None
) -> None:
    facts = describe_teacher(name)
    found = (facts["dim"], facts["image_tokens"], facts["context_length"], facts["licence"])
    assert found == (dim, tokens, words, licence)
    assert facts["gflops_image"] > 1
    assert facts["gflops_text"] > 1
    assert facts["bytes_per_image"] == dim * tokens * 2


def test_the_embedded_teacher_states_what_is_counted() -> None:
    stated, counted = known_rows()[0], describe_teacher("mini")
    for key in ("dim", "image_tokens", "context_length", "gflops_image", "gflops_text", "parameters_m"):
        assert stated[key] == counted[key], key


def test_lists_of_libraries_and_parts_of_names() -> None:
    names = library_names(open_clip=True)
    assert "open_clip:ViT-L-14/openai" in names
    assert not [name for name in names if name.startswith("timm:")]
    assert "timm:resnet50.a1_in1k" in library_names(timm=True)
    assert matching(["a/Bc", "x"], "bC") == ["a/Bc"]
    assert matching(["a", "b"], None) == ["a", "b"]
    with pytest.raises(UsageProblem, match=r"No teacher's name contains 'roberta-bse'\. Did you mean 'roberta-base'"):
        matching([row["name"] for row in known_rows()], "roberta-bse")


def test_names() -> None:
    assert parse_teacher_name("hf:FacebookAI/roberta-base") == parse_teacher_name("roberta-base")
    pinned = parse_teacher_name("hf:FacebookAI/roberta-base@abc123")
    assert (pinned.rest, pinned.tag, pinned.slug) == (
        "FacebookAI/roberta-base", "abc123", "hf-facebookai-roberta-base-abc123",
    )  # fmt: skip
    joined = parse_teacher_name("hf:facebook/dinov2-large+hf:/models/My Text/")
    assert joined.canonical == "dinov2-vit-l14+hf:/models/My Text/"
    assert joined.slug == "dinov2-vit-l14-hf-my-text"
    assert parse_teacher_name("mini+mini") == parse_teacher_name("mini")
    assert parse_teacher_name("local:/a+b/c").scheme == "local"
    assert parse_teacher_name("hf:/a+b+roberta-base").parts == (
        parse_teacher_name("hf:/a+b"), parse_teacher_name("roberta-base"),
    )  # fmt: skip
    assert parse_teacher_name("timm:timm/resnet18.a1_in1k").canonical == "timm:resnet18.a1_in1k"
    for bad, wrong, near in [
        ("dinov2-vit-l14+roberta-bas", "roberta-bas", "roberta-base"),
        ("dinov2-vit-l4+roberta-base", "dinov2-vit-l4", "dinov2-vit-l14"),
        ("roberta", "roberta", "roberta-base"),
    ]:
        with pytest.raises(UsageProblem, match=rf"no teacher named '{wrong}'\. Did you mean .*'{near}'"):
            parse_teacher_name(bad)
    for bad in ("hf:", "hf:a b/c", "timm:", "+mini", "mini+"):
        with pytest.raises(UsageProblem, match="no teacher named"):
            parse_teacher_name(bad)
