"""What decides a student's numbers beside its weights: the settings of its network, and its tokenizer.

Runs of students that ship with madkit, or that it made by name, were named before this was a part of what names a run.
They keep their names, as long as nobody has changed what madkit wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from madkit.core.files import digest_of, read_json
from madkit.students.load import CONFIG, student_folder, student_names
from madkit.students.student import Student
from madkit.students.tokenizer import StudentTokenizer

BEGINNING = "beginning.json"  # beside first weights that madkit made by name


@dataclass(frozen=True, slots=True)
class Setup:
    """Of a student's folder.

    Attributes:
        digest: over its family, the settings of its network, casing and tokenizer.
        usual: whether it is what its name says: shipped with madkit, or made by it and left as it was.
    """

    digest: str
    usual: bool

    @property
    def own(self) -> str | None:
        """The digest where it says something that the name does not."""
        return None if self.usual else self.digest


def setup_in(folder: Path) -> Setup:
    """Of the student in a folder. Raises NotFoundError or DataError where it has no tokenizer that can be read."""
    config = read_json(folder / CONFIG)
    digest = _digest(config, _tokenizer(folder, config.get("lowercase"), _stamps(folder)))
    if folder in [student_folder(name) for name in student_names()]:
        return Setup(digest, usual=True)
    made = read_json(folder / BEGINNING) if (folder / BEGINNING).is_file() else None
    # a folder made before its digest was written down is taken for what madkit made
    return Setup(digest, usual=made is not None and made.get("setup", digest) == digest)


def setup_of(student: Student) -> str:
    """The digest that `setup_in` finds where the student is saved."""
    said = {
        "family": student.identity.family,
        "lowercase": student.tokenizer.lowercase,
        "encoder": student.encoder.config.as_dict(),
    }
    return _digest(said, student.tokenizer.digest)


def _digest(config: Mapping[str, Any], tokenizer: str) -> str:
    """Of what counts in a config: a run gives the student its own head, and names decide nothing."""
    return digest_of([*(config.get(key) for key in ("family", "lowercase", "encoder")), tokenizer])


@lru_cache(maxsize=64)
def _tokenizer(folder: Path, lowercase: bool | None, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """Digest of the tokenizer of a folder whose files are as they were: a sweep asks for the same again and again."""
    return StudentTokenizer.from_folder(folder, lowercase=lowercase).digest


def _stamps(folder: Path) -> tuple[tuple[str, int, int], ...]:
    found = sorted(path for path in folder.iterdir() if path.suffix in (".txt", ".json"))
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in found)
