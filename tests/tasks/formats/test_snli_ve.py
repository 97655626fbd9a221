from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from madkit.core.errors import DataError
from madkit.tasks.formats.snli_ve import read_snli_ve
from madkit.tasks.spec import SNLI_VE_LABELS

SHARED = Path(__file__).parents[4] / "shared" / "data" / "snli_ve"

LINE: dict[str, Any] = {
    "Flickr30K_ID": "2248275918",
    "captionID": "2248275918.jpg#2",
    "gold_label": "neutral",
    "pairID": "2248275918.jpg#2r1n",
    "sentence1": "A toddler poses.",
    "sentence2": "A toddler is happy. ",
}


def write(folder: Path, *changes: dict[str, Any]) -> Path:
    path = folder / "snli_ve_dev.jsonl"
    lines = [{**LINE, "pairID": f"{i}.jpg#0r1", **change} for i, change in enumerate(changes)]
    lines = [{key: value for key, value in line.items() if value is not ...} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_pair(tmp_path: Path) -> None:
    (example,) = read_snli_ve(write(tmp_path, {"form": "colour"}), tmp_path / "img")
    assert (example.id, example.question_id, example.task) == ("0.jpg#0r1", "0.jpg#0r1", "snli-ve")
    assert [s.text for s in example.context] == ["A toddler is happy."]
    assert example.label is not None
    assert SNLI_VE_LABELS[example.label] == "neutral"
    assert example.image.path == tmp_path / "img" / "2248275918.jpg"
    assert example.form == "colour"


@pytest.mark.parametrize(
    "image",
    [
        {"Flickr30K_ID": "77"},
        {"Flickr30K_ID": ..., "Flickr30kID": "77.jpg"},
        {"Flickr30K_ID": ..., "Flikr30kID": "77.JPG"},
        {"Flickr30K_ID": 77},
        {"Flickr30K_ID": ..., "captionID": "77.jpg#3"},
        {"Flickr30K_ID": "", "captionID": "77.jpg#3"},
    ],
)
def test_every_spelling_of_the_image_id(tmp_path: Path, image: dict[str, Any]) -> None:
    (example,) = read_snli_ve(write(tmp_path, image), tmp_path, extension=".png")
    assert example.image.id == "77"
    assert example.image.path.name == "77.png"


def test_pairs_without_an_agreed_label_are_counted(tmp_path: Path) -> None:
    counts: dict[str, int] = {}
    path = write(tmp_path, {"gold_label": "-"}, {}, {"gold_label": "-"}, {"pairID": "vg_77#0r1"})
    assert len(read_snli_ve(path, tmp_path, counts=counts)) == 1
    assert counts == {"no-gold-label": 2, "visual-genome": 1}
    assert len(read_snli_ve(path, tmp_path)) == 1


def test_labels_are_the_names_in_alphabetical_order(tmp_path: Path) -> None:
    path = write(
        tmp_path, *({"gold_label": name} for name in ("contradiction", "entailment", "neutral")), {"gold_label": ...}
    )
    assert [e.label for e in read_snli_ve(path, tmp_path)] == [0, 1, 2, None]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"gold_label": "maybe"}, "line 2: 'gold_label' must be one of contradiction, entailment, neutral or -"),
        ({"gold_label": ["neutral"]}, "line 2: 'gold_label' must be one of"),
        ({"sentence2": ""}, "line 2: 'sentence2' is empty"),
        ({"sentence2": "  "}, "line 2: 'sentence2' is empty"),
        ({"sentence2": ...}, "line 2: the key 'sentence2' is missing"),
        ({"pairID": ...}, "line 2: the key 'pairID' is missing"),
        ({"pairID": "0.jpg#0r1"}, "line 2: 'pairID' '0.jpg#0r1' was used before, on line 1"),
        ({"Flickr30K_ID": ..., "captionID": ...}, "line 2: no image id"),
        ({"form": 3}, "line 2: 'form' must be a string"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        read_snli_ve(write(tmp_path, {}, change), tmp_path)


def test_missing_images_are_counted_once_each(tmp_path: Path) -> None:
    path = write(tmp_path, {}, {}, {"Flickr30K_ID": "8"})
    with pytest.raises(DataError, match=r"2 of 2 images are missing: .*2248275918\.jpg, .*8\.jpg"):
        read_snli_ve(path, tmp_path, check_images=True)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the sample of real SNLI-VE lines is not here")
def test_real_lines() -> None:
    examples = read_snli_ve(SHARED / "sample_pairs.jsonl", SHARED, check_images=True)
    assert len(examples) == 16
    assert {e.label for e in examples} == {0, 1, 2}
    assert len({e.image.id for e in examples}) == 2
    assert examples[0].context[0].text == "A toddler sleeps outside."
