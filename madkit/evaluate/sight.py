"""The regions that a run's student answers with: the data's, or its teacher's tokens where it sees with these.

A student of the clip-vil kind is the one thing in evaluation that needs a cache: it pays its teacher at inference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from madkit.core.errors import NotFoundError
from madkit.core.files import read_json

if TYPE_CHECKING:
    from pathlib import Path

    from madkit.core.workspace import Workspace
    from madkit.regions import RegionReader
    from madkit.tasks.data import TaskData

CONFIG = "config.json"


@contextmanager
def regions_of_run(
    workspace: Workspace, student: Path, cache_key: str, data: TaskData, suite: str
) -> Iterator[RegionReader | None]:
    """Open what the student in a folder sees with on a split or suite.

    Args:
        workspace: where caches lie.
        student: folder of the exported student.
        cache_key: name of the cache that the run was trained against; of several the first is what it sees with.
        data: the data of the run.
        suite: a split or suite of it.

    Raises:
        NotFoundError, CacheError: the student sees with a teacher whose cache is gone or damaged.
    """
    from madkit.students.families import FAMILIES

    family = read_json(student / CONFIG).get("family")  # an unknown one is for the loading of the student to refuse
    if family not in FAMILIES or FAMILIES.get(family).visual != "teacher":
        yield data.regions(suite)
        return
    from madkit.cache import TokenCache
    from madkit.cache.manage import find_store
    from madkit.cache.token_regions import TokenRegions

    cache_key = cache_key.partition(", ")[0]
    try:
        store = find_store(workspace, cache_key)[0]
    except NotFoundError:
        task = data.spec.name if data.is_mini else data.name
        teacher = cache_key.partition(f"-{data.source}-")[0]
        raise NotFoundError(
            f"The student {student} sees with its teacher's tokens, and their cache {cache_key} is gone.",
            hint=f"make it again, as it was: madkit extract --teacher {teacher} --task {task}",
        ) from None
    with TokenCache.open(store) as cache:
        yield TokenRegions(cache)
