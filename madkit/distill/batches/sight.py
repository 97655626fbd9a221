"""What a run's student sees with, and where its first weights come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from madkit.cache import TokenCache, choose_cache
from madkit.cache.token_regions import TokenRegions
from madkit.core.errors import CacheError
from madkit.core.files import read_json
from madkit.core.workspace import Workspace
from madkit.regions import RegionReader
from madkit.students.counterpart import clip_vil_family, counterpart_folder
from madkit.students.families import Family, Visual, family_of, parse_name
from madkit.students.load import CONFIG, student_folder, student_names
from madkit.students.start import starting_folder
from madkit.tasks.data import TaskData


def sight_of(folder: Path) -> Visual:
    """What the student in a folder sees with: a detector's regions, pixels, or a teacher's tokens."""
    return family_of(str(read_json(folder / CONFIG)["family"])).visual


def regions_seen(sight: Visual, data: TaskData, cache: TokenCache | None) -> RegionReader | None:
    """The data's region features, or the tokens of `cache` for a student that sees with a teacher's eyes.

    Raises CacheError where that cache keeps no image tokens.
    """
    if sight != "teacher" or cache is None:
        return data.regions()
    if not cache.images.has_tokens:
        task = data.spec.name if data.is_mini else data.name
        raise CacheError(
            f"The cache {cache.path.name} keeps no image tokens, and the student sees with them.",
            hint=f"extract them: madkit extract --teacher {cache.teacher} --task {task}",
        )
    return TokenRegions(cache)


def kept_start(workspace: Workspace, student: str | Path | None) -> str | Path | None:
    """`student`, or the folder of first weights in the workspace that has this name: reports call students by it."""
    if not isinstance(student, str) or student in student_names() or Path(student).name != student:
        return student
    kept = workspace.root / "students" / student
    return kept if (kept / CONFIG).is_file() and not (Path(student) / CONFIG).is_file() else student


def sees_with(student: str) -> Visual:
    """What a student, given by name or folder, sees with."""
    family = _family(student)
    return "regions" if family is None else family.visual


def _family(student: str) -> Family | None:
    if student in student_names() or (Path(student) / CONFIG).is_file():
        return family_of(str(read_json(student_folder(student) / CONFIG)["family"]))
    parsed = parse_name(student)
    return None if parsed is None else family_of(parsed[0])


@dataclass(frozen=True, slots=True)
class Start:
    """What training begins with: `source` is a name or folder with first weights, `name` what the student is called."""

    source: str
    name: str


def beginning(
    workspace: Workspace,
    student: str,
    init: str | None,
    data: TaskData,
    teacher: str | None,
    visual_input: Literal["own", "teacher"] = "own",
) -> Start:
    """`student` where it has weights, else the folder in the workspace where its first ones lie.

    With the teacher's tokens as its visual input a student of regions begins as its clip-vil counterpart, under its own
    name: the arm says how it sees.

    Raises as `students.start.new_student` and `students.counterpart.counterpart`; CacheError or NotFoundError where it
    sees with a teacher whose cache is not there.
    """
    family, sight = _family(student), sees_with(student)
    if visual_input == "teacher" and sight != "teacher" and family is not None:
        clip_vil_family(family, student)  # refuses before anything is made
    source = student
    if student not in student_names() and not (Path(student) / CONFIG).is_file():
        dim: int | None = None
        if sight == "teacher":
            with choose_cache(workspace, data, teacher) as cache:
                dim = cache.images.dim
        elif sight == "regions":
            regions = data.regions()
            dim = None if regions is None else regions.dim
        source = str(starting_folder(workspace.root / "students", student, init=init, region_dim=dim))
    name = source if source in student_names() else student_folder(source).name
    if visual_input == "teacher" and sight != "teacher":
        with choose_cache(workspace, data, teacher) as cache:
            source = str(counterpart_folder(workspace.root / "students", source, cache.images.dim))
    return Start(source, name)
