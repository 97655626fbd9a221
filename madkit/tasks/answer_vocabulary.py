"""The answers that a VQA head decides between, and what an example says about each of them.

The published vocabulary of 3,129 answers (hengyuan-hu's, used by LXMERT, UNITER, VILLA, ViLT, METER): the normalised
main answer of every question of train and val, where at least 9 questions have it. The set is the same everywhere,
the order is not, and a head is useless without its own: UNITER's is the order of first occurrence, LXMERT's another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from madkit.core.archives import read_bytes
from madkit.core.errors import DataError, UsageProblem
from madkit.tasks.example import Example
from madkit.tasks.formats.source_lines import Place, kind_of, load_json
from madkit.tasks.index.columns import leave_one_out
from madkit.tasks.index.reader import ExampleTable
from madkit.tasks.vqa_normalization import vocabulary_form

MIN_QUESTIONS = 9

AnswerMatch = Literal["normalized", "raw"]
AnswerOrder = Literal["first", "frequency"]


def count_answers(examples: Iterable[Example]) -> Counter[str]:
    """Questions by normalised main answer, in the order of first occurrence; one pass, nothing else is kept.

    An example without `main_answer` counts for its best soft score, the first in the alphabet where several are; one
    without answers counts for nothing. "" is an answer: what normalisation leaves of "a" or "the".
    """
    counts: Counter[str] = Counter()
    if isinstance(examples, ExampleTable) and examples.has_main_answers:
        return Counter(map(vocabulary_form, examples.main_answers()))  # from the column, without making examples
    for example in examples:
        main = example.main_answer or _best(example.answers)
        if main is not None:
            counts[vocabulary_form(main)] += 1
    return counts


def _best(answers: Mapping[str, float] | None) -> str | None:
    if not answers:
        return None
    best = max(answers.values())
    return min(answer for answer, score in answers.items() if score == best)


def answer_vocabulary(
    examples: Iterable[Example], *, min_questions: int = MIN_QUESTIONS, order: AnswerOrder = "first"
) -> tuple[str, ...]:
    """Normalised answers that are the main one of at least `min_questions` questions.

    Args:
        examples: the questions to build on: the train split; published lists are built on train and val, 3,129 answers
            for VQA v2. An iterator will do.
        min_questions: how many questions an answer needs.
        order: "first" occurrence among `examples` (UNITER's, where these come in the files' order), or "frequency",
            the most frequent first, then by alphabet.

    Raises:
        DataError: no answer is frequent enough.
        UsageProblem: an unknown order.
    """
    if order not in get_args(AnswerOrder):
        raise UsageProblem(f"There is no order {order!r} of answers.", hint="use 'first' or 'frequency'")
    counts = count_answers(examples)
    kept = [answer for answer, questions in counts.items() if questions >= min_questions]
    if not kept:
        raise DataError(f"No answer is the most frequent one of {min_questions} or more training questions.")
    if order == "frequency":
        kept.sort(key=lambda answer: (-counts[answer], answer))
    return tuple(kept)


def read_answer_file(path: Path) -> tuple[str, ...]:
    """The answers of a head in the order of its outputs, as written by madkit or another code base.

    Known are an object of answers and positions (UNITER's `ans2label.json`, LXMERT's `trainval_ans2label.json`), a list
    (LXMERT's `trainval_label2ans.json`, madkit's `answers.json`), an object of positions and answers (a list's
    positions as keys), and text with an answer a line (`.txt`; an empty line is the answer "").

    Raises:
        NotFoundError: there is no such file.
        DataError: another content, an answer that stands there twice, positions that are not 0 to n - 1.
    """
    place = Place(path)
    if path.suffix.lower() == ".txt":
        answers: list[Any] = _lines(path, place)
    else:
        content = load_json(path)
        match content:
            case list():
                answers = content
            case dict():
                answers = _by_position(content, place)
            case _:
                place.fail(
                    f"a list of answers or an object of answers and positions is needed, found {kind_of(content)}"
                )
    if not answers:
        place.fail("the file holds no answers")
    first: dict[str, int] = {}
    for position, answer in enumerate(answers):
        if not isinstance(answer, str):
            place.fail(f"the answer at position {position} must be a string, found {kind_of(answer)}")
        if first.setdefault(answer, position) != position:
            place.fail(f"the answer {answer!r} stands there twice, at positions {first[answer]} and {position}")
    return tuple(answers)


def _lines(path: Path, place: Place) -> list[str]:
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place.fail(f"byte {error.start + 1} is not UTF-8 text", hint=f"convert {path.name} to UTF-8")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def _by_position(content: Mapping[str, Any], place: Place) -> list[Any]:
    """An object of answers and positions, or of positions and answers, as a list."""
    if content and all(isinstance(value, str) for value in content.values()):
        if not all(key.isascii() and key.isdigit() for key in content):
            place.fail("the values are answers, so every key must be a position")
        pairs = [(answer, int(key)) for key, answer in content.items()]
    else:
        pairs = list(content.items())
    answers: dict[int, Any] = {}
    for answer, position in pairs:
        if not isinstance(position, int) or isinstance(position, bool):
            place.fail(f"the position of {answer!r} must be an integer, found {kind_of(position)}")
        if not 0 <= position < len(pairs):
            place.fail(
                f"the position of {answer!r} is {position}, but with {len(pairs)} answers 0 to {len(pairs) - 1} exist"
            )
        if position in answers:
            place.fail(f"{answers[position]!r} and {answer!r} have the same position, {position}")
        answers[position] = answer
    return [answers[position] for position in range(len(answers))]


def soft_targets(
    example: Example, positions: Mapping[str, int], *, match: AnswerMatch = "normalized"
) -> dict[int, float]:
    """Soft score in 0..1 of the answers of a vocabulary, by position; answers that nobody gave are left out.

    An answer that n of ten annotators gave scores 0, .3, .6, .9, 1, 1, ...: the mean of min(1, n/3) over the ten ways
    to leave one annotator out.

    Args:
        example: with `annotations`, or with `answers` alone (LXMERT's files): then the highest score among the strings
            that stand for an answer counts.
        positions: answer -> position, for every answer of the vocabulary.
        match: "normalized" counts an annotator's string for the answer that it is, else for the one that it becomes by
            normalisation; "raw" counts identical strings only, as published targets do, where "t-shirt" is lost to a
            vocabulary that has it as "t shirt".

    Raises:
        UsageProblem: an unknown `match`.
    """
    if match not in get_args(AnswerMatch):
        raise UsageProblem(f"There is no way to match answers named {match!r}.", hint="use 'normalized' or 'raw'")
    if not example.annotations:
        found: dict[int, float] = {}
        for answer, score in (example.answers or {}).items():
            position = _position(answer, positions, match)
            if position is not None and score > 0:
                found[position] = max(score, found.get(position, 0.0))
        return found
    counts: dict[int, int] = {}
    for answer in example.annotations:
        position = _position(answer, positions, match)
        if position is not None:
            counts[position] = counts.get(position, 0) + 1
    return {position: leave_one_out(count, len(example.annotations)) for position, count in counts.items()}


def positions_of(vocabulary: Sequence[str]) -> dict[str, int]:
    """Answer -> position, for `soft_targets`."""
    return {answer: position for position, answer in enumerate(vocabulary)}


def _position(answer: str, positions: Mapping[str, int], match: AnswerMatch) -> int | None:
    position = positions.get(answer)
    if position is None and match == "normalized":
        return positions.get(vocabulary_form(answer))
    return position
