"""Small benchmarks in their owners' file formats, imported into a workspace: truth that a test knows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from madkit.core.workspace import Workspace
from madkit.tasks.importing.run import import_data

# Right answers and rationales of the VCR questions val-0 ... val-4.
ANSWERS = (0, 1, 2, 3, 0)
RATIONALES = (3, 2, 1, 0, 1)


def vcr_row(name: str, answer: int | None, rationale: int | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "movie": "M",
        "objects": ["person", "person"],
        "img_fn": "m/one.jpg",
        "metadata_fn": "m/one.json",
        "question": ["Why", "is", [0], "here", "?"],
        "answer_choices": [["Because", [number % 2], f"a{number}", "."] for number in range(4)],
        "rationale_choices": [["Since", f"r{number}", "."] for number in range(4)],
        "annot_id": name,
    }
    if answer is not None:
        row |= {"answer_label": answer, "rationale_label": rationale}
    return row


def import_vcr(workspace: Workspace, folder: Path, submission: Sequence[str] = ()) -> None:
    images = folder / "vcr1images" / "m"
    images.mkdir(parents=True)
    (images / "one.jpg").write_bytes(b"not looked into")
    about = {
        "boxes": [[0, 0, 10, 10, 0.9], [5, 5, 20, 20, 0.8]],
        "segms": [[], []],
        "names": ["person", "person"],
        "width": 40,
        "height": 30,
    }
    (images / "one.json").write_text(json.dumps(about))
    rows = [vcr_row(f"val-{number}", *pair) for number, pair in enumerate(zip(ANSWERS, RATIONALES, strict=True))]
    (folder / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if submission:
        hidden = [vcr_row(name, None, None) for name in submission]
        (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in hidden))
    import_data(workspace, "vcr", folder)


def import_snli_ve(workspace: Workspace, folder: Path, labels: Sequence[str]) -> None:
    (folder / "flickr30k-images").mkdir(parents=True)
    for first, split in ((100, "train"), (50, "dev"), (0, "test")):  # no pair or image in two splits
        for image in (first, first + 1):
            (folder / "flickr30k-images" / f"{image}.jpg").write_bytes(b"not looked into")
        rows = [
            {
                "pairID": f"{first + number % 2}.jpg#{number}",
                "captionID": f"{first + number % 2}.jpg#{number}",
                "Flickr30K_ID": str(first + number % 2),
                "gold_label": label,
                "sentence1": "A man.",
                "sentence2": f"A dog {number}.",
            }
            for number, label in enumerate(labels)
        ]
        (folder / f"snli_ve_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_data(workspace, "snli-ve", folder)


def import_vqa(
    workspace: Workspace, folder: Path, answers: Sequence[Sequence[str]], kinds: Sequence[tuple[str, str]]
) -> None:
    """`answers`: ten of each question; `kinds`: (answer type, question type); question ids are 1000, 1001, ..."""
    (folder / "val2014").mkdir(parents=True)
    (folder / "val2014" / "COCO_val2014_000000000001.jpg").write_bytes(b"not looked into")
    asked = [{"image_id": 1, "question": "What is it?", "question_id": 1000 + n} for n in range(len(answers))]
    given = [
        {
            "question_id": 1000 + number,
            "image_id": 1,
            "question_type": kind[1],
            "answer_type": kind[0],
            "multiple_choice_answer": ten[0],
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": place}
                for place, answer in enumerate(ten, start=1)
            ],
        }
        for number, (ten, kind) in enumerate(zip(answers, kinds, strict=True))
    ]
    wrapper = {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": "val2014", "license": {}}
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({**wrapper, "questions": asked}))
    (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({**wrapper, "annotations": given}))
    import_data(workspace, "vqa-v2", folder)
