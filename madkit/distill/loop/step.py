"""One optimiser step: the global batch in micro-batches, its gradients added up, the weights moved.

What a step does depends on the seed, the step's number and the weights, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from madkit.core.seeds import derive_seed
from madkit.distill.batches.order import Indices, micro_batches, rank_slice
from madkit.distill.loop.ahead import Ahead
from madkit.distill.loop.contract import Attack, LoopSettings, StepLoss
from madkit.distill.loop.weight_mean import WeightMean


class Stepped(NamedTuple):
    """A step that was made.

    Attributes:
        loss, terms: this process's part of them: they add up to the means over the global batch.
        norm: of the gradient before it was clipped, the same in every process; None where it is not clipped.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    norm: Tensor | None


class Stepper:
    """Makes steps with one module and one optimiser.

    Args:
        module: what is trained.
        wrapped: the same, prepared by Accelerate.
        optimizer: the plain optimiser, whose rates are set here.
        prepared: the same, prepared by Accelerate.
        settings: how fast.
        accelerator: device, precision and processes.
        batches: makes micro-batches.
        lengths: [n] tokens per sequence.
        sequences: [n] sequences per example.
        adversary: see `loop.run_loop`.
        weights: see `loop.run_loop`.
    """

    def __init__(
        self,
        module: nn.Module,
        wrapped: Any,
        optimizer: torch.optim.Optimizer,
        prepared: Any,
        settings: LoopSettings,
        accelerator: Accelerator,
        batches: Ahead,
        lengths: Indices,
        sequences: Indices,
        *,
        adversary: Attack | None = None,
        weights: Sequence[WeightMean] = (),
    ) -> None:
        self.module = module
        self.wrapped = wrapped
        self.optimizer = optimizer
        self.prepared = prepared
        self.settings = settings
        self.accelerator = accelerator
        self.batches = batches
        self.lengths = lengths
        self.sequences = sequences
        self.adversary = adversary
        self.weights = weights

    def __call__(self, index: int, batch: Indices, following: Indices | None) -> Stepped:
        """Make step `index` (from 0) with the global `batch`; `following` is the next, where it may be announced."""
        settings, accelerator = self.settings, self.accelerator
        factor = settings.rate(index)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor * (settings.fresh_rate if group["fresh"] else 1.0)
        self._seed(index)
        self.wrapped.train()
        pieces = self._pieces(batch)
        if self.weights:
            self._open_weights(index, batch, pieces)
        total = torch.zeros((), device=accelerator.device)
        terms: dict[str, Tensor] = {}
        for number, (piece, part) in enumerate(pieces):
            last = number == len(pieces) - 1
            inputs = self.batches(piece, index).to(accelerator.device)
            if last and following is not None:
                self.batches.announce([piece for piece, _ in self._pieces(following)], index + 1)
            for out, more in self._passes(inputs, last):
                # DDP averages gradients over processes: undo it, so that the sum is the mean over the global batch
                accelerator.backward(out.loss * (part * accelerator.num_processes), retain_graph=more)
                total += out.loss.detach() * part
                for name, value in out.terms.items():
                    share = value.detach() if part == 1 else value.detach() * part
                    terms[name] = terms[name] + share if name in terms else share
        for mean in self.weights:
            mean.close()
        if self.adversary is not None and accelerator.num_processes > 1:
            self._average_gradients()
        norm: Tensor | None = None
        if settings.clip:
            norm = accelerator.clip_grad_norm_(self.module.parameters(), settings.clip)
        self.prepared.step()
        self.prepared.zero_grad(set_to_none=True)
        return Stepped(total, terms, norm)

    def _seed(self, index: int) -> None:
        # dropout is a function of (seed, step, rank): no generator state has to survive a kill
        torch.manual_seed(derive_seed(self.settings.seed, "step", index, self.accelerator.process_index))

    def _pieces(self, batch: Indices) -> list[tuple[Indices, float]]:
        """This process's share of a global batch in micro-batches, each with its part of the whole.

        A process without a share (fewer examples than processes) computes one that counts nothing, so that it takes
        part in the exchange of gradients.
        """
        share = rank_slice(batch, self.accelerator.process_index, self.accelerator.num_processes)
        if not len(share):
            return [(batch[:1], 0.0)]
        cut = micro_batches(share, self.lengths, self.sequences, self.settings.micro_tokens)
        return [(piece, len(piece) / len(batch)) for piece in cut]

    def _open_weights(self, index: int, batch: Indices, pieces: list[tuple[Indices, float]]) -> None:
        """Say what the weights of this step are divided by; see `weight_mean`."""
        # asked of the global batch and not of the shares: the answer must be the same on every number of processes
        whole = len(micro_batches(batch, self.lengths, self.sequences, self.settings.micro_tokens)) == 1
        for mean in self.weights:
            mean.silence(pieces[0][1] == 0)
            mean.open(whole=whole)
        if not whole and not all(mean.known for mean in self.weights):
            with torch.no_grad(), self.accelerator.autocast():
                for piece, _ in pieces:
                    self.module(self.batches(piece, index).to(self.accelerator.device))
            for mean in self.weights:
                mean.close()
                mean.open(whole=whole)
            self._seed(index)

    def _passes(self, inputs: Any, last: bool) -> Iterator[tuple[StepLoss, bool]]:
        """The passes of a micro-batch: one, or an adversary's. Gradients are exchanged after the last of a step."""
        accelerator = self.accelerator
        if self.adversary is None:
            with accelerator.autocast(), nullcontext() if last else accelerator.no_sync(self.wrapped):
                out: StepLoss = self.wrapped(inputs)
            yield out, False
            return
        attack = self.adversary(inputs)
        while True:
            with accelerator.autocast():  # not around the backward pass, which runs between two of these
                found = next(attack, None)
            if found is None:
                return
            yield found

    def _average_gradients(self) -> None:
        """What DDP does in a plain step: its bookkeeping does not bear several backward passes through one forward."""
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        used = torch.tensor([float(parameter.grad is not None) for parameter in trained]).to(self.accelerator.device)
        anywhere = self.accelerator.reduce(used, reduction="sum").tolist()
        shared = [parameter for parameter, processes in zip(trained, anywhere, strict=True) if processes]
        grads = [torch.zeros_like(one) if one.grad is None else one.grad for one in shared]
        for piece in _of_one_kind(grads):  # a message for each parameter would take longer than what it says
            mean = self.accelerator.reduce(torch.cat([grads[place].flatten() for place in piece]), reduction="mean")
            for place, part in zip(piece, mean.split([grads[place].numel() for place in piece]), strict=True):
                shared[place].grad = part.view_as(shared[place])


def _of_one_kind(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Places of tensors of one dtype, which fit one message."""
    kinds: dict[torch.dtype, list[int]] = {}
    for place, tensor in enumerate(tensors):
        kinds.setdefault(tensor.dtype, []).append(place)
    return list(kinds.values())
