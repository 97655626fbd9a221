"""What published code bases do with the same files, written as plainly as they do it: the yardstick of `bench data`.

VQA v2: both files of a split parsed whole, joined in a dict, kept as a list of dicts with a soft score per answer.
Region TSVs: every row through `csv.DictReader`, every array decoded, all of it kept.
"""

from __future__ import annotations

import base64
import csv
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from madkit.bench.fresh_process import Watch

COLUMNS = (
    *("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes"),
    "features",
)
_SCORES = (0.0, 0.3, 0.6, 0.9)  # by the number of annotators who gave an answer; 1 for more


def load_questions(questions: Path, annotations: Path) -> list[dict[str, Any]]:
    """A split as a list of dicts: question_id, image_id, question, label (answer -> score), question and answer type.

    Nothing is checked.
    """
    with questions.open(encoding="utf-8") as file:
        asked = json.load(file)["questions"]
    with annotations.open(encoding="utf-8") as file:
        answered = {entry["question_id"]: entry for entry in json.load(file)["annotations"]}
    data = []
    for question in asked:
        annotation = answered[question["question_id"]]
        counts: dict[str, int] = {}
        for given in annotation["answers"]:
            counts[given["answer"]] = counts.get(given["answer"], 0) + 1
        data.append(
            {
                "question_id": question["question_id"],
                "image_id": question["image_id"],
                "question": question["question"],
                "label": {answer: _SCORES[n] if n < 4 else 1.0 for answer, n in counts.items()},
                "question_type": annotation["question_type"],
                "answer_type": annotation["answer_type"],
            }
        )
    return data


def vqa(watch: Watch, splits: Sequence[Sequence[str]], reads: int, sample: Sequence[int] = ()) -> dict[str, Any]:
    """Laps: load (all splits), subset (1 % of the first), reads (random ones of the first).

    Facts: number of `questions`, and `labels` of the sampled questions by id.
    """
    loaded = [load_questions(Path(questions), Path(annotations)) for questions, annotations in splits]
    watch.lap("load")
    train = loaded[0]
    draw = random.Random(0)
    subset = draw.sample(train, max(1, len(train) // 100))
    watch.lap("subset")
    rows = [draw.randrange(len(train)) for _ in range(reads)]
    watch.lap("between")
    for row in rows:
        train[row]
    watch.lap("reads")
    wanted = set(sample)
    labels = {str(row["question_id"]): row["label"] for data in loaded for row in data if row["question_id"] in wanted}
    return {"questions": sum(map(len, loaded)), "subset": len(subset), "labels": labels}


def load_regions(path: Path) -> list[dict[str, Any]]:
    """Every row of an LXMERT TSV, decoded."""
    import numpy as np  # not above: whoever loads questions alone need not wait for it

    csv.field_size_limit(sys.maxsize)
    data = []
    with path.open(encoding="ascii", newline="") as file:
        for row in csv.DictReader(file, COLUMNS, delimiter="\t"):
            count = int(row["num_boxes"])
            item: dict[str, Any] = {
                "img_id": row["img_id"],
                "img_h": int(row["img_h"]),
                "img_w": int(row["img_w"]),
                "num_boxes": count,
            }
            for name, dtype in (("objects_id", "<i8"), ("objects_conf", "<f4"), ("attrs_id", "<i8")):
                item[name] = np.frombuffer(base64.b64decode(row[name]), dtype)
            item["attrs_conf"] = np.frombuffer(base64.b64decode(row["attrs_conf"]), "<f4")
            item["boxes"] = np.frombuffer(base64.b64decode(row["boxes"]), "<f4").reshape(count, 4)
            item["features"] = np.frombuffer(base64.b64decode(row["features"]), "<f4").reshape(count, -1)
            data.append(item)
    return data


def tsv(watch: Watch, path: str) -> dict[str, Any]:
    """Lap: load. Facts: number of `rows`, and the `sum` of the last one's features."""
    loaded = load_regions(Path(path))
    watch.lap("load")
    return {"rows": len(loaded), "sum": float(loaded[-1]["features"].sum(dtype="float64"))}
