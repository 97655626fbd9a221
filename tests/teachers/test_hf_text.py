"""Text encoders of transformers: what the library itself says on the same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import hf_models
import pytest
import torch
from safetensors.torch import load, load_file

from madkit.core.errors import ConfigError, DataError, NotFoundError
from madkit.teachers.describe import describe_teacher
from madkit.teachers.hf_text import ALL_MEAN, CLASS_TOKEN, LAST_TOKEN, MAXIMUM, POOLER, REAL_MEAN
from madkit.teachers.interface import TextTeacher
from madkit.teachers.load import load_teacher

torch.set_num_threads(1)
TEXTS = ["a photo of a cat", "It's  TWO dogs & a house, isn't it?", "", "émigré 😀"]
FAMILIES = {
    "bert": "WordPiece", "roberta": "byte-level BPE", "deberta-v2": "Unigram", "xlm-roberta": "Unigram",
    "mpnet": "WordPiece", "modernbert": "byte-level BPE", "distilbert": "cased WordPiece",
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "modernbert": {"cls_token_id": 0, "bos_token_id": 0, "eos_token_id": 2, "sep_token_id": 2},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
}


def text_of(name: str, weights: Path | None = None) -> TextTeacher:
    teacher = load_teacher(name, weights=weights)
    assert teacher.vision is None
    assert not teacher.shared_space
    assert teacher.text is not None
    return teacher.text


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for kind, family in FAMILIES.items():
        tokenizer = hf_models.TOKENIZERS[family]()
        folder = tmp_path_factory.mktemp(kind)
        found[kind] = hf_models.save(folder, hf_models.text_model(kind, tokenizer, **MORE.get(kind, {})), tokenizer)
    return found


def library(folder: Path, texts: list[str]) -> tuple[Any, Any]:
    """The library's own way: tokenizer with padding, model, all in one."""
    from transformers import AutoModel, AutoTokenizer

    from madkit.teachers.hf_files import quiet

    with quiet(), torch.no_grad():
        batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
        batch.pop("token_type_ids", None)
        return AutoModel.from_pretrained(folder, dtype=torch.float32).eval()(**batch), batch


@pytest.mark.parametrize("kind", FAMILIES)
def test_tokens_and_pooled_outputs_are_the_librarys_own(kind: str, folders: dict[str, Path]) -> None:
    teacher = text_of(f"hf:{folders[kind]}")
    expected, batch = library(folders[kind], TEXTS)
    found = teacher.encode(TEXTS)
    attention = batch["attention_mask"].bool()
    torch.testing.assert_close(found.tokens[attention], expected.last_hidden_state[attention], atol=1e-5, rtol=1e-5)
    real = attention.clone()
    real[:, 0] = False
    real[torch.arange(len(TEXTS)), attention.sum(1) - 1] = False
    assert torch.equal(found.mask, real)
    pooled = kind in ("bert", "roberta", "xlm-roberta", "mpnet")
    assert teacher.identity["global"] == (POOLER if pooled else REAL_MEAN)
    if pooled:
        torch.testing.assert_close(found.global_, expected.pooler_output, atol=1e-5, rtol=1e-5)
    else:
        for row, hidden in enumerate(expected.last_hidden_state):
            kept = real[row] if bool(real[row].any()) else attention[row]
            torch.testing.assert_close(found.global_[row], hidden[kept].mean(0), atol=1e-5, rtol=1e-5)
    assert int(found.spans[~found.mask].abs().max()) == 0


def test_batches_do_not_matter(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        teacher = text_of(f"hf:{folder}")
        together = teacher.encode(TEXTS)
        for row, text in enumerate(TEXTS):
            alone = teacher.encode([text])
            torch.testing.assert_close(alone.tokens[0][alone.mask[0]], together.tokens[row][together.mask[row]])
            torch.testing.assert_close(alone.global_[0], together.global_[row])


def test_roberta_positions_start_behind_the_padding_id(folders: dict[str, Path]) -> None:
    assert text_of(f"hf:{folders['roberta']}").context_length == 64 - 2
    assert text_of(f"hf:{folders['bert']}").context_length == 64


def test_weights_without_a_pooler_are_pooled_by_the_mean(tmp_path: Path) -> None:
    """RoBERTa's published weights are a masked language model's; a pooler drawn at random must not be used."""
    from transformers import RobertaForMaskedLM

    tokenizer = hf_models.byte_level()
    config = hf_models.text_model("roberta", tokenizer).config
    model = hf_models.randomised(RobertaForMaskedLM(config))
    folder = hf_models.save(tmp_path / "mlm", model, tokenizer)
    first, second = text_of(f"hf:{folder}"), text_of(f"hf:{folder}")
    assert first.identity["global"] == REAL_MEAN
    assert first.identity == second.identity
    found = first.encode(TEXTS[:1])
    torch.testing.assert_close(found.global_[0], found.tokens[0][found.mask[0]].mean(0))
    torch.testing.assert_close(found.tokens, second.encode(TEXTS[:1]).tokens)


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("mean_tokens", ALL_MEAN), ("cls_token", CLASS_TOKEN), ("max_tokens", MAXIMUM), ("lasttoken", LAST_TOKEN),
        ("weightedmean_tokens", POOLER),  # one that madkit does not have
    ],
)  # fmt: skip
def test_sentence_encoders_are_pooled_as_their_folder_says(
    mode: str, name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "sentence"
    shutil.copytree(folders["bert"], folder)
    (folder / "2_Words").mkdir()
    modes = {f"pooling_mode_{other}": other == mode for other in ("mean_tokens", "cls_token", "max_tokens", mode)}
    (folder / "2_Words" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))
    modules = [
        {"path": "", "type": "x.Transformer"},
        {"path": "2_Words", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24}))
    teacher = text_of(f"hf:{folder}")
    assert (teacher.identity["global"], teacher.context_length) == (name, 24)
    expected, batch = library(folder, TEXTS)
    hidden, attention = expected.last_hidden_state, batch["attention_mask"].bool()
    pooled = {
        ALL_MEAN: lambda row: hidden[row][attention[row]].mean(0),
        CLASS_TOKEN: lambda row: hidden[row][0],
        MAXIMUM: lambda row: hidden[row][attention[row]].max(0).values,
        LAST_TOKEN: lambda row: hidden[row][attention[row]][-1],
        POOLER: lambda row: expected.pooler_output[row],
    }[name]
    rows = torch.stack([pooled(row) for row in range(len(TEXTS))])
    torch.testing.assert_close(teacher.encode(TEXTS).global_, rows, atol=1e-5, rtol=1e-5)


def test_a_batch_without_padding_passes_no_mask(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The library asks the device about a mask; texts of one length need none."""
    for kind, folder in folders.items():
        teacher: Any = text_of(f"hf:{folder}")
        model, seen = teacher._encoder.model, []
        monkeypatch.setattr(
            model,
            "forward",
            lambda *a, call=model.forward, seen=seen, **k: seen.append(k["attention_mask"]) or call(**k),
        )
        short, long = teacher.tokenize(["a cat", "a cat is"])
        teacher.encode_tokenized([short, short])
        teacher.encode_tokenized([short, long])
        assert [mask is None for mask in seen] == [kind != "deberta-v2", False], kind


def test_weight_files_of_any_kind_are_the_same_teacher(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModel

    plain = text_of(f"hf:{folders['bert']}")
    state = load_file(folders["bert"] / "model.safetensors")
    other = tmp_path / "pickled"
    shutil.copytree(folders["bert"], other, ignore=shutil.ignore_patterns("*.safetensors"))
    old = {f"bert.{key}".replace("LayerNorm.weight", "LayerNorm.gamma"): value for key, value in state.items()}
    torch.save(old, other / "pytorch_model.bin")
    assert text_of(f"hf:{other}").identity == plain.identity
    sharded = tmp_path / "sharded"
    shutil.copytree(folders["bert"], sharded, ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModel.from_pretrained(folders["bert"]).save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    assert text_of(f"hf:{sharded}").identity == plain.identity
    assert text_of("bert-base", folders["bert"]).identity == plain.identity
    assert text_of("bert-base", folders["bert"] / "model.safetensors").identity == plain.identity


def test_wrong_and_unsafe_weights_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    folder = tmp_path / "x"
    shutil.copytree(folders["bert"], folder)
    state = load((folder / "model.safetensors").read_bytes())  # not mapped: the file is written over
    name = f"hf:{folder}"
    save_file({k: v for k, v in state.items() if "word_embeddings" not in k}, folder / "model.safetensors")
    with pytest.raises(DataError, match=r"1 tensors missing, first embeddings\.word_embeddings"):
        load_teacher(name)
    save_file({**state, "embeddings.word_embeddings.weight": torch.zeros(3, 32)}, folder / "model.safetensors")
    with pytest.raises(DataError, match="do not fit"):
        load_teacher(name)
    (folder / "model.safetensors").unlink()
    with pytest.raises(NotFoundError, match="holds no weights"):
        load_teacher(name)
    torch.save({"a": Code()}, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="read safely"):
        load_teacher(name)
    assert not (tmp_path / "ran").exists()
    (folder / "config.json").write_text('{"model_type": "no-such-kind"}')
    with pytest.raises(ConfigError, match="cannot build"):
        load_teacher(name)
    with pytest.raises(NotFoundError, match=r"no config\.json"):
        load_teacher(f"hf:{tmp_path / 'nothing'}")


def test_weights_of_the_other_side_do_not_pass_under_a_known_name(folders: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="of a model that reads texts, and 'dinov2-vit-b14' reads images"):
        load_teacher("dinov2-vit-b14", weights=folders["roberta"])
    with pytest.raises(DataError, match="reads texts, and 'siglip-b16' reads images and texts"):
        load_teacher("siglip-b16", weights=folders["bert"])


def test_a_tokenizer_without_spans_and_one_of_another_model(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "x"
    shutil.copytree(folders["bert"], folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    with pytest.raises(ConfigError, match="gives no character spans"):
        load_teacher(f"hf:{folder}")
    big = hf_models.byte_level()
    big.save_pretrained(folder)
    teacher = text_of(f"hf:{folder}")
    with pytest.raises(DataError, match="do not belong together"):
        teacher.encode(["日本語 ÿþ"])


def test_without_a_network_a_hub_name_is_one_sentence() -> None:
    for name in ("roberta-base", "hf:someone/something@main"):
        with pytest.raises(NotFoundError, match="the hub is switched off") as found:
            load_teacher(name)
        assert found.value.hint is not None
        assert "--weights FOLDER" in found.value.hint


def test_what_the_hub_cache_holds_is_used_without_a_network(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    home, commit = tmp_path / "models--someone--something", "0" * 40
    shutil.copytree(folders["bert"], home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    expected = text_of(f"hf:{folders['bert']}").identity
    assert text_of("hf:someone/something").identity == expected
    assert text_of(f"hf:someone/something@{commit}").identity == expected
    assert describe_teacher("hf:someone/something")["context_length"] == 64
    with pytest.raises(NotFoundError, match="the hub is switched off"):
        load_teacher("hf:someone/something@v2")
    (home / "snapshots" / commit / "model.safetensors").unlink()  # a download that was cut off
    with pytest.raises(NotFoundError, match="the hub is switched off"):
        load_teacher("hf:someone/something")
