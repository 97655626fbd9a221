"""Test scenes that two arms answer differently, for the gallery of a report: as many won as lost, drawn by lot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from madkit.core import archives
from madkit.core.errors import MadkitError
from madkit.core.files import read_jsonl
from madkit.core.seeds import permutation
from madkit.evaluate.grid import Group, find_baseline, find_runs, group_runs
from madkit.evaluate.origin import find_data
from madkit.evaluate.protocol import Protocol
from madkit.evaluate.report.gallery import GalleryItem
from madkit.evaluate.stage import predictions_path
from madkit.tasks.picture import numbered

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace
    from madkit.evaluate.results import Results, Row, Source
    from madkit.tasks.data import TaskData
    from madkit.tasks.example import Example

OF_EACH_KIND = 2
WIDTH = 480
MOST_BOXES = 12

Answers = Mapping[str, Mapping[str, Any]]


def differing_scenes(workspace: Workspace, results: Results) -> list[GalleryItem]:
    """Per source up to two questions that the arm with the largest gain wins over its baseline, and as many it loses.

    In-domain, of the first seed that both have. What cannot be read (an image, data that is gone) is left out.
    """
    if not results.rows:
        return []
    groups = group_runs(find_runs(workspace, Protocol.model_validate(results.settings))[0])
    items: list[GalleryItem] = []
    for source in results.sources:
        rows = [
            row
            for row in results.rows
            if (row.source, row.revision) == (source.name, source.revision)
            and row.headline
            and row.suite == source.suites[0]
            and row.difference is not None
        ]
        best = max(rows, key=lambda row: row.difference.mean if row.difference is not None else 0.0, default=None)
        if best is not None:
            items += _of_source(workspace, source, best, groups, str(results.settings.get("baseline")))
    return items


def _of_source(
    workspace: Workspace, source: Source, row: Row, groups: Sequence[Group], baseline: str
) -> list[GalleryItem]:
    ours = next(
        group
        for group in groups
        if (*group.first.table, group.first.student, group.first.shots, group.label)
        == (row.source, row.revision, row.student, row.shots, row.label)
    )
    theirs = find_baseline(ours, groups, baseline)
    data = find_data(workspace, ours.first)
    if theirs is None or data is None or row.difference is None:
        return []
    seed = row.difference.seeds[0]
    answers: list[Answers] = []
    for group in (theirs, ours):
        run = next(run for run in group.runs if run.seed == seed)
        answers.append({str(one["id"]): one for one in read_jsonl(predictions_path(run, row.suite))})
    items = []
    for example in _drawn(data.examples(row.suite), *answers):
        said = {
            theirs.label: _words(data, example, answers[0][example.id]["prediction"]),
            ours.label: _words(data, example, answers[1][example.id]["prediction"]),
        }
        item = _item(data, source, row, example, said, f"{row.shots}, seed {seed}")
        if item is not None:
            items.append(item)
    return items


def _drawn(examples: Sequence[Example], theirs: Answers, ours: Answers) -> list[Example]:
    """Equally many examples that the second wins and that it loses, two of each at most, by a fixed lot."""
    won: list[int] = []
    lost: list[int] = []
    for index, example in enumerate(examples):
        if example.id in theirs and example.id in ours:
            gap = float(ours[example.id]["score"]) - float(theirs[example.id]["score"])
            (won if gap > 0 else lost if gap < 0 else []).append(index)
    count = min(len(won), len(lost), OF_EACH_KIND)
    chosen = [
        members[int(place)]
        for name, members in (("won", won), ("lost", lost))
        for place in permutation(len(members), f"gallery, {name}")[:count]
    ]
    return [examples[index] for index in chosen]


def _words(data: TaskData, example: Example, prediction: Any) -> str:
    if isinstance(prediction, str):
        return prediction
    if example.candidates:
        return numbered(example.candidates[int(prediction)])
    return data.spec.labels[int(prediction)]


def _truth(data: TaskData, example: Example) -> str:
    if example.label is not None:
        return _words(data, example, example.label)
    answers = example.answers or {}
    return example.main_answer or max(answers, key=lambda answer: answers[answer], default="")


def _item(
    data: TaskData, source: Source, row: Row, example: Example, answers: dict[str, str], note: str
) -> GalleryItem | None:
    from PIL import Image

    try:
        with Image.open(BytesIO(archives.read_bytes(example.image.path))) as opened:
            picture = opened.convert("RGB")
    except (MadkitError, OSError):
        return None
    scale = min(1.0, WIDTH / picture.width)
    boxes = list(example.boxes)[:MOST_BOXES]
    if not boxes:
        regions = data.regions(row.suite)
        if regions is not None:
            sides = (picture.width, picture.height) * 2
            found = regions.get(example.image.id).boxes[:MOST_BOXES].tolist()
            boxes = [(a * sides[0], b * sides[1], c * sides[2], d * sides[3]) for a, b, c, d in found]
    small = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    out = BytesIO()
    small.save(out, "PNG", optimize=True)
    return GalleryItem(
        image_png=out.getvalue(),
        boxes=[(a * scale, b * scale, c * scale, d * scale) for a, b, c, d in boxes],
        labels=[str(number + 1) for number in range(len(boxes))],
        text=" ".join(map(numbered, example.context)),
        truth=_truth(data, example),
        answers=answers,
        candidates=[numbered(choice) for choice in example.candidates],
        suite=row.suite,
        source=source.name,
        is_mini=source.is_mini,
        note=note,
    )
