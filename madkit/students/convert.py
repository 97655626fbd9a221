"""Official weight files (UNITER, VILLA, VL-BERT) become a student's folder, with an account of every key.

Files are flat dicts of tensors, or hold one under `state_dict`; nothing in them is ever run. A tensor is taken as it
is, taken under another name, or left, and a tensor of the network that the file lacks is named. A shape that does not
fit ends the conversion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from madkit.core.errors import DataError, UsageProblem
from madkit.core.files import sha256_file, write_json_atomic
from madkit.core.seeds import derive_seed
from madkit.students.checkpoints import read_state, text_checkpoint
from madkit.students.families import FAMILIES, Family, Official, State, family_of
from madkit.students.heads import HeadSpec
from madkit.students.load import CONFIG, save_student
from madkit.students.student import Student, StudentIdentity
from madkit.students.tokenizer import StudentTokenizer

OBJECT_WORDS = 81  # rows that UNITER adds for the object classes of VCR, one of them for the background
REPORT = "conversion.json"
Status = Literal["taken", "renamed", "left", "missing"]


@dataclass(frozen=True, slots=True)
class KeyRow:
    """What became of one key. `key` is the file's ("" for what it lacks), `target` the student's ("" where left)."""

    key: str
    status: Status
    target: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Conversion:
    """A conversion that was made."""

    folder: Path
    name: str
    head: HeadSpec | None
    rows: tuple[KeyRow, ...]

    def counts(self) -> dict[str, int]:
        """Number of keys by what became of them."""
        found = Counter(row.status for row in self.rows)
        return {status: found[status] for status in ("taken", "renamed", "left", "missing")}


def convert(
    file: Path,
    family: str,
    out: Path,
    *,
    vocabulary: Path,
    answers: Sequence[str] = (),
    labels: Sequence[str] = (),
    object_words: bool = False,
    copy_segment: bool = False,
    pooler: Path | None = None,
) -> Conversion:
    """Make a student's folder from an official file.

    Args:
        file: the weights (`.pt`, `.bin`, `.model`, `.safetensors`).
        family: whose file it is.
        out: a new folder.
        vocabulary: `vocab.txt` of the BERT that the authors began with, or its folder: files do not hold it.
        answers: of a VQA head in the order of its outputs; without them the head is left out.
        labels: of an entailment head, likewise.
        object_words: add the 81 words that UNITER adds before it learns VCR, where the file has not got them. New rows
            are drawn from N(0, 0.02) with a fixed seed, as the original draws them.
        copy_segment: make the type of responses a copy of that of queries, as VL-BERT's authors do before they
            fine-tune a pretrained file on VCR, and not for VQA.
        pooler: folder of a BERT checkpoint that gives the pooler, where the file has none (VL-BERT's pretrained ones).

    Raises:
        UsageProblem: `out` is in use, a family without official files, or `copy_segment` where the authors do no such
            thing.
        NotFoundError: no such file.
        DataError: the file holds more than tensors, is of another network or size, has tensors of other shapes, lacks
            some, or does not fit the vocabulary, answers or labels.
    """
    kind = family_of(family)
    official = kind.official
    if official is None:
        able = [name for name in FAMILIES.names() if family_of(name).official is not None]
        raise UsageProblem(f"There is no converter for {family}.", hint=f"there is one for {', '.join(able)}")
    if answers and labels:
        raise UsageProblem("Answers and labels were both given.", hint="answers are VQA's, labels an entailment head's")
    if (out / CONFIG).exists():
        raise UsageProblem(f"{out} holds a student already.", hint="name another folder: --out DIR")
    if copy_segment and not official.segments:
        raise UsageProblem(
            f"The authors of {family} copy no segment's type before VCR.",
            hint="leave out --copy-segment: it is VL-BERT's",
        )
    found = read_state(file)
    state, rows = _renamed(official, found, file)
    size = _size(kind, official, state, file)
    path = vocabulary / "vocab.txt" if vocabulary.is_dir() else vocabulary
    words = StudentTokenizer(path, lowercase=official.lowercase)
    state, tokenizer, grown = _fit_words(state, official.words, words, object_words, file, vocabulary)
    encoder_state = {name: value for name, value in state.items() if not name.startswith(("choice.", "answers."))}
    try:
        config = official.config(kind.sizes[size], state)
        encoder_state, filled = official.adapt(encoder_state, config)
    except KeyError as error:
        raise DataError(f"{file} lacks {error.args[0]}, so it is no whole {family}.") from None
    if copy_segment:
        filled |= _copy_segment(official, encoder_state, state, file)
    head, head_state, why_not = _head(official, state, tuple(answers), tuple(labels), file)
    name = f"mini-{family}" if size == "mini" else f"{family}-{size}"
    identity = StudentIdentity(name, family, sha256_file(file)[:16])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("convert", name))
        encoder = kind.model(config)
        student = Student(encoder, kind.make_head(config, head or HeadSpec("multiple-choice")), tokenizer, identity)
    if pooler is not None:
        poolers = {name: value for name, value in text_checkpoint(pooler).state.items() if name.startswith("pooler.")}
        given = {name: value for name, value in poolers.items() if name not in encoder_state}
        encoder_state |= given
        filled |= dict.fromkeys(given, f"from {pooler}")
    missing = _fill(encoder, encoder_state, official.optional, file)
    if head is not None:
        _fill(student.head, head_state, (), file)
    notes = {**grown, **filled}
    rows = [_said(row, head is not None, why_not, notes) for row in rows]
    taken = {row.target for row in rows}
    rows += [KeyRow("", "missing", f"encoder.{name}", note) for name, note in notes.items()
             if f"encoder.{name}" not in taken]  # fmt: skip
    rows += [KeyRow("", "missing", f"encoder.{name}", "drawn afresh") for name in missing]
    save_student(student.eval(), out, with_head=head is not None)
    result = Conversion(out, name, head, tuple(rows))
    write_json_atomic(out / REPORT, {"file": file.name, "sha256": sha256_file(file), "student": name,
                                     "counts": result.counts(), "keys": [asdict(row) for row in rows]})  # fmt: skip
    return result


def _renamed(official: Official, found: State, file: Path) -> tuple[State, list[KeyRow]]:
    state: State = {}
    rows: list[KeyRow] = []
    for key in sorted(found):
        name, why = official.rename(key)
        if name is None:
            rows.append(KeyRow(key, "left", "", why))
            continue
        if name in state:
            raise DataError(f"{file}: two of its keys mean {name}, one of them {key}.")
        state[name] = found[key].float()
        target = name if name.startswith(("choice.", "answers.")) else f"encoder.{name}"
        same = key == name or key.endswith(f".{name}")
        rows.append(KeyRow(key, "taken" if same else "renamed", target))
    if not state:
        raise DataError(f"{file}: none of its {len(rows)} keys is one of this family (first: {rows[0].key}).")
    return state, rows


def _size(family: Family, official: Official, state: State, file: Path) -> str:
    try:
        layers, width = official.size_of(state)
    except KeyError as error:
        raise DataError(f"{file} lacks {error.args[0]}, so it is no whole {family.name}.") from None
    for size, config in family.sizes.items():
        if (config.layers, config.hidden_size) == (layers, width):
            return size
    known = ", ".join(f"{size} {config.layers} of {config.hidden_size}" for size, config in family.sizes.items())
    raise DataError(f"{file} has {layers} layers of width {width}, which is no size of {family.name} ({known}).")


def _fit_words(
    state: State, name: str, words: StudentTokenizer, object_words: bool, file: Path, vocabulary: Path
) -> tuple[State, StudentTokenizer, dict[str, str]]:
    """The state with the words of its vocabulary; the tokenizer; which tables grew."""
    table, grown = state[name], dict[str, str]()
    rows, extra = len(table), [f"[object{i}]" for i in range(OBJECT_WORDS)]
    if rows not in (len(words), len(words) + OBJECT_WORDS):
        raise DataError(
            f"{vocabulary} has {len(words):,} words, {file} {rows:,}: it was trained with another vocabulary.",
            hint=f"--vocab FILE with {rows:,} or {rows - OBJECT_WORDS:,} words",
        )
    if object_words and rows == len(words):
        generator = torch.Generator().manual_seed(derive_seed("object words"))
        table = torch.cat([table, 0.02 * torch.randn(OBJECT_WORDS, table.shape[1], generator=generator)])
        grown[name] = f"{OBJECT_WORDS} rows added for object classes"
    if len(table) > len(words):
        words = StudentTokenizer.of_words([*words.lines, *extra], lowercase=words.lowercase)
    return {**state, name: table}, words, grown


def _copy_segment(official: Official, encoder_state: State, state: State, file: Path) -> dict[str, str]:
    """Write the first row of the type table over its second, in `encoder_state`; what to note about it."""
    if any(name.startswith(("choice.", "answers.")) for name in state):
        raise UsageProblem(
            f"{file} was fine-tuned on a task, in which it learnt its segments' types.", hint="leave out --copy-segment"
        )
    table = encoder_state[official.segments].clone()
    table[1] = table[0]
    encoder_state[official.segments] = table
    return {official.segments: "row 1 became a copy of row 0, as before VCR"}


def _head(
    official: Official, state: State, answers: tuple[str, ...], labels: tuple[str, ...], file: Path
) -> tuple[HeadSpec | None, State, str]:
    """What the file's head decides between, its tensors, and why it is left out where it is."""
    parts = {kind: {name.removeprefix(kind): value for name, value in state.items() if name.startswith(kind)}
             for kind in ("choice.", "answers.")}  # fmt: skip
    outputs = answers or labels
    if outputs and not parts["answers."]:
        raise DataError(f"{file} has no head with answers or classes.", hint="leave out --answers and --labels")
    if parts["choice."]:
        return HeadSpec("multiple-choice", binary=official.binary), parts["choice."], ""
    if not parts["answers."]:
        return None, {}, ""
    rows = len(parts["answers."].get(official.answer_bias, ()))
    if not outputs:
        return None, {}, f"a head of {rows:,} answers or classes, whose names were not given"
    if rows != len(outputs):
        what = "answers" if answers else "labels"
        raise DataError(f"{file} decides between {rows:,}, and {len(outputs):,} {what} were given.")
    return HeadSpec("vqa" if answers else "classification", outputs), parts["answers."], ""


def _fill(module: torch.nn.Module, state: dict[str, Tensor], optional: tuple[str, ...], file: Path) -> list[str]:
    """Load `state`; what it lacks and may lack. Raises DataError for anything else that does not fit."""
    own: dict[str, Tensor] = module.state_dict()
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    if shapes:
        first = shapes[0]
        raise DataError(
            f"{file}: {len(shapes)} tensors have another shape than their place, first {first}: "
            f"{list(state[first].shape)} and not {list(own[first].shape)}."
        )
    unknown = sorted(set(state) - set(own))
    if unknown:
        raise DataError(f"{file}: {len(unknown)} tensors have no place in this network, first {unknown[0]}.")
    missing = [name for name in own if name not in state]
    needed = [name for name in missing if not name.startswith(optional)] if optional else missing
    if needed:
        raise DataError(f"{file} lacks {len(needed)} tensors of this network, first {needed[0]}.")
    module.load_state_dict(state, strict=False)
    return missing


def _said(row: KeyRow, with_head: bool, why_not: str, notes: dict[str, Any]) -> KeyRow:
    kind, _, name = row.target.partition(".")
    if kind in ("choice", "answers"):
        if with_head:
            return KeyRow(row.key, row.status, f"head.{name}", row.note)
        return KeyRow(row.key, "left", "", why_not)
    return KeyRow(row.key, row.status, row.target, notes.get(name, row.note))
