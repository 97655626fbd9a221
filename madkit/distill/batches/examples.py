"""A set of examples as tensors, made once, so that a step is selection and padding and nothing else.

Tokens of all sequences lie in flat arrays with offsets; regions lie once per image, whatever the number of questions
about it. What `students.inputs.collate` gives for the same examples, `ExampleSet.inputs` gives too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from madkit.core.console import Progress
from madkit.core.errors import DataError, RunError
from madkit.distill.batches.order import Indices
from madkit.distill.batches.region_features import RegionFeatures
from madkit.distill.batches.soft_targets import SoftTargets
from madkit.regions import RegionReader
from madkit.students.heads import HeadSpec
from madkit.students.inputs import EncodedExample, boxes_to_regions
from madkit.students.interface import StudentInputs
from madkit.students.seeing import reader_for
from madkit.students.student import Student
from madkit.tasks.answer_vocabulary import AnswerMatch, positions_of, soft_targets
from madkit.tasks.example import Example


@dataclass(frozen=True)
class TeacherRows:
    """Where the teacher's vectors of a batch stand, for S sequences of T tokens made of up to G texts."""

    images: Tensor  # [B] rows of the set's images
    texts: Tensor  # [S, G] rows of the set's texts, -1 none
    ends: Tensor  # [S, G] position of the [SEP] that closes each text, -1 none
    find_tokens: Callable[[], Tensor]

    @cached_property
    def tokens(self) -> Tensor:
        """[S, T] rows of the set's distinct student tokens, -1 none; looked up where a step asks for them."""
        return self.find_tokens()


class ExampleSet:
    """Examples encoded for one student.

    Attributes:
        examples: as given.
        ids: their ids.
        lengths: [n] tokens of an example's longest sequence, regions included.
        text_lengths: [n, C] tokens of each of its sequences.
        region_counts: [n] regions of its image.
        sequences: [n] number of sequences of an example.
        image_ids: the distinct images.
        texts: the distinct texts.
        target: [n] long labels, [n, K] soft scores (VQA), indexed alike, or None where the examples have no labels.
        shortened: tokens that were cut off to fit the student.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        student: Student,
        regions: RegionReader | None,
        *,
        threads: int = 2,
        labelled: bool = True,
        answer_match: AnswerMatch = "normalized",
        progress: Progress | None = None,
    ) -> None:
        """Encode `examples`; `answer_match` is explained at `tasks.answer_vocabulary.soft_targets`.

        Raises RunError or DataError where they do not fit the student.
        """
        regions = reader_for(student, examples, regions)
        if regions is None:
            raise RunError(
                "This data has no region features, which the student reads.",
                hint="add a detector's: madkit data regions add TASK PATH; or make pixel features: "
                "madkit data regions make TASK",
            )
        if regions.dim != student.region_dim:
            raise RunError(
                f"The student {student.identity.name} reads region features of width {student.region_dim}, and this "
                f"data has width {regions.dim}.",
                hint="a trained student wants the features it was trained on; one that begins with a text checkpoint "
                "takes any width: --student uniter-base --init FOLDER, or to try things out --student mini-lxmert "
                "--init random",
            )
        if not examples:
            raise RunError("There are no examples to read.")
        self.examples = list(examples)
        self.ids = [example.id for example in self.examples]
        self.target = targets_of(self.examples, student.head_spec, answer_match) if labelled else None
        counts = {max(1, len(example.candidates)) for example in self.examples}
        if len(counts) != 1:
            raise DataError(f"The examples have different numbers of candidates ({sorted(counts)}).")
        self.n_candidates = counts.pop()
        self.image_ids = list(dict.fromkeys(example.image.id for example in self.examples))
        rows = {image: row for row, image in enumerate(self.image_ids)}
        self._image_row = np.asarray([rows[example.image.id] for example in self.examples], dtype=np.int64)
        self.regions = RegionFeatures(regions, self.image_ids, threads=threads)
        self.pad_id = student.tokenizer.pad_id
        self._encode(student, progress)
        self.text_lengths: Indices = np.diff(self._starts.numpy()).reshape(len(self.examples), self.n_candidates)
        self.region_counts: Indices = self.regions.counts[self._image_row]
        self.lengths: Indices = self.text_lengths.max(1) + self.region_counts
        self.sequences: Indices = np.full(len(self.examples), self.n_candidates, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def has_tags(self) -> bool:
        """Whether any text names a region."""
        return bool((self._tags >= 0).any())

    @property
    def region_boxes(self) -> Tensor:
        """[images, R, 4] normalised corners."""
        return self.regions.boxes

    # -- making -----------------------------------------------------------------------------------------------------

    def _encode(self, student: Student, progress: Progress | None) -> None:
        texts: dict[str, int] = {}
        ids: list[NDArray[np.int64]] = []
        types: list[NDArray[np.int64]] = []
        tags: list[NDArray[np.int64]] = []
        keys: list[NDArray[np.int64]] = []
        lengths: list[int] = []
        segments: list[list[int]] = []
        ends: list[list[int]] = []
        self.shortened = 0
        for place, example in enumerate(self.examples):
            encoded = student.encode(example)
            link = _box_links(encoded, self.regions.links(int(self._image_row[place])))
            for sequence in encoded.sequences:
                rows = np.asarray([texts.setdefault(text, len(texts)) for text in sequence.texts], dtype=np.int64)
                ids.append(sequence.ids)
                types.append(sequence.types)
                tags.append(np.where(sequence.tag_box >= 0, link[np.maximum(sequence.tag_box, 0)], -1))
                keys.append(_token_keys(rows, sequence.segment, sequence.spans))
                lengths.append(len(sequence.ids))
                segments.append(rows.tolist())
                ends.append(sequence.ends.tolist())
                self.shortened += sequence.shortened
            if progress is not None:
                progress.advance(1)
        self.texts = list(texts)
        self._ids = torch.from_numpy(np.concatenate(ids).astype(np.int32))
        self._types = torch.from_numpy(np.concatenate(types).astype(np.int16))
        self._tags = torch.from_numpy(np.concatenate(tags).astype(np.int16))
        self._starts = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        flat = np.concatenate(keys)
        # distinct (text, span) pairs: what a teacher's tokens are aligned to, once
        distinct, where = np.unique(flat, return_inverse=True)
        none = int(distinct[0] < 0)
        self._token_row = torch.from_numpy((where.reshape(-1) - none).astype(np.int32))
        kept = distinct[none:]
        self.token_pairs = np.stack([kept >> 32, (kept >> 16) & 0xFFFF, kept & 0xFFFF], axis=1)
        most = max(len(rows) for rows in segments)
        self._segments = torch.tensor([rows + [-1] * (most - len(rows)) for rows in segments])
        self._ends = torch.tensor([places + [-1] * (most - len(places)) for places in ends])

    # -- batches ----------------------------------------------------------------------------------------------------

    def _sequence_rows(self, indices: Indices) -> Tensor:
        if self.n_candidates == 1:
            return torch.from_numpy(indices)
        first = torch.from_numpy(indices) * self.n_candidates
        return (first[:, None] + torch.arange(self.n_candidates)).flatten()

    def _padded(self, sequences: Tensor) -> tuple[Tensor, Tensor]:
        """Places [S, T] in the flat arrays and the mask [S, T] of real ones."""
        start = self._starts[sequences]
        length = self._starts[sequences + 1] - start
        steps = torch.arange(int(length.max()))
        mask = steps < length[:, None]
        return torch.where(mask, start[:, None] + steps, 0), mask

    def inputs(self, indices: Indices) -> StudentInputs:
        """The student's tensors for a batch, padded to its longest sequence and largest number of regions."""
        sequences = self._sequence_rows(indices)
        places, mask = self._padded(sequences)
        images = torch.from_numpy(self._image_row[indices])
        R = max(1, int(self.regions.counts[self._image_row[indices]].max()))
        return StudentInputs(
            input_ids=torch.where(mask, self._ids[places].long(), self.pad_id),
            token_type_ids=torch.where(mask, self._types[places].long(), 0),
            text_mask=mask,
            image_index=torch.arange(len(indices)).repeat_interleave(self.n_candidates),
            region_features=self.regions.features(images, R),
            region_boxes=self.regions.boxes[images, :R],
            region_mask=self.regions.mask[images, :R],
            tag_regions=torch.where(mask, self._tags[places].long(), -1),
            n_candidates=self.n_candidates,
        )

    def teacher_rows(self, indices: Indices) -> TeacherRows:
        """Rows of the teacher's banks for the same batch."""
        sequences = self._sequence_rows(indices)

        def tokens() -> Tensor:
            places, mask = self._padded(sequences)
            return torch.where(mask, self._token_row[places].long(), -1)

        return TeacherRows(
            images=torch.from_numpy(self._image_row[indices]),
            texts=self._segments.index_select(0, sequences),
            ends=self._ends.index_select(0, sequences),
            find_tokens=tokens,
        )


def _token_keys(
    text_rows: NDArray[np.int64], segment: NDArray[np.int64], spans: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(row of the text, start, end) packed into one number per token; -1 for special tokens."""
    packed = (text_rows[np.maximum(segment, 0)] << 32) | (np.clip(spans[:, 0], 0, 0xFFFF) << 16)
    packed |= np.clip(spans[:, 1], 0, 0xFFFF)
    return np.where(segment >= 0, packed, -1)


def _box_links(encoded: EncodedExample, boxes: NDArray[np.float32]) -> NDArray[np.int64]:
    """Region of each of an example's own boxes, at least one entry long; -1 none. `boxes` are the regions'."""
    if not len(encoded.boxes):
        return np.full(1, -1, dtype=np.int64)
    return boxes_to_regions(encoded.boxes, boxes)


def targets_of(examples: Sequence[Example], head: HeadSpec, match: AnswerMatch) -> Tensor | SoftTargets:
    """[n] long labels, or [n, K] soft scores. Raises DataError for an example without a label."""
    if head.kind == "vqa":
        positions = positions_of(head.outputs)
        for example in examples:
            if example.answers is None:
                raise DataError(f"The example {example.id} has no answers to learn from.")
        scores = [soft_targets(example, positions, match=match) for example in examples]
        return SoftTargets(scores, len(head.outputs))
    for example in examples:
        if example.label is None:
            raise DataError(f"The example {example.id} has no label to learn from.")
    return torch.tensor([example.label for example in examples])
