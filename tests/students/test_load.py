"""Students by name and from folders: round trips, fresh heads, and files that do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file

from madkit.core.errors import DataError, NotFoundError, RunError, UsageProblem
from madkit.regions import Regions
from madkit.students import load
from madkit.students.heads import HeadSpec
from madkit.students.inputs import collate, encode_example
from madkit.students.load import load_student, save_student, student_folder
from madkit.tasks.example import Example, ImageRef, Segment, Tag

HEAD = HeadSpec("classification", ("a", "b", "c"))


def test_round_trip_gives_the_same_logits(tmp_path: Path) -> None:
    student = load_student("mini-uniter", head=HEAD)
    save_student(student, tmp_path)
    again = load_student(tmp_path)
    assert again.head_spec == HEAD
    example = Example("1", "snli-ve", "1", ImageRef("i", Path("i.png")), (Segment("The pawn is red."),))
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]]).numpy()
    regions = Regions(boxes, torch.randn(2, 768, generator=generator).numpy())
    batch = collate([encode_example(example, student.tokenizer, 64)], [regions], pad_id=student.tokenizer.pad_id)
    with torch.no_grad():
        assert torch.equal(student(batch).logits, again(batch).logits)


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(load, "save_file", full)
    with pytest.raises(RunError, match=r"model\.safetensors cannot be written .*No space left"):
        save_student(load_student("mini-uniter", head=HEAD), tmp_path / "student")
    assert list((tmp_path / "student").iterdir()) == []


def test_a_fresh_head_depends_on_its_seed_alone() -> None:
    torch.manual_seed(1)
    one = load_student("mini-uniter", head=HEAD, head_seed=5).head.state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    two = load_student("mini-uniter", head=HEAD, head_seed=5).head.state_dict()
    assert torch.equal(before, torch.get_rng_state())
    three = load_student("mini-uniter", head=HEAD, head_seed=6).head.state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert any(not torch.equal(one[k], three[k]) for k in one)


def test_a_pretrained_student_has_no_head() -> None:
    with pytest.raises(DataError, match="no task head"):
        load_student("mini-uniter")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageProblem, match="Did you mean 'mini-uniter'"):
        load_student("mini-unitre")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(student_folder("mini-uniter"), tmp_path / "student")
    return tmp_path / "student"


def test_weights_of_another_size_are_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["encoder"]["intermediate_size"] = 256
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="of another shape"):
        load_student(copy, head=HEAD)


def test_missing_weights_are_named(copy: Path) -> None:
    state = load_tensors((copy / "model.safetensors").read_bytes())
    state.pop("encoder.pooler.dense.weight")
    save_file(state, copy / "model.safetensors")
    with pytest.raises(DataError, match=r"1 missing \(first: encoder.pooler.dense.weight\)"):
        load_student(copy, head=HEAD)


@pytest.mark.parametrize("damage", [b"", b"\x80\x04]", b"PK\x03\x04 not safetensors"])
def test_no_safetensors_no_loading(copy: Path, damage: bytes) -> None:
    (copy / "model.safetensors").write_bytes(damage)
    with pytest.raises(DataError, match="not a safetensors file"):
        load_student(copy, head=HEAD)


def test_a_vocabulary_of_another_length_is_refused(copy: Path) -> None:
    with (copy / "vocab.txt").open("a") as file:
        file.write("extra\n")
    with pytest.raises(DataError, match=r"vocab.txt has 807 words, the network 806"):
        load_student(copy, head=HEAD)


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("encoder", {"layers": "two"}, "describes no network that can be made"),
        ("encoder", {"heads": 7}, "describes no network that can be made .*not a multiple"),
        ("encoder", {"hidden_size": -4}, "describes no network that can be made .*negative"),
        ("head", {"kind": "captions", "outputs": []}, "the kind of head 'captions' is not known"),
        ("head", "vqa", "does not describe a student"),
    ],
)
def test_a_config_that_fits_no_network_is_refused(copy: Path, part: str, values: object, words: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    config[part] = {**config[part], **values} if isinstance(config[part], dict) else values
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=words) as error:
        load_student(copy, head=None if part == "head" else HEAD)
    assert "\n" not in str(error.value)


def test_uniter_types_spans_and_tags() -> None:
    student = load_student("mini-uniter", head=HEAD)
    question = Segment("What does person do?", (Tag(10, 16, (1,)),))
    answer = Segment("person rolls.", (Tag(0, 6, (1,)),))
    rationale = Segment("He is red.")
    example = Example(
        "q", "vcr", "q", ImageRef("i", Path("i.png")), (question, answer), (rationale, rationale),
        boxes=((0, 0, 10, 10), (20, 20, 40, 40)), width=100, height=50,
    )  # fmt: skip
    encoded = encode_example(example, student.tokenizer, 64)
    assert len(encoded.sequences) == 2
    sequence = encoded.sequences[0]
    first = int((sequence.segment == 0).sum())
    second = int((sequence.segment == 1).sum())
    third = int((sequence.segment == 2).sum())
    # formats.md 1.5: CLS + Q = 0; SEP A = 2 (len(a) + 1 tokens); SEP R SEP = 3 (len(r) + 2 tokens)
    assert sequence.types.tolist() == [0] * (1 + first) + [2] * (second + 1) + [3] * (third + 2)
    for segment, (start, end), tag in zip(sequence.segment, sequence.spans, sequence.tag_box, strict=True):
        if segment >= 0:
            piece = sequence.texts[segment][start:end]
            assert (piece == "person") == (tag == 1)
    region_boxes = torch.tensor([[0.21, 0.4, 0.4, 0.8], [0.0, 0.0, 0.1, 0.2]]).numpy()
    batch = collate([encoded], [Regions(region_boxes, torch.zeros(2, 768).numpy())], pad_id=0)
    assert set(batch.tag_regions[0].tolist()) == {-1, 0}  # box 1 of the example is region 0 of the detector
    assert batch.image_index.tolist() == [0, 0]


def test_long_text_is_shortened_at_its_longest_segment_and_counted() -> None:
    student = load_student("mini-uniter", head=HEAD)
    long, short = Segment("red " * 40), Segment("blue blue")
    example = Example("q", "vcr", "q", ImageRef("i", Path("i.png")), (long,), (short,))
    sequence = encode_example(example, student.tokenizer, 20).sequences[0]
    assert len(sequence.ids) == 20
    assert sequence.shortened == 40 + 2 + 3 - 20
    assert int((sequence.segment == 1).sum()) == 2


def test_another_models_folder_is_something_to_begin_with(bert_folder, tmp_path: Path) -> None:
    bert_folder(tmp_path)
    with pytest.raises(DataError, match="does not describe a student") as caught:
        load_student(tmp_path, head=HEAD)
    assert caught.value.hint is not None
    assert f"--init {tmp_path}" in caught.value.hint


def test_the_folder_of_a_run_says_where_its_student_is(tmp_path: Path) -> None:
    (tmp_path / "run" / "student").mkdir(parents=True)
    (tmp_path / "run" / "student" / "config.json").write_text("{}")
    with pytest.raises(NotFoundError, match="There is no student") as found:
        load_student(tmp_path / "run")
    assert str(tmp_path / "run" / "student") in (found.value.hint or "")


def test_a_name_without_weights_says_what_starts_it() -> None:
    with pytest.raises(UsageProblem, match="The student 'mini-vl-bert' has no weights of its own") as caught:
        load_student("mini-vl-bert")
    assert "--student mini-vl-bert" in str(caught.value.hint)
