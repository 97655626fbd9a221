"""Beginnings: the text layers of a student are the checkpoint's, and checkpoints that do not fit are refused."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file

from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.students import start
from madkit.students.families import FAMILIES, family_of, full_name, parse_name, size_names
from madkit.students.heads import HeadSpec
from madkit.students.load import load_student, save_student
from madkit.students.setup import setup_in, setup_of
from madkit.students.start import Beginning, check_start, new_student, starting_folder


def test_names_of_students() -> None:
    assert parse_name("uniter") == ("uniter", "base") == parse_name("uniter-base")
    assert parse_name("mini-villa") == ("villa", "mini")
    assert parse_name("uniter-huge") is None
    assert full_name("villa") == "villa-base"
    assert {"uniter-base", "uniter-large", "mini-uniter"} <= set(size_names())
    with pytest.raises(UsageProblem, match="Did you mean 'uniter-large'"):
        full_name("unitr-large")


@pytest.mark.parametrize("name", FAMILIES.names())
def test_what_the_table_says_of_a_family_is_true(name: str) -> None:
    family = family_of(name)
    assert family.name == name
    assert tuple(family.sizes) == FAMILIES.info(name)["sizes"]
    for config in family.sizes.values():
        assert family.config(**json.loads(json.dumps(config.as_dict()))) == config


@pytest.mark.parametrize("layout", ["safetensors", "sharded", "torch"])
def test_text_layers_come_from_bert(bert_folder, inputs, tmp_path: Path, layout: str) -> None:
    bert = bert_folder(tmp_path / "bert")
    path = tmp_path / "bert" / "model.safetensors"
    if layout != "safetensors":
        state = load(path.read_bytes())
        path.unlink()
        if layout == "torch":
            old = {k.replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in state.items()}
            torch.save({**old, "cls.predictions.bias": torch.zeros(3)}, path.with_name("pytorch_model.bin"))
        else:
            keys = list(state)
            parts = {"a.safetensors": keys[:20], "b.safetensors": keys[20:]}
            for file, part in parts.items():
                save_file({key: state[key] for key in part}, path.with_name(file))
            index = {"weight_map": {key: file for file, part in parts.items() for key in part}}
            path.with_name("model.safetensors.index.json").write_text(json.dumps(index))
    begun = new_student("mini-uniter", init=tmp_path / "bert", region_dim=10)
    encoder = begun.student.encoder
    assert len(begun.student.tokenizer) == encoder.config.vocab_size == 14
    assert begun.left == (("cls.predictions.bias",) if layout == "torch" else ())
    assert all(name.startswith(("img_embeddings", "tag_layer_norm")) for name in begun.drawn)
    batch = inputs([9, 6], [1, 1], words=14, types=(0, 1))
    batch = replace(batch, region_mask=torch.zeros_like(batch.region_mask))
    with torch.no_grad():
        wanted = bert(batch.input_ids, batch.text_mask, batch.token_type_ids)
        pooled, states = encoder(batch)[:2]
    assert torch.allclose(pooled, wanted.pooler_output, atol=1e-5)
    real = batch.text_mask
    assert torch.allclose(states[-1][:, :9][real], wanted.last_hidden_state[real], atol=1e-5)
    types = encoder.state_dict()["embeddings.token_type_embeddings.weight"]
    assert torch.equal(types[2], types[0])
    assert torch.equal(types[3], types[0])
    assert not torch.equal(types[1], types[0])


def test_text_layers_come_from_roberta(roberta_folder, inputs, tmp_path: Path) -> None:
    roberta = roberta_folder(tmp_path)
    student = new_student("mini-uniter", init=tmp_path, region_dim=10).student
    assert student.max_text_length == 38  # two rows of the table are not for tokens
    assert not student.tokenizer.is_word_piece
    batch = inputs([9, 9], [1, 1], words=200)
    batch = replace(batch, region_mask=torch.zeros_like(batch.region_mask))
    with torch.no_grad():
        wanted = roberta(batch.input_ids, batch.text_mask)
        pooled, _ = student.encoder(batch)[:2]
    assert torch.allclose(pooled, wanted.pooler_output, atol=1e-5)
    save_student(student, tmp_path / "student")
    assert setup_in(tmp_path / "student").digest == setup_of(student)
    again = load_student(tmp_path / "student")
    assert again.tokenizer.digest == student.tokenizer.digest
    assert again.tokenizer.pieces("dog[MASK] do").ids == student.tokenizer.pieces("dog[MASK] do").ids


def test_what_is_drawn_is_drawn_once_and_for_all(bert_folder, tmp_path: Path) -> None:
    bert_folder(tmp_path / "bert")
    torch.manual_seed(1)
    one = new_student("mini-uniter", init=tmp_path / "bert", region_dim=10).student.state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    two = new_student("mini-uniter", init=tmp_path / "bert", region_dim=10).student.state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_mini_student_begins_with_the_embedded_ones_text_layers() -> None:
    begun = new_student("mini-villa")
    assert begun.source == "mini-uniter"
    assert not begun.drawn
    assert begun.student.identity.name == "mini-villa"


def test_folders_are_made_once(bert_folder, tmp_path: Path) -> None:
    bert_folder(tmp_path / "bert")
    folder = starting_folder(tmp_path / "students", "mini-uniter", init=tmp_path / "bert", region_dim=10)
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert starting_folder(tmp_path / "students", "mini-uniter", init=tmp_path / "bert", region_dim=10) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    other = starting_folder(tmp_path / "students", "mini-uniter", init=tmp_path / "bert", region_dim=11)
    assert other != folder
    student = load_student(folder, head=HeadSpec("multiple-choice"))
    assert student.region_dim == 10
    assert student.identity.name == "mini-uniter"
    # a made folder is a beginning, too
    again = new_student("mini-uniter", init=folder)
    assert not again.drawn


def test_beginnings_that_cannot_be_meant(bert_folder, tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="madkit has no weights of uniter-base"):
        new_student("uniter")
    with pytest.raises(UsageProblem, match="has weights of its own"):
        check_start("mini-uniter", "random")
    with pytest.raises(UsageProblem, match="Did you mean 'uniter-base'"):
        check_start("unter-base", None)
    with pytest.raises(NotFoundError, match="nor a folder with config"):
        check_start("./unter-base", None)
    with pytest.raises(NotFoundError, match="There is no checkpoint"):
        check_start("uniter", tmp_path / "nothing")
    with pytest.raises(NotFoundError, match="no checkpoint: it has no config"):
        check_start("uniter", tmp_path)
    bert_folder(tmp_path / "bert")
    with pytest.raises(DataError, match="another size than uniter-base: its hidden_size is 128, not 768") as found:
        new_student("uniter", init=tmp_path / "bert")
    assert "madkit students show uniter-base" in (found.value.hint or "")
    assert new_student("mini-lxmert", init="random", region_dim=5).line().endswith("nothing is pretrained.")
    with pytest.raises(DataError, match="features of 768 values; the data has 5"):
        new_student("mini-villa", region_dim=5)


def test_checkpoints_of_something_else(bert_folder, tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    bert_folder(folder)
    state = load((folder / "model.safetensors").read_bytes())  # not mapped: the file is written over
    config = json.loads((folder / "config.json").read_text())

    def attempt(match: str, weights=None, **changes: object) -> None:
        save_file(weights or state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(DataError, match=match):
            new_student("mini-uniter", init=folder)

    attempt("type 'gpt2'", model_type="gpt2")
    attempt("activation 'relu'", hidden_act="relu")
    attempt("its layers is 4, not 3", num_hidden_layers=4)
    attempt("weights lack embeddings.word_embeddings", {k: v for k, v in state.items() if "word" not in k})
    attempt(
        r"lack encoder.layer.2.output.dense.bias", {k: v for k, v in state.items() if "2.output.dense.bias" not in k}
    )
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    attempt("tokenizer has 5 words, its weights 14")
    (folder / "vocab.txt").unlink()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(NotFoundError, match="has no tokenizer"):
        new_student("mini-uniter", init=folder)


def test_two_who_begin_with_the_same_student_get_the_one_that_the_first_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Beginning] = []
    begun = threading.Event()

    def slowly(*arguments: Any, **settings: Any) -> Beginning:
        begun.set()
        time.sleep(0.3)
        made.append(new_student(*arguments, **settings))
        return made[-1]

    monkeypatch.setattr(start, "new_student", slowly)
    with ThreadPoolExecutor(2) as pool:
        ask = partial(starting_folder, tmp_path / "students", "mini-uniter", init="random", region_dim=10)
        first = pool.submit(ask)
        assert begun.wait(60)
        folders = [ask(), first.result()]
    assert folders[0] == folders[1]
    assert len(made) == 1
    assert [path.name for path in (tmp_path / "students").iterdir()] == [folders[0].name]
