"""VisualBERT against transformers' own class on the same weights, type trap and word links included."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import VisualBertConfig as HfConfig
from transformers import VisualBertForMultipleChoice, VisualBertForQuestionAnswering, VisualBertModel

from madkit.regions import Regions
from madkit.students import visualbert
from madkit.students.heads import HeadSpec, mask_states
from madkit.students.inputs import collate, encode_example
from madkit.students.load import load_student, save_student
from madkit.students.start import new_student
from madkit.students.student import Student, StudentIdentity
from madkit.students.tokenizer import SPECIALS, StudentTokenizer
from madkit.students.visualbert import VisualBertConfig
from madkit.tasks.example import Example, ImageRef, Segment
from madkit.tasks.formats.tagged_text import segment_of

torch.set_num_threads(1)
SMALL = VisualBertConfig(
    vocab_size=60, hidden_size=32, layers=2, heads=4, intermediate_size=48, max_positions=24, region_dim=10
)
THEIRS = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 24, "visual_embedding_dim": 10, "pad_token_id": 0,
}  # fmt: skip


def pair(shaken, config: VisualBertConfig = SMALL):
    ours = shaken(visualbert.VisualBertModel(config))
    theirs = VisualBertModel(HfConfig(**THEIRS)).eval()
    report = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not report.unexpected_keys
    assert not report.missing_keys
    return ours, theirs


def call(theirs, batch, **extra):
    index = batch.image_index
    types = extra.pop("types", torch.zeros_like(batch.region_mask[index].long()))
    return theirs(
        input_ids=batch.input_ids, attention_mask=batch.text_mask.long(), token_type_ids=batch.token_type_ids,
        visual_embeds=batch.region_features[index], visual_attention_mask=batch.region_mask[index].long(),
        visual_token_type_ids=types, output_hidden_states=True, **extra,
    )  # fmt: skip


def same(batch, mine, theirs) -> None:
    real = torch.cat([batch.text_mask, batch.region_mask[batch.image_index]], 1)
    torch.testing.assert_close(mine.pooled, theirs.pooler_output, atol=1e-5, rtol=1e-5)
    for one, other in zip(mine.states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(one[real], other[real], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_it_is_transformers_visualbert(inputs, shaken) -> None:
    batch = inputs([9, 6, 7, 5], [3, 2], candidates=2, types=(0, 1))
    ours, theirs = pair(shaken)
    same(batch, ours(batch), call(theirs, batch))


@torch.no_grad()
def test_the_visual_type_is_a_trap(inputs, shaken) -> None:
    batch = inputs([9, 6], [3, 2], types=(0, 1))
    ours, theirs = pair(shaken)
    ones = torch.ones_like(batch.region_mask.long())
    with pytest.raises(AssertionError):
        same(batch, ours(batch), call(theirs, batch, types=ones))
    theirs_way = visualbert.VisualBertModel(replace(SMALL, visual_type=1)).eval()
    theirs_way.load_state_dict(ours.state_dict())
    same(batch, theirs_way(batch), call(theirs, batch, types=None))  # transformers' default


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_words_that_name_a_region_lend_it_their_positions(inputs, shaken) -> None:
    batch = inputs([9, 6], [3, 2], types=(0, 1))
    tags = torch.full_like(batch.input_ids, -1)
    tags[0, 2], tags[0, 3], tags[0, 7], tags[1, 1] = 1, 1, 0, 1
    batch = replace(batch, tag_regions=tags)
    ours, theirs = pair(shaken)
    alignment = torch.full((2, 3, 2), -1)
    alignment[0, 1] = torch.tensor([2, 3])
    alignment[0, 0, 0], alignment[1, 1, 0] = 7, 1
    same(batch, ours(batch), call(theirs, batch, image_text_alignment=alignment))


@torch.no_grad()
def test_padding_changes_nothing(inputs, shaken) -> None:
    ours, _ = pair(shaken)
    tight, loose = inputs([9, 6], [3, 2], types=(0, 1)), inputs([9, 6], [3, 2], pad_text=4, pad_regions=3, types=(0, 1))
    torch.testing.assert_close(ours(tight).pooled, ours(loose).pooled, atol=1e-5, rtol=1e-5)


def write(folder, model) -> None:
    folder.mkdir()
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "visual_bert", **THEIRS, **MINI}))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(55))]))


MINI = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512}


@torch.no_grad()
def test_a_multiple_choice_checkpoint_answers_as_it_does_in_transformers(tmp_path, inputs, shaken) -> None:
    theirs = shaken(VisualBertForMultipleChoice(HfConfig(**{**THEIRS, **MINI})), 0.1)
    write(tmp_path / "vcr", theirs)
    made = new_student("mini-visualbert", init=tmp_path / "vcr")
    assert not made.drawn
    assert not made.left
    batch = inputs([9, 6, 7, 5], [3], candidates=4, types=(0, 1))
    expected = theirs(
        input_ids=batch.input_ids[None], attention_mask=batch.text_mask.long()[None],
        token_type_ids=batch.token_type_ids[None], visual_embeds=batch.region_features.expand(4, -1, -1)[None],
        visual_attention_mask=batch.region_mask.long().expand(4, -1)[None],
        visual_token_type_ids=torch.zeros(1, 4, 3, dtype=torch.long),
    ).logits  # fmt: skip
    torch.testing.assert_close(made.student(batch).logits, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_answer_is_read_at_the_mask(inputs, shaken) -> None:
    theirs = shaken(VisualBertForQuestionAnswering(HfConfig(**THEIRS, num_labels=7)), 0.2)
    model = visualbert.VisualBertModel(SMALL).eval()
    state = {key.removeprefix("visual_bert."): v for key, v in theirs.state_dict().items() if key[:4] != "cls."}
    model.load_state_dict(state)
    head = visualbert.make_head(SMALL, HeadSpec("vqa", tuple("abcdefg"))).eval()
    head.load_state_dict({f"layers.1.{part}": theirs.state_dict()[f"cls.{part}"] for part in ("weight", "bias")})
    batch = inputs([9, 6], [3, 2], types=(0, 1))
    index = batch.image_index
    expected = theirs(
        input_ids=batch.input_ids, attention_mask=batch.text_mask.long(), token_type_ids=batch.token_type_ids,
        visual_embeds=batch.region_features[index], visual_attention_mask=batch.region_mask[index].long(),
        visual_token_type_ids=torch.zeros_like(batch.region_mask[index].long()),
    ).logits  # fmt: skip
    student = Student(model, head, READ, StudentIdentity("x", "visualbert", "-"))
    torch.testing.assert_close(student(batch).logits, expected, atol=1e-5, rtol=1e-5)


def vcr(*context: Segment, candidates: tuple[Segment, ...]) -> Example:
    return Example(
        id="q", task="vcr", question_id="q", image=ImageRef("i", Path("i.jpg")), context=context,
        candidates=candidates, boxes=((0.0, 0.0, 5.0, 5.0),) * 4, width=10, height=10,
    )  # fmt: skip


OBJECTS = ("person", "person", "person", "dog")
QUESTION = segment_of(["is", [2], "near", [3, 0], "?"], OBJECTS)
ANSWER = segment_of([[0], "is", "."], OBJECTS)
NEAR, ALONE = segment_of([[2], "is", "near", [1]], OBJECTS), segment_of([[1], "is", "alone"], OBJECTS)
READ = StudentTokenizer.of_words(
    [*SPECIALS, "is", "near", "alone", "and", "dog", "person", "casey", "riley", "jessie", "?", "."], lowercase=True
)


def read(example: Example) -> list[tuple[str, list[int]]]:
    sequences = encode_example(example, READ, 64, visualbert.FAMILY.text).sequences
    return [(" ".join(READ.lines[number] for number in one.ids), one.types.tolist()) for one in sequences]


def test_vcr_reads_as_in_the_authors_code() -> None:
    (answer,) = read(vcr(QUESTION, candidates=(ANSWER,)))
    assert answer == ("[CLS] is casey near dog and riley ? [SEP] riley is . [SEP]", [0] * 9 + [1] * 4)
    rationales = read(vcr(QUESTION, ANSWER, candidates=(NEAR, ALONE)))
    query = "[CLS] is casey near dog and riley ? riley is . [SEP]"  # question and answer are one text
    # whom a candidate alone mentions gets the first name, whoever has it
    assert [text for text, _ in rationales] == [f"{query} casey is near casey [SEP]", f"{query} casey is alone [SEP]"]
    assert [types for _, types in rationales] == [[0] * 12 + [1] * 5, [0] * 12 + [1] * 4]


def test_names_go_by_the_first_mention_and_begin_again() -> None:
    crowd = segment_of([[16 - number] for number in range(17)], ["person"] * 17)
    (names,) = visualbert.people(replace(vcr(crowd, candidates=())))
    assert [names[16 - number] for number in range(17)] == [*visualbert.NAMES, "Casey", "Riley"]
    assert (visualbert.NAMES[6], visualbert.NAMES[10]) == ("Peyton", "Peyton")
    later = visualbert.people(vcr(QUESTION, candidates=(NEAR, ALONE)))
    assert later == [{2: "Casey", 0: "Riley", 1: "Casey"}] * 2


@torch.no_grad()
def test_a_question_ends_in_its_mask() -> None:
    example = replace(vcr(segment_of(["is", "near", "?"], ()), candidates=()), task="vqa")
    assert read(example) == [("[CLS] is near ? [MASK] [SEP]", [0] * 6)]
    student = new_student("mini-visualbert", head=HeadSpec("vqa", ("yes", "no"))).student
    seen = Regions(np.array([[0, 0, 0.5, 0.5]], np.float32), np.ones((1, student.region_dim), np.float32))
    batch = collate([student.encode(example)], [seen], pad_id=student.tokenizer.pad_id)
    encoded = student.encoder(batch)
    place = int((batch.input_ids[0] == student.tokenizer.mask_id).nonzero())
    assert torch.equal(mask_states(encoded, batch), encoded.states[-1][:, place])


def test_a_beginning_from_text_copies_the_text_tables_and_is_kept_on_disk(tmp_path, inputs) -> None:
    made = new_student("mini-visualbert")
    tables = made.student.encoder.embeddings
    torch.testing.assert_close(tables.visual_position_embeddings.weight, tables.position_embeddings.weight)
    assert {name.partition(".visual_projection")[0] for name in made.drawn} == {"embeddings"}
    save_student(made.student, tmp_path / "student")
    again = load_student(tmp_path / "student")
    batch = inputs([9, 6, 7, 5], [3], dim=768, candidates=4, types=(0, 1))
    with torch.no_grad():
        torch.testing.assert_close(again(batch).logits, made.student(batch).logits)


def test_it_learns(inputs, losses_of) -> None:
    student = new_student("mini-visualbert", region_dim=10).student
    losses = losses_of(student, inputs([9, 6, 7, 5], [3, 2], candidates=2, types=(0, 1)), [1, 0], 6)
    assert losses[-1] < losses[0]
