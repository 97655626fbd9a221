from __future__ import annotations

from pathlib import Path

import pytest

from madkit.adapt.config import ObjectiveConfig
from madkit.adapt.items import answers_of, make_items
from madkit.core.errors import ConfigError, DataError
from madkit.core.seeds import permutation
from madkit.tasks.example import Example, ImageRef, Segment
from madkit.tasks.spec import TaskSpec, custom_spec, get_task

PLAIN = ObjectiveConfig()


def example(name: str, image: str, *context: str, **more: object) -> Example:
    ref = ImageRef(image, Path(image))
    return Example(name, "t", name, ref, tuple(Segment(text) for text in context), **more)


def items(spec: TaskSpec, examples: list[Example], config: ObjectiveConfig = PLAIN, seed: int = 0):
    answers = answers_of(examples) if spec.kind == "vqa" else {}
    return make_items(spec, examples, config, answers=answers, seed=seed)


def test_a_question_stands_before_each_of_its_candidates() -> None:
    choices = tuple(Segment(text) for text in ("Yes.", "No.", "Maybe."))
    vcr = example("q", "i", "Is it red?", "It is.", candidates=choices, label=1)
    (item,) = items(get_task("vcr"), [vcr])
    assert item.texts == ("Is it red? It is. Yes.", "Is it red? It is. No.", "Is it red? It is. Maybe.")
    assert item.truth == (0.0, 1.0, 0.0)
    assert item.decides
    (alone,) = items(get_task("vcr"), [vcr], ObjectiveConfig(text="candidate"))
    assert alone.texts == ("Yes.", "No.", "Maybe.")


def test_candidates_that_differ_in_boxes_alone_are_one_text() -> None:
    twice = tuple(Segment(text) for text in ("person does.", "dog does.", "person does."))
    (item,) = items(get_task("vcr"), [example("q", "i", "Who?", candidates=twice, label=2)])
    assert dict(zip(item.texts, item.truth, strict=True)) == {"Who? person does.": 1.0, "Who? dog does.": 0.0}
    same = tuple(Segment("person does.") for _ in range(4))
    (item,) = items(get_task("vcr"), [example("q", "i", "Who?", candidates=same, label=2)])
    assert item.texts == ("Who? person does.",)
    assert not item.decides


def test_hypotheses_about_one_image_come_together() -> None:
    labels = get_task("snli-ve").labels
    told = [
        example("a", "i", "It is red.", label=labels.index("entailment")),
        example("b", "j", "It is blue.", label=labels.index("neutral")),
        example("c", "i", "It is blue.", label=labels.index("contradiction")),
    ]
    first, second = items(get_task("snli-ve"), told)
    assert (first.ids, first.texts, first.truth) == (("a", "c"), ("It is red.", "It is blue."), (1.0, 0.0))
    assert first.decides
    assert (second.ids, second.truth, second.decides) == (("b",), (0.0,), False)


def test_classes_of_a_custom_task_are_names_or_one_of_them_says_true() -> None:
    spec = custom_spec("mood", "classification", labels=("happy", "sad"))
    told = [example("a", "i", "The dog is", label=1)]
    (item,) = items(spec, told)
    assert (item.texts, item.truth) == (("The dog is happy", "The dog is sad"), (0.0, 1.0))
    (item,) = items(spec, told, ObjectiveConfig(positive_label="sad"))
    assert (item.texts, item.truth) == (("The dog is",), (1.0,))
    with pytest.raises(ConfigError, match=r"no class 'sat'.*sad"):
        items(spec, told, ObjectiveConfig(positive_label="sat"))


def test_answers_are_as_true_as_their_scores_and_wrong_ones_are_other_questions() -> None:
    told = [
        example("a", "i", "What color?", answers={"red": 1.0, "pink": 0.3, "dull": 0.0}, answer_type="other"),
        example("b", "j", "How many?", answers={"two": 1.0}, answer_type="number"),
        example("c", "k", "Which?", answers={"cat": 0.6, "red": 0.3, "dog": 0.3}, answer_type="other"),
    ]
    first, second, third = items(get_task("vqa"), told, ObjectiveConfig(wrong_answers=2))
    truth = dict(zip(first.texts, first.truth, strict=True))
    assert (truth["What color? red"], truth["What color? pink"]) == (1.0, 0.3)
    wrong = {text.removeprefix("What color? ") for text, value in truth.items() if value == 0}
    assert wrong == {"cat", "dog"}, "two answers of other questions, of its own type"
    assert second.texts == ("How many? two",)
    assert not second.decides
    right = {text for text, value in zip(third.texts, third.truth, strict=True) if value}
    assert right == {"Which? cat", "Which? red", "Which? dog"}
    assert items(get_task("vqa"), told, seed=1) == items(get_task("vqa"), told, seed=1)


@pytest.mark.parametrize("size", [0, 1, 3, 20, 500])
def test_wrong_answers_are_the_first_of_all_the_others_in_an_order_of_their_own(size: int) -> None:
    pool = [f"answer {number}" for number in range(size)]
    told = [
        example(f"e{n}", "i", "What?", answers=dict.fromkeys((*pool[n::7][:n], "never seen"), 1.0), answer_type="other")
        for n in range(7)
    ]
    made = make_items(get_task("vqa"), told, ObjectiveConfig(wrong_answers=4), answers={"other": pool}, seed=5)
    for one, item in zip(told, made, strict=True):
        assert one.answers is not None
        others = [answer for answer in pool if answer not in one.answers]
        order = permutation(len(others), "wrong answers", 5, one.id)[:4]
        assert item.texts[len(one.answers) :] == tuple(f"What? {others[place]}" for place in order)


def test_items_do_not_go_through_all_answers_of_a_type() -> None:
    class Counted(list[str]):
        passes = 0

        def __iter__(self):
            Counted.passes += 1
            return super().__iter__()

    pool = Counted(f"answer {number}" for number in range(50))
    told = [example(f"e{n}", "i", "What?", answers={"answer 3": 1.0}, answer_type="other") for n in range(20)]
    make_items(get_task("vqa"), told, PLAIN, answers={"other": pool}, seed=0)
    assert Counted.passes == 1


def test_an_example_without_a_label_is_named() -> None:
    with pytest.raises(DataError, match="example q has no label"):
        items(get_task("snli-ve"), [example("q", "i", "Red.")])
    with pytest.raises(DataError, match="example q has no answers"):
        items(get_task("vqa"), [example("q", "i", "Red?")])
