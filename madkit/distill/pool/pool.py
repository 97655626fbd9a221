"""The unlabelled pool: images and texts of the whole train split, with every trace of a label left out.

Pairs, for the pre-phase: a multiple-choice question of VCR becomes up to eight, the question with one answer candidate,
and the question with one answer and one rationale candidate. Whole examples, for the joint form: a question brings
all of its candidates, as a labelled one does. In both the reader's rationale example names the *right* answer in its
context, which is a label; here it gives way to a candidate that is drawn blindly, or one that the caller names.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from madkit.cache import TokenCache
from madkit.core.errors import RunError
from madkit.core.seeds import derive_seed, permutation
from madkit.tasks.example import Example, Segment


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


def unlabelled_examples(
    examples: Sequence[Example], *, draws: int, limit: int = 0, without: Collection[str] = (), seed: int = 0
) -> list[Example]:
    """Whole examples without label, answers or annotations; a rationale's context is left with a blindly drawn answer.

    Args:
        examples: the train split.
        draws: examples that training will consume; no more are given than its last question makes them.
        limit: number of questions that are used, 0 for all.
        without: ids of questions that stay out: those that have their labels.
        seed: which questions, and which answers stand in rationales' contexts.
    """
    left_out = set(without)
    questions: dict[str, list[Example]] = {}
    for example in examples:
        if example.question_id not in left_out:
            questions.setdefault(example.question_id, []).append(example)
    names = sorted(questions)
    chosen = [names[int(place)] for place in permutation(len(names), "pool", seed)]
    found: list[Example] = []
    for name in chosen[:limit] if limit else chosen:
        if len(found) >= draws:
            break
        found += _blind(questions[name], seed)
    return found


def _blind(question: Sequence[Example], seed: int) -> list[Example]:
    """The examples of one question without their labels, each rationale's answer drawn from the seed and its id."""
    answers = next((example.candidates for example in question if example.subtask == "answer"), ())
    blind = []
    for example in question:
        blank = _blank(example)
        if example.subtask == "rationale":
            drawn = derive_seed("answer", seed, example.id) % len(answers) if answers else 0
            blank = with_answer(blank, answers[drawn] if answers else None)
        blind.append(blank)
    return blind


def with_answer(rationale: Example, answer: Segment | None) -> Example:
    """A rationale example with another answer in its context (None: with none), in place of the one that stands there.

    The last segment of the context is an answer: in the benchmark's files, the right one.
    """
    return replace(rationale, context=(*rationale.context[:-1], *([] if answer is None else [answer])))


def known_to(cache: TokenCache, examples: Sequence[Example]) -> tuple[list[Example], int]:
    """The examples whose image and texts the cache has values for, and how many others there are.

    Raises RunError where there is none.
    """
    # one of several teachers may have a cache of images or texts alone
    images = cache.images if "images" in cache.parts else None
    texts = cache.texts if "texts" in cache.parts else None
    if not (images is not None and images.absent) and not (texts is not None and texts.absent):
        return list(examples), 0
    seen = [True] * len(examples)
    if images is not None:
        seen = images.present([example.image.id for example in examples]).tolist()
    kept = [
        example
        for example, there in zip(examples, seen, strict=True)
        if there and (texts is None or texts.present(example.texts()).all())
    ]
    if not kept:
        raise RunError(
            f"The cache {cache.path.name} has no values for any image of the unlabelled pool.",
            hint="see what is absent: madkit cache info",
        )
    return kept, len(examples) - len(kept)


def split_held_out(pairs: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """`pairs` in two parts without a common image: to train on, and about `share` of the images to stop on."""
    images = sorted({pair.image.id for pair in pairs}, key=lambda image: derive_seed("held-out", seed, image))
    held = set(images[: max(1, round(share * len(images)))]) if len(images) > 1 else set()
    return [pair for pair in pairs if pair.image.id not in held], [pair for pair in pairs if pair.image.id in held]


def _blank(example: Example, **changes: object) -> Example:
    blank = replace(example, label=None, answers=None, annotations=(), answer_type="", form="", main_answer="")
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
