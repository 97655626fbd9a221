"""Tokenizers against transformers' own, from every file that a checkpoint may have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from packaging.version import Version
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import BertTokenizerFast, PreTrainedTokenizerFast, RobertaTokenizerFast

from madkit.core.errors import DataError, NotFoundError
from madkit.students.tokenizer import SPECIALS, StudentTokenizer

WORDS = [*SPECIALS, "the", "dog", "##s", "run", "Dog", "é", "e", "?", "##ning", "'", "t", "##'"]
TEXTS = ["The dogs running?", "dog's  Dog é unknownword", "", "  ", "t-dog ?\n run"]
CORPUS = ["the dogs are running past the red house", "is the dog red? the dog is red.", "it doesn't run"] * 5


def pairs(tokenizer, text: str) -> list[tuple[int, tuple[int, int]]]:
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(zip(found["input_ids"], [tuple(span) for span in found["offset_mapping"]], strict=True))


def ours(tokenizer: StudentTokenizer, text: str) -> list[tuple[int, tuple[int, int]]]:
    found = tokenizer.pieces(text)
    return list(zip(found.ids, found.spans, strict=True))


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
def test_word_pieces_are_those_of_transformers(tmp_path: Path, lowercase: bool, file: str) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(SPECIALS))
    wanted = BertTokenizerFast(tokenizer_object=tokenizer, do_lower_case=lowercase)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
    if file == "tokenizer.json":
        tokenizer.save(str(tmp_path / file))
        (tmp_path / "vocab.txt").unlink()
        (tmp_path / "tokenizer_config.json").unlink()
    made = StudentTokenizer.from_folder(tmp_path)
    assert made.lowercase is lowercase
    assert made.lines == WORDS
    for text in TEXTS:
        assert ours(made, text) == pairs(wanted, text)
    made.save(tmp_path)
    assert StudentTokenizer.from_folder(tmp_path, lowercase=lowercase).digest == made.digest


@pytest.mark.parametrize("file", ["tokenizer.json", "merges.txt"])
def test_byte_pairs_are_those_of_transformers(tmp_path: Path, file: str) -> None:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(CORPUS, BpeTrainer(
        vocab_size=320, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ))  # fmt: skip
    trained.model.save(str(tmp_path))
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    merges = [tuple(line.split(" ")) for line in (tmp_path / "merges.txt").read_text().splitlines()[1:]]
    if Version(transformers.__version__) >= Version("5.17"):
        wanted = RobertaTokenizerFast(vocab=vocabulary, merges=merges)
    else:  # which left the merges out
        wanted = PreTrainedTokenizerFast(
            tokenizer_object=trained, cls_token="<s>", pad_token="<pad>", sep_token="</s>", unk_token="<unk>",
            mask_token="<mask>",
        )  # fmt: skip
    if file == "tokenizer.json":
        wanted.backend_tokenizer.save(str(tmp_path / file))
    made = StudentTokenizer.from_folder(tmp_path)
    assert len(made) == len(wanted)
    assert (made.cls_id, made.sep_id, made.pad_id, made.mask_id, made.unk_id) == (
        wanted.cls_token_id, wanted.sep_token_id, wanted.pad_token_id, wanted.mask_token_id, wanted.unk_token_id,
    )  # fmt: skip
    for text in ["the dogs running?", " the  dog", "doesn't é 犬", "", "red"]:
        found = made.pieces(text)
        assert list(found.ids) == wanted(text, add_special_tokens=False)["input_ids"] == trained.encode(text).ids
        for start, end in found.spans:
            assert not text[start:end].strip() or not text[start].isspace()
    masked = made.pieces("the [MASK] dog")
    assert made.mask_id in masked.ids
    assert "the [MASK] dog"[slice(*masked.spans[masked.ids.index(made.mask_id)])] == "[MASK]"
    (tmp_path / "saved").mkdir()
    made.save(tmp_path / "saved")
    again = StudentTokenizer.from_folder(tmp_path / "saved")
    assert again.digest == made.digest
    assert again.pieces("the [MASK] dog") == masked


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="has no tokenizer"):
        StudentTokenizer.from_folder(tmp_path)

    def attempt(match: str, content: object) -> None:
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=match):
            StudentTokenizer.from_folder(tmp_path)

    attempt("is not a tokenizer", {"no": 1})
    attempt("is not a tokenizer", [])
    attempt("kind 'Unigram'", {"model": {"type": "Unigram", "vocab": []}})
    attempt("token <pad> is missing", {"model": {"type": "BPE", "vocab": {"<s>": 0}, "merges": []}, "added_tokens": []})
    attempt("ids of its words have gaps", {"model": {"type": "WordPiece", "vocab": {"[CLS]": 0, "a": 2}}})
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"vocab.txt: the token \[PAD\] is missing"):
        StudentTokenizer.from_folder(tmp_path)


def test_casing_is_guessed_from_the_words(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, "dog"]) + "\n")
    assert StudentTokenizer.from_folder(tmp_path).lowercase
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, "dog", "Dog"]) + "\n")
    assert not StudentTokenizer.from_folder(tmp_path).lowercase
    assert StudentTokenizer.from_folder(tmp_path, lowercase=True).lowercase
