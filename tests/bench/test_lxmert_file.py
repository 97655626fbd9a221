from __future__ import annotations

from pathlib import Path

import numpy as np

from madkit.bench.lxmert_file import BOXES, DIM, ROW_BYTES, write_lxmert_file
from madkit.bench.peers import load_regions
from madkit.regions import open_regions


def test_rows_have_the_real_layout_and_length(tmp_path: Path) -> None:
    path = tmp_path / "r.tsv"
    told: list[int] = []
    count = write_lxmert_file(path, 4_000_000, advance=told.append)
    size = path.stat().st_size
    assert 4_000_000 <= size == sum(told) < 4_000_000 + 1.1 * ROW_BYTES
    assert abs(size / count - ROW_BYTES) < 0.01 * ROW_BYTES
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.tsv"]
    reader = open_regions("lxmert-tsv", path)
    assert (len(reader.ids()), reader.dim) == (count, DIM)
    for image in reader.ids():  # reading checks boxes and features
        regions = reader.get(image)
        assert len(regions.boxes) == BOXES
        assert regions.confidence is not None
    plain = load_regions(path)
    assert not np.all(np.diff(plain[0]["objects_conf"]) <= 0)
    assert len({row["img_id"] for row in plain}) == count


def test_the_peer_decodes_what_the_reader_decodes(tmp_path: Path) -> None:
    path = tmp_path / "r.tsv"
    assert write_lxmert_file(path, 0) == 4
    reader = open_regions("lxmert-tsv", path)
    for row in load_regions(path):
        regions = reader.get(row["img_id"])
        sides = np.array([row["img_w"], row["img_h"]] * 2, dtype=np.float32)
        np.testing.assert_array_equal(regions.features, row["features"])
        np.testing.assert_allclose(regions.boxes, row["boxes"] / sides, atol=1e-6)
        assert regions.size == (row["img_w"], row["img_h"])


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_lxmert_file(tmp_path / name, 0, seed=seed)
    first, again, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == again
    assert first != other
