from __future__ import annotations

import os
import pickle
from contextlib import suppress
from typing import Any

import msgpack
import msgpack_numpy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from madkit.core.errors import DataError
from madkit.regions.msgpack_arrays import unpack_arrays

numbers = hnp.arrays(
    st.sampled_from(["<f2", "<f4", ">f4", "<f8", "<i8", "<i4", "|u1", "|b1"]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
)


def pack(record: Any, **options: Any) -> bytes:
    data: bytes = msgpack.packb(record, default=msgpack_numpy.encode, **options)
    return data


@given(record=st.dictionaries(st.text(min_size=1, max_size=8), numbers, max_size=4))
def test_arrays_are_what_the_owners_package_makes_of_them(record: dict[str, Any]) -> None:
    data = pack(record, use_bin_type=True)
    oracle = msgpack.unpackb(data, object_hook=msgpack_numpy.decode, raw=False, strict_map_key=False)
    assert set(oracle) == set(record)
    # keys are taken as Latin-1, as the layouts' own are ASCII
    read = {name.encode("latin1").decode(): values for name, values in unpack_arrays(data, "x").items()}
    for name, values in oracle.items():
        np.testing.assert_array_equal(read[name], values)
        assert read[name].dtype == values.dtype
        assert read[name].flags.writeable


def test_old_writers_with_text_for_bytes() -> None:
    features = np.arange(12, dtype=np.float16).reshape(3, 4)
    data = pack({"features": features}, use_bin_type=False)
    np.testing.assert_array_equal(unpack_arrays(data, "x")["features"], features)


def test_what_is_no_array_is_left_out() -> None:
    assert list(unpack_arrays(pack({"a": 1, "b": np.float32(1), "c": np.ones(2), "d": {"nd": 1}}), "x")) == ["c"]


class Touch:
    """A pickle of this makes a folder when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_an_object_array_is_refused_and_its_pickle_not_run(tmp_path: Any) -> None:
    touched = tmp_path / "touched"
    array = np.empty(1, dtype=object)
    array[0] = Touch(str(touched))
    data = pack({"norm_bb": array}, use_bin_type=True)
    with pytest.raises(DataError, match="x, 'norm_bb' is an array of objects or records"):
        unpack_arrays(data, "x")
    assert not touched.exists()
    msgpack.unpackb(data, object_hook=msgpack_numpy.decode, strict_map_key=False)  # the oracle runs it
    assert touched.exists()


def encoded(**changes: Any) -> bytes:
    plain = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [2, 2], b"data": b"\0" * 16}
    plain |= {key.encode(): value for key, value in changes.items()}
    data: bytes = msgpack.packb({"a": {key: value for key, value in plain.items() if value != "absent"}})
    return data


def test_an_encoded_array_without_kind_is_read() -> None:
    assert unpack_arrays(encoded(kind="absent"), "x")["a"].shape == (2, 2)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (encoded(kind=b"O"), "objects or records"),
        (encoded(kind=b"V"), "objects or records"),
        (encoded(type="|O"), "which are no numbers"),
        (encoded(type="<U4"), "which are no numbers"),
        (encoded(type=[["f0", "<f4"]]), "which are no numbers"),
        (encoded(type="zz"), "which are no numbers"),
        (encoded(type="absent"), "which are no numbers"),
        (encoded(shape=[2, 3]), "the shape .* and the length of the content differ"),
        (encoded(shape=[-2, -2]), "has no shape"),
        (encoded(shape=[1] * 9 + [4]), "has no shape"),
        (encoded(shape="absent"), "has no shape"),
        (encoded(data="absent"), "the length of the content differ"),
        (encoded(data=7), "the length of the content differ"),
        (encoded()[:-1], "cannot be unpacked"),
        (encoded() + b"\0", "cannot be unpacked"),
        (b"", "cannot be unpacked"),
        (b"\xdd\xff\xff\xff\xff", "cannot be unpacked"),
        (b"\x81\x90\x01", "cannot be unpacked|no msgpack map"),
        (msgpack.packb([1]), "is no msgpack map"),
        (pickle.dumps({"a": 1}), "cannot be unpacked|is no msgpack map"),
    ],
)
def test_damaged_records(data: bytes, problem: str) -> None:
    with pytest.raises(DataError, match=rf"^x.*({problem})"):
        unpack_arrays(data, "x")


@given(data=st.binary(max_size=60))
def test_any_bytes_are_a_map_or_a_data_error(data: bytes) -> None:
    with suppress(DataError):
        assert isinstance(unpack_arrays(data, "x"), dict)


@given(position=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_any_changed_byte_is_harmless_or_a_data_error(position: int, byte: int) -> None:
    data = bytearray(encoded())
    data[position % len(data)] = byte
    with suppress(DataError):
        assert unpack_arrays(bytes(data), "x").keys() <= {chr(n) for n in range(256)} | {""}
