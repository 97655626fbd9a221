"""The unlabelled pool: image and text pairs of the whole train split, with every trace of a label left out.

A multiple-choice question of VCR becomes up to eight pairs: the question with one answer candidate, and the question
with one answer and one rationale candidate. The reader's rationale example names the *right* answer in its context,
which is a label; here it gives way to a candidate that is drawn blindly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from madkit.core.seeds import derive_seed, permutation
from madkit.tasks.example import Example


def unlabelled_pairs(examples: Sequence[Example], *, draws: int, limit: int = 0, seed: int = 0) -> list[Example]:
    """One-sequence examples without label, answers or annotations.

    Args:
        examples: the train split.
        draws: pairs that training will consume; more pairs of one question are made only as far as these can use them.
        limit: number of questions that are used, 0 for all.
        seed: which questions, answers and rationales.
    """
    questions: dict[str, list[Example]] = {}
    for example in examples:
        questions.setdefault(example.question_id, []).append(example)
    names = sorted(questions)
    chosen = [names[int(place)] for place in permutation(len(names), "pool", seed)]
    if limit:
        chosen = chosen[:limit]
    each = max(1, -(-draws // max(1, len(chosen))))
    pairs: list[Example] = []
    for name in chosen:
        found = _pairs_of(questions[name], seed)
        if len(found) > each:
            found = [found[int(place)] for place in permutation(len(found), "pairs", seed, name)[:each]]
        pairs += found
    return pairs


def split_held_out(pairs: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """`pairs` in two parts without a common image: to train on, and about `share` of the images to stop on."""
    images = sorted({pair.image.id for pair in pairs}, key=lambda image: derive_seed("held-out", seed, image))
    held = set(images[: max(1, round(share * len(images)))]) if len(images) > 1 else set()
    return [pair for pair in pairs if pair.image.id not in held], [pair for pair in pairs if pair.image.id in held]


def _blank(example: Example, **changes: object) -> Example:
    blank = replace(example, label=None, answers=None, annotations=(), answer_type="", form="")
    return replace(blank, **changes)  # type: ignore[arg-type]  # fields of Example, by name


def _pairs_of(examples: list[Example], seed: int) -> list[Example]:
    pairs: list[Example] = []
    answers = next((example.candidates for example in examples if example.subtask == "answer"), ())
    for example in examples:
        if not example.candidates:
            pairs.append(_blank(example))
            continue
        for place, candidate in enumerate(example.candidates):
            context = example.context
            if example.subtask == "rationale":
                # the last segment of the context is the right answer
                context = context[:-1]
                if answers:
                    drawn = derive_seed("answer", seed, example.id, place) % len(answers)
                    context = (*context, answers[drawn])
            pairs.append(_blank(example, id=f"{example.id}/{place}", context=context, candidates=(candidate,)))
    return pairs
