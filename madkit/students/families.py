"""The families of students: what each is made of, its sizes, where its weights come from, how its paper trains it.

A family is one module with a `FAMILY` in it and one row here. Names of students are `FAMILY`, `FAMILY-SIZE` or
`mini-FAMILY`; the family alone means its base size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from madkit.core.errors import UsageProblem
from madkit.core.registry import Registry, suggest
from madkit.students.heads import HeadSpec, StudentHead
from madkit.students.text_style import TextStyle

if TYPE_CHECKING:
    from madkit.students.encoder import Encoder, EncoderConfig

State = dict[str, Tensor]
Visual = Literal["regions", "pixels", "teacher"]
DEFAULT_SIZE, MINI = "base", "mini"


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Where weights of a family can be had: `name` as a user says it, `how` to get or read them, their licence."""

    name: str
    how: str
    licence: str = "unknown"
    note: str = ""


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights read from elsewhere, under this family's own names.

    `encoder` may lack tensors (they are drawn afresh) but has no other; `left` are the source's keys that no place was
    found for. `head` and `head_state` where the source has a task head that fits.
    """

    config: EncoderConfig
    encoder: State
    left: tuple[str, ...] = ()
    head: HeadSpec | None = None
    head_state: State = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Words:
    """The tokenizer that a family's checkpoints in Hugging Face's layout go with, where they come without one.

    `repository` on the hub (`former`: what it was called once) has `size` words.
    """

    repository: str
    size: int
    former: str


@dataclass(frozen=True, slots=True)
class Official:
    """How the authors' own weight files are read (`convert`).

    Names of a state are the network's own; heads lie under `choice.` (a score for each candidate) or `answers.` (VQA,
    entailment), followed by their names in the family's head.

    Attributes:
        rename: a file's key -> (its name in the state, ""), or (None, why it is left).
        size_of: a state -> (layers, hidden width).
        config: (config of the size that has these, the state) -> the config of the file.
        adapt: (a state, its config) -> the state to load, and by name what was grown or filled in, and how.
        lowercase: whether the authors' vocabulary is uncased.
        binary: whether the head of a multiple choice has two outputs for each candidate.
        answer_bias: the name under `answers.` whose length is the number of answers.
        words: the name of the word table.
        optional: beginnings of encoder names that files may lack; these are drawn afresh.
        segments: the name of the type table whose second row the authors make a copy of its first before they fine-tune
            a pretrained file on VCR; "" where they do not.
    """

    rename: Callable[[str], tuple[str | None, str]]
    size_of: Callable[[State], tuple[int, int]]
    config: Callable[[Any, State], Any]
    adapt: Callable[[State, Any], tuple[State, dict[str, str]]]
    lowercase: bool
    binary: bool
    answer_bias: str
    words: str = "embeddings.word_embeddings.weight"
    optional: tuple[str, ...] = ()
    segments: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of network.

    Attributes:
        name: as in `FAMILIES`.
        title: a line for tables.
        paper: where it was described.
        config: class of its config, a frozen dataclass (`encoder.EncoderConfig`).
        model: config -> its encoder, with random weights.
        sizes: "base" and "mini", "large" where there is one.
        text: how examples become text sequences.
        make_head: (config, what it decides between) -> a fresh head.
        from_text: (a BERT checkpoint's state under `BertModel`'s names, config) -> tensors for the encoder, None where
            the family does not start from text checkpoints. Positions count from 0, whatever the checkpoint.
        readers: `model_type` of a Hugging Face config -> (that config, the state) -> Weights.
        words: the tokenizer of its `readers`' checkpoints that have none beside them.
        visual: what its regions are: a detector's, patches of pixels, or a teacher's tokens.
        weights: where weights can be had.
        official: how the authors' files are read, None where there is no converter.
        inputs: a line on what goes in, for `madkit students show`.
    """

    name: str
    title: str
    paper: str
    config: Callable[..., EncoderConfig]
    model: Callable[[Any], Encoder]
    sizes: Mapping[str, EncoderConfig]
    text: TextStyle
    make_head: Callable[[Any, HeadSpec], StudentHead]
    inputs: str
    from_text: Callable[[State, Any], State] | None = None
    readers: Mapping[str, Callable[[Mapping[str, Any], State], Weights]] = field(default_factory=dict)
    words: Words | None = None
    visual: Visual = "regions"
    weights: tuple[WeightSource, ...] = ()
    official: Official | None = None


FAMILIES: Registry[Family] = Registry("student family")
FAMILIES.register("uniter", "madkit.students.uniter:FAMILY", sizes=("base", "large", MINI))
FAMILIES.register("villa", "madkit.students.villa:FAMILY", sizes=("base", "large", MINI))
FAMILIES.register("vl-bert", "madkit.students.vl_bert:FAMILY", sizes=("base", "large", MINI))
FAMILIES.register("visualbert", "madkit.students.visualbert:FAMILY", sizes=("base", MINI))
FAMILIES.register("lxmert", "madkit.students.lxmert:FAMILY", sizes=("base", MINI))
FAMILIES.register("vilt", "madkit.students.vilt:FAMILY", sizes=("base", MINI))
FAMILIES.register("clip-vil", "madkit.students.clip_vil:FAMILY", sizes=("base", "large", MINI))
FAMILIES.register("clip-vil-lxmert", "madkit.students.clip_vil:LXMERT", sizes=("base", MINI))
FAMILIES.register("clip-vil-visualbert", "madkit.students.clip_vil:VISUALBERT", sizes=("base", MINI))
FAMILIES.register("clip-vil-vl-bert", "madkit.students.clip_vil:VL_BERT", sizes=("base", "large", MINI))


def family_of(name: str) -> Family:
    """The family of that name. Raises UsageProblem, with the nearest name, for one that does not exist."""
    return FAMILIES.get(name)


def size_names() -> list[str]:
    """Every student by its full name, largest families first: "uniter-base", "uniter-large", "mini-uniter", ..."""
    return [_full_name(family, size) for family in FAMILIES.names() for size in FAMILIES.info(family)["sizes"]]


def parse_name(name: str) -> tuple[str, str] | None:
    """(family, size) of a student's name ("uniter", "uniter-large", "mini-uniter"), None where it is none."""
    if name in FAMILIES:
        return name, DEFAULT_SIZE
    for family in FAMILIES.names():
        for size in FAMILIES.info(family)["sizes"]:
            if name == _full_name(family, size):
                return family, size
    return None


def full_name(name: str) -> str:
    """The full name of a student: "uniter" is "uniter-base". Raises UsageProblem for what is no student."""
    parsed = parse_name(name)
    if parsed is None:
        names = [*FAMILIES.names(), *size_names()]
        raise UsageProblem(
            f"There is no student '{name}'.{suggest(name, names)}", hint="see what there is: madkit students list"
        )
    return _full_name(*parsed)


def _full_name(family: str, size: str) -> str:
    return f"mini-{family}" if size == MINI else f"{family}-{size}"
