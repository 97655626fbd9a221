"""From teacher tokens to student tokens: text by character spans, patch grids by boxes, object tags by regions.

Teacher and student read the same characters and the same pixels but cut them differently. Every function here
turns that into weights that sum to one over the teacher's pieces, so a target always is a weighted mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def span_overlap_weights(student_spans: Tensor, teacher_spans: Tensor) -> Tensor:
    """Share of each teacher token in each student token, by characters in common.

    The plain, quadratic form for one text (or a batch of padded ones); `align_spans` is the linear one.

    Args:
        student_spans: [..., T, 2] character offsets (start, end), end exclusive.
        teacher_spans: [..., U, 2] likewise, in any order. Padding: an empty span.

    Returns:
        [..., T, U] float32; a row sums to 1, or to 0 where nothing overlaps.
    """
    student, teacher = student_spans.unsqueeze(-2), teacher_spans.unsqueeze(-3)
    ends = torch.minimum(student[..., 1], teacher[..., 1])
    starts = torch.maximum(student[..., 0], teacher[..., 0])
    shared = (ends - starts).clamp_min(0).float()
    return shared / shared.sum(-1, keepdim=True).clamp_min(1.0)


@dataclass(frozen=True, slots=True)
class SpanAlignment:
    """A sparse [S*T, U] matrix of overlap weights: for student token n, entries offsets[n]:offsets[n+1].

    Attributes:
        index: [pairs] int64 rows of the flat teacher tokens.
        weight: [pairs] float32, summing to 1 (or 0) over each student token.
        offsets: [S*T + 1] int64.
        shape: (S, T).
    """

    index: Tensor
    weight: Tensor
    offsets: Tensor
    shape: tuple[int, int]

    def apply(self, tokens: Tensor) -> Tensor:
        """Weighted means [S, T, D] float32 of flat teacher tokens [sum, D] of any float dtype."""
        S, T = self.shape
        if tokens.shape[0] == 0:
            return tokens.new_zeros(S, T, tokens.shape[1], dtype=torch.float32)
        pooled = F.embedding_bag(
            self.index,
            tokens.float(),
            self.offsets,
            mode="sum",
            per_sample_weights=self.weight,
            include_last_offset=True,
        )
        return pooled.view(S, T, -1)

    @property
    def mask(self) -> Tensor:
        """[S, T] bool: student tokens with a target."""
        covered = torch.zeros(self.offsets.shape[0] - 1, device=self.weight.device)
        rows = torch.repeat_interleave(self.offsets.diff())
        return (covered.index_add_(0, rows, self.weight) > 0).view(self.shape)


def align_spans(student_spans: Tensor, student_text_index: Tensor, spans: Tensor, offsets: Tensor) -> SpanAlignment:
    """Overlap weights of a batch of student sequences with a ragged batch of teacher texts, in linear time.

    Every (text, character) pair is one position on a single line, so that two binary searches find the teacher
    tokens that can overlap a student token. Spans need not be sorted, and may repeat (byte-level tokenizers give
    the pieces of one character the same span) or overlap.

    Args:
        student_spans: [S, T, 2] character offsets in the token's own text.
        student_text_index: [S, T] row of that text in the ragged batch; -1 for tokens without one (special, tag).
        spans: [sum, 2] character offsets of the teacher's tokens, text after text.
        offsets: [n + 1] where each text begins in `spans`.
    """
    S, T = student_text_index.shape
    device = spans.device
    spans, offsets = spans.long(), offsets.long()
    count, pieces = offsets.shape[0] - 1, spans.shape[0]
    text = student_text_index.reshape(-1).long()
    start, end = student_spans.reshape(-1, 2).long().unbind(-1)
    if pieces == 0 or text.shape[0] == 0:
        none = torch.zeros(0, dtype=torch.long, device=device)
        return SpanAlignment(none, none.float(), torch.zeros(S * T + 1, dtype=torch.long, device=device), (S, T))

    row = torch.repeat_interleave(torch.arange(count, device=device), offsets.diff())
    line = spans.max() + 1  # length of one text on the common line
    first, last = row * line + spans[:, 0], row * line + spans[:, 1]
    order = torch.argsort(first, stable=True)
    first, last = first[order], last[order]
    # The running maximum of the ends is sorted even where a token lies inside an earlier one.
    reach = torch.cummax(last, 0).values

    real = text >= 0
    base = text.clamp_min(0) * line
    low = torch.searchsorted(reach, base + start.clamp(min=0), right=True)
    high = torch.searchsorted(first, base + torch.minimum(end, line), right=False)
    # A text whose last token ends exactly where the line does must not reach into the next text.
    begin, stop = offsets[text.clamp_min(0)], offsets[text.clamp_min(0) + 1]
    low, high = torch.maximum(low, begin), torch.minimum(high, stop)
    number = torch.where(real & (end > start), (high - low).clamp_min(0), 0)

    bags = F.pad(number.cumsum(0), (1, 0))
    student = torch.repeat_interleave(number)
    candidate = torch.arange(student.shape[0], device=device) - bags[student] + low[student]
    index = order[candidate]
    piece_ends, piece_starts = spans[index, 1], spans[index, 0]
    shared = (
        (torch.minimum(piece_ends, end[student]) - torch.maximum(piece_starts, start[student])).clamp_min(0).float()
    )
    total = torch.zeros(S * T, device=device).index_add_(0, student, shared)
    weight = shared / total.clamp_min(1.0)[student]
    return SpanAlignment(index, weight, bags, (S, T))


def align_text(
    student_spans: Tensor, student_text_index: Tensor, tokens: Tensor, spans: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """Text targets of a batch: the mean of the teacher's tokens, weighted by the overlap of character spans.

    A student sequence may be made of several texts (question, candidate): each token names its own.

    Args:
        student_spans: [S, T, 2] character offsets in the token's own text.
        student_text_index: [S, T] row of that text in the ragged batch; -1 for tokens without one (special, tag).
        tokens: [sum, D] teacher tokens, text after text, any float dtype.
        spans: [sum, 2] their character offsets.
        offsets: [n + 1] where each text begins.

    Returns:
        targets [S, T, D] float32 (zero where there is none) and mask [S, T] bool.
    """
    alignment = align_spans(student_spans, student_text_index, spans, offsets)
    return alignment.apply(tokens), alignment.mask


def boxes_in_view(boxes: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes of whole images, in the coordinates of the part that the teacher saw.

    CLIP's own preprocessing cuts the centre out of an image, so its grid of patches covers less than the image: without
    this step the boxes of a photograph of 640 x 480 pixels would be compared with patches up to an eighth of its width
    away.

    Args:
        boxes: [B, R, 4] corners (x1, y1, x2, y2), normalised to the whole image.
        views: [B, 4] corners of the part that the grid covers, likewise.

    Returns:
        [B, R, 4] corners normalised to that part and cut at its border, and [B, R] the share of each box's area that
        lies in it (of a box without an area, 1 where it lies inside).
    """
    boxes, views = boxes.float(), views.float().unsqueeze(-2)
    low = torch.minimum(boxes[..., :2], boxes[..., 2:])
    high = torch.maximum(boxes[..., :2], boxes[..., 2:])
    side = (views[..., 2:] - views[..., :2]).clamp_min(1e-6)
    inner_low = ((low - views[..., :2]) / side).clamp(0.0, 1.0)
    inner_high = ((high - views[..., :2]) / side).clamp(0.0, 1.0)
    whole = (high - low) / side
    inside = (low <= views[..., 2:]) & (high >= views[..., :2])
    share = torch.where(whole > _THIN, (inner_high - inner_low) / whole.clamp_min(_THIN), inside.float())
    return torch.cat([inner_low, inner_high], -1), share.prod(-1).clamp(max=1.0)


def box_patch_weights(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Share of each patch in each box, by the area they have in common.

    Args:
        boxes: [..., R, 4] corners (x1, y1, x2, y2), normalised to [0, 1] in the picture that the teacher saw (a resize
            that squashes keeps them; for a crop see `boxes_in_view`). Corners in the wrong order are swapped, boxes are
            cut at the border, and a box without an extent counts as a very thin one, so that every row sums to 1.
        grid: patches (down, across), numbered row by row.

    Returns:
        [..., R, P] float32, rows sum to 1.
    """
    rows, columns = grid
    boxes = boxes.float().clamp(0.0, 1.0)
    across = _axis_weights(boxes[..., 0], boxes[..., 2], columns)
    down = _axis_weights(boxes[..., 1], boxes[..., 3], rows)
    return (down.unsqueeze(-1) * across.unsqueeze(-2)).flatten(-2)


def grid_boxes(rows: int, columns: int) -> Tensor:
    """Boxes [rows * columns, 4] of the cells of a grid over the whole image, row by row: the regions of a student of
    pixels, such as the patches of a ViT.
    """
    x, y = torch.arange(columns + 1) / columns, torch.arange(rows + 1) / rows
    low = torch.stack([x[:-1].repeat(rows), y[:-1].repeat_interleave(columns)], -1)
    high = torch.stack([x[1:].repeat(rows), y[1:].repeat_interleave(columns)], -1)
    return torch.cat([low, high], -1)


_THIN = 1e-4  # share of the picture's side; thinner boxes are widened to it, which no patch grid can tell apart


def _axis_weights(one: Tensor, other: Tensor, cells: int) -> Tensor:
    """[..., cells] shares of an interval's length that fall into equal cells of [0, 1]; sums to 1."""
    low, high = torch.minimum(one, other), torch.maximum(one, other)
    centre = ((low + high) / 2).clamp(_THIN / 2, 1 - _THIN / 2)
    thin = high - low < _THIN
    low = torch.where(thin, centre - _THIN / 2, low).unsqueeze(-1)
    high = torch.where(thin, centre + _THIN / 2, high).unsqueeze(-1)
    edges = torch.arange(cells + 1, device=one.device, dtype=torch.float32) / cells
    shared = (torch.minimum(high, edges[1:]) - torch.maximum(low, edges[:-1])).clamp_min(0.0)
    return shared / shared.sum(-1, keepdim=True)


def pool_regions(
    patch_tokens: Tensor,
    boxes: Tensor,
    grid: tuple[int, int],
    *,
    image_global: Tensor | None = None,
    whole_image: Tensor | None = None,
) -> Tensor:
    """Region targets: the mean of the patch tokens, weighted by their overlap with each box.

    Args:
        patch_tokens: [B, P, D] of any float dtype.
        boxes: [B, R, 4] normalised corners, see `box_patch_weights`.
        grid: patches (down, across); their product is P.
        image_global: [B, D]; given with `whole_image`, the target of the regions that stand for the whole image.
        whole_image: [B, R] bool.

    Returns:
        [B, R, D] float32.

    Raises:
        ValueError: the grid does not have P cells.
    """
    if grid[0] * grid[1] != patch_tokens.shape[-2]:
        raise ValueError(f"a grid of {grid[0]} x {grid[1]} cells cannot hold {patch_tokens.shape[-2]} patch tokens")
    pooled = torch.matmul(box_patch_weights(boxes, grid), patch_tokens.float())
    if image_global is not None and whole_image is not None:
        pooled = torch.where(whole_image.unsqueeze(-1), image_global.float().unsqueeze(-2), pooled)
    return pooled


def pool_selected(
    patch_tokens: Tensor,
    positions: Tensor,
    boxes: Tensor,
    grid: tuple[int, int],
    *,
    image_global: Tensor,
    whole_image: Tensor,
) -> tuple[Tensor, Tensor]:
    """Region targets where only some patches are known: `pool_regions` over those, by their exact share of each box.

    Args:
        patch_tokens: [B, K, D] of any float dtype.
        positions: [B, K] which patches they are, row by row.
        boxes: [B, R, 4] normalised corners, see `box_patch_weights`.
        grid: patches (down, across).
        image_global: [B, D], the target of the regions that stand for the whole image.
        whole_image: [B, R] bool.

    Returns:
        [B, R, D] float32, and [B, R] bool: regions with a target, that is with a known patch or for the whole image.
    """
    known = _known_weights(positions, boxes, grid)
    share = known.sum(-1, keepdim=True)
    pooled = torch.matmul(known / share.clamp_min(1e-12), patch_tokens.float())
    pooled = torch.where(whole_image.unsqueeze(-1), image_global.float().unsqueeze(-2), pooled)
    return pooled, (share.squeeze(-1) > 0) | whole_image


def known_share(positions: Tensor, boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Share [B, R] of each box [B, R, 4] that lies in the known patches `positions` [B, K] of a grid."""
    return _known_weights(positions, boxes, grid).sum(-1)


def _known_weights(positions: Tensor, boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    every = box_patch_weights(boxes, grid)
    return every.gather(-1, positions.long().unsqueeze(1).expand(-1, boxes.shape[1], -1))


def align_tags(tag_regions: Tensor, regions: Tensor, region_mask: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
    """Targets of object tags: the embedding of the region that the tag points to.

    Args:
        tag_regions: [S, T] region index of each token's tag; -1 for tokens that are no tag.
        regions: [B, R, D] region targets.
        region_mask: [B, R] bool.
        image_index: [S] row of each sequence's image.

    Returns:
        targets [S, T, D] and mask [S, T] bool.
    """
    R = regions.shape[1]
    inside = (tag_regions >= 0) & (tag_regions < R)
    flat = image_index.unsqueeze(-1) * R + tag_regions.clamp(0, max(R - 1, 0))
    if R == 0:
        return regions.new_zeros(*tag_regions.shape, regions.shape[-1]), inside
    targets = regions.flatten(0, 1)[flat]
    return targets, inside & region_mask.flatten()[flat]
