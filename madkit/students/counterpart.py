"""A student of regions, turned into its clip-vil counterpart: the same network with the same weights, but that a
teacher's tokens go in where a detector's features did. Whatever maps these to the network's width starts afresh, also
where the widths are equal: it was learnt for other features. Positions, norms and layers above it stay.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from madkit.core.errors import UsageProblem
from madkit.core.files import digest_of, read_json, sha256_file
from madkit.students.checkpoints import read_folder_state
from madkit.students.families import FAMILIES, Family, Weights, family_of
from madkit.students.load import CONFIG, WEIGHTS, student_folder
from madkit.students.start import Beginning, assemble, made_once
from madkit.students.student import StudentIdentity
from madkit.students.tokenizer import StudentTokenizer


def clip_vil_family(family: Family, student: str) -> Family:
    """The family with the network of `family` that sees with a teacher's tokens.

    Raises UsageProblem where there is none: a student of pixels has no regions that tokens could take the place of.
    """
    for name in FAMILIES.names():
        other = family_of(name)
        if other.visual == "teacher" and other.model is family.model:
            return other
    able = [name for name in FAMILIES.names() if family_of(name).visual == "regions"]
    raise UsageProblem(
        f"The student {student} ({family.name}) sees the pixels themselves, so a teacher's tokens cannot take the "
        "place of its regions.",
        hint=f"take a student of regions: {', '.join(able)}",
    )


def feature_tensors(family: Family, config: Any) -> set[str]:
    """Names of the encoder's tensors that depend on the width of the visual features, and of their modules' others."""
    with torch.device("meta"):  # shapes alone: nothing is computed or held
        one = family.model(config).state_dict()
        other = family.model(replace(config, region_dim=config.region_dim + 1)).state_dict()
    modules = {name.rpartition(".")[0] for name in one if one[name].shape != other[name].shape}
    return {name for name in one if name.rpartition(".")[0] in modules}


def counterpart(source: str | Path, dim: int, *, seed: int = 0) -> Beginning:
    """The clip-vil counterpart of a student, without a head of its own, for teacher tokens of `dim` values.

    Raises:
        UsageProblem: it sees with pixels.
        NotFoundError, DataError: there is no such student, or its files are damaged.
    """
    folder = student_folder(source)
    described = read_json(folder / CONFIG)
    family, name = family_of(str(described["family"])), str(described.get("name", folder.name))
    other = clip_vil_family(family, name)
    own = family.config(**described["encoder"])
    fresh = feature_tensors(family, own)
    state = {
        key.removeprefix("encoder."): value
        for key, value in read_folder_state(folder).items()
        if key.startswith("encoder.")
    }
    kept = {key: value for key, value in state.items() if key not in fresh}
    identity = StudentIdentity(f"{name}-clip-vil", other.name, sha256_file(folder / WEIGHTS)[:16])
    return assemble(
        other,
        identity.name,
        Weights(replace(own, region_dim=dim), kept, tuple(sorted(fresh))),  # type: ignore[type-var]
        StudentTokenizer.from_folder(folder, lowercase=described.get("lowercase")),
        identity,
        name,
        region_dim=None,
        head=None,
        seed=seed,
    )


def counterpart_folder(root: Path, source: str | Path, dim: int) -> Path:
    """The folder of a student's counterpart: made in `root` once, found there afterwards. Raises as `counterpart`."""
    folder = student_folder(source)
    key = digest_of([sha256_file(folder / WEIGHTS), sha256_file(folder / CONFIG), dim])[:8]
    path = root / f"{folder.name.replace('_', '-')}-clip-vil-{key}"
    return made_once(path, lambda: counterpart(source, dim))
