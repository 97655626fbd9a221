"""Every kind of open_clip's encoders on random weights: globals are open_clip's own, tokens are read as documented."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hf_models
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from madkit.core.errors import ConfigError, NotFoundError
from madkit.teachers import hf_towers
from madkit.teachers.clip_pair import clip_sides
from madkit.teachers.interface import TokenizedText
from madkit.teachers.known import parse_teacher_name
from madkit.teachers.load import build_open_clip_model, load_teacher, open_clip_preprocessing
from madkit.teachers.preprocess import Preprocessing
from tests.pretended_cuda import pretended_cuda, read_everything

torch.set_num_threads(1)
TEXTS = ["a photo of a cat", "It's  TWO dogs & a house, isn't it?", "", "émigré 😀 déjà_vu", "so many words " * 25]
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VIT = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
SIGLIP = {
    "vocab_size": 400, "hf_tokenizer_name": "someone/tokenizer", "tokenizer_kwargs": {"clean": "canonicalize"},
    "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
}  # fmt: skip
HF = {"hf_model_name": "tiny", "hf_tokenizer_name": "someone/tokenizer", "context_length": 40}
COCA = {"multimodal_cfg": {"width": 32, "heads": 2, "layers": 1, "context_length": 24}, "custom_text": True}


def timm(model: str, size: int = 160, **more: Any) -> dict[str, Any]:
    return {"timm_model_name": model, "image_size": size, "timm_pool": "", "timm_proj": "linear", **more}


# family: (vision, text, rest of the architecture, tokenizer family, configuration of the text encoder)
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str | None, dict[str, Any] | None]] = {
    "RN50": ({"layers": [1, 1, 1, 1], "width": 16, "head_width": 64, "image_size": 96}, {}, {}, None, None),
    "CoCa": (
        {**VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        {"embed_cls": True, "output_tokens": True}, COCA, None, None,
    ),
    "CoCa without pooler": (
        {**VIT, "output_tokens": True}, {"embed_cls": True, "output_tokens": True}, COCA, None, None,
    ),
    "CLIPA": (
        {**VIT, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        {
            "vocab_size": 400, "hf_tokenizer_name": "someone/tokenizer", "tokenizer_kwargs": {"strip_sep_token": True},
            "pool_type": "last", "no_causal_mask": True,
        }, {}, "WordPiece", None,
    ),
    "worldwide": (
        VIT, {"vocab_size": 400, "hf_tokenizer_name": "someone/tokenizer", "pool_type": "eos", "eos_id": 2}, {},
        "byte-level BPE", None,
    ),
    "SigLIP": (timm("test_vit", timm_pool="map", timm_proj="none"), SIGLIP, {"init_logit_bias": -10}, "T5", None),
    "SigLIP i18n": (
        timm("test_vit2", timm_pool="avg", timm_proj=None), {**SIGLIP, "proj_type": "linear"}, {}, "T5", None,
    ),
    "EVA": (timm("test_vit", timm_pool="token", timm_proj=None), {}, {"custom_text": True}, None, None),
    "registers": (timm("test_vit3"), {}, {"custom_text": True}, None, None),
    "ConvNeXt": (timm("test_convnext"), {}, {}, None, None),
    "ConvNeXt with MLP": (timm("test_convnext", timm_proj="mlp"), {}, {}, None, None),
    "MobileCLIP": (
        timm("test_efficientnet", timm_pool="avg", timm_proj=None), {"no_causal_mask": True}, {"custom_text": True},
        None, None,
    ),
    "roberta": (VIT, {**HF, "hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"}, {"quick_gelu": True},
                "byte-level BPE", {"model_type": "roberta", "max_position_embeddings": 60}),
    "mt5": (VIT, {**HF, "hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"}, {}, "T5",
            {"model_type": "mt5", "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}),
    "nllb": (
        VIT, {**HF, "hf_pooler_type": "cls_pooler", "hf_proj_type": "linear"}, {}, "byte-level BPE",
        {"model_type": "m2m_100", "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2,
         "encoder_ffn_dim": 64, "max_position_embeddings": 60, "decoder_layers": 1},
    ),
    "CoCa with roberta": (
        {**VIT, "output_tokens": True}, {**HF, "hf_pooler_type": "mean_pooler", "hf_proj_type": "linear",
         "output_tokens": True}, COCA, "byte-level BPE", {"model_type": "roberta", "max_position_embeddings": 60},
    ),
}  # fmt: skip


def library_tokenizer(family: str) -> Any:
    return hf_models.unigram(template="$A </s>") if family == "T5" else hf_models.TOKENIZERS[family]()


class Made:
    """A small architecture of a family, registered with open_clip, with random weights in a folder."""

    def __init__(self, family: str, folder: Path) -> None:
        vision, text, rest, tokenizer, tower = FAMILIES[family]
        self.name, self.tokenizer = f"Tiny-{family.replace(' ', '-')}", None
        width = 64 if vision.get("timm_proj") == "none" else 40
        config = {"embed_dim": width, "vision_cfg": vision, "text_cfg": {**TEXT, **text}, **rest}
        if "hf_model_name" in text:
            config["text_cfg"] = text
        if "init_logit_bias" in rest or ("hf_tokenizer_name" in text and "timm_model_name" in vision):
            config["custom_text"] = True
        (folder / f"{self.name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder / f"{self.name}.json")
        if tokenizer is not None:
            self.tokenizer = library_tokenizer(tokenizer)
            self.tokenizer.save_pretrained(folder)
        if tower is not None:
            special = {"pad_token_id": self.tokenizer.pad_token_id, "vocab_size": 400}
            small = hf_models.SMALL if tower["model_type"] == "roberta" else {}
            hf_towers.TOWERS["tiny"] = {**small, **special, **tower}
        torch.manual_seed(3)
        self.model: Any = build_open_clip_model(parse_teacher_name(f"open_clip:{self.name}"), quick_gelu=False)
        hf_models.randomised(self.model)
        for buffer, value in self.model.named_buffers():
            if buffer.endswith(("running_mean", "running_var")):
                value.uniform_(0.5, 1.5)
        # Tensors that two modules share would be written twice.
        state = {key: value.clone().contiguous() for key, value in self.model.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        self.config, self.folder = config, folder

    def ids(self, texts: list[str]) -> torch.Tensor:
        """What open_clip's own tokenizer gives."""
        text = self.config["text_cfg"]
        length = text.get("context_length", 77)
        if self.tokenizer is None:
            return open_clip.get_tokenizer(self.name, context_length=length)(texts)
        from madkit.teachers.hf_files import quiet

        with quiet():
            own = open_clip.tokenizer.HFTokenizer(str(self.folder), length, **text.get("tokenizer_kwargs", {}))
            return own(texts)


@pytest.fixture(scope="module", params=list(FAMILIES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    before = dict(open_clip.factory._MODEL_CONFIGS), list(open_clip.factory._MODEL_CONFIG_PATHS)
    yield Made(request.param, tmp_path_factory.mktemp("made"))
    open_clip.factory._MODEL_CONFIGS.clear()
    open_clip.factory._MODEL_CONFIGS.update(before[0])
    open_clip.factory._MODEL_CONFIG_PATHS[:] = before[1]
    hf_towers.TOWERS.pop("tiny", None)


def test_globals_are_open_clips_own_and_tokens_go_the_same_way(made: Made) -> None:
    teacher = load_teacher(f"open_clip:{made.name}", weights=made.folder)
    assert teacher.vision is not None
    assert teacher.text is not None
    assert teacher.shared_space
    size = teacher.vision.image_size
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = teacher.vision.preprocessing.normalise(images, torch.float32)
    seen, read = teacher.vision.encode(images), teacher.text.encode(TEXTS[:4])
    with torch.no_grad():
        expected = made.model.encode_image(pixels)
        ids = made.ids(TEXTS[:4])
        words = made.model.encode_text(ids)
    if "multimodal_cfg" in made.config:  # CoCa normalises unless told not to
        torch.testing.assert_close(F.normalize(seen.global_, dim=-1), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(F.normalize(read.global_, dim=-1), words, atol=1e-5, rtol=1e-5)
    else:
        torch.testing.assert_close(seen.global_, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(read.global_, words, atol=1e-5, rtol=1e-5)
    assert seen.tokens.shape == (2, seen.grid[0] * seen.grid[1], teacher.vision.dim)
    assert bool(seen.tokens.isfinite().all())
    assert float(seen.tokens.std(1).mean()) > 1e-4  # places differ
    for row, found in enumerate(teacher.text.tokenize(TEXTS[:4])):
        special = teacher.text.tokenizer
        full = [*special.prefix, *found.ids, *special.suffix]
        assert ids[row].tolist() == full + [special.pad_id] * (ids.shape[1] - len(full))
        assert read.spans[row][read.mask[row]].tolist() == [list(span) for span in found.spans]
    long = teacher.text.encode(TEXTS[4:])
    assert int(long.mask.sum()) == len(teacher.text.tokenize(TEXTS[4:])[0].ids) > teacher.text.limit


@pytest.mark.slow
def test_on_a_gpu_everything_is_there(made: Made) -> None:
    with pretended_cuda():
        teacher = load_teacher(f"open_clip:{made.name}", weights=made.folder, device="cuda")
        found = read_everything(teacher, TEXTS[:2])
    assert {one.tokens.device.type for one in found} == {one.global_.device.type for one in found} == {"cuda"}
    assert len(found) == 4


def test_16_bits_say_the_same(made: Made) -> None:
    name, dtype = f"open_clip:{made.name}", torch.float16
    whole, half = (load_teacher(name, weights=made.folder, dtype=d) for d in (torch.float32, dtype))
    assert whole.vision is not None
    assert whole.text is not None
    assert half.vision is not None
    assert half.text is not None
    images = torch.randint(0, 256, (1, 3, *whole.vision.image_size), dtype=torch.uint8)
    for one, other in (
        (whole.vision.encode(images), half.vision.encode(images)),
        (whole.text.encode(TEXTS[:2]), half.text.encode(TEXTS[:2])),
    ):
        assert other.tokens.dtype == other.global_.dtype == dtype
        for a, b in ((one.tokens, other.tokens), (one.global_, other.global_)):
            assert bool(b.isfinite().all())
            assert float(F.cosine_similarity(a, b.float(), dim=-1).min()) > 0.97


def same_everywhere(visual: Any, vision: dict[str, Any], value: torch.Tensor) -> None:
    """Make an image encoder see ``value`` at every place, class tokens included."""
    if isinstance(vision.get("layers"), list):
        torch.nn.init.zeros_(visual.attnpool.positional_embedding)
        visual.layer4.register_forward_hook(lambda *call: value[: call[2].shape[1], None, None].expand_as(call[2]))
    elif "timm_model_name" in vision:
        features, cells = visual.trunk.forward_features, (slice(None), None, None)

        def constant(pixels: torch.Tensor) -> torch.Tensor:
            found = features(pixels)
            if found.ndim == 4:
                return value[: found.shape[1]][cells].expand_as(found)
            return value[: found.shape[2]].expand_as(found)

        visual.trunk.forward_features = constant
    else:
        intermediates = visual.transformer.forward_intermediates

        def patches(x: torch.Tensor, **more: Any) -> Any:
            found, _ = intermediates(x, **more)
            same = value[: found.shape[2]].expand_as(found)
            return same, [same]

        visual.transformer.forward_intermediates = patches


def test_a_picture_of_one_thing_everywhere_is_that_thing(made: Made) -> None:
    """Whatever a head does to pool, equal tokens pool to what each of them is alone."""
    value = torch.randn(2048, generator=torch.Generator().manual_seed(1))
    model = copy.deepcopy(made.model)
    same_everywhere(model.visual, made.config["vision_cfg"], value)
    pre = Preprocessing.from_config(open_clip_preprocessing(model, {}))
    special = hf_models.SpecialTokens()
    vision, text = clip_sides("x", model, special, pre, vision_weights="", text_weights="", context_length=24)
    found = vision.encode(torch.zeros(1, 3, *pre.size, dtype=torch.uint8))
    expected = found.global_[:, None].expand_as(found.tokens)
    torch.testing.assert_close(found.tokens, expected, atol=1e-5, rtol=1e-4)
    read = text.encode_tokenized([TokenizedText((7, 8, 9), ((0, 1), (1, 2), (2, 3)))])
    hidden: list[torch.Tensor] = []
    owner = getattr(model, "text", model)
    owner.transformer.register_forward_hook(lambda *call: hidden.append(call[2]))
    with torch.no_grad():
        tower = hasattr(owner, "proj")  # of transformers, which pads with another id
        model.encode_text(torch.tensor([[3, 7, 8, 9, 2, *([] if tower else [0] * 19)]]))
        if tower:
            words = owner.proj(hidden[0].last_hidden_state)
        else:
            words, project = owner.ln_final(hidden[0]), owner.text_projection
            words = project(words) if isinstance(project, torch.nn.Linear) else words @ project
    torch.testing.assert_close(read.tokens[read.mask], words[0, 1:4], atol=1e-5, rtol=1e-5)


def test_the_tokenizer_comes_from_the_folder_or_the_hub(made: Made, tmp_path: Path) -> None:
    if made.tokenizer is None:
        assert load_teacher(f"open_clip:{made.name}", weights=made.folder / "model.safetensors").text is not None
        return
    shutil.copy(made.folder / "model.safetensors", tmp_path)
    with pytest.raises(NotFoundError, match=r"tokenizer files of .*someone/tokenizer.* switched off") as found:
        load_teacher(f"open_clip:{made.name}", weights=tmp_path)
    assert "--weights FOLDER" in (found.value.hint or "")


# Two texts of one length: with padding, the library looks at the values of a mask, which the meta device does not have.
PAIR = [TokenizedText((5, 6), ((0, 1), (1, 2))), TokenizedText((5, 7), ((0, 1), (1, 2)))]
SOME = ("RN50", "coca_ViT-B-32", "MobileCLIP2-S0", "mt5-base-ViT-B-32", "PE-Core-T-16-384", "roberta-ViT-B-32")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in SOME else [pytest.mark.slow]) for name in open_clip.list_models()],
)
def test_every_architecture_gives_tokens(name: str) -> None:
    """On the meta device, where nothing is computed: the shapes of both sides at full size."""
    with torch.device("meta"):
        model: Any = build_open_clip_model(parse_teacher_name(f"open_clip:{name}"), quick_gelu=False).eval()
    pre = Preprocessing.from_config(open_clip_preprocessing(model, {}))
    vision, text = clip_sides(
        name, model, hf_models.SpecialTokens(), pre, vision_weights="", text_weights="", context_length=77
    )
    seen = vision.encode(torch.zeros(1, 3, *pre.size, dtype=torch.uint8, device="meta"))
    read = text.encode_tokenized(PAIR)
    width = open_clip.get_model_config(name)["embed_dim"]
    assert seen.tokens.shape == (1, vision.grid[0] * vision.grid[1], width)
    assert seen.global_.shape == (1, width)
    assert read.tokens.shape[::2] == (2, width)
    assert read.global_.shape == (2, width)
    assert seen.grid[0] >= 4


def test_a_text_encoder_that_is_not_known_is_named() -> None:
    unknown = hf_towers.tower_folder("roberta-bas")
    with pytest.raises(ConfigError, match=r"does not know the text encoder 'roberta-bas'.*'roberta-base'"), unknown:
        pass
