"""Rows of the real benchmarks' files for questions and scenes of the pictograph world (field names: VCR's,
SNLI-VE's and VQA v2's own, see docs/formats.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .commonsense import Conundrum
from .concepts import COLOURS, concepts
from .draw import Draw
from .entailment import Hypothesis
from .render import SIDE, Picture
from .scene import Thing
from .visual_qa import VisualQuestion, ten_answers
from .wording import with_article

Row = dict[str, Any]


def caption(scene: Sequence[Thing]) -> str:
    """A true description of a scene: SNLI-VE's textual premise. No model reads it."""
    parts = [with_article(f"{COLOURS[t.colour].name} {concepts()[t.concept].name}") for t in scene]
    return f"There is {', '.join(parts[:-1])} and {parts[-1]}."


def snli_ve_row(question: Hypothesis, scene: Sequence[Thing], image: str, number: int, reworded: bool) -> Row:
    """One line of snli_ve_*.jsonl."""
    return {
        "annotator_labels": [question.label],
        "captionID": f"{image}.jpg#0",
        "gold_label": question.label,
        "pairID": f"{image}.jpg#0r{number}{question.label[0]}",
        "sentence1": caption(scene),
        "sentence2": question.reworded if reworded else question.text,
        "Flickr30K_ID": image,
        "form": question.kind,
    }


def vqa_rows(
    question: VisualQuestion, image: int, number: int, reworded: bool, draw: Draw, pool: Sequence[int]
) -> tuple[Row, Row]:
    """One entry of `questions` and one of `annotations`. `draw` gives the annotators: pass the same for a rewording."""
    ids = {"image_id": image, "question_id": image * 10 + number}
    asked = {**ids, "question": question.reworded if reworded else question.text}
    given: Row = {
        **ids,
        "question_type": question.question_type,
        "answer_type": question.answer_type,
        "multiple_choice_answer": question.answer,
        "answers": ten_answers(draw, question, pool),
    }
    return asked, given


def vcr_row(
    question: Conundrum, scene: Sequence[Thing], image: str, split: str, number: int, reworded: bool, draw: Draw
) -> Row:
    """One line of VCR's jsonl. `draw` gives the other tags of `who` answers: pass the same for a rewording."""
    which = int(reworded)
    return {
        "movie": "MINI",
        "objects": ["person"] * len(scene),
        "interesting_scores": [0],
        "answer_likelihood": "likely",
        "img_fn": f"{image}.png",
        "metadata_fn": f"{image}.json",
        "question": question.tokens(question.question[which], scene),
        "answer_choices": question.answer_tokens(scene, draw, reworded),
        "answer_label": question.answer_label,
        "rationale_choices": [question.tokens(draft, scene) for draft in question.rationales[which]],
        "rationale_label": question.rationale_label,
        "img_id": image,
        "question_number": number,
        "annot_id": f"{split}-{number}",
        "match_fold": f"{split}-0",
        "match_index": number,
        "question_type": question.kind,
    }


def vcr_metadata(picture: Picture) -> Row:
    """VCR's metadata JSON of one image: 5-column boxes (the fifth is a detector's score) and box-shaped polygons."""
    boxes = [[float(x1), float(y1), float(x2), float(y2), 1.0] for x1, y1, x2, y2 in picture.boxes]
    polygons = [[[[x1, y1], [x2, y1], [x2, y2], [x1, y2]]] for x1, y1, x2, y2 in picture.boxes]
    return {"boxes": boxes, "segms": polygons, "names": ["person"] * len(boxes), "width": SIDE, "height": SIDE}
