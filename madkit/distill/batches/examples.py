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
from madkit.distill.batches.token_table import TokenTable, TokenTableMaker
from madkit.regions import RegionReader
from madkit.students.heads import HeadSpec
from madkit.students.inputs import EncodedExample, boxes_to_regions
from madkit.students.interface import StudentInputs
from madkit.students.seeing import reader_for
from madkit.students.student import Student
from madkit.tasks.answer_vocabulary import AnswerMatch, positions_of, soft_targets
from madkit.tasks.example import Example
from madkit.tasks.index.reader import ExampleTable


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
        # a table makes examples when they are asked for: all of VCR's at once would be a GB in every process
        self.examples: Sequence[Example] = examples if isinstance(examples, ExampleTable) else list(examples)
        self.ids: list[str] = []
        rows: dict[str, int] = {}
        counts: set[int] = set()
        image_row: list[int] = []
        for example in self.examples:
            self.ids.append(example.id)
            counts.add(max(1, len(example.candidates)))
            image_row.append(rows.setdefault(example.image.id, len(rows)))
        self.target = targets_of(self.examples, student.head_spec, answer_match) if labelled else None
        if len(counts) != 1:
            raise DataError(f"The examples have different numbers of candidates ({sorted(counts)}).")
        self.n_candidates = counts.pop()
        self.image_ids = list(rows)
        self._image_row = np.asarray(image_row, dtype=np.int64)
        self.regions = RegionFeatures(regions, self.image_ids, threads=threads)
        self.pad_id = student.tokenizer.pad_id
        self._tokens = self._encode(student, progress)
        self.texts, self.shortened = self._tokens.texts, self._tokens.shortened
        self.text_lengths: Indices = np.diff(self._tokens.starts.numpy()).reshape(len(self.examples), self.n_candidates)
        self.region_counts: Indices = self.regions.counts[self._image_row]
        self.lengths: Indices = self.text_lengths.max(1) + self.region_counts
        self.sequences: Indices = np.full(len(self.examples), self.n_candidates, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def has_tags(self) -> bool:
        """Whether any text names a region."""
        return bool((self._tokens.tags >= 0).any())

    @property
    def token_pairs(self) -> NDArray[np.int64]:
        """[u, 3] the distinct (row of the text, start, end) of the student's tokens, in ascending order."""
        return self._tokens.pairs

    @property
    def region_boxes(self) -> Tensor:
        """[images, R, 4] normalised corners."""
        return self.regions.boxes

    # -- making -----------------------------------------------------------------------------------------------------

    def _encode(self, student: Student, progress: Progress | None) -> TokenTable:
        maker = TokenTableMaker()
        known: tuple[int, NDArray[np.float32], NDArray[np.int64]] | None = None
        for place, example in enumerate(self.examples):
            encoded = student.encode(example)
            image = int(self._image_row[place])
            if known is None or image != known[0] or not np.array_equal(encoded.boxes, known[1]):
                known = image, encoded.boxes, _box_links(encoded, self.regions.links(image))
            for sequence in encoded.sequences:
                maker.add(sequence, known[2])
            if progress is not None:
                progress.advance(1)
        return maker.made()

    # -- batches ----------------------------------------------------------------------------------------------------

    def _sequence_rows(self, indices: Indices) -> Tensor:
        if self.n_candidates == 1:
            return torch.from_numpy(indices)
        first = torch.from_numpy(indices) * self.n_candidates
        return (first[:, None] + torch.arange(self.n_candidates)).flatten()

    def _padded(self, sequences: Tensor) -> tuple[Tensor, Tensor]:
        """Places [S, T] in the flat arrays and the mask [S, T] of real ones."""
        start = self._tokens.starts[sequences]
        length = self._tokens.starts[sequences + 1] - start
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
            input_ids=torch.where(mask, self._tokens.ids[places].long(), self.pad_id),
            token_type_ids=torch.where(mask, self._tokens.types[places].long(), 0),
            text_mask=mask,
            image_index=torch.arange(len(indices)).repeat_interleave(self.n_candidates),
            region_features=self.regions.features(images, R),
            region_boxes=self.regions.boxes[images, :R],
            region_mask=self.regions.mask[images, :R],
            tag_regions=torch.where(mask, self._tokens.tags[places].long(), -1),
            n_candidates=self.n_candidates,
        )

    def teacher_rows(self, indices: Indices) -> TeacherRows:
        """Rows of the teacher's banks for the same batch."""
        sequences = self._sequence_rows(indices)

        def tokens() -> Tensor:
            places, mask = self._padded(sequences)
            return torch.where(mask, self._tokens.rows[places].long(), -1)

        return TeacherRows(
            images=torch.from_numpy(self._image_row[indices]),
            texts=self._tokens.segments.index_select(0, sequences),
            ends=self._tokens.ends.index_select(0, sequences),
            find_tokens=tokens,
        )


def _box_links(encoded: EncodedExample, boxes: NDArray[np.float32]) -> NDArray[np.int64]:
    """Region of each of an example's own boxes, at least one entry long; -1 none. `boxes` are the regions'."""
    if not len(encoded.boxes):
        return np.full(1, -1, dtype=np.int64)
    return boxes_to_regions(encoded.boxes, boxes)


def targets_of(examples: Sequence[Example], head: HeadSpec, match: AnswerMatch) -> Tensor | SoftTargets:
    """[n] long labels, or [n, K] soft scores. Raises DataError for an example without a label."""
    if head.kind == "vqa":
        positions = positions_of(head.outputs)
        scores: list[dict[int, float]] = []
        for example in examples:
            if example.answers is None:
                raise DataError(f"The example {example.id} has no answers to learn from.")
            scores.append(soft_targets(example, positions, match=match))
        return SoftTargets(scores, len(head.outputs))
    labels: list[int] = []
    for example in examples:
        if example.label is None:
            raise DataError(f"The example {example.id} has no label to learn from.")
        labels.append(example.label)
    return torch.tensor(labels)
