"""Where training begins: a student of a family and size with weights from a text checkpoint, a Hugging Face checkpoint
of its own family, another student's folder, or drawn at random. What a source lacks is drawn from a fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from madkit.core.console import info
from madkit.core.errors import DataError, NotFoundError, RunError, UsageProblem
from madkit.core.files import FileLock, digest_of, read_json, write_json_atomic
from madkit.core.hub_files import hub_file, hub_folder
from madkit.core.seeds import derive_seed
from madkit.students.checkpoints import (
    CONFIG,
    TextCheckpoint,
    has_weights,
    read_folder_state,
    text_checkpoint,
    weights_digest,
)
from madkit.students.families import MINI, Family, Weights, family_of, full_name, parse_name
from madkit.students.heads import HeadSpec
from madkit.students.load import SHIPPED, save_student, student_folder
from madkit.students.setup import BEGINNING, setup_of
from madkit.students.student import Student, StudentIdentity
from madkit.students.tokenizer import TOKENIZER, VOCABULARY, StudentTokenizer

RANDOM = "random"
MINI_INIT = "mini-uniter"
PATIENCE_S = 600.0  # of the runs of a sweep that begin with the same student, while one of them makes it
_SMALL = ("config.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")
_NO_HEAD = HeadSpec("multiple-choice")  # stands in for a head where only the encoder is wanted
# (in config.json of a text checkpoint, of a student): what has to be equal
_SIZES = (
    ("hidden_size", "hidden_size"), ("num_hidden_layers", "layers"), ("num_attention_heads", "heads"),
    ("intermediate_size", "intermediate_size"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Beginning:
    """A fresh student and where its tensors come from."""

    student: Student
    source: str
    taken: tuple[str, ...]  # tensors of the encoder that the source gave
    drawn: tuple[str, ...]  # tensors of the encoder drawn at random
    left: tuple[str, ...]  # the source's keys that were not used

    def line(self) -> str:
        """What to tell people."""
        if not self.taken:
            return (
                f"{self.student.identity.name}: all {len(self.drawn)} tensors are drawn afresh, nothing is pretrained."
            )
        parts = sorted({name.partition(".")[0] for name in self.drawn})
        drawn = f"; {len(self.drawn)} are drawn afresh (in {', '.join(parts)})" if self.drawn else ""
        return f"{self.student.identity.name}: {len(self.taken)} tensors from {self.source}{drawn}."


def new_student(
    name: str,
    *,
    init: str | Path | None = None,
    region_dim: int | None = None,
    head: HeadSpec | None = None,
    seed: int = 0,
    **sizes: Any,
) -> Beginning:
    """A student to be trained, by name.

    Args:
        name: "uniter", "uniter-large", "mini-visualbert", ...
        init: folder of a checkpoint (a text encoder's, the family's own in Hugging Face's layout, a student's), a name
            on the hub ("google-bert/bert-base-cased"), or "random". None: the mini sizes begin with the text layers
            of the embedded student.
        region_dim: width of the region features; None: the source's, else the paper's.
        head: what it decides between; None: the source's own, where it has one, else scores of candidates.
        seed: of what is drawn.
        sizes: fields of the family's config that shall differ from the size's ("dropout", "tag_gain", ...).

    Raises:
        UsageProblem: an unknown name, or no `init` where one is needed.
        NotFoundError: there is no such checkpoint, or no tokenizer for it.
        DataError: a checkpoint of another kind, size or width of features.
    """
    found = full_name(name)
    kind, size = parse_name(found) or ("", "")
    family = family_of(kind)
    config = replace(family.sizes[size], **sizes)  # type: ignore[type-var]
    if init is None:
        _no_init(found)
        init = MINI_INIT
    if str(init) == RANDOM:
        tokenizer = StudentTokenizer.from_folder(student_folder(MINI_INIT))
        weights, source = Weights(replace(config, vocab_size=len(tokenizer)), {}), "no checkpoint"  # type: ignore[type-var]
        digest = digest_of([found, seed])[:16]
    else:
        folder = init_folder(init)
        weights = _read(family, config, folder, found)
        tokenizer = _tokenizer(family, folder, weights, init)
        source, digest = str(init), weights_digest(folder)
    _check_words(weights, tokenizer, source)
    return assemble(family, found, weights, tokenizer, StudentIdentity(found, kind, digest), source,
                     region_dim=region_dim, head=head, seed=seed)  # fmt: skip


def check_start(name: str, init: str | Path | None) -> None:
    """Check that training can begin with `name` and `init`, before anything is read or built.

    Raises UsageProblem for a name that is no student's, and for an `init` that is missing or one too many;
    NotFoundError for a folder that holds no student, or no checkpoint.
    """
    parsed = None if name in SHIPPED else parse_name(name)
    if parsed is None:
        student_folder(name)
        if init is not None:
            raise UsageProblem(
                f"{name} has weights of its own, so nothing can be put in their place.", hint="leave out --init"
            )
        return
    if init is None:
        _no_init(full_name(name))
    elif str(init) != RANDOM:
        init_folder(init)


def _no_init(found: str) -> None:
    kind, size = parse_name(found) or ("", "")
    family = family_of(kind)
    if size != MINI or family.from_text is None:
        raise UsageProblem(
            f"madkit has no weights of {found}: say what it shall begin with.",
            hint=f"--init FOLDER with {_likely(family)}, or --init {RANDOM}",
        )


def starting_folder(root: Path, name: str, *, init: str | Path | None, region_dim: int | None) -> Path:
    """The folder of a student to be trained, by name: made in `root` once, found there afterwards.

    Raises as `new_student`.
    """
    found = full_name(name)
    digest = "" if init is None or str(init) == RANDOM else weights_digest(init_folder(init))
    key = digest_of([found, str(init) if not digest else "", digest, region_dim])[:8]
    folder = root / f"{found}-{key}"
    return made_once(folder, lambda: new_student(found, init=init, region_dim=region_dim))


def made_once(folder: Path, make: Callable[[], Beginning]) -> Path:
    """`folder`, with the student in it that `make` gives: who comes first makes it, whoever comes meanwhile waits."""
    if (folder / CONFIG).is_file():  # written last
        return folder
    lock = folder.with_name(f".{folder.name}.lock")
    with FileLock(lock, error=RunError, what=f"the student {folder.name}", patience_s=PATIENCE_S):
        if not (folder / CONFIG).is_file():
            made = make()
            info(made.line())
            folder.mkdir(parents=True, exist_ok=True)
            write_json_atomic(folder / BEGINNING, {
                "source": made.source, "family": made.student.identity.family, "taken": len(made.taken),
                "drawn": list(made.drawn), "left": list(made.left), "setup": setup_of(made.student),
            })  # fmt: skip
            save_student(made.student, folder, with_head=False)
    return folder


def init_folder(init: str | Path) -> Path:
    """The folder that `init` names: itself, a shipped student's, or one in the hub's cache or fetched from the hub.

    Raises NotFoundError.
    """
    if str(init) in SHIPPED:
        return student_folder(str(init))
    folder = Path(init).expanduser()
    if (folder / CONFIG).is_file():
        return folder
    if folder.exists():
        raise NotFoundError(f"{folder} is no checkpoint: it has no {CONFIG}.")
    if str(init).count("/") > 1 or str(init).startswith((".", "/", "~")):
        raise NotFoundError(f"There is no checkpoint {init}.", hint="--init FOLDER with config.json and weights")
    return hub_folder(
        str(init),
        None,
        _SMALL,
        (["*.safetensors", "*.safetensors.index.json"], ["pytorch_model.bin"]),
        complete=has_weights,
        wanted=f"There is no folder '{init}', and the files of a checkpoint of that name",
        hint="--init FOLDER with config.json, weights and vocab.txt or tokenizer.json",
    )


def _likely(family: Family) -> str:
    return "a BERT checkpoint" if family.from_text is not None else f"a {', '.join(family.readers) or 'student'}'s"


def _tokenizer(family: Family, folder: Path, weights: Weights, init: str | Path) -> StudentTokenizer:
    """The tokenizer beside a checkpoint, else the one that its family's checkpoints go with.

    Raises NotFoundError where there is neither.
    """
    try:
        return StudentTokenizer.from_folder(folder, lowercase=_said_casing(folder))
    except NotFoundError as error:
        lent, kind = family.words, read_json(folder / CONFIG).get("model_type")
        if lent is None or kind not in family.readers or weights.config.vocab_size != lent.size:
            if folder == Path(init).expanduser():
                raise
            raise NotFoundError(
                f"{init} has no tokenizer.",
                hint=f"hf download {init} --local-dir FOLDER, its {VOCABULARY} or {TOKENIZER} beside it, --init FOLDER",
            ) from error
    path = hub_file(
        lent.repository,
        (VOCABULARY, TOKENIZER),
        wanted=f"{init} has no tokenizer, and the words of {lent.repository} that go with it",
        hint=f"where there is a network: hf download {lent.repository} {VOCABULARY}; or put that file into a folder "
        f"with {CONFIG} and the weights: --init FOLDER",
        former=lent.former,
    )
    info(f"{init} has no tokenizer: the words are those of {lent.repository}.")
    return StudentTokenizer.from_folder(path.parent)


def _said_casing(folder: Path) -> bool | None:
    said = read_json(folder / CONFIG).get("lowercase")  # a student's own config
    return None if said is None else bool(said)


def _read(family: Family, config: Any, folder: Path, name: str) -> Weights:
    described = read_json(folder / CONFIG)
    if "family" in described:
        return _from_student(family, config, folder, described, name)
    if described.get("model_type") in family.readers:
        weights = family.readers[described["model_type"]](described, read_folder_state(folder))
        _same_sizes({ours: getattr(weights.config, ours, None) for _, ours in _SIZES}, config, folder, name)
        return weights
    if family.from_text is None:
        raise DataError(
            f"{folder} holds a model of the type {described.get('model_type')!r}, and {name} does not begin with one.",
            hint=f"use one of the type {', '.join(family.readers)}",
        )
    return _from_text(family, config, text_checkpoint(folder), name)


def _from_text(family: Family, config: Any, found: TextCheckpoint, name: str) -> Weights:
    _same_sizes({ours: found.config.get(theirs) for theirs, ours in _SIZES}, config, found.folder, name)
    layers = config.as_dict().get("layers", 0)
    parts = {key.split(".", 3)[3] for key in found.state if key.startswith("encoder.layer.0.")}
    for key in (f"encoder.layer.{i}.{part}" for i in range(layers) for part in sorted(parts)):
        if key not in found.state:
            raise DataError(f"{found.folder}: the weights lack {key}.")
    words, positions = (found.state[f"embeddings.{part}_embeddings.weight"] for part in ("word", "position"))
    changed = {"vocab_size": len(words), "max_positions": len(positions)}
    if "layer_norm_eps" in config.as_dict():
        changed["layer_norm_eps"] = found.config.get("layer_norm_eps", 1e-12)
    config = replace(config, **changed)
    assert family.from_text is not None
    return Weights(config, family.from_text(dict(found.state), config), found.left)


def _from_student(family: Family, config: Any, folder: Path, described: Mapping[str, Any], name: str) -> Weights:
    state = {key.removeprefix("encoder."): v for key, v in read_folder_state(folder).items() if key[:8] == "encoder."}
    sizes = described.get("encoder")
    if not isinstance(sizes, dict):
        raise DataError(f"{folder / CONFIG} does not describe a student.")
    _same_sizes({ours: sizes.get(ours) for _, ours in _SIZES}, config, folder, name)
    other = family_of(str(described["family"]))
    if other.model is family.model and other.visual == family.visual:
        known = {key: value for key, value in sizes.items() if key not in ("dropout",)}
        return Weights(replace(config, **known), state)
    if family.from_text is None or "embeddings.word_embeddings.weight" not in state:
        raise DataError(f"{folder} holds a {described['family']}, and {name} cannot begin with one.")
    text = {key: v for key, v in state.items() if key.startswith(("embeddings.", "encoder.layer.", "pooler.dense."))}
    like_bert = {"hidden_size": sizes["hidden_size"], "num_hidden_layers": sizes["layers"],
                 "num_attention_heads": sizes["heads"], "intermediate_size": sizes["intermediate_size"],
                 "layer_norm_eps": sizes.get("layer_norm_eps", 1e-12)}  # fmt: skip
    return _from_text(family, config, TextCheckpoint(folder, like_bert, text, tuple(set(state) - set(text))), name)


def _same_sizes(theirs: Mapping[str, Any], config: Any, folder: Path, name: str) -> None:
    ours = config.as_dict()
    for field, value in theirs.items():
        if value is not None and field in ours and value != ours[field]:
            raise DataError(
                f"{folder} is of another size than {name}: its {field} is {value}, not {ours[field]}.",
                hint=f"take a checkpoint of its size, or a student of the checkpoint's: madkit students show {name}",
            )


def _check_words(weights: Weights, tokenizer: StudentTokenizer, source: str) -> None:
    if len(tokenizer) != weights.config.vocab_size:
        raise DataError(
            f"{source}: its tokenizer has {len(tokenizer)} words, its weights {weights.config.vocab_size}.",
            hint="put the tokenizer's files of the same checkpoint beside its weights",
        )


def assemble(
    family: Family,
    name: str,
    weights: Weights,
    tokenizer: StudentTokenizer,
    identity: StudentIdentity,
    source: str,
    *,
    region_dim: int | None,
    head: HeadSpec | None,
    seed: int,
) -> Beginning:
    """A student of a family with the weights that were read, and the rest drawn from `seed`.

    Raises DataError where weights have no place in it or another shape.
    """
    config: Any = weights.config
    if region_dim is not None and region_dim != config.region_dim:
        config = replace(config, region_dim=region_dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("student", name, seed))
        encoder = family.model(config)
        student = Student(encoder, family.make_head(config, head or weights.head or _NO_HEAD), tokenizer, identity)
    own = encoder.state_dict()
    given = weights.encoder
    for key, value in given.items():
        if key not in own:
            raise DataError(f"{source}: {key} has no place in {name}.")
        if own[key].shape != value.shape:
            if region_dim is not None and region_dim != weights.config.region_dim:
                raise DataError(
                    f"{source} was made for region features of {weights.config.region_dim} values; the data has "
                    f"{region_dim}.", hint="use the features that it was trained on",
                )  # fmt: skip
            raise DataError(f"{source}: {key} is {tuple(value.shape)}, in {name} {tuple(own[key].shape)}.")
    encoder.load_state_dict(given, strict=False)
    if weights.head is not None and head in (None, weights.head):
        student.head.load_state_dict(weights.head_state)
    drawn = tuple(key for key in own if key not in given)
    return Beginning(student.eval(), source, tuple(given), drawn, weights.left)
