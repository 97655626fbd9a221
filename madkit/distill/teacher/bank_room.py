"""Where the teacher's vectors of a training set are held: on the device, in memory, or in the cache alone.

The sizes are worked out before anything is read. None of it changes a number, so it is part of no run's identity.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from madkit.core.console import info
from madkit.core.free_memory import memory_share

Held = Literal["auto", "memory", "stream"]
SHARE_OF_MEMORY = 0.4
SHARE_OF_DEVICE = 0.3  # the student, its optimiser and its activations come later
_WORTH_SAYING = 1e9


@dataclass(slots=True)
class Room:
    """What may be held, and where: one room for all sides of all teachers of a phase, which fill it in turn.

    Attributes:
        bank: ``memory`` or ``stream``; ``auto`` holds what together takes at most a share of the memory that is free.
        device: of the training.
        limit: bytes that ``auto`` may hold; None: that share, of what is free when it is first asked, or this process's
            part of it.
        held: bytes that are held so far.
    """

    bank: Held = "auto"
    device: torch.device | str = "cpu"
    limit: int | None = None
    held: int = field(default=0, init=False)

    def streams(self, what: str, needed: int) -> bool:
        """Whether `needed` bytes of vectors of `what` (images, texts) are read batch by batch, not held."""
        if self.limit is None:
            self.limit = memory_share(SHARE_OF_MEMORY)
        left = max(0, self.limit - self.held)
        size = f"The teacher's vectors of the {what} take {_size(needed)}"
        room = f"{_size(left)} {'still ' if self.held else ''}to be held"
        if self.bank == "stream" or (self.bank == "auto" and needed > left):
            why = "as teacher_bank: stream asks" if self.bank == "stream" else f"more than the {room}"
            info(f"{size}, {why}: they are read batch by batch.")
            return True
        if needed >= _WORTH_SAYING:
            why = "as teacher_bank: memory asks" if self.bank == "memory" else f"within the {room}"
            info(f"{size}, {why}: they are held in memory.")
        self.held += needed
        return False

    def place(self, what: str, table: torch.Tensor) -> torch.Tensor:
        """`table`, on the training's device where that is a GPU with room for it."""
        device = torch.device(self.device)
        if device.type != "cuda" or self.bank == "stream" or not table.numel():
            return table
        free, _ = torch.cuda.mem_get_info(device)
        fits = table.nbytes <= SHARE_OF_DEVICE * free
        where = "they are held on the GPU" if fits else "they stay in memory"
        info(f"The teacher's {what} take {_size(table.nbytes)} of {_size(free)} that are free on {device}: {where}.")
        return table.to(device) if fits else table


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
