from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from madkit.core.errors import DataError, NotFoundError
from madkit.regions.numpy_files import npz_names, read_npy, read_npy_object, read_npz, read_npz_object

numbers = hnp.arrays(
    st.sampled_from(["<f2", "<f4", ">f4", "<f8", "<i8", ">i2", "|u1", "|b1"]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


@given(array=numbers, fortran=st.booleans(), version=st.sampled_from([(1, 0), (2, 0)]))
@settings(max_examples=60)
def test_arrays_are_what_numpy_reads(
    tmp_path_factory: pytest.TempPathFactory, array: Any, fortran: bool, version: Any
) -> None:
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, np.asfortranarray(array) if fortran else array, version)
    read, oracle = read_npy(path), np.load(path)
    np.testing.assert_array_equal(read, oracle)
    assert (read.dtype, read.shape) == (oracle.dtype, oracle.shape)


def npy(header: bytes, content: bytes = b"") -> bytes:
    header += b" " * (-(len(header) + 11) % 16) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def header(descr: str = "<f4", fortran: str = "False", shape: str = "(2, 2)") -> bytes:
    return f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()


def test_headers_of_python_2(tmp_path: Path) -> None:
    content = np.arange(4, dtype="<f4")
    (tmp_path / "a.npy").write_bytes(npy(header(shape="(2L, 2L)"), content.tobytes()))
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), content.reshape(2, 2))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is no npy array"),
        (b"\x93NUMP", "is no npy array"),
        (b"PK\3\4 something else", "is no npy array"),
        (npy(header(), b"\0" * 15), "promises 16 bytes, there are 15"),
        (npy(header(), b"\0" * 17), "promises 16 bytes, there are more"),
        (npy(header(shape="(100000, 100000, 100000)")), "claims the shape"),
        (npy(header(shape="(1, 1, 1, 1, 1)"), b"\0" * 4), "has 5 axes"),
        (npy(header(shape="(2, -2)")), "describes no plain array"),
        (npy(header(shape="(2 2)"), b"\0" * 4), "describes no plain array"),
        (npy(header(shape="(1,,1)"), b"\0" * 4), "describes no plain array"),
        (npy(header(shape=f"({'9' * 5000},)")), "describes no plain array"),
        (npy(header(shape="(L,)"), b"\0" * 4), "describes no plain array"),
        (npy(header(descr="<f3")), "unknown type '<f3'"),
        (npy(header(descr="|O")), "holds no numbers but object"),
        (npy(header(descr="<U4")), "holds no numbers but str"),
        (npy(header(descr="<M8")), "holds no numbers but datetime64"),
        (npy(b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }"), "describes no plain array"),
        (npy(b"{'descr': __import__('os').mkdir('x'), 'fortran_order': False, 'shape': (2,), }"), "no plain array"),
        (npy(header())[:30], "describes no plain array"),
    ],
)
def test_damaged_arrays_are_named(tmp_path: Path, data: bytes, problem: str) -> None:
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(DataError, match=rf"a\.npy.*({problem})"):
        read_npy(tmp_path / "a.npy")


@given(data=st.binary(max_size=80), start=st.sampled_from([b"", b"\x93NUMPY\x01\x00", npy(header())[:40], b"PK\3\4"]))
def test_any_bytes_are_a_data_error(data: bytes, start: bytes) -> None:
    for read in (lambda raw: read_npz(raw, ["a"], "x"), lambda raw: read_npz_object(raw, "a", "x")):
        with suppress(DataError):
            read(start + data)


def packed(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_only_the_arrays_that_are_asked_for_are_read() -> None:
    data = packed(a=np.ones(3), b=np.array([{"x": 1}]), c=np.zeros((2, 2)))
    assert npz_names(data, "x") == {"a", "b", "c"}
    found = read_npz(data, ["a", "c", "d"], "x")
    assert set(found) == {"a", "c"}
    np.testing.assert_array_equal(found["a"], np.ones(3))
    found["a"][0] = 2  # writable
    assert read_npz_object(data, "b", "x") == {"x": 1}
    assert read_npz_object(data, "d", "x") is None
    with pytest.raises(DataError, match="x, 'b' holds no numbers"):
        read_npz(data, ["b"], "x")
    with pytest.raises(DataError, match="x, 'a' should hold a dictionary"):
        read_npz_object(data, "a", "x")


def test_a_changed_value_is_noticed_by_the_check_sum() -> None:
    data = bytearray(packed(a=np.zeros(1000)))
    data[len(data) // 2] ^= 1
    with pytest.raises(DataError, match=r"x: 'a' cannot be read as an npz file of arrays .*CRC"):
        read_npz(bytes(data), ["a"], "x")


def test_missing_files(tmp_path: Path) -> None:
    for read in (read_npy, read_npy_object, lambda path: read_npz(path, ["a"], str(path))):
        with pytest.raises(NotFoundError, match=r"none\.npy"):
            read(tmp_path / "none.npy")
