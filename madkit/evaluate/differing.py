"""Test scenes for the gallery of a report: drawn by lot, and those that two arms answer differently.

Of the second kind there are as many won as lost, so that they say nothing of who is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from madkit.core import archives
from madkit.core.errors import MadkitError
from madkit.core.files import read_jsonl
from madkit.core.seeds import permutation
from madkit.evaluate.grid import Group, Run, find_baseline, find_runs, group_runs
from madkit.evaluate.origin import find_data
from madkit.evaluate.protocol import Protocol as EvaluationProtocol
from madkit.evaluate.report.gallery import GalleryItem
from madkit.evaluate.report.text import shots_name
from madkit.evaluate.stage import predictions_path
from madkit.regions.declared import DeclaredBoxes, placed
from madkit.tasks.picture import numbered

if TYPE_CHECKING:
    from PIL import Image

    from madkit.core.workspace import Workspace
    from madkit.evaluate.results import Results, Row, Source
    from madkit.tasks.data import TaskData
    from madkit.tasks.example import Example, Segment

BY_LOT = 4
OF_EACH_KIND = 2
WIDTH = 480
MOST_BOXES = 12
MOST_COLOURS = 256  # a photograph as a PNG of all its colours would be a third of a megabyte

Answers = Mapping[str, Mapping[str, Any]]
Box = tuple[float, float, float, float]
LOT = "Drawn by lot"


class Chosen(Protocol):
    """What adaptive selection keeps of an example (look.selected.Selected)."""

    @property
    def regions(self) -> Sequence[int]:
        """Indices of the kept boxes."""

    @property
    def patches(self) -> Sequence[Box]:
        """Kept patches in shares of the image, where there are no boxes."""

    @property
    def spans(self) -> Mapping[str, Sequence[tuple[int, int]]]:
        """Text -> characters of its kept words."""


# (data, flat settings of the run that is shown, example, its boxes in shares of the image) -> the kept tokens
Chooser = Callable[["TaskData", Mapping[str, Any], "Example", Sequence[Box]], "Chosen | None"]


@dataclass(frozen=True)
class _Pair:
    """The arm with the largest gain, its baseline (or nobody), and what both answered in-domain with one seed."""

    source: Source
    row: Row
    data: TaskData
    labels: tuple[str, ...]
    answers: tuple[Answers, ...]
    settings: Mapping[str, Any]
    note: str


def gallery_scenes(workspace: Workspace, results: Results, choose: Chooser | None = None) -> list[GalleryItem]:
    """Per source up to four in-domain questions by lot, and those of `differing_scenes`.

    Args:
        workspace: holds the runs with their answers, and the data.
        results: what the page shows.
        choose: says which teacher tokens adaptive selection keeps; without it, and where it does not know, the scenes
            are shown without.

    What cannot be read (an image, data that is gone) is left out.
    """
    items: list[GalleryItem] = []
    for pair, examples in _pairs(workspace, results):
        differing = _drawn(examples, *pair.answers) if len(pair.answers) == 2 else ([], [])
        taken = {example.id for part in differing for example in part}
        drawn = (examples[int(place)] for place in permutation(len(examples), "gallery, by lot"))
        lot = (one for one in drawn if one.id not in taken and all(one.id in answers for answers in pair.answers))
        items += _shown(pair, list(islice(lot, BY_LOT)), LOT, choose)
        items += _of_pair(pair, *differing, choose)
    return items


def differing_scenes(workspace: Workspace, results: Results, choose: Chooser | None = None) -> list[GalleryItem]:
    """Per source up to two questions that the arm with the largest gain wins over its baseline, and as many it loses.

    In-domain, of the first seed that both have. What cannot be read (an image, data that is gone) is left out.
    """
    items: list[GalleryItem] = []
    for pair, examples in _pairs(workspace, results):
        if len(pair.answers) == 2:
            items += _of_pair(pair, *_drawn(examples, *pair.answers), choose)
    return items


def _pairs(workspace: Workspace, results: Results) -> Iterator[tuple[_Pair, Sequence[Example]]]:
    """Of every source the two arms to show, one alone where it has no comparison, and the questions of the suite.

    A source whose data or answers are damaged has none: its figures are in the table all the same.
    """
    if not results.rows:
        return
    try:
        groups = group_runs(find_runs(workspace, EvaluationProtocol.model_validate(results.settings))[0])
    except (MadkitError, ValueError):  # the runs are gone, or the document is of another madkit
        return
    for source in results.sources:
        rows = [
            row
            for row in results.rows
            if (row.source, row.revision) == (source.name, source.revision)
            and row.headline
            and row.suite == source.suites[0]
        ]
        compared = [row for row in rows if row.difference is not None]
        best = max(compared, key=lambda row: row.difference.mean if row.difference is not None else 0.0, default=None)
        row = best or next(iter(rows), None)
        try:
            pair = None if row is None else _pair(workspace, source, row, groups, str(results.settings.get("baseline")))
            examples = () if pair is None else pair.data.examples(pair.row.suite)
        except MadkitError:
            continue
        if pair is not None:
            yield pair, examples


def _pair(workspace: Workspace, source: Source, row: Row, groups: Sequence[Group], baseline: str) -> _Pair | None:
    ours = next((group for group in groups if _is_of(group, row)), None)
    data = None if ours is None else find_data(workspace, ours.first)
    if ours is None or data is None:
        return None
    shown = [ours]
    seed = row.seeds[0]
    if row.difference is not None:
        theirs = find_baseline(ours, groups, baseline)
        if theirs is None:
            return None
        shown = [theirs, ours]
        seed = row.difference.seeds[0]
    answers: list[Answers] = []
    for group in shown:
        run = next((run for run in group.runs if run.seed == seed), None)
        path = None if run is None else predictions_path(run, row.suite)
        if path is None or not path.is_file():
            return None
        answers.append({str(one["id"]): one for one in read_jsonl(path)})
    return _Pair(
        source=source,
        row=row,
        data=data,
        labels=tuple(group.label for group in shown),
        answers=tuple(answers),
        settings=_selecting([ours, *(group for group in groups if _beside(group, row))]),
        note=f"{shots_name(row.shots)}, seed {seed}",
    )


def _is_of(group: Group, row: Row) -> bool:
    return _beside(group, row) and group.label == row.label


def _beside(group: Group, row: Row) -> bool:
    run = group.first
    return (run.source, run.revision, run.student, run.shots) == (row.source, row.revision, row.student, row.shots)


def _selecting(groups: Sequence[Group]) -> Mapping[str, Any]:
    """Settings of the first arm that selects tokens; of the first, where none does."""
    runs: list[Run] = [group.first for group in groups]
    for run in runs:
        if run.config.get("mad.tokens") == "adaptive" and run.config.get("mad.weight"):
            return run.config
    return next((run.config for run in runs if run.config.get("cache_key")), runs[0].config)


def _drawn(examples: Sequence[Example], theirs: Answers, ours: Answers) -> tuple[list[Example], list[Example]]:
    """Equally many examples that the second wins and that it loses, two of each at most, by a fixed lot."""
    won: list[int] = []
    lost: list[int] = []
    for index, example in enumerate(examples):
        if example.id in theirs and example.id in ours:
            gap = float(ours[example.id]["score"]) - float(theirs[example.id]["score"])
            (won if gap > 0 else lost if gap < 0 else []).append(index)
    count = min(len(won), len(lost), OF_EACH_KIND)

    def some(members: Sequence[int], name: str) -> list[Example]:
        return [examples[members[int(at)]] for at in permutation(len(members), f"gallery, {name}")[:count]]

    return some(won, "won"), some(lost, "lost")


def _of_pair(
    pair: _Pair, won: Sequence[Example], lost: Sequence[Example], choose: Chooser | None
) -> Iterator[GalleryItem]:
    yield from _shown(pair, [*won, *lost], f"Where {' and '.join(pair.labels)} differ", choose)


def _shown(pair: _Pair, examples: Sequence[Example], group: str, choose: Chooser | None) -> Iterator[GalleryItem]:
    for example in examples:
        item = _item(pair, example, group, choose)
        if item is not None:
            yield item


def _item(pair: _Pair, example: Example, group: str, choose: Chooser | None) -> GalleryItem | None:
    from PIL import Image

    try:
        with Image.open(BytesIO(archives.read_bytes(example.image.path))) as opened:
            declared = DeclaredBoxes(example.boxes, (example.width, example.height))
            turned, corners = placed(opened, declared, str(example.image.path))
            picture = turned.convert("RGB")
    except (MadkitError, OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError):
        return None
    scale = min(1.0, WIDTH / picture.width)
    sides = (picture.width, picture.height) * 2
    boxes = [_corners(box, sides) for box in corners.tolist()]
    if not boxes:
        try:
            regions = pair.data.regions(pair.row.suite)
            boxes = [] if regions is None else [_four(box) for box in regions.get(example.image.id).boxes.tolist()]
        except MadkitError:
            return None
    kept = None if choose is None else choose(pair.data, pair.settings, example, boxes)
    small = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    width, height = small.size

    def pixels(box: Box) -> Box:
        return box[0] * width, box[1] * height, box[2] * width, box[3] * height

    chosen = () if kept is None else kept.regions
    places = _worth_drawing(len(boxes), chosen, example)
    text, text_spans = _marked(example.context, kept)
    right = None if example.label is None or not example.candidates else example.candidates[example.label]
    data = pair.data
    given = {label: answers[example.id] for label, answers in zip(pair.labels, pair.answers, strict=True)}
    return GalleryItem(
        image_png=_png(small),
        boxes=[pixels(boxes[place]) for place in places],
        labels=[str(place + 1) for place in places],
        text=text,
        truth=_truth(data, example),
        answers={label: _words(data, example, one["prediction"]) for label, one in given.items()},
        selected_regions=[places.index(place) for place in chosen if place in places],
        selected_spans=text_spans,
        selected_patches=[] if kept is None else [pixels(patch) for patch in kept.patches],
        truth_spans=[] if right is None else _marked([right], kept)[1],
        candidates=[numbered(choice) for choice in example.candidates] or list(data.spec.labels),
        chances={label: _chances(one) for label, one in given.items()},
        scores={label: float(one["score"]) for label, one in given.items()},
        suite=pair.row.suite,
        source=pair.source.name,
        is_mini=pair.source.is_mini,
        note=pair.note,
        group=group,
    )


def _png(picture: Image.Image) -> bytes:
    if picture.getcolors(MOST_COLOURS) is None:
        picture = picture.quantize(MOST_COLOURS)
    out = BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()


def _corners(box: Sequence[float], sides: tuple[int, int, int, int]) -> Box:
    """Pixel corners in shares of the image."""
    return _four([value / side for value, side in zip(box, sides, strict=True)])


def _four(values: Sequence[float]) -> Box:
    x1, y1, x2, y2 = (float(value) for value in values)
    return x1, y1, x2, y2


def _worth_drawing(count: int, kept: Sequence[int], example: Example) -> list[int]:
    """Which of many boxes are drawn: those that a text names, those that are kept, and the first ones, 12 at most."""
    named = [box for segment in (*example.context, *example.candidates) for tag in segment.tags for box in tag.boxes]
    order = dict.fromkeys(place for place in (*named, *kept, *range(count)) if 0 <= place < count)
    return sorted(list(order)[:MOST_BOXES])


def _marked(segments: Sequence[Segment], kept: Chosen | None) -> tuple[str, list[tuple[int, int]]]:
    """The texts as the page writes them, boxes numbered, one behind the other, and the kept words in that text."""
    spans: list[tuple[int, int]] = []
    texts: list[str] = []
    at = 0
    for segment in segments:
        shown = numbered(segment)
        for start, end in () if kept is None else kept.spans.get(segment.text, ()):
            while start < end and segment.text[start].isspace():
                start += 1
            while end > start and segment.text[end - 1].isspace():
                end -= 1
            if start < end:
                spans.append((at + start + _inserted(segment, start), at + end + _inserted(segment, end - 1)))
        texts.append(shown)
        at += len(shown) + 1
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):  # pieces of one word are one mark
        if joined and start <= joined[-1][1]:
            start, end = joined[-1][0], max(joined.pop()[1], end)
        joined.append((start, end))
    return " ".join(texts), joined


def _inserted(segment: Segment, place: int) -> int:
    """How many characters of box numbers `numbered` writes before the character at `place`."""
    return sum(len(", ".join(str(box + 1) for box in tag.boxes)) + 3 for tag in segment.tags if tag.end <= place)


def _chances(answer: Mapping[str, Any]) -> tuple[float, ...]:
    """Probabilities of all choices, or of the answer alone (VQA); nothing where they were not kept."""
    if isinstance(answer["prediction"], str):
        sure = answer.get("confidence")
        return () if sure is None else (float(sure),)
    logits = [float(value) for value in answer["logits"]]
    weights = [math.exp(value - max(logits)) for value in logits]
    return tuple(weight / sum(weights) for weight in weights)


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
