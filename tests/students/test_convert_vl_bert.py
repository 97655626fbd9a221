"""VL-BERT's official names: the same outputs as the same weights set by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from madkit.core.errors import DataError, UsageProblem
from madkit.students.convert import convert
from madkit.students.heads import HeadSpec
from madkit.students.load import load_student
from madkit.students.tokenizer import SPECIALS
from madkit.students.vl_bert import VlBertConfig, VlBertModel, make_head

CONFIG = VlBertConfig(
    vocab_size=30, hidden_size=128, layers=3, heads=4, intermediate_size=512, max_positions=40, region_dim=10
)


def by_hand(shaken, spec: HeadSpec) -> tuple[VlBertModel, torch.nn.Module]:
    return shaken(VlBertModel(CONFIG), 0.1), shaken(make_head(CONFIG, spec), 0.1)


def official(model: torch.nn.Module, head: torch.nn.Module, *, wrapper: str = "") -> dict[str, Tensor]:
    """The tensors under the names that files of fine-tuned models have, among others that belong to nothing here."""
    state = {}
    for name, value in model.state_dict().items():
        inside = "" if name.startswith("image_feature_extractor.") else f"vlbert.{wrapper}"
        state[f"module.{inside}{name}"] = value
    for name, value in head.state_dict().items():
        state[f"module.final_mlp.{name.removeprefix('layers.')}"] = value
    state["module.image_feature_extractor.backbone.conv1.weight"] = torch.zeros(2)
    state["module.vlbert.mlm_head.predictions.bias"] = torch.zeros(3)
    state["module.vlbert.relationsip_head.bias"] = torch.zeros(3)
    return state


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, *(f"w{i}" for i in range(25))]) + "\n")
    return tmp_path / "vocab.txt"


@pytest.mark.parametrize("task", ["vcr", "vqa"])
def test_outputs_are_those_of_the_weights_set_by_hand(task, shaken, inputs, tmp_path: Path, vocabulary: Path) -> None:
    spec = HeadSpec("multiple-choice") if task == "vcr" else HeadSpec("vqa", ("yes", "no", "2"))
    model, head = by_hand(shaken, spec)
    state = official(model, head, wrapper="_module." if task == "vcr" else "")
    torch.save({"state_dict": state, "optimizer": {"lr": 1.0}}, tmp_path / "vl.model")
    result = convert(tmp_path / "vl.model", "vl-bert", tmp_path / "out", vocabulary=vocabulary, answers=spec.outputs)
    assert result.head == spec
    assert {row.key for row in result.rows} == set(state)
    assert {row.note for row in result.rows if row.status == "left"} == {
        "the detector's own layers", "a head of pretraining",
    }  # fmt: skip
    student = load_student(tmp_path / "out")
    assert student.encoder.config == CONFIG
    assert student.tokenizer.lowercase
    batch = inputs([9, 6, 7, 5], [3, 2], words=30, candidates=2) if task == "vcr" else inputs([9, 6], [3, 2], words=30)
    with torch.no_grad():
        encoded = model(batch)
        wanted = head(encoded, batch)
        got = student(batch)
    assert torch.equal(got.logits.flatten(), wanted.flatten())
    assert torch.equal(got.hidden_states[-1], encoded.states[-1])


def test_a_pretrained_file_has_no_pooler(shaken, bert_folder, tmp_path: Path, vocabulary: Path) -> None:
    model, head = by_hand(shaken, HeadSpec("multiple-choice"))
    state = {k: v for k, v in official(model, head).items() if "pooler" not in k and "final_mlp" not in k}
    torch.save(state, tmp_path / "vl.model")
    result = convert(tmp_path / "vl.model", "vl-bert", tmp_path / "out", vocabulary=vocabulary)
    assert {row.target: row.note for row in result.rows if row.status == "missing"} == {
        "encoder.pooler.dense.weight": "drawn afresh",
        "encoder.pooler.dense.bias": "drawn afresh",
    }
    assert result.head is None
    bert = bert_folder(tmp_path / "bert")
    filled = convert(
        tmp_path / "vl.model", "vl-bert", tmp_path / "filled", vocabulary=vocabulary, pooler=tmp_path / "bert"
    )
    assert {row.note for row in filled.rows if row.status == "missing"} == {f"from {tmp_path / 'bert'}"}
    student = load_student(tmp_path / "filled", head=HeadSpec("multiple-choice"))
    assert torch.equal(student.encoder.state_dict()["pooler.dense.weight"], bert.pooler.dense.weight)
    several = {**state, "module.vlbert.object_linguistic_embeddings.weight": torch.zeros(81, 128)}
    torch.save(several, tmp_path / "vl.model")
    with pytest.raises(DataError, match=r"first object_linguistic_embeddings.weight: \[81, 128\] and not \[1, 128\]"):
        convert(tmp_path / "vl.model", "vl-bert", tmp_path / "more", vocabulary=vocabulary)


def test_before_vcr_the_responses_type_is_a_copy_of_the_queries(shaken, tmp_path: Path, vocabulary: Path) -> None:
    model, head = by_hand(shaken, HeadSpec("multiple-choice"))
    state = {k: v for k, v in official(model, head).items() if "pooler" not in k and "final_mlp" not in k}
    torch.save(state, tmp_path / "vl.model")
    types = {}
    for name, copied in (("vqa", False), ("vcr", True)):
        result = convert(tmp_path / "vl.model", "vl-bert", tmp_path / name, vocabulary=vocabulary, copy_segment=copied)
        student = load_student(tmp_path / name, head=HeadSpec("multiple-choice"))
        types[name] = student.encoder.state_dict()["token_type_embeddings.weight"]
        notes = {row.note for row in result.rows if row.target == "encoder.token_type_embeddings.weight"}
        assert notes == ({"row 1 became a copy of row 0, as before VCR"} if copied else {""})
    assert torch.equal(types["vqa"], model.token_type_embeddings.weight)
    assert torch.equal(types["vcr"], types["vqa"][[0, 0, 2]])


def test_segments_that_were_learnt_are_not_copied(shaken, tmp_path: Path, vocabulary: Path) -> None:
    torch.save(official(*by_hand(shaken, HeadSpec("multiple-choice"))), tmp_path / "vl.model")
    with pytest.raises(UsageProblem, match="fine-tuned on a task, in which it learnt its segments' types"):
        convert(tmp_path / "vl.model", "vl-bert", tmp_path / "out", vocabulary=vocabulary, copy_segment=True)
    with pytest.raises(UsageProblem, match="authors of uniter copy no segment's type"):
        convert(tmp_path / "vl.model", "uniter", tmp_path / "out", vocabulary=vocabulary, copy_segment=True)
    assert not (tmp_path / "out").exists()
