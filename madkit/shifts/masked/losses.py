"""What each token of a choice is worth to the scorer: the loss without it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from madkit.core.console import progress
from madkit.core.interrupts import StopSignals
from madkit.shifts.masked.scorer import Batch, DeviceSequences, Scorer
from madkit.shifts.masked.sequences import N_CHOICES, Sequences
from madkit.shifts.masked.training import by_length

_TOKENS_CPU, _TOKENS_GPU = 1 << 14, 1 << 20


@torch.inference_mode()
def token_losses(
    scorer: Scorer,
    sequences: Sequences,
    device: torch.device,
    *,
    title: str = "choice",
    stop: StopSignals | None = None,
) -> list[NDArray[np.float32]]:
    """For every choice, for each of its tokens: the loss of the choice's own score with that token masked.

    The loss is sigmoid cross-entropy with target 1 for a right choice and 0 for a wrong one, so the token with the
    highest is the one that the scorer misses most. All maskings of many choices of like length share a forward pass.

    Returns S arrays, float32 [tokens of the choice].
    """
    scorer.eval()
    held = DeviceSequences(sequences, device)
    lengths, choice_lengths = sequences.lengths, sequences.choice_lengths
    offsets = np.concatenate([[0], np.cumsum(choice_lengths)])
    right = torch.from_numpy(np.arange(N_CHOICES) == sequences.labels[:, None]).flatten().float()
    losses = np.empty(int(offsets[-1]), dtype=np.float32)
    budget = _TOKENS_CPU if device.type == "cpu" else _TOKENS_GPU
    with progress(f"Masking each token of the {title}s", len(lengths), "choices") as bar:
        for group in by_length(lengths, lengths * choice_lengths, budget):
            which = torch.from_numpy(group).to(device)
            variants = torch.from_numpy(choice_lengths[group]).to(device)
            base = held.batch(which)
            rows = torch.repeat_interleave(torch.arange(len(group), device=device), variants)
            # 0, 1, ... within every choice
            tokens = torch.arange(len(rows), device=device) - (variants.cumsum(0) - variants)[rows]
            many = Batch(base.ids[rows], base.orders[rows], base.segments[rows], base.real[rows])
            at = held.choice_starts[which][rows] + tokens
            where = torch.arange(base.ids.shape[1], device=device) == at[:, None]
            targets = right[torch.from_numpy(group)].to(device)[rows]
            found = F.binary_cross_entropy_with_logits(scorer(many.masked(where)).float(), targets, reduction="none")
            places = offsets[group][rows.cpu().numpy()] + tokens.cpu().numpy()
            losses[places] = found.cpu().numpy()
            bar.advance(len(group))
            if stop is not None and stop.requested:
                raise stop.error()
    return np.split(losses, offsets[1:-1])
