from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.regions import NamedRegions, Regions, candidate_keys, match_images

FRAME = "lsmdc_3038_ITS_COMPLICATED/3038_ITS_COMPLICATED_00.08.14.616-00.08.17.313@0.jpg"
STEM = "3038_ITS_COMPLICATED_00.08.14.616-00.08.17.313@0"


class Store:
    """A reader whose regions say which record they are."""

    def __init__(self, *keys: str, value: float = 0, dim: int = 2, size: Any = None, confidence: bool = False) -> None:
        self.keys = list(keys)
        self.value, self.size, self.confidence = value, size, confidence
        self.dim = dim
        self.calls: list[list[str]] = []
        self.open = True

    def ids(self) -> Sequence[str]:
        return self.keys

    def get(self, image_id: str) -> Regions:
        position = self.keys.index(image_id)
        confidence = np.array([0.5], np.float32) if self.confidence else None
        box = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)
        return Regions(box, np.full((1, self.dim), self.value + position, np.float32), confidence, self.size)

    def get_many(self, image_ids: Sequence[str]) -> list[Regions]:
        self.calls.append(list(image_ids))
        return [self.get(image_id) for image_id in image_ids]

    def close(self) -> None:
        self.open = False


COCO = ("458752", "COCO_train2014_000000458752.jpg")
FLICKR = ("1016887272", "1016887272.jpg")
VCR = (FRAME, FRAME)


@pytest.mark.parametrize(
    ("image", "key"),
    [
        (COCO, "458752"),  # BUTD, VL-BERT, ViLBERT
        (COCO, "000000458752"),
        (COCO, "COCO_train2014_000000458752"),  # LXMERT, MILVLG, MMF
        (COCO, "coco_train2014_000000458752.npz"),  # UNITER
        (COCO, "COCO_train2014_000000458752.jpg"),
        (FLICKR, "1016887272"),
        (FLICKR, "1016887272.jpg"),
        (FLICKR, "flickr30k_001016887272.npz"),
        (FLICKR, "flickr30k_1016887272.npz"),
        (VCR, FRAME),
        (VCR, FRAME.removesuffix(".jpg")),
        (VCR, f"{FRAME}.npz"),
        (VCR, f"vcr1images/{FRAME}"),
        (VCR, f"/somewhere/vcr1images/{FRAME}"),
        (VCR, STEM),
        (VCR, f"{STEM}.jpg"),
        (VCR, f"vcr_val_{STEM}.npz"),
        (VCR, f"vcr_gt_train_{STEM}.npz"),
        (VCR, f"vcr_gt_{STEM}.npz"),
        (("movieclips_Up/8QnRX_tKTv8@11.jpg",) * 2, "vcr_gt_test_8QnRX_tKTv8@11.npz"),
        (("im/7", "pictures/seven.png"), "im/7"),
        (("im/7", "pictures/seven.png"), "pictures/seven.png"),
        (("im/7", "pictures/seven.png"), "pictures/seven"),
        (("im/7", "pictures/seven.png"), "seven"),
        (("im/7", "pictures/seven.png"), "Seven.npz"),
        (("9", "000000000009.jpg"), "coco_val2014_000000000009.npz"),
        (("0", "COCO_val2014_000000000000.jpg"), "coco_val2014_000000000000.npz"),
    ],
)
def test_images_are_found_under_the_names_in_use(image: tuple[str, str], key: str) -> None:
    image_id, file = image
    others = ["458753", "coco_val2014_000000458753.npz", "1016887273", f"vcr_val_{STEM[:-1]}1.npz", "x"]
    assert match_images([Store(*others, key)], {image_id: file}) == ({image_id: key}, [])
    assert match_images([Store(*others)], {image_id: file}) == ({}, [image_id])


def test_candidates_are_ordered_and_unique() -> None:
    names = candidate_keys(*COCO)
    assert names[:2] == COCO
    assert len(set(names)) == len(names)
    assert "coco_train2014_000000458752.npz" in names
    assert not [name for name in names if "val2014" in name]


@pytest.mark.parametrize(
    ("image", "key"),
    [
        (COCO, "COCO_val2014_000000458752"),  # another part of COCO
        (COCO, "4587520"),
        (("a/1", "a/1.jpg"), "b/1"),
        (("seven", "seven.jpg"), "seven2"),
        (VCR, f"vcr_val_x{STEM}.npz"),
    ],
)
def test_what_only_looks_alike_is_missing(image: tuple[str, str], key: str) -> None:
    assert match_images([Store(key)], dict([image]))[1] == [image[0]]


@given(
    numbers=st.lists(st.integers(0, 10**12 - 1), min_size=1, max_size=30, unique=True),
    form=st.sampled_from(["{}", "{:012d}", "COCO_val2014_{:012d}", "coco_val2014_{:012d}.npz"]),
    known=st.sets(st.integers(0, 29)),
)
@settings(max_examples=40)
def test_every_number_finds_its_own_record(numbers: list[int], form: str, known: set[int]) -> None:
    there = [n for i, n in enumerate(numbers) if i not in known]
    images = {str(n): f"COCO_val2014_{n:012d}.jpg" for n in numbers}
    keys, missing = match_images([Store(*(form.format(n) for n in there))], images)
    assert keys == {str(n): form.format(n) for n in there}
    assert missing == [str(n) for i, n in enumerate(numbers) if i in known]


def test_the_data_sets_own_name_goes_first() -> None:
    store = Store("458752", "COCO_train2014_000000458752", "coco_train2014_000000458752.npz")
    assert match_images([store], dict([COCO]))[0] == {"458752": "458752"}


def test_ambiguous_names_are_an_error_that_names_them() -> None:
    both = Store(f"vcr_gt_val_{STEM}.npz", f"vcr_val_{STEM}.npz")
    with pytest.raises(DataError, match=rf"Part 1 .*\(1 cases\).*image '{FRAME}' fits 'vcr_gt_val_.*' and 'vcr_val_"):
        match_images([both], dict([VCR]))
    with pytest.raises(DataError, match=r"the images 'a/1' and 'b/1' both fit '1\.npz'"):
        match_images([Store("x"), Store("1.npz")], {"a/1": "a/1.jpg", "b/1": "b/1.jpg"})
    # two names of one file may share its record
    assert match_images([Store("p")], {"1": "p.jpg", "2": "p.jpg"})[0] == {"1": "p", "2": "p"}


def test_parts_are_asked_in_turn_and_once() -> None:
    parts = [Store("1", "2", value=10), Store("2", "3", value=20)]
    keys, missing = match_images(parts, {"1": "1.jpg", "2": "2.jpg", "3": "3.jpg", "4": "4.jpg"})
    assert missing == ["4"]
    named = NamedRegions(parts, keys)
    assert named.ids() == ["1", "2", "3"]
    assert named.dim == 2
    values = [regions.features[0, 0] for regions in named.get_many(["3", "1", "2", "3"])]
    assert values == [21, 10, 11, 21]
    assert [part.calls for part in parts] == [[["1", "2"]], [["3"]]]
    assert named.get("2").features[0, 0] == 11
    with pytest.raises(NotFoundError, match="no image '4'"):
        named.get("4")
    named.close()
    assert not any(part.open for part in parts)


def test_plain_keys_are_looked_up_in_the_parts() -> None:
    named = NamedRegions([Store("a", value=10), Store("b", "a", value=20)], {"x": "a", "y": "b", "z": "c"})
    assert [named.get(name).features[0, 0] for name in "xy"] == [10, 20]
    with pytest.raises(NotFoundError, match="no image 'z'"):
        named.get("z")


def test_ground_truth_first_then_detected_boxes() -> None:
    truth = Store(f"vcr_gt_val_{STEM}.npz", value=10, size=(1920, 800))
    more = Store("other", f"vcr_val_{STEM}.npz", value=20, confidence=True)
    keys, missing = match_images([truth, more], dict([VCR]), mode="concat")
    assert missing == []
    regions = NamedRegions([truth, more], keys, mode="concat").get(FRAME)
    np.testing.assert_array_equal(regions.features[:, 0], [10, 21])
    assert regions.boxes.shape == (2, 4)
    assert regions.size == (1920, 800)
    assert regions.confidence is None  # the first part has none
    truth.confidence = True
    both = NamedRegions([truth, more], keys, mode="concat").get(FRAME).confidence
    np.testing.assert_array_equal(both, [0.5, 0.5])
    more.size = (800, 1920)
    with pytest.raises(DataError, match="different image sizes"):
        NamedRegions([truth, more], keys, mode="concat").get(FRAME)


def test_four_files_of_two_kinds() -> None:
    parts = [Store("a", value=10), Store("b", value=20), Store("a", value=30), Store("b", value=40)]
    keys, missing = match_images(parts, {"a": "a.jpg", "b": "b.jpg"}, mode="concat")
    named = NamedRegions(parts, keys, mode="concat")
    assert missing == []
    assert [list(named.get(name).features[:, 0]) for name in "ab"] == [[10, 30], [20, 40]]


def test_half_an_image_is_missing_where_boxes_are_joined() -> None:
    parts = [Store("a", "b"), Store("a")]
    images = {"a": "a.jpg", "b": "b.jpg"}
    assert match_images(parts, images, mode="concat")[1] == ["b"]
    assert match_images(parts, images)[1] == []


def test_no_images_and_wrong_use() -> None:
    assert match_images([Store("a")], {}, mode="concat") == ({}, [])
    with pytest.raises(UsageProblem, match="no region files"):
        NamedRegions([], {})
    with pytest.raises(UsageProblem, match="'first' or 'concat', not by 'last'"):
        NamedRegions([Store()], {}, mode="last")
    with pytest.raises(DataError, match="different lengths: 2, 3"):
        NamedRegions([Store("a"), Store("a", dim=3)], {})
    with pytest.raises(UsageProblem, match="in a part that is not there"):
        NamedRegions([Store("a")], {"a": ((1, "a"),)})


def test_twenty_thousand_images_take_no_time() -> None:
    images = {str(n): f"COCO_train2014_{n:012d}.jpg" for n in range(20_000)}
    parts = [Store(*(f"coco_train2014_{n:012d}.npz" for n in range(start, 20_000, 2))) for start in (0, 1)]
    start = time.process_time()
    keys, missing = match_images(parts, images)
    NamedRegions(parts, keys)
    assert time.process_time() - start < 4  # about 0.3 s on an idle core
    assert (len(keys), missing) == (20_000, [])
