"""Several processes of a training played by threads, so that the arithmetic of sharing a batch is tested in a second.

Each thread holds its own module; sums go through a barrier as all-reduce would do it, and gradients are averaged before
they are clipped, as DDP does. tests/distill/test_processes.py trains in real processes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch


class Exchange:
    def __init__(self, world: int) -> None:
        self.world = world
        self.slots: list[Any] = [None] * world
        self.barrier = threading.Barrier(world)

    def sum(self, rank: int, value: torch.Tensor) -> torch.Tensor:
        self.slots[rank] = value.detach().clone()
        self.barrier.wait(20)
        total = torch.stack(self.slots).sum(0)
        self.barrier.wait(20)
        return total


class Rank:
    """As much of an Accelerator as the loop uses."""

    def __init__(self, rank: int, exchange: Exchange) -> None:
        self.process_index = rank
        self.num_processes = exchange.world
        self.is_main_process = rank == 0
        self.device = torch.device("cpu")
        self._exchange = exchange

    def prepare(self, module, optimizer):
        return module, optimizer

    def autocast(self):
        return nullcontext()

    def no_sync(self, module):
        return nullcontext()

    def backward(self, loss, retain_graph=False):
        loss.backward(retain_graph=retain_graph)

    def reduce(self, value, reduction="sum"):
        total = self._exchange.sum(self.process_index, value)
        return total / self.num_processes if reduction == "mean" else total

    def clip_grad_norm_(self, parameters, norm):
        parameters = list(parameters)
        for parameter in parameters:
            parameter.grad = self.reduce(parameter.grad, reduction="mean")
        torch.nn.utils.clip_grad_norm_(parameters, norm)

    def wait_for_everyone(self):
        self._exchange.barrier.wait(20)


def on_ranks(world: int, work: Callable[[Rank], Any]) -> list[Any]:
    """Do `work` as each rank at once, and return what each gives. Raises what the first of them raised."""
    exchange = Exchange(world)
    given: list[Any] = [None] * world
    raised: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            given[rank] = work(Rank(rank, exchange))
        except BaseException as error:
            raised.append(error)
            exchange.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise next((error for error in raised if not isinstance(error, threading.BrokenBarrierError)), raised[0])
    return given
