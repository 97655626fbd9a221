"""Relevant tokens of one example: equal to a calculation by hand, readable as a picture, clear about what is absent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from madkit.cache import TokenCache
from madkit.cli.main import main
from madkit.core.errors import CacheError, DataError
from madkit.core.workspace import Workspace
from madkit.look.picture import draw_relevance
from madkit.look.relevance import Relevance, relevance_of


def cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = one.astype(np.float64), other.astype(np.float64)
    return one @ other / (np.linalg.norm(one, axis=-1) * np.linalg.norm(other))


def test_the_numbers_are_those_of_a_calculation_by_hand(place: tuple[Workspace, Path]) -> None:
    with TokenCache.open(place[1]) as cache:
        image, text = cache.images.ids[3], max(cache.texts.texts, key=len)
        found = relevance_of(cache, image, text, top=3)
        at, line = cache.images.rows([image]), cache.texts.rows([text])
        patches, words = cache.images.tokens(at)[0], cache.texts.tokens(line)
        np.testing.assert_allclose(found.patches, cosine(patches, cache.texts.globals(line)[0]), atol=1e-3)
        np.testing.assert_allclose(found.words, cosine(words.tokens, cache.images.globals(at)[0]), atol=1e-3)
    assert found.shared
    assert set(np.flatnonzero(found.chosen_patches)) == set(np.argsort(-found.patches)[:3])
    row = found.as_row()
    assert [patch["cosine"] for patch in row["patches"]] == sorted(
        (patch["cosine"] for patch in row["patches"]), reverse=True
    )
    assert all(word["text"].strip() in text for word in row["words"])
    assert not {word["text"].strip().lower() for word in row["words"]} & {"the", "is", "?"}


def test_a_text_that_the_cache_does_not_know_is_named(place: tuple[Workspace, Path]) -> None:
    with TokenCache.open(place[1]) as cache, pytest.raises(CacheError, match="nobody said this"):
        relevance_of(cache, cache.images.ids[0], "nobody said this")


def made_up(chosen: int, view: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)) -> Relevance:
    patches = np.linspace(-0.2, 0.4, 6, dtype=np.float32)
    kept = np.zeros(6, dtype=bool)
    kept[chosen] = True
    spans = np.array([[0, 1], [2, 5], [6, 10]], dtype=np.int32)
    words = np.array([0.1, 0.5, 0.2], dtype=np.float32)
    return Relevance(
        "x.png", "A red door", True, (2, 3), patches, kept, spans, words, np.array([False, True, False]), view
    )


def test_the_frame_lies_on_the_chosen_patch_and_the_hot_one_is_brightest(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), (90, 120, 90)).save(tmp_path / "x.png")
    page = np.asarray(draw_relevance(tmp_path / "x.png", [made_up(4)], teacher="mini").convert("RGB"), dtype=int)
    wide, tall = 560, 373  # the picture's own size on the page
    red = (abs(page - np.array([200, 30, 40])) < 12).all(-1)[:tall]
    rows, columns = np.nonzero(red)
    assert columns.min() == pytest.approx(wide / 3, abs=4)
    assert columns.max() == pytest.approx(2 * wide / 3, abs=4)
    assert rows.min() == pytest.approx(tall / 2, abs=4)
    middle = [
        page[tall // 4 * (1 + 2 * row), wide // 6 * (1 + 2 * column)].sum() for row in (0, 1) for column in (0, 1, 2)
    ]
    assert middle == sorted(middle)


def test_what_the_teacher_did_not_see_is_grey(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), (200, 40, 40)).save(tmp_path / "x.png")
    page = np.asarray(
        draw_relevance(tmp_path / "x.png", [made_up(4, (0.25, 0.0, 0.75, 1.0))], teacher="mini"), dtype=int
    )
    for x, grey in ((60, True), (200, False), (500, True)):
        assert bool(np.ptp(page[40, x]) == 0) is grey


def test_a_photograph_can_be_drawn(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2].parent / "shared" / "data" / "regions" / "images"
    photos = sorted(folder.glob("*.jpg"))
    if not photos:
        pytest.skip("no sample photographs beside the checkout")
    page = draw_relevance(photos[0], [made_up(1), made_up(5)], teacher="mini")
    assert page.width == 2 * 560 + 16


def test_an_image_that_is_gone_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"x\.png cannot be read"):
        draw_relevance(tmp_path / "x.png", [made_up(0)], teacher="mini")


def test_the_command(place: tuple[Workspace, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["cache", "show", "--workspace", str(place[0].root), "--top", "2"]
    picture = tmp_path / "deep" / "relevant.png"
    assert main([*command, "--save", str(picture), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["picture"] == str(picture)
    assert len(document["texts"]) == 2  # what is asked, and the right choice
    assert all(len(row["patches"]) == 2 for row in document["texts"])
    with Image.open(picture) as drawn:
        assert drawn.width == 2 * 560 + 16
    assert main([*command, "--id", document["example"], "--text", document["texts"][1]["text"]]) == 0
    said = capsys.readouterr().out
    assert document["texts"][1]["text"] in said
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--id", "no-such-question"], 1, "has no example 'no-such-question'"),
        (["--text", "nobody said this"], 1, "nobody said this"),
        (["--save", "picture.jpeg"], 2, "Pictures are saved as PNG"),
        (["no-such-cache"], 1, "no-such-cache"),
    ],
)
def test_wrong_input(
    place: tuple[Workspace, Path], capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    assert main(["cache", "show", *arguments, "--workspace", str(place[0].root)]) == code
    assert said in " ".join(capsys.readouterr().err.split())
