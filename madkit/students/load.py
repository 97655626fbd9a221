"""Students by name or folder: loading, fresh heads, saving. Weights are safetensors only.

A student's folder holds `model.safetensors`, `config.json` (family, sizes, head, casing) and `vocab.txt` or, where
the text checkpoint it began with has byte pairs, `tokenizer.json`. `ORG/NAME` is such a folder on the Hugging Face hub.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from madkit.core.errors import DataError, MadkitError, NotFoundError, RunError, UsageProblem
from madkit.core.files import read_json, sha256_file, write_json_atomic
from madkit.core.hub_files import hub_folder
from madkit.core.registry import suggest
from madkit.students.families import FAMILIES, size_names
from madkit.students.heads import HeadKind, HeadSpec
from madkit.students.student import Student, StudentIdentity
from madkit.students.tokenizer import StudentTokenizer

WEIGHTS, CONFIG = "model.safetensors", "config.json"
# Students that ship with madkit: name -> folder beside this file.
SHIPPED = {"mini-uniter": "mini_uniter"}
# What of a repository on the hub is downloaded, and nothing else: none of it can hold code.
_WORDS = ("vocab.txt", "tokenizer.json")
_SMALL = (CONFIG, *_WORDS, "manifest.json", "labels.json", "answers.json")
# Two names with one slash, of the letters that the hub allows; no path that was mistyped begins with "." or "/".
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_ON_THE_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def student_names() -> list[str]:
    """Names that `load_student` knows besides folders."""
    return sorted(SHIPPED)


def on_the_hub(source: str | Path) -> bool:
    """Whether a student's name can only be one on the hub: `ORG/NAME`, and nothing of that name is on this disk."""
    return isinstance(source, str) and _ON_THE_HUB.fullmatch(source) is not None and not Path(source).exists()


def _is_bare_name(source: str | Path) -> bool:
    """Whether a student can only be one that madkit has a name for: no path, and nothing of that name on this disk."""
    return isinstance(source, str) and _NAME.fullmatch(source) is not None and not Path(source).exists()


def student_folder(source: str | Path) -> Path:
    """The folder of a student given by name, path or `ORG/NAME`, which is taken from the hub's cache or downloaded.

    A folder of that name on disk goes first.

    Raises:
        UsageProblem: it can only be a name, and is none; with the nearest one.
        NotFoundError: a path with no student, or nothing on the hub, with the reason.
    """
    if isinstance(source, str) and source in SHIPPED:
        return Path(__file__).parent / SHIPPED[source]
    folder = Path(source)
    if not (folder / CONFIG).is_file():
        if on_the_hub(source):
            return hub_folder(
                str(source),
                None,
                _SMALL,
                ([WEIGHTS],),
                complete=_is_whole,
                wanted=f"There is no folder '{source}', and the files of a student of that name on the hub",
                hint=f"on a machine with a network: hf download {source}, then copy the folder here",
            )
        known = [*student_names(), *(name for name in size_names() if name not in SHIPPED), *FAMILIES.names()]
        if str(source) in known:
            raise UsageProblem(
                f"The student '{source}' has no weights of its own: training starts it from a checkpoint.",
                hint=f"madkit distill --task vcr --student {source} (in Python: madkit.students.start.new_student)",
            )
        wrong = UsageProblem if _is_bare_name(source) else NotFoundError
        raise wrong(
            f"There is no student {str(source)!r}: neither a known name nor a folder with {CONFIG}."
            f"{suggest(str(source), known)}",
            hint=f"the student of this run: {Path(source) / 'student'}"
            if (Path(source) / "student" / CONFIG).is_file()
            else f"--student {student_names()[0]}",
        )
    return folder


def _is_whole(folder: Path) -> bool:
    words = any((folder / name).is_file() for name in _WORDS)
    return words and (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def load_student(source: str | Path, *, head: HeadSpec | None = None, head_seed: int = 0) -> Student:
    """Load a student by name ("mini-uniter"), from the folder of a trained one, or from the Hugging Face hub
    ("ORG/NAME"), in eval mode, on the CPU.

    `head`: what a fresh head shall decide between; its weights depend on `head_seed` alone. Without it the folder must
    hold a trained head.

    Raises:
        NotFoundError: no such name or folder, or the hub is out of reach and its local cache has no copy.
        DataError: the files do not fit each other, or there is no head and none was asked for.
    """
    folder = student_folder(source)
    config = read_json(folder / CONFIG)
    try:
        lowercase, name = bool(config["lowercase"]), str(config["name"])
        if config["family"] not in FAMILIES:
            raise DataError(f"{folder / CONFIG}: the student family {config['family']!r} is not known.")
        family = FAMILIES.get(config["family"])
        network = family.config(**config["encoder"])
        trained = HeadSpec.from_dict(config["head"]) if config.get("head") else None
        if trained is not None and trained.kind not in get_args(HeadKind):
            raise DataError(f"{folder / CONFIG}: the kind of head {trained.kind!r} is not known.")
    except (KeyError, TypeError) as error:
        other = isinstance(config, dict) and "model_type" in config
        raise DataError(
            f"{folder / CONFIG} does not describe a student ({error}).",
            hint=f"it is another model's: --student uniter-base --init {folder}" if other else None,
        ) from None
    tokenizer = StudentTokenizer.from_folder(folder, lowercase=lowercase)
    if len(tokenizer) != network.vocab_size:
        words = "vocab.txt" if tokenizer.is_word_piece else "tokenizer.json"
        raise DataError(f"{folder}: {words} has {len(tokenizer)} words, the network {network.vocab_size}.")
    state = _read_weights(folder / WEIGHTS)
    fresh = head is not None
    if fresh:
        state = {key: value for key, value in state.items() if not key.startswith("head.")}
    spec = head or trained
    if spec is None:
        raise DataError(f"The student {source} has no task head: it is pretrained, not fine-tuned.",
                        hint="madkit distill --task vcr --shots 1pct")  # fmt: skip
    identity = StudentIdentity(name, family.name, sha256_file(folder / WEIGHTS)[:16])
    with torch.random.fork_rng(devices=[]):  # the caller's random stream is not ours to use
        try:
            encoder = family.model(network)
            torch.manual_seed(head_seed)
            student = Student(encoder, family.make_head(network, spec), tokenizer, identity)
        except (MadkitError, MemoryError):
            raise
        except Exception as error:  # sizes that fit no network; each library refuses them in its own way
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise DataError(f"{folder / CONFIG} describes no network that can be made ({lines[-1]}).") from None
    _fill(student, state, folder / WEIGHTS, fresh_head=fresh)
    return student.eval()


def save_student(student: Student, folder: Path, *, with_head: bool = True) -> None:
    """Write a student's folder. Projection heads of a distillation are no part of a student, so none are saved."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in student.state_dict().items()}
    if not with_head:
        state = {k: v for k, v in state.items() if not k.startswith("head.")}
    temporary = folder / f"{WEIGHTS}.tmp"
    try:
        save_file(state, temporary)
    except SafetensorError as error:  # what the library makes of a full disk
        temporary.unlink(missing_ok=True)
        raise RunError(
            f"{folder / WEIGHTS} cannot be written ({error}).", hint="free some space and run the same command again"
        ) from None
    temporary.replace(folder / WEIGHTS)
    student.tokenizer.save(folder)
    config: dict[str, Any] = {
        "schema": 1,
        "name": student.identity.name,
        "family": student.identity.family,
        "pretrained_weights": student.identity.weights,
        "lowercase": student.tokenizer.lowercase,
        "encoder": student.encoder.config.as_dict(),
        "head": student.head_spec.as_dict() if with_head else None,
    }
    write_json_atomic(folder / CONFIG, config)


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise NotFoundError(f"The student's weights {path} do not exist.")
    try:
        return {key: value.float() for key, value in load_file(path).items()}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not a safetensors file ({error}).") from None


def _fill(student: Student, state: dict[str, torch.Tensor], path: Path, *, fresh_head: bool) -> None:
    own = student.state_dict()
    missing = sorted(k for k in own if k not in state and not (fresh_head and k.startswith("head.")))
    unknown = sorted(k for k in state if k not in own)
    shapes = sorted(k for k in state if k in own and state[k].shape != own[k].shape)
    if missing or unknown or shapes:
        kinds = (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        problems = "; ".join(f"{len(keys)} {kind} (first: {keys[0]})" for kind, keys in kinds if keys)
        raise DataError(f"{path} does not fit its config: {problems}.")
    student.load_state_dict(state, strict=False)
