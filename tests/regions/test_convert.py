from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from madkit.core.errors import DataError, MadkitError, NotFoundError, UsageProblem
from madkit.regions import Regions, detect_format, open_regions
from madkit.regions.convert import TARGETS, convert_regions
from madkit.regions.layout_writers import write_lxmert_tsv, write_uniter_npz, write_vl_bert

SHARED = Path(__file__).parents[3] / "shared" / "data" / "regions"


class Source:
    """A reader over regions in memory."""

    def __init__(self, images: dict[str, Regions]) -> None:
        self.images = images
        self.read: list[str] = []

    @property
    def dim(self) -> int:
        return next(iter(self.images.values())).features.shape[1]

    def ids(self) -> Sequence[str]:
        return list(self.images)

    def get(self, image_id: str) -> Regions:
        return self.get_many([image_id])[0]

    def get_many(self, image_ids: Sequence[str]) -> list[Regions]:
        self.read.extend(image_ids)
        for image_id in image_ids:
            if image_id not in self.images:
                raise NotFoundError(f"no image {image_id!r}")
        return [self.images[image_id] for image_id in image_ids]

    def close(self) -> None:
        pass


def regions(count: int = 4, seed: int = 0, size: tuple[int, int] | None = (640, 480), scored: bool = True) -> Regions:
    draw = np.random.default_rng(seed)
    low = draw.uniform(0, 0.6, (count, 2))
    boxes = np.concatenate([low, low + draw.uniform(0.05, 0.39, (count, 2))], 1).astype(np.float32)
    features = draw.normal(size=(count, 3)).astype(np.float32)
    return Regions(boxes, features, draw.uniform(size=count).astype(np.float32) if scored else None, size)


def path_for(root: Path, to: str) -> Path:
    return root / {"butd-hdf5": "r.h5", "lxmert-tsv": "r.tsv", "uniter-npz": "npz", "vl-bert": "json"}[to]


def read_back(to: str, path: Path, name: str) -> Regions:
    reader = open_regions(to, path)
    try:
        return reader.get(f"{name}.npz" if to == "uniter-npz" else name)
    finally:
        reader.close()


images = st.dictionaries(
    st.text("019aX_-@.é ", min_size=1, max_size=6).filter(lambda name: name.strip(". ") == name),
    st.tuples(st.integers(0, 4), st.integers(0, 99), st.tuples(st.integers(1, 3000), st.integers(1, 3000))),
    min_size=1,
    max_size=4,
)


@given(made=images, to=st.sampled_from(TARGETS), dtype=st.sampled_from(["float16", "float32"]))
@settings(max_examples=40)
def test_round_trips_keep_values_within_their_dtype(
    tmp_path_factory: pytest.TempPathFactory, made: dict[str, Any], to: str, dtype: Any
) -> None:
    assume(any(count for count, _, _ in made.values()))
    source = Source({name: regions(count, seed, size) for name, (count, seed, size) in made.items()})
    path = path_for(tmp_path_factory.mktemp("c"), to)
    kind = dtype if to in ("butd-hdf5", "uniter-npz") else None
    seen: list[int] = []
    count = convert_regions(source, path, to, dtype=kind, advance=seen.append)
    assert (count, sum(seen)) == (len(made), len(made))
    assert [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")] == []
    stored = np.float32 if kind is None else np.dtype(kind)
    reader = open_regions(to, path)
    assert {name.removesuffix(".npz") for name in reader.ids()} == set(made)
    for name, expected in source.images.items():
        got = reader.get(f"{name}.npz" if to == "uniter-npz" else name)
        np.testing.assert_array_equal(got.features, expected.features.astype(stored))
        tolerance = 5e-4 if to == "uniter-npz" and kind == "float16" else 1e-6
        np.testing.assert_allclose(got.boxes, expected.boxes, atol=tolerance)
        if to != "butd-hdf5" and len(got.boxes):
            np.testing.assert_array_equal(got.confidence, expected.confidence.astype(stored))
        if to in ("lxmert-tsv", "vl-bert"):
            assert got.size == expected.size
    reader.close()


@pytest.mark.parametrize("start", TARGETS)
@pytest.mark.parametrize("to", TARGETS)
def test_every_layout_into_every_other(tmp_path: Path, start: str, to: str) -> None:
    made = {"9": regions(3, 1), "12": regions(2, 2)}
    first, second = path_for(tmp_path / "one", start), path_for(tmp_path / "two", to)
    convert_regions(Source(made), first, start)
    assert detect_format(first) == start
    reader = open_regions(start, first)
    sizes = {"9": (640, 480), "12": (640, 480)}
    assert convert_regions(reader, second, to, sizes=sizes) == 2
    reader.close()
    assert detect_format(second) == to
    for name, expected in made.items():
        got = read_back(to, second, name)
        np.testing.assert_allclose(got.boxes, expected.boxes, atol=1e-3)
        np.testing.assert_allclose(got.features, expected.features, atol=2e-3)


@pytest.mark.parametrize("to", TARGETS)
def test_some_images_in_a_given_order(tmp_path: Path, to: str) -> None:
    source = Source({str(n): regions(seed=n) for n in range(80)})
    path = path_for(tmp_path, to)
    chosen = [str(n) for n in range(70, 10, -1)]
    assert convert_regions(source, path, to, ids=chosen) == 60
    assert source.read == chosen
    reader = open_regions(to, path)
    assert {name.removesuffix(".npz") for name in reader.ids()} == set(chosen)
    reader.close()


def test_sizes_come_from_the_caller_where_the_file_has_none(tmp_path: Path) -> None:
    source = Source({"a.npz": regions(size=None)})
    for to in ("butd-hdf5", "lxmert-tsv", "vl-bert"):
        path = path_for(tmp_path, to)
        with pytest.raises(DataError, match=r"size of image a\.npz is not known") as caught:
            convert_regions(source, path, to)
        assert "uniter-npz" in (caught.value.hint or "")
        assert list(tmp_path.iterdir()) == []
    for to, name in (("lxmert-tsv", "a.npz"), ("vl-bert", "a")):
        path = path_for(tmp_path, to)
        convert_regions(source, path, to, sizes={name: (100, 50)})
        assert read_back(to, path, "a").size == (100, 50)
    assert convert_regions(source, tmp_path / "npz", "uniter-npz") == 1


def test_sizes_that_contradict_the_file(tmp_path: Path) -> None:
    source = Source({"a": regions(size=(640, 480))})
    with pytest.raises(DataError, match="Image a: its region file says 640 x 480 pixels, the image is 480 x 640"):
        convert_regions(source, tmp_path / "r.tsv", "lxmert-tsv", sizes={"a": (480, 640)})
    convert_regions(source, tmp_path / "r.tsv", "lxmert-tsv", sizes={"a": (641, 480)})  # rounded by some layouts


FAILURES: list[tuple[dict[str, Regions], str, tuple[str, ...]]] = [
    ({}, "no regions to write", TARGETS),
    ({"a": regions(), "a.npz": regions()}, "'a' comes twice", TARGETS),
    ({"a": regions(), "b": replace(regions(), features=np.ones((4, 5), np.float32))}, "length", TARGETS),
    (
        {"a": regions(), "b": replace(regions(), features=np.full((4, 3), 1e6, np.float32))},
        "does not fit float16",
        ("butd-hdf5", "uniter-npz"),
    ),
    ({"a": regions(), "../b": regions()}, "cannot be a file name", ("uniter-npz", "vl-bert")),
    ({"a": regions(), "b\t": regions()}, "cannot stand in a TSV", ("lxmert-tsv",)),
]


@pytest.mark.parametrize(
    ("to", "images", "problem"), [(to, images, problem) for images, problem, layouts in FAILURES for to in layouts]
)
def test_a_failure_leaves_nothing_behind(tmp_path: Path, to: str, images: dict[str, Regions], problem: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match=problem):
        convert_regions(Source(images), path_for(out, to), to)
    assert list(out.rglob("*")) == []


@pytest.mark.parametrize("to", ["uniter-npz", "vl-bert"])
def test_a_folder_that_is_there_is_not_touched(tmp_path: Path, to: str) -> None:
    path = path_for(tmp_path, to)
    path.mkdir()
    convert_regions(Source({"a": regions()}), path, to)  # an empty one is as good as none
    before = sorted(path.iterdir())
    with pytest.raises(UsageProblem, match="exists already"):
        convert_regions(Source({"b": regions()}), path, to)
    assert sorted(path.iterdir()) == before


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    for to in ("butd-hdf5", "lxmert-tsv"):
        path = path_for(tmp_path, to)
        convert_regions(Source({"a": regions()}), path, to)
        before = path.read_bytes()
        with pytest.raises(MadkitError):
            convert_regions(Source({"b": regions(), "c": regions(size=None)}), path, to)
        assert path.read_bytes() == before
        convert_regions(Source({"b": regions()}), path, to)
        assert len(read_back(to, path, "b").boxes) == 4


def test_unknown_targets_and_dtypes(tmp_path: Path) -> None:
    source = Source({"a": regions()})
    with pytest.raises(UsageProblem, match=r"cannot be written as 'uniter-lmdb'\. Did you mean 'uniter-npz'"):
        convert_regions(source, tmp_path / "x", "uniter-lmdb")
    with pytest.raises(UsageProblem, match="holds float32 only"):
        convert_regions(source, tmp_path / "x", "vl-bert", dtype="float16")
    with pytest.raises(NotFoundError, match="no image 'b'"):
        convert_regions(source, tmp_path / "x", "vl-bert", ids=["a", "b"])
    assert list(tmp_path.iterdir()) == []


def test_unknown_confidences_stay_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Source({"a": regions(scored=False), "b": regions(scored=False)})
    for to in TARGETS:
        path = path_for(tmp_path, to)
        convert_regions(source, path, to)
        assert read_back(to, path, "a").confidence is None
    assert capsys.readouterr().err.count("filled with zeros") == 1
    convert_regions(Source({"a": regions()}), tmp_path / "r.h5", "butd-hdf5")
    assert "no place for confidences" in capsys.readouterr().err


def test_the_owners_readers_find_what_they_look_for(tmp_path: Path) -> None:
    """Bytes as UNITER's, LXMERT's and VL-BERT's own loaders take them apart."""
    import base64
    import json

    content = regions(36)
    write_uniter_npz(tmp_path / "npz", [("coco_val2014_000000000009", content)])
    with np.load(tmp_path / "npz" / "coco_val2014_000000000009.npz") as arrays:
        assert {name: (values.dtype, values.shape) for name, values in arrays.items()} == {
            "norm_bb": (np.float16, (36, 6)),
            "features": (np.float16, (36, 3)),
            "conf": (np.float16, (36, 1)),
        }
        sides = arrays["norm_bb"][:, 2:4].astype(float) - arrays["norm_bb"][:, :2]
        np.testing.assert_allclose(arrays["norm_bb"][:, 4:], sides, atol=1e-3)
    write_lxmert_tsv(tmp_path / "r.tsv", [("COCO_val2014_000000000009", content)])
    cells = (tmp_path / "r.tsv").read_text().rstrip("\n").split("\t")
    assert cells[:3] + cells[7:8] == ["COCO_val2014_000000000009", "480", "640", "36"]
    kinds = {3: np.int64, 4: np.float32, 5: np.int64, 6: np.float32}
    for column, kind in kinds.items():
        assert np.frombuffer(base64.b64decode(cells[column]), dtype=kind).shape == (36,)
    boxes = np.frombuffer(base64.b64decode(cells[8]), dtype=np.float32).reshape(36, 4)
    np.testing.assert_allclose(boxes, content.boxes * [640, 480, 640, 480], rtol=1e-5)
    write_vl_bert(tmp_path / "v.zip", [("9", content)])
    with zipfile.ZipFile(tmp_path / "v.zip") as archive:
        record = json.loads(archive.read("v/9.json"))
    assert (record["image_h"], record["image_w"], record["num_boxes"]) == (480, 640, 36)
    vectors = np.frombuffer(base64.b64decode(record["features"]), dtype=np.float32).reshape(36, -1)
    np.testing.assert_array_equal(vectors, content.features)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared example files are not here")
def test_real_rows_survive(tmp_path: Path) -> None:
    rows = tmp_path / "train2014_obj36.tsv"
    rows.symlink_to(SHARED / rows.name)
    reader = open_regions("lxmert-tsv", rows)
    convert_regions(reader, tmp_path / "again.tsv", "lxmert-tsv")
    convert_regions(reader, tmp_path / "npz", "uniter-npz")
    again, half = open_regions("lxmert-tsv", tmp_path / "again.tsv"), open_regions("uniter-npz", tmp_path / "npz")
    assert len(again.ids()) == 10
    for name in reader.ids():
        first, second, third = reader.get(name), again.get(name), half.get(f"{name}.npz")
        np.testing.assert_array_equal(first.features, second.features)
        np.testing.assert_array_equal(first.confidence, second.confidence)
        np.testing.assert_allclose(first.boxes, second.boxes, atol=1e-6)
        np.testing.assert_array_equal(third.features, first.features.astype(np.float16))
        np.testing.assert_allclose(third.boxes, first.boxes, atol=5e-4)
        assert first.size == second.size
    reader.close()
    again.close()
