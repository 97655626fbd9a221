from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from open_clip import ClipLoss

from madkit.adapt.config import ObjectiveConfig
from madkit.adapt.items import Item
from madkit.adapt.objective import contrast, pair_up
from madkit.tasks.example import ImageRef

BOTH = ObjectiveConfig(candidates=0.0)


def item(name: str, image: str, texts: dict[str, float]) -> Item:
    return Item((name,), ImageRef(image, Path(image)), tuple(texts), tuple(texts.values()))


def vectors(rows: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def test_one_text_for_each_image_is_the_loss_of_open_clip() -> None:
    pairing = pair_up([item(str(i), f"image {i}", {f"text {i}": 1.0}) for i in range(6)])
    images, texts, scale = vectors(6), vectors(6, seed=1), torch.tensor(20.0)
    expected = ClipLoss()(F.normalize(images, dim=-1), F.normalize(texts, dim=-1), scale)
    outcome = contrast(images, texts, scale, pairing, BOTH)
    torch.testing.assert_close(outcome.loss, expected)
    assert outcome.sought == 12
    assert outcome.decided == 0


def test_candidates_are_compared_among_themselves() -> None:
    rows = [item(str(i), f"image {i}", {f"{i} yes": 0.0, f"{i} no": 1.0, f"{i} maybe": 0.0}) for i in range(4)]
    pairing = pair_up(rows)
    images, texts, scale = vectors(4), vectors(12, seed=1), torch.tensor(5.0)
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    own = torch.stack([logits[i, 3 * i : 3 * i + 3] for i in range(4)])
    outcome = contrast(images, texts, scale, pairing, ObjectiveConfig(image_to_text=0, text_to_image=0))
    torch.testing.assert_close(outcome.loss, F.cross_entropy(own, torch.ones(4, dtype=torch.long)))
    assert (int(outcome.right), outcome.decided) == (int((own.argmax(1) == 1).sum()), 4)


def test_mixed_arithmetic_makes_no_ties() -> None:
    """Looks at the development split happen under autocast; in bfloat16 logits of some 30 are told apart by 1/8."""
    rows = [item(str(i), f"image {i}", {f"{i} no": 0.0, f"{i} yes": 1.0}) for i in range(64)]
    images = vectors(64)
    texts = images.repeat_interleave(2, 0) + vectors(128, seed=1) * torch.tensor([0.11, 0.1]).repeat(64)[:, None]
    asked = (images, texts, torch.tensor(30.0), pair_up(rows), BOTH)
    exact = contrast(*asked)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = contrast(*asked)
    assert 0 < int(exact.right) < 64
    assert torch.equal(mixed.right, exact.right)
    assert torch.equal(mixed.loss, exact.loss)


def test_what_another_item_says_of_the_same_image_is_not_held_against_it() -> None:
    rows = [item("a", "i", {"red": 1.0}), item("b", "i", {"a dog": 1.0, "a cat": 0.0}), item("c", "j", {"blue": 1.0})]
    pairing = pair_up(rows)
    assert pairing.image_ids == ("i", "j")
    names = dict(zip(pairing.texts, range(4), strict=True))
    assert not pairing.compared[0, names["a dog"]]
    assert not pairing.compared[0, names["a cat"]]
    assert pairing.compared[0, names["blue"]]
    assert pairing.compared[2].all()
    images = vectors(2)
    texts = vectors(4, seed=1)
    moved = texts.clone()
    moved[names["a dog"]] = 100 * images[0]  # would win by far
    first, second = (
        contrast(images, words, torch.tensor(3.0), pairing, ObjectiveConfig(text_to_image=0, candidates=0))
        for words in (texts, moved)
    )
    row = F.normalize(images[:1], dim=-1) @ F.normalize(texts[[names["red"], names["blue"]]], dim=-1).T * 3.0
    assert first.terms["image_to_text"].isfinite()
    assert second.terms["image_to_text"] != first.terms["image_to_text"]  # item b's own row did move
    alone = F.cross_entropy(row, torch.zeros(1, dtype=torch.long))
    others = [pairing.compared[1], pairing.compared[2]]
    rest = 0.0
    for truth, compared, image in ((names["a dog"], others[0], 0), (names["blue"], others[1], 1)):
        logits = 3.0 * F.normalize(images[image], dim=-1) @ F.normalize(texts, dim=-1).T
        rest += float(F.cross_entropy(logits.masked_fill(~compared, -torch.inf)[None], torch.tensor([truth])))
    assert float(first.terms["image_to_text"]) == pytest.approx((float(alone) + rest) / 3, rel=1e-5)


def test_soft_truth_is_shared_out_and_a_batch_without_truth_costs_nothing() -> None:
    rows = [item("a", "i", {"red": 1.0, "pink": 0.5, "blue": 0.0}), item("b", "j", {"green": 0.0})]
    pairing = pair_up(rows)
    images, texts = vectors(2), vectors(4, seed=1)
    log_p = (F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T)[0, :3].log_softmax(0)
    outcome = contrast(images, texts, torch.tensor(1.0), pairing, ObjectiveConfig(image_to_text=0, text_to_image=0))
    torch.testing.assert_close(outcome.loss, -(log_p[0] / 1.5 + log_p[1] * 0.5 / 1.5))
    empty = contrast(images[:1], texts[:1], torch.tensor(1.0), pair_up(rows[1:]), BOTH)
    assert (float(empty.loss), empty.decided, empty.sought) == (0.0, 0, 0)
