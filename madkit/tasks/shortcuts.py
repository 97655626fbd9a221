"""Shortcut-mitigated VCR: the two rule-based rewritings of Ye and Kovashka (AAAI 2021), on raw VCR lines.

In VCR the right choice often repeats the person tags of the question and the wrong ones do not, so that a model can
answer without reading. The rules turn this around: in wrong choices references to people become the question's tag, in
the right choice they become pronouns. Question, objects and labels stay; answers and rationales change. The rationales
of the result are conditioned on the rewritten right answer, because that is what the line then says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from madkit.core.errors import DataError
from madkit.tasks.formats.vcr import has_rationales

Item = dict[str, Any]
Tokens = list[Any]

_SUBJECT = frozenset({"he", "she"})  # compared in lower case
_MALE = frozenset(form for word in ("he", "his", "him") for form in (word, word.capitalize()))
_FEMALE = frozenset(form for word in ("she", "her", "hers") for form in (word, word.capitalize()))
_SUBJECT_FORMS = frozenset({"he", "she", "He", "She"})
_PLURAL_FORMS = frozenset({"they", "They"})


def rule_singular(items: Iterable[Mapping[str, Any]], *, counts: MutableMapping[str, int] | None = None) -> list[Item]:
    """The Rule-Singular set: questions about exactly one person, with every single reference rewritten.

    A choice with one person tag or one kind of subject pronoun (he, she) changes: if it is wrong, the tag and the
    pronouns become the question's tag; if it is right, the tag becomes he or she, whichever the choice (or, on a tie,
    choice and question together) uses more.

    Args:
        items: raw lines of a VCR file with both labels; they are not changed.
        counts: receives the numbers of "questions", "kept", "answers changed" and "rationales changed".

    Raises:
        DataError: a line lacks a label, or tokens that the rule reads.
    """
    return _apply(items, _singular_subject, _rewrite_singular, counts)


def rule_plural(items: Iterable[Mapping[str, Any]], *, counts: MutableMapping[str, int] | None = None) -> list[Item]:
    """The Rule-Plural set: questions whose only tag is a group of people, with groups and "they" rewritten.

    In wrong choices the group and "they" become the question's group, in the right choice the group becomes "they". A
    group is compared in ascending order, so one that the file lists in another order is left as it is.

    Arguments and errors as in `rule_singular`.
    """
    return _apply(items, _only_group, _rewrite_plural, counts)


# What a question is about, or None for a question that the rule leaves out.
_Subject = Callable[[Sequence[Any], Sequence[str]], "list[int] | None"]
_Rewrite = Callable[[Tokens, "list[int]", bool, Sequence[Any], Sequence[str]], Tokens]


def _apply(
    items: Iterable[Mapping[str, Any]], subject: _Subject, rewrite: _Rewrite, counts: MutableMapping[str, int] | None
) -> list[Item]:
    seen = 0
    changed = {"answer": 0, "rationale": 0}
    kept: list[Item] = []
    for item in items:
        seen += 1
        question, objects = _need_list(item, "question"), _need_list(item, "objects")
        about = subject(question, objects)
        if about is None:
            continue
        new = dict(item)
        for part in changed:
            if part == "rationale" and item.get("rationale_choices") is None:
                continue  # answers alone
            choices, label = _need_list(item, f"{part}_choices"), item.get(f"{part}_label")
            if not isinstance(label, int) or not 0 <= label < len(choices):
                raise DataError(f"{_name(item)}: '{part}_label' is missing or no index of '{part}_choices'.")
            new[f"{part}_choices"] = [
                rewrite(tokens, about, number == label, question, objects) for number, tokens in enumerate(choices)
            ]
            if part == "answer" or has_rationales(item):
                changed[part] += sum(a != b for a, b in zip(choices, new[f"{part}_choices"], strict=True))
        kept.append(new)
    if counts is not None:
        counts.update(
            {
                "questions": seen,
                "kept": len(kept),
                "answers changed": changed["answer"],
                "rationales changed": changed["rationale"],
            }
        )
    return kept


def _need_list(item: Mapping[str, Any], key: str) -> list[Any]:
    value = item.get(key)
    if not isinstance(value, list):
        raise DataError(f"{_name(item)}: '{key}' is missing or no list.")
    return value


def _name(item: Mapping[str, Any]) -> str:
    return f"VCR line {item.get('annot_id', '(no annot_id)')}"


def _is_person(tag: Any, objects: Sequence[str]) -> bool:
    return isinstance(tag, int) and 0 <= tag < len(objects) and objects[tag] == "person"


def _people(tokens: Sequence[Any], objects: Sequence[str]) -> list[int]:
    """The distinct person tags of a text, ascending."""
    return sorted({t for token in tokens if isinstance(token, list) for t in token if _is_person(t, objects)})


def _singular_subject(question: Sequence[Any], objects: Sequence[str]) -> list[int] | None:
    people = _people(question, objects)
    return people if len(people) == 1 else None


def _rewrite_singular(
    tokens: Tokens, about: list[int], right: bool, question: Sequence[Any], objects: Sequence[str]
) -> Tokens:
    people = _people(tokens, objects)
    pronouns = {token.lower() for token in tokens if isinstance(token, str)} & _SUBJECT
    if len(people) + len(pronouns) != 1:
        return list(tokens)
    if right:
        if not people:
            return list(tokens)
        return _replace(tokens, lambda token: token == people, _pronoun(tokens, question))
    return _replace(tokens, lambda token: _is_reference(token, people, _SUBJECT_FORMS), about)


def _pronoun(tokens: Sequence[Any], question: Sequence[Any]) -> str:
    """Which of he and she the text uses more often; on a tie text and question together, then "he"."""
    lead = _lead(tokens) or _lead(question)
    return "she" if lead < 0 else "he"


def _lead(tokens: Sequence[Any]) -> int:
    words = [token for token in tokens if isinstance(token, str)]
    return sum(word in _MALE for word in words) - sum(word in _FEMALE for word in words)


def _only_group(tokens: Sequence[Any], objects: Sequence[str]) -> list[int] | None:
    """The only tag of a text, ascending, if it is a group of people; else None."""
    tags = [token for token in tokens if isinstance(token, list)]
    if len(tags) != 1 or len(tags[0]) < 2 or not all(_is_person(tag, objects) for tag in tags[0]):
        return None
    return sorted(tags[0])


def _rewrite_plural(
    tokens: Tokens, about: list[int], right: bool, question: Sequence[Any], objects: Sequence[str]
) -> Tokens:
    group = _only_group(tokens, objects)
    if right:
        return list(tokens) if group is None else _replace(tokens, lambda token: token == group, "they")
    return _replace(tokens, lambda token: _is_reference(token, group, _PLURAL_FORMS), about)


def _is_reference(token: Any, tag: list[int] | None, pronouns: frozenset[str]) -> bool:
    return token in pronouns if isinstance(token, str) else bool(tag) and token == tag


def _replace(tokens: Tokens, matches: Callable[[Any], bool], new: str | list[int]) -> Tokens:
    """A copy with every matching token replaced; a word is capitalised at the start of the text."""

    def replacement(position: int) -> Any:
        if isinstance(new, str):
            return new.capitalize() if position == 0 else new
        return list(new)

    return [replacement(position) if matches(token) else token for position, token in enumerate(tokens)]
