"""VL-BERT against its paper's sequence, built sample by sample and run through transformers' BERT layers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers.models.bert.modeling_bert import BertModel

from madkit.students import vl_bert
from madkit.students.encoder import bert_config
from madkit.students.heads import HeadSpec
from madkit.students.load import load_student, save_student
from madkit.students.start import new_student
from madkit.students.student import Student, StudentIdentity
from madkit.students.tokenizer import SPECIALS, StudentTokenizer
from madkit.students.vl_bert import NAMES, VlBertConfig, geometry
from madkit.tasks.example import Example, ImageRef, Segment, Tag

torch.set_num_threads(1)
SMALL = VlBertConfig(
    vocab_size=60, hidden_size=32, layers=2, heads=4, intermediate_size=48, max_positions=24, region_dim=10
)
EPS = 1e-12
WORDS = StudentTokenizer.of_words(SPECIALS, lowercase=True)


def by_hand(model: vl_bert.VlBertModel, batch, row: int):
    """One sequence in the authors' order: text, the whole image, objects, [END]; nothing padded, nothing masked."""
    state = model.state_dict()
    image = int(batch.image_index[row])
    n, r = int(batch.text_mask[row].sum()), int(batch.region_mask[image].sum())
    features, boxes = batch.region_features[image, :r], batch.region_boxes[image, :r]
    features = torch.cat([features.mean(0, keepdim=True), features])  # the whole image first
    boxes = torch.cat([torch.tensor([[0.0, 0.0, 1.0, 1.0]]), boxes])
    places = []
    for x1, y1, x2, y2 in boxes.tolist():
        wave = [1000 ** (k / 256) for k in range(256)]
        numbers = [100 * value for value in ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)]
        places.append([f(value / w) for value in numbers for f in (math.sin, math.cos) for w in wave])
    joined = torch.cat([torch.tensor(places), features], dim=1)
    weight, bias = (state[f"image_feature_extractor.obj_downsample.1.{part}"] for part in ("weight", "bias"))
    seen = torch.relu(joined @ weight.T + bias)

    def norm(values: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.layer_norm(values, (32,), state[f"{name}.weight"], state[f"{name}.bias"], EPS)

    tags = (batch.tag_regions[row, :n] + 1).tolist()  # 0 is the whole image
    words = state["word_embeddings.weight"][batch.input_ids[row, :n]] + norm(seen[tags], "visual_ln_text")
    objects = state["object_linguistic_embeddings.weight"][0] + norm(seen, "visual_ln_object")
    end = state["end_embedding.weight"]
    types = [*batch.token_type_ids[row, :n].tolist(), *[2] * (r + 2)]
    positions = [*range(n), *[n] * (r + 1), n + 1]
    total = torch.cat([words, objects, end]) + state["token_type_embeddings.weight"][types]
    total = norm(total + state["position_embeddings.weight"][positions], "embedding_LayerNorm")
    bert = BertModel(bert_config(SMALL)).eval()
    bert.load_state_dict({k: v for k, v in state.items() if k.startswith(("encoder.", "pooler."))}, strict=False)
    hidden = bert.encoder(total[None])[0]
    order = [*range(n), *range(n + 1, n + 1 + r)]
    return bert.pooler(hidden)[0], hidden[0, order]


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 3])
def test_it_is_the_papers_sequence(inputs, shaken, padding) -> None:
    model = shaken(vl_bert.VlBertModel(SMALL))
    batch = inputs([9, 6, 7, 5], [3, 2], candidates=2, types=(0, 1), pad_text=padding, pad_regions=padding)
    tags = torch.full_like(batch.input_ids, -1)
    tags[0, 2], tags[0, 5], tags[2, 1] = 1, 2, 0
    batch = replace(batch, tag_regions=tags)
    found = model(batch)
    T = batch.input_ids.shape[1]
    for row in range(4):
        pooled, hidden = by_hand(model, batch, row)
        n, r = int(batch.text_mask[row].sum()), len(hidden) - int(batch.text_mask[row].sum())
        torch.testing.assert_close(found.pooled[row], pooled, atol=1e-5, rtol=1e-4)
        mine = torch.cat([found.states[-1][row, :n], found.states[-1][row, T : T + r]])
        torch.testing.assert_close(mine, hidden, atol=1e-5, rtol=1e-4)


def test_the_picture_fades_in() -> None:
    model = vl_bert.VlBertModel(SMALL)
    assert not model.visual_ln_text.weight.any()
    assert not model.visual_ln_object.weight.any()
    assert new_student("mini-vl-bert").student.encoder.visual_ln_text.weight.abs().max() == 0


def test_geometry_is_sines_then_cosines_of_each_number() -> None:
    found = geometry(torch.tensor([[0.1, 0.2, 0.5, 0.8]]))[0]
    assert found.shape == (2048,)
    assert found[0] == pytest.approx(math.sin(30), abs=1e-5)
    assert found[256] == pytest.approx(math.cos(30), abs=1e-5)
    assert found[3 * 512 + 7] == pytest.approx(math.sin(60 / 1000 ** (7 / 256)), abs=1e-4)


def question(candidate: str = "person smiles") -> Example:
    text = "What does person say to person ?"
    return Example(
        id="a", task="vcr", question_id="a", image=ImageRef("x", Path("x.jpg")),
        context=(Segment(text, (Tag(10, 16, (3,)), Tag(24, 30, (1,)))),),
        candidates=(Segment(candidate, (Tag(0, 6, (1,)),)),), boxes=((0.0, 0.0, 5.0, 5.0),) * 4, width=10, height=10,
    )  # fmt: skip


def test_people_get_names_by_their_boxes_and_keep_their_spans() -> None:
    assert vl_bert.people(question()) == [{1: NAMES[0], 3: NAMES[1]}]
    student = new_student("mini-vl-bert").student
    sequence = student.encode(question()).sequences[0]
    tagged = {
        (int(box), tuple(span)) for box, span in zip(sequence.tag_box, sequence.spans.tolist(), strict=True) if box >= 0
    }
    assert tagged == {(3, (10, 16)), (1, (24, 30)), (1, (0, 6))}
    again = student.encode(replace(question(), boxes=question().boxes)).sequences[0]
    assert again.ids.tolist() == sequence.ids.tolist()  # a pure function of the example


def test_the_query_is_not_divided_and_the_response_has_its_own_type() -> None:
    example = replace(question(), context=(*question().context, Segment("yes")))
    student = new_student("mini-vl-bert").student
    sequence = student.encode(example).sequences[0]
    sep = student.tokenizer.sep_id
    assert (sequence.ids == sep).sum() == 2
    first = int((sequence.ids == sep).argmax())
    assert set(sequence.types[: first + 1]) == {0}
    assert set(sequence.types[first + 1 :]) == {1}
    assert sequence.ends.tolist() == [first, first, len(sequence.ids) - 1]
    vqa = student.encode(replace(question(), candidates=()))
    assert vqa.sequences[0].ids[-2] == student.tokenizer.mask_id


@torch.no_grad()
def test_the_answer_is_read_at_the_mask(inputs, shaken) -> None:
    model = shaken(vl_bert.VlBertModel(SMALL))
    head = shaken(vl_bert.make_head(SMALL, HeadSpec("vqa", tuple("abcdefg"))))
    batch = inputs([9, 6], [3, 2], types=(0, 1))
    student = Student(model, head, WORDS, StudentIdentity("x", "vl-bert", "-"))
    logits = student(batch).logits
    state = torch.stack([model(batch).states[-1][row, n - 2] for row, n in enumerate((9, 6))])
    torch.testing.assert_close(logits, head.layers(state))


@torch.no_grad()
def test_it_begins_as_a_text_encoder_and_is_kept_on_disk(tmp_path, inputs, bert_folder) -> None:
    bert = bert_folder(tmp_path / "bert")
    made = new_student("mini-vl-bert", init=tmp_path / "bert")
    own = made.student.encoder.state_dict()
    torch.testing.assert_close(own["embedding_LayerNorm.bias"], bert.embeddings.LayerNorm.bias)
    torch.testing.assert_close(own["token_type_embeddings.weight"][2], bert.embeddings.token_type_embeddings.weight[0])
    save_student(made.student, tmp_path / "student")
    batch = inputs([9, 6, 7, 5], [3], dim=768, words=14, candidates=4, types=(0, 1))
    torch.testing.assert_close(load_student(tmp_path / "student")(batch).logits, made.student(batch).logits)


def test_it_learns(inputs, losses_of) -> None:
    student = new_student("mini-vl-bert", region_dim=10).student
    losses = losses_of(student, inputs([9, 6, 7, 5], [3, 2], candidates=2, types=(0, 1)), [1, 0], 6)
    assert losses[-1] < losses[0]
