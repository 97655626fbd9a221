"""From examples to a student's tensors: token ids, types, spans and tag links.

The order of texts, their types and names are the family's (`text_style`). Text that exceeds the limit is shortened by
taking the last token off the longest segment until it fits (of equally long ones off the first); how many tokens went
is counted. No item is ever dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from madkit.regions import Regions
from madkit.students.interface import StudentInputs
from madkit.students.text_style import Body, TextStyle, rewrite, segment_plan
from madkit.students.tokenizer import StudentTokenizer
from madkit.tasks.example import Example, Segment

# UNITER's: `[CLS] q [SEP] a [SEP] r [SEP]` with types 0, 2 and 3 (type 1 is the regions'); nobody gets a name.
UNITER_TEXT = TextStyle(segment_plan((0, 2, 3), sep_follows=True))
_LEAST_OVERLAP = 0.5


@dataclass(frozen=True, slots=True)
class EncodedSequence:
    """One text sequence. Arrays have one entry a token; special tokens have segment -1 and span (-1, -1)."""

    ids: npt.NDArray[np.int64]
    types: npt.NDArray[np.int64]
    segment: npt.NDArray[np.int64]  # index into `texts`
    spans: npt.NDArray[np.int64]  # [T, 2] characters in that text
    tag_box: npt.NDArray[np.int64]  # index into Example.boxes, -1 none
    ends: npt.NDArray[np.int64]  # one entry a text: position of the special token that closes it
    texts: tuple[str, ...]
    shortened: int


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """An example as token arrays: one sequence a candidate (one in all for tasks without candidates)."""

    id: str
    image_id: str
    sequences: tuple[EncodedSequence, ...]
    boxes: npt.NDArray[np.float32]  # [n, 4] normalised, of the example's own boxes (VCR)

    @property
    def tokens(self) -> int:
        """Text tokens of its longest sequence."""
        return max(len(sequence.ids) for sequence in self.sequences)


def encode_example(
    example: Example, tokenizer: StudentTokenizer, max_length: int, style: TextStyle = UNITER_TEXT
) -> EncodedExample:
    """Encode an example for a student that places at most `max_length` text tokens."""
    tails: Sequence[tuple[Segment, ...]] = [(c,) for c in example.candidates] or [()]
    names = style.naming(example) if style.naming is not None else [{}] * len(tails)
    known: _Read = {}  # the candidates share their context, which is read once
    sequences = tuple(
        encode_segments(
            (*example.context, *tail), tokenizer, max_length, style, candidate=bool(tail), names=called, known=known
        )
        for tail, called in zip(tails, names, strict=True)
    )
    boxes = np.asarray(example.boxes, dtype=np.float32).reshape(-1, 4)
    if len(boxes):
        boxes /= np.asarray([example.width, example.height] * 2, dtype=np.float32)
    return EncodedExample(example.id, example.image.id, sequences, boxes)


def encode_segments(
    segments: Sequence[Segment],
    tokenizer: StudentTokenizer,
    max_length: int,
    style: TextStyle = UNITER_TEXT,
    *,
    candidate: bool = False,
    names: Mapping[int, str] | None = None,
    known: _Read | None = None,
) -> EncodedSequence:
    """The sequence of some segments, of which the last may be a candidate, with types, spans and tags.

    `known` remembers the segments of the same example that were read with the same tokenizer.
    """
    known = {} if known is None else known
    for segment in segments:
        if segment not in known:
            known[segment] = _read(segment, tokenizer, names or {})
    read = [known[segment] for segment in segments]
    plan = style.plan(len(segments) - candidate, candidate)
    keep = [len(one.ids) for one in read]
    shortened = max(0, sum(keep) + sum(not isinstance(part, Body) for part in plan) - max_length)
    for _ in range(shortened):
        keep[int(np.argmax(keep))] -= 1
    specials = {"cls": tokenizer.cls_id, "sep": tokenizer.sep_id, "mask": tokenizer.mask_id}
    ids, types, owner, tags = list[int](), list[int](), list[int](), list[int]()
    spans, ends, open_ = list[tuple[int, int]](), [-1] * len(segments), list[int]()
    for part in plan:
        if isinstance(part, Body):
            i = part.segment
            kept = keep[i]
            ids += read[i].ids[:kept]
            types += [part.type] * kept
            owner += [i] * kept
            spans += read[i].spans[:kept]
            tags += read[i].tags[:kept]
            open_.append(i)
            continue
        for i in open_:
            ends[i] = len(ids)
        open_.clear()
        ids.append(specials[part.token])
        types.append(part.type)
        owner.append(-1)
        spans.append((-1, -1))
        tags.append(-1)
    return EncodedSequence(
        ids=np.asarray(ids, dtype=np.int64),
        types=np.asarray(types, dtype=np.int64),
        segment=np.asarray(owner, dtype=np.int64),
        spans=np.asarray(spans, dtype=np.int64),
        tag_box=np.asarray(tags, dtype=np.int64),
        ends=np.asarray(ends, dtype=np.int64),
        texts=tuple(s.text for s in segments),
        shortened=shortened,
    )


@dataclass(frozen=True, slots=True)
class _Segment:
    """A segment's tokens: ids, spans in its own text, and the boxes that they name."""

    ids: list[int]
    spans: list[tuple[int, int]]
    tags: list[int]


_Read = dict[Segment, _Segment]


def _read(segment: Segment, tokenizer: StudentTokenizer, names: Mapping[int, str]) -> _Segment:
    text = rewrite(segment, names)
    pieces = tokenizer.pieces(text.text)
    spans = [text.span(*span) for span in pieces.spans]
    return _Segment(list(pieces.ids), spans, [_tag_at(segment, span) for span in spans])


def _tag_at(segment: Segment, span: tuple[int, int]) -> int:
    for tag in segment.tags:
        if tag.start < span[1] and span[0] < tag.end and tag.boxes:
            return tag.boxes[0]
    return -1


def boxes_to_regions(boxes: npt.NDArray[np.float32], regions: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """For each box [n, 4] the region [r, 4] that overlaps it most (intersection over union), -1 below one half."""
    if not len(boxes) or not len(regions):
        return np.full(len(boxes), -1, dtype=np.int64)
    low = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)[:, None] + (regions[:, 2:] - regions[:, :2]).prod(-1)[None, :]
    overlap = common / np.maximum(area - common, 1e-12)
    best = overlap.argmax(1)
    return np.where(overlap.max(1) >= _LEAST_OVERLAP, best, -1).astype(np.int64)


def collate(
    examples: Sequence[EncodedExample],
    regions: Sequence[Regions],
    *,
    pad_id: int,
    choices: Sequence[Sequence[int]] | None = None,
) -> StudentInputs:
    """Pad a batch. `regions[i]` belong to `examples[i]`; `choices[i]` picks some of an example's sequences (all
    by default).
    """
    picked = [
        [example.sequences[j] for j in (choices[i] if choices is not None else range(len(example.sequences)))]
        for i, example in enumerate(examples)
    ]
    sequences = [sequence for group in picked for sequence in group]
    n_candidates = len(picked[0])
    if any(len(group) != n_candidates for group in picked):
        raise ValueError("examples of one batch need the same number of candidates")
    count, length = len(sequences), max(len(s.ids) for s in sequences)
    ids = np.full((count, length), pad_id, dtype=np.int64)
    types = np.zeros((count, length), dtype=np.int64)
    mask = np.zeros((count, length), dtype=bool)
    tags = np.full((count, length), -1, dtype=np.int64)
    links = [boxes_to_regions(e.boxes, r.boxes) for e, r in zip(examples, regions, strict=True)]
    for row, sequence in enumerate(sequences):
        end = len(sequence.ids)
        ids[row, :end], types[row, :end], mask[row, :end] = sequence.ids, sequence.types, True
        link = links[row // n_candidates]
        if len(link):
            tags[row, :end] = np.where(sequence.tag_box >= 0, link[np.maximum(sequence.tag_box, 0)], -1)
    # at least one place, if only padding: the networks look regions up, and a batch may see none at all
    most, dim = max(1, *(len(r.features) for r in regions)), regions[0].features.shape[1]
    features = np.zeros((len(regions), most, dim), dtype=np.float32)
    boxes = np.zeros((len(regions), most, 4), dtype=np.float32)
    region_mask = np.zeros((len(regions), most), dtype=bool)
    for row, region in enumerate(regions):
        end = len(region.features)
        features[row, :end], boxes[row, :end], region_mask[row, :end] = region.features, region.boxes, True
    return StudentInputs(
        input_ids=torch.from_numpy(ids),
        token_type_ids=torch.from_numpy(types),
        text_mask=torch.from_numpy(mask),
        image_index=torch.arange(len(examples)).repeat_interleave(n_candidates),
        region_features=torch.from_numpy(features),
        region_boxes=torch.from_numpy(boxes),
        region_mask=torch.from_numpy(region_mask),
        tag_regions=torch.from_numpy(tags),
        n_candidates=n_candidates,
    )
