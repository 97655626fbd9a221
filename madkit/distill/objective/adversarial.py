"""Adversarial fine-tuning after VILLA (Gan et al., *Large-Scale Adversarial Training for Vision-and-Language
Representation Learning*, NeurIPS 2020; formulas as in https://github.com/zhegan27/VILLA), as a switch for any student.

For each example a perturbation d of its word embeddings, of its region features, or of both starts at zero. In each of
K passes the student answers under attack, and the loss

    (task(attacked) + kl_weight * (KL(attacked || clean) + KL(clean || attacked))) / K

is differentiated for the weights, whose gradients add up over the passes, and for d, which then moves by
`rate * g / ||g||`, the norm taken over all of an example's tokens and channels. The clean pass is made once and its
graph kept; its own task loss is in no term. One optimiser step follows. Text is attacked where the word table's output
leaves it, before positions and types; regions where their features enter, for each candidate apart.

Together with a teacher the criterion compares the clean pass, which is what the student will be without an attacker.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from madkit.core.errors import ConfigError
from madkit.distill.batches.micro_batch import Batch
from madkit.distill.loop.loop import StepLoss
from madkit.distill.objective.objective import Objective
from madkit.distill.settings.config import AdversarialConfig
from madkit.students.heads import HeadKind
from madkit.students.interface import StudentInputs, StudentOutput

_LEAST_NORM = 1e-8
WORD_TABLE = "word_embeddings"


class Adversary:
    """Turns a micro-batch into the passes of one adversarial step. Arguments: what is trained, and how it is attacked.

    Raises ConfigError where the student has no single word table to attack.
    """

    def __init__(self, objective: Objective, config: AdversarialConfig) -> None:
        self.objective = objective
        self.config = config
        alternate = ("text",), ("image",)
        together = {"text": (("text",),), "image": (("image",),), "both": (("text", "image"),), "alternate": alternate}
        self._rounds: tuple[tuple[str, ...], ...] = together[config.modality]
        self._words = word_table(objective.student)

    def __call__(self, batch: Batch) -> Iterator[tuple[StepLoss, bool]]:
        """Yield each pass's loss, to be differentiated before the next is asked for, and whether more follow.

        While more follow the graph of the clean pass must be kept (`retain_graph`).
        """
        objective, config = self.objective, self.config
        clean = objective.answer(batch.inputs, objective.criterion)
        first: StepLoss | None = None
        if objective.criterion is not None:
            first = objective.distil(objective.criterion, clean, batch)
        count = config.steps * len(self._rounds)
        done = 0
        for attacked in self._rounds:
            deltas: dict[str, Tensor] = {}
            inputs = _own_images(batch.inputs) if "image" in attacked else batch.inputs
            for _ in range(config.steps):
                out = self._answer(inputs, attacked, deltas)
                task = objective.task(out, batch)
                kl = symmetric_kl(objective.student.head_spec.kind, out, clean)
                loss = (task + config.kl_weight * kl) / count
                terms = {"task": task.detach() / count, "adversarial_kl": kl.detach() / count}
                if first is not None:
                    loss, terms, first = loss + first.loss, {**terms, **first.terms}, None
                done += 1
                yield StepLoss(loss, terms), done < count
                if done % config.steps:
                    self._climb(deltas)

    def _answer(self, inputs: StudentInputs, attacked: tuple[str, ...], deltas: dict[str, Tensor]) -> StudentOutput:
        """The student's answer under the perturbations, which are made here where there are none yet."""
        if "image" in attacked:
            delta = deltas.setdefault("image", torch.zeros_like(inputs.region_features, requires_grad=True))
            inputs = replace(inputs, region_features=inputs.region_features + delta)
        with _shifted(self._words, deltas) if "text" in attacked else nullcontext():
            answer: StudentOutput = self.objective.student(inputs)
        return answer

    def _climb(self, deltas: dict[str, Tensor]) -> None:
        """Move each perturbation along its gradient, by the same length for every sequence."""
        for name, delta in deltas.items():
            assert delta.grad is not None
            rate = self.config.rate_text if name == "text" else self.config.rate_image
            gradient = delta.grad.float()
            step = rate * gradient / _norms(gradient).clamp_min(_LEAST_NORM)
            moved = delta.detach() + step.to(delta.dtype)
            if self.config.max_norm:
                norms = _norms(moved.float())
                moved = moved * (self.config.max_norm / norms.clamp_min(self.config.max_norm)).to(moved.dtype)
            deltas[name] = moved.requires_grad_()


def _norms(values: Tensor) -> Tensor:
    """L2 norm of each row over all that follows: [S, 1, ...]."""
    flat: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return flat.view(-1, *[1] * (values.ndim - 1))


def symmetric_kl(kind: HeadKind, attacked: StudentOutput, clean: StudentOutput) -> Tensor:
    """KL in both directions between softmax predictions, with gradient into both.

    The mean over examples; for a binary multiple-choice head the mean over candidates and outputs, as in VILLA. The
    softmax runs over the classes whatever the task's own loss is.
    """
    one, other = attacked.logits, clean.logits
    if attacked.pair_logits is not None and clean.pair_logits is not None:
        one, other = attacked.pair_logits.flatten(0, 1), clean.pair_logits.flatten(0, 1)
    p, q = one.float().log_softmax(-1), other.float().log_softmax(-1)
    both = ((p.exp() - q.exp()) * (p - q)).sum(-1)  # KL(p || q) + KL(q || p)
    scale = 1 / one.shape[-1] if attacked.pair_logits is not None else 1.0
    return both.mean() * scale


def word_table(student: nn.Module) -> nn.Embedding:
    """The table of word embeddings, by the name that every BERT-like network gives it."""
    found = [
        module
        for name, module in student.named_modules()
        if name.rpartition(".")[2] == WORD_TABLE and isinstance(module, nn.Embedding)
    ]
    if len(found) != 1:
        raise ConfigError(
            f"The student has {len(found)} tables named '{WORD_TABLE}', and adversarial fine-tuning attacks one.",
            hint="leave out --adversarial",
        )
    return found[0]


@contextmanager
def _shifted(table: nn.Embedding, deltas: dict[str, Tensor]) -> Iterator[None]:
    """Add the text perturbation to what the word table gives."""

    def add(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + deltas.setdefault("text", torch.zeros_like(output, requires_grad=True))

    handle = table.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _own_images(inputs: StudentInputs) -> StudentInputs:
    """The same batch with an image of its own for every sequence, so that candidates are attacked apart."""
    index = inputs.image_index
    return replace(
        inputs,
        image_index=torch.arange(len(index), device=index.device),
        region_features=inputs.region_features[index],
        region_boxes=inputs.region_boxes[index],
        region_mask=inputs.region_mask[index],
    )
