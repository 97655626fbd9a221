"""Checkpoints that come without a tokenizer, in the layout of the hub's local cache and without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import VisualBertConfig, VisualBertForMultipleChoice

from madkit.core.errors import NotFoundError
from madkit.students.load import load_student, save_student
from madkit.students.start import new_student
from madkit.students.tokenizer import SPECIALS

NAME, COMMIT, WORDS = "uclanlp/visualbert-vcr", "0123456789abcdef0123456789abcdef01234567", 30_522


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def repository(cache: Path, name: str) -> Path:
    """The folder of a repository's files in a cache."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    files = folder / "snapshots" / COMMIT
    files.mkdir(parents=True)
    return files


def visualbert(files: Path, words: int = WORDS) -> VisualBertForMultipleChoice:
    """What uclanlp's repositories hold: a configuration and a torch file."""
    torch.manual_seed(0)
    model = VisualBertForMultipleChoice(VisualBertConfig(
        vocab_size=words, hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=512,
        max_position_embeddings=64, visual_embedding_dim=10,
    ))  # fmt: skip
    model.config.save_pretrained(files)
    torch.save(model.state_dict(), files / "pytorch_model.bin")
    return model


def vocabulary(files: Path) -> None:
    words = [*SPECIALS, "why", "is", *(f"word{number}" for number in range(WORDS))]
    (files / "vocab.txt").write_text("\n".join(words[:WORDS]) + "\n")


@pytest.mark.parametrize("lender", ["google-bert/bert-base-uncased", "bert-base-uncased"])
def test_visualberts_words_are_berts(cache: Path, tmp_path: Path, lender: str) -> None:
    theirs = visualbert(repository(cache, NAME))
    vocabulary(repository(cache, lender))
    made = new_student("mini-visualbert", init=NAME)
    assert not made.drawn
    assert (len(made.student.tokenizer), made.student.tokenizer.lowercase) == (WORDS, True)
    assert made.student.tokenizer.pieces("Why is").ids == (5, 6)
    assert torch.equal(made.student.head.state_dict()["layers.1.weight"], theirs.state_dict()["cls.weight"])
    save_student(made.student, tmp_path / "student")
    assert load_student(tmp_path / "student").tokenizer.digest == made.student.tokenizer.digest


def test_without_berts_words_the_command_that_gets_them_is_said(cache: Path) -> None:
    visualbert(repository(cache, NAME))
    with pytest.raises(NotFoundError, match=f"{NAME} has no tokenizer, and the words of .* switched off") as found:
        new_student("mini-visualbert", init=NAME)
    assert "hf download google-bert/bert-base-uncased vocab.txt" in (found.value.hint or "")


def test_a_folder_takes_its_own_words_first(cache: Path, tmp_path: Path) -> None:
    visualbert(tmp_path)
    vocabulary(repository(cache, "google-bert/bert-base-uncased"))
    assert len(new_student("mini-visualbert", init=tmp_path).student.tokenizer) == WORDS
    own = [*SPECIALS, *(f"own{number}" for number in range(WORDS - len(SPECIALS)))]
    (tmp_path / "vocab.txt").write_text("\n".join(own) + "\n")
    assert new_student("mini-visualbert", init=tmp_path).student.tokenizer.lines == own


def test_other_vocabularies_are_not_guessed(cache: Path, tmp_path: Path) -> None:
    vocabulary(repository(cache, "google-bert/bert-base-uncased"))
    visualbert(repository(cache, NAME), words=60)
    with pytest.raises(NotFoundError, match=f"{NAME} has no tokenizer") as found:
        new_student("mini-visualbert", init=NAME)
    assert f"hf download {NAME} --local-dir FOLDER" in (found.value.hint or "")
    visualbert(tmp_path, words=60)
    with pytest.raises(NotFoundError, match="has no tokenizer") as found:
        new_student("mini-visualbert", init=tmp_path)
    assert found.value.hint == "put the checkpoint's vocab.txt or tokenizer.json beside it"
