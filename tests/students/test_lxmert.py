"""LXMERT against transformers' own classes on the same weights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from transformers import LxmertConfig as HfConfig
from transformers import LxmertForQuestionAnswering, LxmertModel

from madkit.core.errors import DataError
from madkit.students import lxmert
from madkit.students.heads import HeadSpec, TaskHead
from madkit.students.load import load_student, save_student
from madkit.students.lxmert import LxmertConfig
from madkit.students.start import new_student

torch.set_num_threads(1)
SMALL = LxmertConfig(
    vocab_size=60, hidden_size=32, language_layers=3, object_layers=2, cross_layers=2, heads=4, intermediate_size=48,
    max_positions=24, region_dim=10,
)  # fmt: skip
THEIRS = {
    "vocab_size": 60, "hidden_size": 32, "l_layers": 3, "r_layers": 2, "x_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 24, "visual_feat_dim": 10,
}  # fmt: skip


def call(theirs, batch):
    index = batch.image_index
    return theirs(
        input_ids=batch.input_ids, visual_feats=batch.region_features[index], visual_pos=batch.region_boxes[index],
        attention_mask=batch.text_mask.float(), visual_attention_mask=batch.region_mask[index].float(),
        token_type_ids=batch.token_type_ids, output_hidden_states=True,
    )  # fmt: skip


@torch.no_grad()
def test_it_is_transformers_lxmert(inputs, shaken) -> None:
    batch = inputs([9, 6, 7, 5], [3, 2], candidates=2, types=(0, 1))
    ours = shaken(lxmert.LxmertModel(SMALL))
    theirs = LxmertModel(HfConfig(**THEIRS)).eval()
    report = theirs.load_state_dict(ours.state_dict(), strict=True)
    assert not report.missing_keys
    expected, mine = call(theirs, batch), ours(batch)
    T, real, regions = batch.input_ids.shape[1], batch.text_mask, batch.region_mask[batch.image_index]
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(mine.pooled, expected.pooled_output, **close)
    assert len(mine.states) == 1 + SMALL.layers == 6
    for level, theirs_text in enumerate(expected.language_hidden_states, start=1):
        torch.testing.assert_close(mine.states[level][:, :T][real], theirs_text[real], **close)
    # beside language layers 1, 2, 3 stand object layers 0 (embeddings), 1, 2; then the cross layers
    for level, number in ((2, 0), (3, 1), (4, 2), (5, 3)):
        torch.testing.assert_close(
            mine.states[level][:, T:][regions], expected.vision_hidden_states[number][regions], **close
        )


@torch.no_grad()
def test_padding_changes_nothing(inputs, shaken) -> None:
    ours = shaken(lxmert.LxmertModel(SMALL))
    tight, loose = inputs([9, 6], [3, 2], types=(0, 1)), inputs([9, 6], [3, 2], pad_text=4, pad_regions=3, types=(0, 1))
    torch.testing.assert_close(ours(tight).pooled, ours(loose).pooled, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_candidates_share_what_repeated_images_give(inputs, shaken) -> None:
    ours = shaken(lxmert.LxmertModel(SMALL))
    batch = inputs([9, 6, 7, 5], [3, 2], candidates=2, types=(0, 1))
    index = batch.image_index
    repeated = replace(
        batch, image_index=torch.arange(4), region_features=batch.region_features[index],
        region_boxes=batch.region_boxes[index], region_mask=batch.region_mask[index],
    )  # fmt: skip
    torch.testing.assert_close(ours(batch).pooled, ours(repeated).pooled, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_the_answer_head_is_theirs(inputs, shaken) -> None:
    theirs = shaken(LxmertForQuestionAnswering(HfConfig(**THEIRS, num_qa_labels=7)))
    ours = lxmert.LxmertModel(SMALL).eval()
    state = theirs.state_dict()
    ours.load_state_dict({key[7:]: value for key, value in state.items() if key.startswith("lxmert.")})
    head = TaskHead(32, HeadSpec("vqa", tuple("abcdefg"))).eval()
    head.load_state_dict({f"layers.{key[21:]}": v for key, v in state.items() if key.startswith("answer_head.")})
    batch = inputs([9, 6], [3, 2], types=(0, 1))
    expected = call(theirs, batch).question_answering_score
    torch.testing.assert_close(head(ours(batch), batch), expected, atol=1e-5, rtol=1e-5)


def test_a_checkpoint_of_transformers_is_taken_whole(tmp_path, shaken) -> None:
    mini = {**THEIRS, "hidden_size": 128, "intermediate_size": 512}
    theirs = shaken(LxmertForQuestionAnswering(HfConfig(**mini, num_qa_labels=7)))
    save_file({key: value.contiguous() for key, value in theirs.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "lxmert", **mini}))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(55))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    made = new_student("mini-lxmert", init=tmp_path)
    assert not made.drawn
    assert {key.partition(".")[0] for key in made.left} == {"answer_head"}
    with pytest.raises(DataError, match="hidden_size is 128, not 768"):
        new_student("lxmert", init=tmp_path)


def test_language_layers_begin_as_a_text_encoders(tmp_path, inputs, bert_folder) -> None:
    bert = bert_folder(tmp_path / "bert")
    made = new_student("mini-lxmert", init=tmp_path / "bert")
    own, theirs = made.student.encoder.state_dict(), bert.state_dict()
    for key in ("embeddings.word_embeddings.weight", "encoder.layer.2.output.dense.bias", "pooler.dense.weight"):
        torch.testing.assert_close(own[key], theirs[key])
    assert {key.split(".")[1] for key in made.drawn} == {"visn_fc", "r_layers", "x_layers"}
    save_student(made.student, tmp_path / "student")
    batch = inputs([9, 6, 7, 5], [3], dim=768, words=14, candidates=4, types=(0, 1))
    with torch.no_grad():
        torch.testing.assert_close(load_student(tmp_path / "student")(batch).logits, made.student(batch).logits)


def test_it_learns(inputs, losses_of) -> None:
    student = new_student("mini-lxmert", region_dim=10).student
    losses = losses_of(student, inputs([9, 6, 7, 5], [3, 2], candidates=2, types=(0, 1)), [1, 0], 6)
    assert losses[-1] < losses[0]
