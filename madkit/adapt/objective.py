"""The contrastive objective: the true texts among all, the right image among all, the true texts among one's own.

Our reading of the method's adaptive fine-tuning, which is described as contrastive only: the softmax cross-entropy over
a batch in both directions (InfoNCE, van den Oord et al., arXiv 1807.03748; CLIP, arXiv 2103.00020), with soft targets
where several texts are true, and a third term over the candidates of one example. Texts of another example that is
about the same image are left out of the comparison, since they may be true of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from madkit.adapt.config import ObjectiveConfig
from madkit.adapt.items import Item


@dataclass(frozen=True, slots=True)
class Pairing:
    """Who belongs to whom in a batch of n items with I distinct images and T distinct texts.

    Attributes:
        image_ids: the I images.
        texts: the T texts.
        image_of: [n] row of each item's image.
        truth: [n, T] how true each text is of the item's image, as far as the item says; 0 otherwise.
        own: [n, T] bool, the item's own texts.
        compared: [n, T] bool, own texts and those of items about other images.
    """

    image_ids: tuple[str, ...]
    texts: tuple[str, ...]
    image_of: Tensor
    truth: Tensor
    own: Tensor
    compared: Tensor

    def to(self, device: torch.device | str) -> Pairing:
        """The same with its tensors on `device`."""
        moved = (tensor.to(device) for tensor in (self.image_of, self.truth, self.own, self.compared))
        return Pairing(self.image_ids, self.texts, *moved)


def pair_up(items: Sequence[Item]) -> Pairing:
    """Find out who belongs to whom in a batch."""
    images = {image: row for row, image in enumerate(dict.fromkeys(item.image.id for item in items))}
    texts = {text: row for row, text in enumerate(dict.fromkeys(text for item in items for text in item.texts))}
    image_of = torch.tensor([images[item.image.id] for item in items])
    truth = torch.zeros(len(items), len(texts))
    own = torch.zeros(len(items), len(texts), dtype=torch.bool)
    for row, item in enumerate(items):
        places = torch.tensor([texts[text] for text in item.texts])
        truth[row, places] = torch.tensor(item.truth)
        own[row, places] = True
    same = image_of[:, None] == image_of[None, :]
    told = (same.float() @ own.float()) > 0  # [n, T]: some item about the same image has this text
    return Pairing(tuple(images), tuple(texts), image_of, truth, own, own | ~told)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Loss and parts of a batch, and how often the true text or image came first.

    `right` and `decided` count items that choose among their own texts (a soft score counts as its share of the best);
    `found` and `sought` count images and texts that were sought among all of the batch.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    right: Tensor
    decided: int
    found: Tensor
    sought: int


def contrast(images: Tensor, texts: Tensor, scale: Tensor, pairing: Pairing, config: ObjectiveConfig) -> Outcome:
    """Compare a batch.

    Args:
        images: [I, D] global vectors.
        texts: [T, D] global vectors.
        scale: factor on cosines, a scalar.
        pairing: who belongs to whom.
        config: weights of the terms.
    """
    with torch.autocast(images.device.type, enabled=False):  # in 16 bits the texts of an image tie, and the first wins
        logits = scale * F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T  # [I, T]
    rows = logits[pairing.image_of]  # [n, T]
    truth = pairing.truth
    told = truth.sum(1) > 0
    terms = {
        "image_to_text": _cross_entropy(rows, truth, pairing.compared),
        "text_to_image": _image_of_text(logits, pairing),
        "candidates": _cross_entropy(rows, truth, pairing.own),
    }
    weights = {name: float(getattr(config, name)) for name in terms}
    total = sum(weights.values()) or 1.0
    loss = sum((weights[name] * term for name, term in terms.items()), start=logits.new_zeros(())) / total
    with torch.no_grad():
        decides = told & (pairing.own & (truth == 0)).any(1)
        best = rows.masked_fill(~pairing.own, -torch.inf).argmax(1)
        share = truth.gather(1, best[:, None])[:, 0] / truth.amax(1).clamp_min(1e-9)
        first = rows.masked_fill(~pairing.compared, -torch.inf).argmax(1)
        found = (truth.gather(1, first[:, None])[:, 0] > 0)[told].sum()
        true_of = _truth_by_image(pairing, len(logits))
        some = true_of.sum(0) > 0
        found = found + (true_of.gather(0, logits.argmax(0)[None])[0] > 0)[some].sum()
    return Outcome(loss, terms, share[decides].sum(), int(decides.sum()), found, int(told.sum()) + int(some.sum()))


def _cross_entropy(logits: Tensor, truth: Tensor, compared: Tensor) -> Tensor:
    """Mean over rows with something true; nothing outside `compared` is looked at."""
    mass = truth.sum(1)
    told = mass > 0
    if not bool(told.any()):
        return logits.sum() * 0.0
    log_p = logits.masked_fill(~compared, -torch.inf).log_softmax(1)
    per_row = -torch.where(truth > 0, truth * log_p, 0.0).sum(1) / mass.clamp_min(1e-9)
    return per_row[told].mean()


def _truth_by_image(pairing: Pairing, count: int) -> Tensor:
    """[I, T]: the most that any item about the image says of the text."""
    index = pairing.image_of[:, None].expand_as(pairing.truth)
    return pairing.truth.new_zeros(count, pairing.truth.shape[1]).scatter_reduce(0, index, pairing.truth, "amax")


def _image_of_text(logits: Tensor, pairing: Pairing) -> Tensor:
    truth = _truth_by_image(pairing, len(logits)).T
    return _cross_entropy(logits.T, truth, torch.ones_like(truth, dtype=torch.bool))
