"""VQA v2's four files with made-up questions: the owners' layout, sizes and answer statistics."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

QUESTIONS = 658_111  # of VQA v2's train2014 and val2014 together
_TRAIN_SHARE = 443_757 / QUESTIONS
_WRAPPER = {
    "info": {"description": "Made-up questions in the layout of VQA v2.", "version": "2.0", "year": 2017},
    "task_type": "Open-Ended",
    "data_type": "mscoco",
    "license": {"name": "made up"},
}
# Shares of the answer types and, for each, the question types that lead to it.
_KINDS = (
    ("yes/no", 0.376, ("is the", "is this", "are there", "does the", "is there a", "are these", "can you")),
    ("number", 0.130, ("how many", "what number is", "what time", "how many people are")),
    ("other", 0.494, ("what is the", "what color is the", "what", "what kind of", "where is the", "none of the above")),
)
_COMMON = 3_000  # answers that make up most of the open questions'; each seldom one below is a pair of their words
_SELDOM_SHARE = 0.13
_SYLLABLES = tuple(consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou")
_CONFIDENCE = ("yes", "yes", "yes", "maybe", "maybe", "no")
_BLOCK = 4096  # entries in one write


def write_vqa_files(folder: Path, questions: int = QUESTIONS, seed: int = 0) -> dict[str, Path]:
    """Write questions and annotations of train2014 and val2014, in VQA v2's proportion, and return their paths.

    The keys are "train2014_questions", "train2014_annotations" and the same for val2014. Ten answers a question, the
    main answers with a long tail, no images. The same arguments give the same bytes. 658,111 questions take some 570 MB
    and 20 s.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train = round(questions * _TRAIN_SHARE)
    paths: dict[str, Path] = {}
    for subset, count, first in (("train2014", train, 9), ("val2014", questions - train, 42)):
        asked = folder / f"v2_OpenEnded_mscoco_{subset}_questions.json"
        answered = folder / f"v2_mscoco_{subset}_annotations.json"
        paths[f"{subset}_questions"], paths[f"{subset}_annotations"] = asked, answered
        wrapper = json.dumps(_WRAPPER | {"data_subtype": subset})[:-1]
        with asked.open("w", encoding="utf-8") as q, answered.open("w", encoding="utf-8") as a:
            q.write(f'{wrapper}, "questions": [')
            a.write(f'{wrapper}, "annotations": [')
            for start, block in enumerate(_blocks(count, first, random.Random(f"{seed} {subset}"))):
                comma = ", " if start else ""
                q.write(comma + ", ".join(question for question, _ in block))
                a.write(comma + ", ".join(annotation for _, annotation in block))
            q.write("]}")
            a.write("]}")
    return paths


def _blocks(count: int, first: int, draw: random.Random) -> Iterator[list[tuple[str, str]]]:
    entry = _writer(draw)
    block: list[tuple[str, str]] = []
    image, left, number = first, 0, 0
    for _ in range(count):
        if not left:
            # train's images have odd numbers, val's even ones: COCO's parts share none
            image, left, number = image + 2 * draw.randrange(1, 7), draw.randrange(3, 9) if count > 1 else 1, 0
        block.append(entry(image, image * 1000 + number))
        left, number = left - 1, number + 1
        if len(block) == _BLOCK:
            yield block
            block = []
    if block:
        yield block


def _writer(draw: random.Random) -> Callable[[int, int], tuple[str, str]]:
    """A function that makes the JSON text of a question and of its annotation."""
    words = _words(draw)
    common = words[:_COMMON]
    weights = list(accumulate(1 / (rank + 3) for rank in range(len(common))))
    numbers = [str(n) for n in range(60)]
    number_weights = list(accumulate(1 / (1 + n) ** 1.5 for n in range(60)))
    kind_weights = list(accumulate(share for _, share, _ in _KINDS))
    random_, choice, choices = draw.random, draw.choice, draw.choices
    # the text between two answers, with every confidence: nothing else of an entry changes
    tails = [
        [f', "answer_confidence": "{confidence}", "answer_id": {number}}}' for confidence in _CONFIDENCE]
        for number in range(1, 11)
    ]

    def an_answer(kind: str) -> str:
        if kind == "yes/no":
            return "yes" if random_() < 0.51 else "no"
        if kind == "number":
            return str(choices(numbers, cum_weights=number_weights)[0])
        if random_() < _SELDOM_SHARE:
            return f"{choice(words)} {choice(words)}"
        return str(choices(common, cum_weights=weights)[0])

    def entry(image: int, question_id: int) -> tuple[str, str]:
        kind, _, forms = choices(_KINDS, cum_weights=kind_weights)[0]
        form = choice(forms)
        main = an_answer(kind)
        agree = 0.9 if kind == "yes/no" else 0.65
        given = [main if random_() < agree else an_answer(kind) for _ in range(10)]
        answers = ", ".join(f'{{"answer": "{a}"{choice(tail)}' for a, tail in zip(given, tails, strict=True))
        text = f"{form.capitalize()} {choice(words)} {choice(words)} of the {choice(words)}?"
        question = f'{{"image_id": {image}, "question": "{text}", "question_id": {question_id}}}'
        annotation = (
            f'{{"question_type": "{form}", "multiple_choice_answer": "{main}", "answers": [{answers}], '
            f'"image_id": {image}, "answer_type": "{kind}", "question_id": {question_id}}}'
        )
        return question, annotation

    return entry


def _words(draw: random.Random) -> list[str]:
    """Made-up words, the first ones short: what stands in questions and answers."""
    words: dict[str, None] = {}
    while len(words) < 12_000:
        words["".join(draw.choices(_SYLLABLES, k=2 if len(words) < 600 else draw.randrange(2, 5)))] = None
    return list(words)
