"""What there is to extract: every image file and every text of a task, once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from madkit.core.archives import Listing
from madkit.core.errors import DataError, UsageProblem
from madkit.core.registry import suggest
from madkit.tasks.example import Example
from madkit.tasks.spec import TaskSpec
from madkit.teachers.interface import Teacher


class ExamplesOfTask(Protocol):
    """What extraction needs of a task's data (see :class:`madkit.tasks.data.TaskData`)."""

    spec: TaskSpec
    source: str
    revision: str

    def own_splits(self) -> list[str]:
        """Names of the splits and suites that came with the data."""

    def suites(self) -> list[str]:
        """Names of all test suites."""

    def submissions(self) -> list[str]:
        """Names of the test sets without labels."""

    def examples(self, name: str, /) -> Sequence[Example]:
        """Examples of a split or suite."""


@dataclass(frozen=True, slots=True)
class Items:
    """Unique images and texts, in order of first appearance: what is read together lies together.

    Attributes:
        image_ids: one id per image file.
        image_paths: the files.
        aliases: further ids of the same files, by row.
        texts: unique texts.
        not_there: image files that do not exist, by row.
        mentions: how often the examples name an image, and a text.
    """

    image_ids: tuple[str, ...]
    image_paths: tuple[Path, ...]
    aliases: dict[str, int]
    texts: tuple[str, ...]
    not_there: dict[int, str] = field(default_factory=dict)
    mentions: tuple[int, int] = (0, 0)


def split_names(data: ExamplesOfTask, wanted: Iterable[str] | None) -> list[str]:
    """Return the splits and suites to read (UsageProblem for a name that does not exist).

    None means what came with the data: a suite that is added later must not change what a cache is to hold, and an
    official test set is never trained on.
    """
    if wanted is None:
        return data.own_splits()
    names = list(dict.fromkeys([*data.own_splits(), *data.suites(), *data.submissions()]))
    chosen = list(wanted)
    for name in chosen:
        if name not in names:
            raise UsageProblem(
                f"{data.source} has no split named '{name}'.{suggest(name, names)}",
                hint=f"use some of: {', '.join(names)}",
            )
    return [name for name in names if name in chosen]


def collect_items(data: ExamplesOfTask, splits: Sequence[str], teacher: Teacher) -> Items:
    """Gather the unique images and texts of some splits, as far as the teacher reads them.

    Raises:
        DataError: one image id names two files, or not one image file exists (count and the first five).
    """
    if teacher.vision is None:  # then it does not matter whether the images are there
        every = [text for split in splits for example in data.examples(split) for text in example.texts()]
        return Items((), (), {}, tuple(dict.fromkeys(every)), mentions=(0, len(every)))
    row_of_path: dict[Path, int] = {}
    row_of_id: dict[str, int] = {}
    ids: list[str] = []
    aliases: dict[str, int] = {}
    texts: dict[str, None] = {}
    seen = heard = 0
    for split in splits:
        for example in data.examples(split):
            image = example.image
            seen += 1
            row = row_of_path.setdefault(image.path, len(row_of_path))
            if row == len(ids):
                ids.append(image.id)
            elif image.id != ids[row]:
                aliases[image.id] = row
            if row_of_id.setdefault(image.id, row) != row:
                raise DataError(
                    f"{data.source}: the image id '{image.id}' names two files, {image.path} is the second."
                )
            if teacher.text is not None:
                said = example.texts()
                heard += len(said)
                texts.update(dict.fromkeys(said))
    paths = tuple(row_of_path)
    listing = Listing()
    not_there = {row: f"{path} does not exist" for row, path in enumerate(paths) if not listing.exists(path)}
    if paths and len(not_there) == len(paths):  # a folder that has moved, not a few lost files
        raise DataError(
            f"{_cannot_be_read(list(not_there.values()), len(paths))}.",
            hint="put the images back where they were, or import the data again",
        )
    return Items(tuple(ids), paths, aliases, tuple(texts), not_there, (seen, heard))


class ItemsMissing(DataError):
    """Some images cannot be read, or some texts are empty; everything else is done.

    Attributes:
        facts: for programs: how many `images` and `texts` have no values, and the file (`listed`) that names them.
    """

    facts: Mapping[str, Any] = MappingProxyType({})


def items_missing(
    images: Sequence[str], n_images: int, texts: Sequence[str], n_texts: int, where: Path
) -> ItemsMissing:
    """Return the failure for items without values.

    Args:
        images: what is wrong with each image that cannot be read.
        n_images: number of images.
        texts: what is wrong with each text that has no tokens.
        n_texts: number of texts.
        where: the file that lists all of them.
    """
    parts = [_cannot_be_read(images, n_images)] if images else []
    if texts:
        parts.append(
            f"{len(texts):,} of {n_texts:,} texts {'has' if len(texts) == 1 else 'have'} no tokens ({texts[0]})"
        )
    error = ItemsMissing(
        f"{', and '.join(parts)}.",
        hint=f"mend them (all are listed in {where}) and run the same command again, which redoes only their shards; "
        "or add --allow-missing to complete the cache without them",
    )
    error.facts = {"images": len(images), "texts": len(texts), "listed": str(where)}
    return error


def _cannot_be_read(errors: Sequence[str], total: int) -> str:
    more = "; ..." if len(errors) > 5 else ""
    return f"{len(errors):,} of {total:,} images cannot be read: {'; '.join(errors[:5])}{more}"
