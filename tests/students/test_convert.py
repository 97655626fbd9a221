"""Official files: the same outputs as the same weights set by hand, an account of every key, and refusals."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.students.convert import OBJECT_WORDS, convert
from madkit.students.heads import HeadSpec, TaskHead
from madkit.students.load import load_student
from madkit.students.student import Student, StudentIdentity
from madkit.students.tokenizer import SPECIALS, StudentTokenizer
from madkit.students.uniter import UniterConfig, UniterModel

WORDS = [*SPECIALS, *(f"w{i}" for i in range(25))]
WIDTH = 128
MINI = UniterConfig(
    vocab_size=30, hidden_size=WIDTH, layers=3, heads=4, intermediate_size=512, max_positions=40, region_dim=10
)


def official_state(words: int = 30, types: int = 2, head: tuple[str, int] | None = None) -> dict[str, Tensor]:
    """Random tensors under the names that the authors' files have."""
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        return 0.1 * torch.randn(*shape, generator=generator)

    state = {
        "embeddings.word_embeddings.weight": some(words, WIDTH),
        "embeddings.position_embeddings.weight": some(40, WIDTH),
        "embeddings.token_type_embeddings.weight": some(types, WIDTH),
        "img_embeddings.mask_embedding.weight": some(2, 10),
        "pooler.dense.weight": some(WIDTH, WIDTH),
        "pooler.dense.bias": some(WIDTH),
    }

    def linear(name: str, rows: int, columns: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = some(rows, columns), some(rows)

    def norm(name: str) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + some(WIDTH), some(WIDTH)

    linear("img_embeddings.img_linear", WIDTH, 10)
    linear("img_embeddings.pos_linear", WIDTH, 7)
    for name in (
        "embeddings.LayerNorm",
        *(f"img_embeddings.{x}" for x in ("img_layer_norm", "pos_layer_norm", "LayerNorm")),
    ):
        norm(name)
    for i in range(3):
        layer = f"encoder.layer.{i}"
        for name in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{name}", WIDTH, WIDTH)
        linear(f"{layer}.attention.output.dense", WIDTH, WIDTH)
        linear(f"{layer}.intermediate.dense", 512, WIDTH)
        linear(f"{layer}.output.dense", WIDTH, 512)
        norm(f"{layer}.attention.output.LayerNorm")
        norm(f"{layer}.output.LayerNorm")
    state = {f"uniter.{name}": value for name, value in state.items()}
    if head is not None:
        name, rows = head
        linear(f"{name}.0", 2 * WIDTH, WIDTH)
        state[f"{name}.2.weight"], state[f"{name}.2.bias"] = 1 + some(2 * WIDTH), some(2 * WIDTH)
        linear(f"{name}.3", rows, 2 * WIDTH)
    return state


def by_hand(state: dict[str, Tensor], folder: Path, head: HeadSpec) -> Student:
    """The network with those very tensors, put in one by one."""
    vocabulary = folder / "hand.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n")
    model = UniterModel(MINI)
    top = TaskHead(WIDTH, head)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("tag_layer_norm"):
                parameter.zero_()
            elif "token_type" in name:
                old = state[f"uniter.{name}"]
                parameter.copy_(torch.stack([old[0], old[1], old[0], old[0]]))
            else:
                parameter.copy_(state[f"uniter.{name}"])
        for name, parameter in top.named_parameters():
            output = "vcr_output" if head.kind == "multiple-choice" else "vqa_output"
            parameter.copy_(state[f"{output}.{name.removeprefix('layers.')}"])
    tokenizer = StudentTokenizer(vocabulary, lowercase=False)
    return Student(model, top, tokenizer, StudentIdentity("hand", "uniter", "-")).eval()


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return tmp_path / "vocab.txt"


def write(tmp_path: Path, state: object) -> Path:
    torch.save(state, tmp_path / "official.pt")
    return tmp_path / "official.pt"


@pytest.mark.parametrize("task", ["vcr", "snli-ve", "vqa"])
def test_outputs_are_those_of_the_weights_set_by_hand(task: str, inputs, tmp_path: Path, vocabulary: Path) -> None:
    output, rows, spec = {
        "vcr": ("vcr_output", 2, HeadSpec("multiple-choice", binary=True)),
        "snli-ve": ("vqa_output", 3, HeadSpec("classification", ("a", "b", "c"))),
        "vqa": ("vqa_output", 4, HeadSpec("vqa", ("yes", "no", "1", ""))),
    }[task]
    state = official_state(head=(output, rows))
    chosen = {"snli-ve": {"labels": spec.outputs}, "vqa": {"answers": spec.outputs}}.get(task, {})
    result = convert(write(tmp_path, state), "uniter", tmp_path / "out", vocabulary=vocabulary, **chosen)
    assert result.head == spec
    student, hand = load_student(tmp_path / "out"), by_hand(state, tmp_path, spec)
    assert student.identity.name == "mini-uniter"
    batch = inputs([9, 6, 7, 5], [3, 2], candidates=2, words=30)
    if task != "vcr":
        batch = inputs([9, 6], [3, 2], words=30)
    with torch.no_grad():
        got, wanted = student(batch), hand(batch)
    assert torch.equal(got.logits, wanted.logits)
    assert all(torch.equal(a, b) for a, b in zip(got.hidden_states, wanted.hidden_states, strict=True))
    if task == "vcr":
        assert got.pair_logits is not None
        assert torch.equal(got.logits, got.pair_logits[..., 1])  # what the authors rank by
    tagged = replace(batch, tag_regions=torch.zeros_like(batch.tag_regions))
    with torch.no_grad():
        assert torch.equal(student(tagged).logits, got.logits)  # the tag link is madkit's own, and off


@pytest.mark.parametrize("form", ["bert prefix", "parallel", "old names", "nested", "half", "safetensors"])
def test_every_spelling_of_a_file_is_the_same_file(form: str, tmp_path: Path, vocabulary: Path) -> None:
    state = official_state()
    wanted = {key.replace("uniter.", "encoder."): value for key, value in state.items()}
    content: object = state
    if form == "bert prefix":
        content = {key.replace("uniter.", "bert."): value for key, value in state.items()}
    elif form == "parallel":
        content = {f"module.{key}": value for key, value in state.items()}
    elif form == "old names":
        content = {
            k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
            for k, v in state.items()
        }
    elif form == "nested":
        content = {"state_dict": state, "epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
    elif form == "half":
        content = {key: value.half() for key, value in state.items()}
    path = write(tmp_path, content)
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(state, path := tmp_path / "official.safetensors")
    result = convert(path, "villa", tmp_path / "out", vocabulary=vocabulary)
    got = load_student(tmp_path / "out", head=HeadSpec("multiple-choice")).state_dict()
    for key, value in wanted.items():
        if "token_type" not in key:
            assert torch.allclose(got[key], value, atol=1e-3 if form == "half" else 0)
    counts = result.counts()
    assert counts["taken"] + counts["renamed"] == len(state)
    assert counts["renamed"] == (16 if form == "old names" else 0)
    assert result.name == "mini-villa"
    assert result.head is None


def test_every_key_is_accounted_for(tmp_path: Path, vocabulary: Path) -> None:
    left = {
        "cls.predictions.bias": "a head of pretraining",
        "itm_output.weight": "a head of pretraining",
        "uniter.embeddings.position_ids": "a table of numbers 0, 1, 2, ...",
        "something.else": "no part of this network",
        "vqa_output.3.bias": "a head of 5 answers or classes, whose names were not given",
    }
    state = {**official_state(), **{key: torch.zeros(5) for key in left}}
    result = convert(write(tmp_path, state), "uniter", tmp_path / "out", vocabulary=vocabulary)
    assert {row.key for row in result.rows if row.key} == set(state)
    assert {row.key: row.note for row in result.rows if row.status == "left"} == left
    assert [row.target for row in result.rows if row.status == "missing"] == [
        "encoder.tag_layer_norm.weight", "encoder.tag_layer_norm.bias",
    ]  # fmt: skip
    notes = {row.target: row.note for row in result.rows if row.status == "taken" and row.note}
    assert notes == {"encoder.embeddings.token_type_embeddings.weight": "2 rows added, copies of row 0"}
    kept = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert kept["counts"] == result.counts()
    assert len(kept["keys"]) == len(result.rows)


def test_object_words_are_added_as_the_original_adds_them(tmp_path: Path, vocabulary: Path) -> None:
    state = official_state()
    file = write(tmp_path, state)
    convert(file, "uniter", tmp_path / "plain", vocabulary=vocabulary)
    convert(file, "uniter", tmp_path / "more", vocabulary=vocabulary, object_words=True)
    assert load_student(tmp_path / "plain", head=HeadSpec("multiple-choice")).encoder.config.vocab_size == 30
    student = load_student(tmp_path / "more", head=HeadSpec("multiple-choice"))
    table = student.encoder.state_dict()["embeddings.word_embeddings.weight"]
    assert torch.equal(table[:30], state["uniter.embeddings.word_embeddings.weight"])
    assert len(table) == 30 + OBJECT_WORDS == len(student.tokenizer)
    assert 0.015 < table[30:].std() < 0.025
    # a file of the second stage has them already
    grown = official_state(words=30 + OBJECT_WORDS, types=4)
    result = convert(write(tmp_path, grown), "uniter", tmp_path / "second", vocabulary=vocabulary, object_words=True)
    again = load_student(tmp_path / "second", head=HeadSpec("multiple-choice")).encoder.state_dict()
    assert torch.equal(again["embeddings.word_embeddings.weight"], grown["uniter.embeddings.word_embeddings.weight"])
    assert not [row for row in result.rows if row.status == "taken" and row.note]


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_file_with_code_is_not_run(tmp_path: Path, vocabulary: Path) -> None:
    mark = tmp_path / "mark"
    file = write(tmp_path, {**official_state(), "x": Malicious(mark)})
    with pytest.raises(DataError, match="holds more than tensors"):
        convert(file, "uniter", tmp_path / "out", vocabulary=vocabulary)
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


def test_files_that_do_not_fit_are_refused(tmp_path: Path, vocabulary: Path) -> None:
    def attempt(match: str, state: object, error: type[Exception] = DataError, **options: object) -> None:
        with pytest.raises(error, match=match):
            convert(write(tmp_path, state), "uniter", tmp_path / "out", **{"vocabulary": vocabulary, **options})
        assert not (tmp_path / "out").exists()

    state = official_state()
    attempt("has 30 words, .* 31: it was trained with another vocabulary", official_state(words=31))
    four = {**state, "uniter.encoder.layer.3.output.dense.bias": torch.zeros(WIDTH)}
    attempt("has 4 layers of width 128, which is no size of uniter", four)
    lacking = {k: v for k, v in state.items() if k != "uniter.encoder.layer.1.output.dense.bias"}
    attempt(r"lacks 1 tensors of this network, first encoder.layer.1.output.dense.bias", lacking)
    attempt("lacks img_embeddings.img_linear.weight, so it is no whole uniter",
            {k: v for k, v in state.items() if "img_" not in k})  # fmt: skip
    location = {**state, "uniter.img_embeddings.pos_linear.weight": torch.zeros(WIDTH, 5)}
    attempt(
        r"another shape than their place, first img_embeddings.pos_linear.weight: \[128, 5\] and not \[128, 7\]",
        location,
    )
    attempt("have no place", {**state, "uniter.embeddings.odd.weight": torch.zeros(2)})
    attempt("two of its keys mean", {**state, "bert.pooler.dense.bias": torch.zeros(WIDTH)})
    attempt("none of its 1 keys", {"vlbert.x": torch.zeros(2)})
    attempt("is no tensor, but int", {**state, "step": 3})
    attempt("does not hold a dict of tensors", [1, 2])
    attempt("decides between 5, and 3 answers", official_state(head=("vqa_output", 5)), answers=("a", "b", "c"))
    attempt("has no head with answers", state, labels=("a", "b", "c"))
    attempt("both given", state, error=UsageProblem, labels=("a",), answers=("b",))
    attempt("does not exist", state, error=NotFoundError, vocabulary=tmp_path / "nowhere.txt")
    (tmp_path / "official.pt").write_bytes(b"PK not a file")
    with pytest.raises(DataError, match=r"not a file of torch weights|more than tensors"):
        convert(tmp_path / "official.pt", "uniter", tmp_path / "out", vocabulary=vocabulary)
    (tmp_path / "official.pt").write_text("root:x:0:0:root:/root:/bin/bash\n" * 3)  # its reader ends in IndexError
    with pytest.raises(DataError, match=r"official.pt is not a file of torch weights"):
        convert(tmp_path / "official.pt", "uniter", tmp_path / "out", vocabulary=vocabulary)
    with pytest.raises(UsageProblem, match=r"no student family 'unitre'\. Did you mean 'uniter'"):
        convert(tmp_path / "official.pt", "unitre", tmp_path / "out", vocabulary=vocabulary)


def test_a_folder_in_use_is_left_alone(tmp_path: Path, vocabulary: Path) -> None:
    file = write(tmp_path, official_state())
    convert(file, "uniter", tmp_path / "out", vocabulary=vocabulary)
    with pytest.raises(UsageProblem, match="holds a student already"):
        convert(file, "uniter", tmp_path / "out", vocabulary=vocabulary)


def test_the_command_prints_what_became_of_the_keys(tmp_path: Path, vocabulary: Path, capsys) -> None:
    from madkit.cli.main import main

    file = write(tmp_path, official_state(head=("vcr_output", 2)))
    common = ["students", "convert", str(file), "--family", "uniter", "--vocab", str(vocabulary), "--out"]
    main([*common, str(tmp_path / "a"), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["head"] == {"kind": "multiple-choice", "outputs": [], "binary": True}
    assert sum(document["counts"].values()) == len(document["keys"])
    main([*common, str(tmp_path / "b")])
    out = capsys.readouterr().out
    taken = len(official_state())
    assert f"mini-uniter: {taken} taken, 6 renamed, 0 left, 2 missing" in out
