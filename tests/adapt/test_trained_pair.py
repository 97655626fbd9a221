from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from madkit.adapt.config import AdaptConfig, ObjectiveConfig
from madkit.adapt.items import Item
from madkit.adapt.objective import contrast, pair_up
from madkit.adapt.trained_pair import LOGIT_SCALE, TrainedPair
from madkit.core.errors import ConfigError
from madkit.tasks.example import ImageRef
from madkit.teachers.load import load_teacher
from madkit.teachers.side_modules import see, side_parameters, text_module, vision_module

TEXTS = ["a red dog", "two cats", "the house is blue", "no"]


def pixels(size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=generator)


def weights_of(teacher: Any) -> dict[str, torch.Tensor]:
    """Every weight of both sides, by name."""
    found = {}
    for side, module in (("vision", vision_module(teacher.vision)), ("text", text_module(teacher.text))):
        found |= {f"{side}/{name}": value.detach().clone() for name, value in side_parameters(module, side).items()}
    return found


def train(pair: TrainedPair, teacher: Any, steps: int = 6, size: int = 32) -> list[float]:
    items = [Item((str(i),), ImageRef(str(i), Path()), (text,), (1.0,)) for i, text in enumerate(TEXTS)]
    pairing = pair_up(items)
    said = teacher.text.tokenize(TEXTS)
    optimizer = torch.optim.AdamW(list(pair.trained.values()), lr=1e-3)
    losses = []
    for _ in range(steps):
        images, words = pair(pixels(size), said)
        outcome = contrast(images, words, pair.scale, pairing, ObjectiveConfig())
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        losses.append(float(outcome.loss.detach()))
    return losses


def name_of(kind: str, tiny: Path, folders: dict[str, Path]) -> str:
    if kind == "open_clip":
        return f"local:{tiny}"
    return f"hf:{folders['dino']}+hf:{folders['bert']}" if kind == "joined" else f"hf:{folders[kind]}"


HEADS = {
    "open_clip": {"vision/proj", "text/text_projection"},
    "clip": {"vision/visual_projection.weight", "text/text_projection.weight"},
    "joined": set(),
}


@pytest.mark.parametrize("what", ["heads", "lora", "all"])
@pytest.mark.parametrize("kind", ["open_clip", "clip", "joined"])
def test_training_changes_what_it_is_told_to_and_nothing_else(
    kind: str, what: str, tiny_teacher: Path, hf_folders: dict[str, Path]
) -> None:
    teacher = load_teacher(name_of(kind, tiny_teacher, hf_folders))
    before = weights_of(teacher)
    pair = TrainedPair(teacher, AdaptConfig.model_validate({"train": what}), 0)
    losses = train(pair, teacher)
    assert losses[-1] < losses[0]
    after = weights_of(teacher) if what != "lora" else _frozen_after_lora(pair)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    if what == "heads":
        assert changed == HEADS[kind]
    elif what == "lora":
        assert not changed
        assert {name.split("/")[1] for name in pair.trained if "/" in name} <= {"lora_a", "lora_b", "head"}
        assert all(float(value.detach().norm()) > 0 for name, value in pair.trained.items() if "/lora_b/" in name)
    else:
        assert len(changed) >= 0.8 * len(before)
    assert pair.new_heads is (kind == "joined")
    assert (LOGIT_SCALE in pair.trained) is (kind == "joined")


def _frozen_after_lora(pair: TrainedPair) -> dict[str, torch.Tensor]:
    """The weights beside which low-rank matrices lie, by the teacher's own names."""
    return {f"{side}/{name}": value for side, weights in pair._weights.items() for name, value in weights.items()}


def test_training_begins_as_the_teacher_is(tiny_teacher: Path, hf_folders: dict[str, Path]) -> None:
    for kind in ("open_clip", "clip"):
        name = name_of(kind, tiny_teacher, hf_folders)
        plain = load_teacher(name)
        for what in ("heads", "lora", "all"):
            teacher = load_teacher(name)
            pair = TrainedPair(teacher, AdaptConfig.model_validate({"train": what}), 0)
            with torch.no_grad():
                images, words = pair(pixels(), plain.text.tokenize(TEXTS))
            torch.testing.assert_close(images, plain.vision.encode(pixels()).global_, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(words, plain.text.encode(TEXTS).global_, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["open_clip", "joined"])
def test_forgotten_activations_give_the_same_gradients(
    kind: str, tiny_teacher: Path, hf_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from madkit.adapt import trained_pair

    calls = []
    own = trained_pair.checkpoint
    monkeypatch.setattr(trained_pair, "checkpoint", lambda *args, **kwargs: calls.append(1) or own(*args, **kwargs))
    gradients = []
    for forget in (False, True):
        teacher = load_teacher(name_of(kind, tiny_teacher, hf_folders))
        pair = TrainedPair(teacher, AdaptConfig(train="all", gradient_checkpointing=forget), 0)
        images, words = pair(pixels(), teacher.text.tokenize(TEXTS))
        (images.square().mean() + words.square().mean()).backward()
        gradients.append({name: value.grad for name, value in pair.trained.items() if value.grad is not None})
    assert len(calls) == 4, "two blocks of each side"
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-5, atol=1e-7, msg=name)


def test_long_texts_have_gradients_in_all_windows(tiny_teacher: Path) -> None:
    teacher = load_teacher(f"local:{tiny_teacher}")
    pair = TrainedPair(teacher, AdaptConfig(train="heads"), 0)
    long = teacher.text.tokenize([" ".join(["a red dog"] * 10)])
    assert len(long[0].ids) > teacher.text.limit
    pair(pixels(), long)[1].sum().backward()
    assert float(pair.trained["text/weight/text_projection"].grad.norm()) > 0


def test_a_teacher_with_one_side_or_without_heads_is_refused(tiny_teacher: Path, hf_folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="reads texts only"):
        TrainedPair(load_teacher(f"hf:{hf_folders['bert']}"), AdaptConfig(), 0)
    with pytest.raises(ConfigError, match="head_dim means nothing"):
        TrainedPair(load_teacher(f"local:{tiny_teacher}"), AdaptConfig(head_dim=8), 0)


def test_seeing_with_gradients_is_seeing(tiny_teacher: Path) -> None:
    teacher = load_teacher(f"local:{tiny_teacher}")
    torch.testing.assert_close(see(teacher.vision, pixels()).tokens, teacher.vision.encode(pixels()).tokens)
