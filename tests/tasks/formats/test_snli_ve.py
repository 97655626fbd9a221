from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from madkit.core.errors import DataError, NotFoundError
from madkit.tasks.formats.snli_ve import iter_snli_ve, read_snli_ve
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
        ({"gold_label": "Neutral"}, "line 2: 'gold_label' must be one of"),
        ({"gold_label": ""}, "line 2: 'gold_label' must be one of"),
        ({"gold_label": 1}, "line 2: 'gold_label' is the number 1, and numbers are refused because code bases"),
        ({"gold_label": "2"}, "line 2: 'gold_label' is the number 2"),
        ({"sentence2": ""}, "line 2: 'sentence2' is empty"),
        ({"sentence2": "  "}, "line 2: 'sentence2' is empty"),
        ({"sentence2": ...}, "line 2: the key 'sentence2' is missing"),
        ({"pairID": ...}, "line 2: the key 'pairID' is missing"),
        ({"pairID": "0.jpg#0r1"}, "line 2: 'pairID' '0.jpg#0r1' was used before, on line 1"),
        ({"Flickr30K_ID": ..., "captionID": ...}, "line 2: no image id"),
        ({"form": 3}, "line 2: 'form' must be a string"),
        ({"sentence2": "A man \ud83d walks."}, "line 2: 'sentence2' holds half of a surrogate pair"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        read_snli_ve(write(tmp_path, {}, change), tmp_path)


def test_characters_beyond_the_first_plane_are_read_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, {"sentence2": "A man \U0001f600 walks."})
    assert "\\ud83d" in path.read_text()  # json writes it as a pair
    assert read_snli_ve(path, tmp_path)[0].context[0].text == "A man \U0001f600 walks."


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


def test_a_label_may_be_required(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: the key 'gold_label' is missing"):
        read_snli_ve(write(tmp_path, {}, {"gold_label": ...}), tmp_path, labelled=True)
    with pytest.raises(DataError, match="line 1: 'gold_label' is null"):
        read_snli_ve(write(tmp_path, {"gold_label": None}), tmp_path, labelled=True)


def test_the_number_of_a_label_comes_with_advice(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_snli_ve(write(tmp_path, {"gold_label": 0}), tmp_path)
    assert caught.value.hint == "write the label's name: contradiction, entailment, neutral"


# -- ALBEF's and LAVIS's list


LIST: list[dict[str, Any]] = [
    {"image": "77", "sentence": "A dog runs.", "label": "neutral"},
    {"image": "flickr30k-images/88.jpg", "sentence": " A cat. ", "label": "entailment"},
    {"image": "77", "sentence": "A dog runs.", "label": "contradiction"},
]


def write_list(folder: Path, *entries: dict[str, Any]) -> Path:
    path = folder / "ve_dev.json"
    path.write_text(json.dumps(entries))
    return path


def test_a_json_list(tmp_path: Path) -> None:
    examples = read_snli_ve(write_list(tmp_path, *LIST), tmp_path / "img")
    assert [(e.id, e.image.id, e.context[0].text, e.label) for e in examples] == [
        ("77#0", "77", "A dog runs.", 2),
        ("88#0", "88", "A cat.", 1),
        ("77#1", "77", "A dog runs.", 0),
    ]
    assert examples[1].image.path == tmp_path / "img" / "88.jpg"
    assert examples[0].image is examples[2].image


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"label": 0}, r"pairs\[1\]: 'label' is the number 0, and numbers are refused"),
        ({"label": "yes"}, r"pairs\[1\]: 'label' must be one of"),
        ({"sentence": ""}, r"pairs\[1\]: 'sentence' is empty"),
        ({"image": None}, r"pairs\[1\]: 'image' must be a non-empty string, found null"),
        ({"sentence": "A \udc00 cat."}, r"pairs\[1\]: a text holds half of a surrogate pair"),
    ],
)
def test_a_broken_entry_is_named(tmp_path: Path, entry: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        read_snli_ve(write_list(tmp_path, LIST[0], {**LIST[1], **entry}), tmp_path)


def test_lists_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "ve_dev.json"
    for text, problem in (("[]", "the list is empty"), ("[3]", r"pairs\[0\]: an object is needed, found a number")):
        path.write_text(text)
        with pytest.raises(DataError, match=problem):
            read_snli_ve(path, tmp_path)
    path.write_text(json.dumps(LIST)[:-30])
    with pytest.raises(DataError, match="truncated"):
        read_snli_ve(path, tmp_path)


# -- files


def test_truncated_and_missing_files(tmp_path: Path) -> None:
    path = write(tmp_path, {}, {})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="line 2: the last line is not complete JSON, so the file is truncated"):
        read_snli_ve(path, tmp_path)
    with pytest.raises(NotFoundError, match="nowhere"):
        read_snli_ve(tmp_path / "nowhere.jsonl", tmp_path)


@pytest.mark.parametrize(("encoding", "problem"), [
    ("utf-16", "is UTF-16"), ("utf-16-le", "is UTF-16"), ("latin-1", "line 2: byte [0-9]+ of the line"),
])  # fmt: skip
def test_other_encodings(tmp_path: Path, encoding: str, problem: str) -> None:
    lines = [{**LINE, "pairID": str(i), "sentence2": text} for i, text in enumerate(("A cat.", "A café."))]
    path = tmp_path / "snli_ve_dev.jsonl"
    path.write_bytes("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode(encoding))
    with pytest.raises(DataError, match=problem) as caught:
        read_snli_ve(path, tmp_path)
    assert caught.value.hint == "convert snli_ve_dev.jsonl to UTF-8"


def test_a_zip_is_read_like_a_folder_and_progress_adds_up(tmp_path: Path) -> None:
    path = write(tmp_path, {}, {"gold_label": "-"}, {})
    size = path.stat().st_size
    for name, content in (("pairs.zip", path), ("list.zip", write_list(tmp_path, *LIST))):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as file:
            file.write(content, f"inner/{content.name}")
    read: list[int] = []
    inside = tmp_path / "pairs.zip" / "inner" / path.name
    assert list(iter_snli_ve(inside, tmp_path, advance=read.append)) == read_snli_ve(path, tmp_path)
    assert sum(read) == size
    read.clear()
    inside = tmp_path / "list.zip" / "inner" / "ve_dev.json"
    assert len(list(iter_snli_ve(inside, tmp_path, advance=read.append))) == 3
    assert sum(read) == (tmp_path / "ve_dev.json").stat().st_size


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda text: text.strip() != ""
)
PAIRS = st.lists(st.tuples(st.sampled_from(["5", "66", "777"]), TEXT, st.sampled_from(SNLI_VE_LABELS)), min_size=1)


@settings(max_examples=60)
@given(pairs=PAIRS, ascii_only=st.booleans(), extension=st.sampled_from(["", ".jpg", ".JPEG"]))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str, str]], ascii_only: bool, extension: str
) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    lines = [
        {**LINE, "pairID": f"{i}", "Flickr30K_ID": image + extension, "sentence2": text, "gold_label": label}
        for i, (image, text, label) in enumerate(pairs)
    ]
    jsonl, listed = folder / "a.jsonl", folder / "a.json"
    jsonl.write_text("\n".join(json.dumps(line, ensure_ascii=ascii_only) for line in lines), encoding="utf-8")
    entries = [{"image": image + extension, "sentence": text, "label": label} for image, text, label in pairs]
    listed.write_text(json.dumps(entries, ensure_ascii=ascii_only), encoding="utf-8")
    wanted = [(image, text.strip(), label) for image, text, label in pairs]
    for path in (jsonl, listed):
        found = read_snli_ve(path, folder, labelled=True)
        assert [(e.image.id, e.context[0].text, SNLI_VE_LABELS[e.label or 0]) for e in found] == wanted
        assert len({e.id for e in found}) == len(pairs)


@settings(max_examples=60)
@given(st.binary(max_size=200) | st.text(max_size=60).map(str.encode) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["pairID", "gold_label", "sentence2", "captionID", "image", "sentence", "label"]), inner),
    max_leaves=12).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_anything_else_is_a_clear_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bad") / "x.jsonl"
    path.write_bytes(content)
    try:
        found = read_snli_ve(path, path.parent)
    except DataError as error:
        assert str(path) in error.message  # noqa: PT017
        assert error.hint  # noqa: PT017
    else:
        assert all(example.context[0].text for example in found)
