"""The restricted unpickler against Python's own on honest pickles, and against hostile and damaged ones."""

from __future__ import annotations

import builtins
import copyreg
import functools
import io
import os
import pickle
import resource
import struct
import subprocess
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from madkit.core.errors import DataError
from madkit.regions.safe_pickle import load_pickle

PROTOCOLS = range(6)

HONEST: list[Any] = [
    {458752: 0, 262148: 1},
    {"image_id": "lsmdc/a@0.jpg", "boxes": b"AAAA\xff", "empty": b"", "b": bytearray(b"xy"), "none": None},
    [1, 2.5, True, (), (1,), (1, 2, 3), 1 << 80, -5, "ünï"],
    {1, 2, 3},
    frozenset(["a"]),
    OrderedDict([("b", 1), ("a", 2)]),
    3 + 4j,
    bytearray(),
    np.int64(5),
    np.float32(0.25),
    np.bool_(True),
    np.str_("ab"),
]
ARRAYS: list[Any] = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    np.arange(4, dtype=">f8"),
    np.array(3.5, dtype=np.float16),
    np.zeros((0, 4), np.float32),
    np.array(["a", "bcd"]),
    np.array([b"x", b"yz"]),
    np.array([True, False]),
    np.arange(1000, dtype=np.uint8)[::2],
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", HONEST, ids=repr)
def test_containers_and_numbers_come_as_pickle_gives_them(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    read = load_pickle(data, "f")
    assert read == pickle.loads(data)
    assert type(read) is type(value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
def test_arrays_come_as_pickle_gives_them(value: Any, protocol: int) -> None:
    data = pickle.dumps({"x": value}, protocol)
    expected = pickle.loads(data)["x"]
    read = np.asarray(load_pickle(io.BytesIO(data), "f")["x"])
    assert type(read) is np.ndarray
    assert (read.dtype, read.shape, read.flags.f_contiguous) == (
        expected.dtype,
        expected.shape,
        expected.flags.f_contiguous,
    )
    np.testing.assert_array_equal(read, value)
    read[...] = read  # can be written to


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_object_arrays_of_honest_content(protocol: int) -> None:
    info = np.array({"bbox": np.ones((2, 4), np.float32), "objects": ["a", None]}, dtype=object)
    read = load_pickle(pickle.dumps(info, protocol), "f")
    assert read.shape == ()
    assert read.item()["objects"] == ["a", None]
    np.testing.assert_array_equal(read.item()["bbox"], np.ones((2, 4)))


# What cPickle.dump(..., protocol) of Python 2.7 with NumPy 1.x writes, by hand after its opcodes.
PYTHON2 = {
    "protocol 0": b"(dp1\nI458752\nI0\nsI262148\nI1\ns.",
    "long": b"(dp1\nL458752L\nI0\nsL262148L\nI1\ns.",
    "protocol 2": b"\x80\x02}q\x01(J\x00\x00\x07\x00K\x00J\x04\x00\x04\x00K\x01u.",
}


@pytest.mark.parametrize("data", PYTHON2.values(), ids=PYTHON2)
def test_python2_dictionaries(data: bytes) -> None:
    assert load_pickle(data, "f") == {458752: 0, 262148: 1}


def test_python2_text_and_sets_and_arrays() -> None:
    assert load_pickle(b"\x80\x02U\x03a\xe9bq\x00.", "f") == "a\xe9b"
    assert load_pickle(b"c__builtin__\nset\np0\n((lp1\nI3\naI1\natp2\nRp3\n.", "f") == {1, 3}
    raw = struct.pack("<2f", 1.5, -300.25)  # bytes above 127 in a Python 2 string
    data = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03"
        b"(K\x01K\x02\x85cnumpy\ndtype\nq\x04U\x02f4K\x00K\x01\x87Rq\x05(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89U\x08" + raw + b"tb."
    )
    np.testing.assert_array_equal(load_pickle(data, "f"), np.array([1.5, -300.25], np.float32))


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def hostile(marker: Path) -> list[Any]:
    code = f"open({str(marker)!r}, 'w').close()"
    return [
        Calls(os.system, f"touch {marker}"),
        Calls(builtins.eval, code),
        Calls(builtins.exec, code),
        Calls(subprocess.Popen, ["touch", str(marker)]),
        Calls(builtins.getattr, "x", "upper"),
        Calls(builtins.open, str(marker), "w"),
        Calls(functools.partial, os.system),
        Calls(np.load, str(marker)),
        Calls(np.fromfile, str(marker)),
        Calls(np.memmap, str(marker), "u1", "w+", 0, (4,)),
        Calls(copyreg._reconstructor, Path, object, None),
        Path("x"),
    ]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("number", range(12))
def test_nothing_is_run(tmp_path: Path, number: int, protocol: int) -> None:
    marker = tmp_path / "ran"
    evil = hostile(marker)[number]
    for value in (evil, {"a": [evil]}, np.array([evil, 1], dtype=object), (1, {evil: 2} if number == 11 else evil)):
        with pytest.raises(
            DataError, match=r"^ids\.pkl: this pickle asks for '[\w.]+', .* nothing of it was run"
        ) as error:
            load_pickle(pickle.dumps(value, protocol), "ids.pkl")
        assert error.value.hint
    assert not marker.exists()


BY_HAND = {
    "inst": b"(S'true'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nU\x04trueo.",
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.",
    "allowed name in another module": b"\x80\x04\x8c\x02os\x8c\x03set\x93.",
    "frozenset of a nested name": b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent id": b"Pevil\n.",
    "binary persistent id": b"U\x04evilQ.",
    "memo bomb": b"Nr\xff\xff\xff\xff0N.",
    "memo bomb in text": b"Np99999999999\n.",
    "negative memo": b"Np-5\n.",
    "endless bytes": b"cbuiltins\nbytearray\n(L99999999999L\ntR.",
    "huge buffer": b"\x80\x05\x96" + struct.pack("<Q", 1 << 60) + b"x.",
    "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
    "huge text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
    "huge string": b"T\xff\xff\xff\x7fx.",
    "set attribute of a call": (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN}U\t_functioncbuiltins\nset\ns\x86b."),
    "state of a call": b"\x80\x02cnumpy\ndtype\n}U\x01aK\x01sb.",
    "new object of a call": b"\x80\x02cnumpy\ndtype\n)\x81.",
    "array of another class": (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncbuiltins\nset\nK\x00\x85U\x01b\x87R."),
    "array of a given size": (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nJ\xff\xff\xff\x7f\x85U\x01b\x87R."
    ),
    "ndarray called": b"\x80\x02cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85\x85R.",
    "encoding by name": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
    "stack underflow": b"R.",
    "no stop": b"(dp1\n",
    "nothing": b"",
    "text": b"458752\t0\n",
    "future protocol": b"\x80\x09N.",
    "number of a million digits": b"I" + b"9" * 10**6 + b"\n.",
}


@pytest.mark.parametrize("data", BY_HAND.values(), ids=BY_HAND)
def test_opcodes_made_by_hand_are_refused(data: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"^f: this (pickle asks for|is no readable pickle)"):
        load_pickle(data, "f")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 50_000  # KB: no length in a pickle makes memory


def array_pickle(shape: bytes, dtype: bytes, content: bytes, order: bytes = b"<") -> bytes:
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + shape
        + b"cnumpy\ndtype\nU"
        + bytes([len(dtype)])
        + dtype
        + b"K\x00K\x01\x87R(K\x03U\x01"
        + order
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + content
        + b"tb."
    )


FOUR = b"U\x04abcd"


def test_the_array_made_by_hand_is_right_where_it_is_not_wrong() -> None:
    np.testing.assert_array_equal(load_pickle(array_pickle(b"K\x04\x85", b"u1", FOUR), "f"), list(b"abcd"))
    read = load_pickle(array_pickle(b"K\x01\x85", b"O8", b"]K\x07a", b"|"), "f")
    assert read.tolist() == [7]


@pytest.mark.parametrize(
    "data",
    [
        array_pickle(b"K\x05\x85", b"u1", FOUR),
        array_pickle(b"J\xff\xff\xff\xff\x85", b"u1", FOUR),
        array_pickle(b"J\xff\xff\xff\x7f\x85", b"S0", b"U\x00"),
        array_pickle(b"K\x04K\x00\x86", b"f8", FOUR),
        array_pickle(b"K\x04", b"u1", FOUR),
        array_pickle(b"U\x014\x85", b"u1", FOUR),
        array_pickle(b"K\x02\x85", b"O8", b"]", b"|"),
        array_pickle(b"K\x04\x85", b"O8", FOUR, b"|"),
        array_pickle(b"K\x04\x85", b"V1", FOUR),
        array_pickle(b"K\x01\x85", b"M8", b"U\x08abcdefgh"),
        array_pickle(b"K\x01\x85", b"i,", FOUR),
        array_pickle(b"K\x01\x85", b"no type", FOUR),
        array_pickle(b"K\x04\x85", b"u1", FOUR, b"!"),
        array_pickle(b"K\x04\x85", b"u1", b"N"),
        array_pickle(b"(K\x01K\x01K\x01K\x01" * 1 + b"K\x01" * 40 + b"t", b"u1", b"U\x01a"),
    ],
)
def test_arrays_with_impossible_content_are_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=r"^f: this (pickle asks for|is no readable pickle)"):
        load_pickle(data, "f")


def test_a_refused_change_leaves_the_allowed_calls_as_they_were() -> None:
    for name in ("set attribute of a call", "state of a call"):
        with pytest.raises(DataError):
            load_pickle(BY_HAND[name], "f")
    np.testing.assert_array_equal(load_pickle(pickle.dumps(np.arange(3), 2), "f"), np.arange(3))


def test_a_structure_that_shares_itself_is_cheap() -> None:
    value: list[Any] = []
    for _ in range(60):  # written out, 2^60 lists
        value = [value, value]
    assert len(load_pickle(pickle.dumps(value), "f")) == 2


def test_deep_nesting_is_read_or_refused() -> None:
    data = b"(" * 200_000 + b"t" * 200_000 + b"."
    assert load_pickle(data, "f") is not None


@given(st.binary(max_size=60))
@settings(max_examples=300)
def test_random_bytes_never_raise_anything_else(data: bytes) -> None:
    with suppress(DataError):
        load_pickle(data, "f")


RECORD = pickle.dumps({"boxes": np.ones((2, 4), np.float32), "id": "a", "n": {1, 2}, "o": np.array([None, "x"])}, 2)


@given(st.integers(0, len(RECORD) - 1), st.integers(0, 255))
@settings(max_examples=400)
def test_a_flipped_byte_never_raises_anything_else(position: int, value: int) -> None:
    data = bytearray(RECORD)
    data[position] = value
    with suppress(DataError):
        load_pickle(bytes(data), "f")


@given(st.integers(0, len(RECORD) - 1))
def test_a_cut_pickle_is_refused(length: int) -> None:
    with pytest.raises(DataError, match=r"no readable pickle|asks for"):
        load_pickle(RECORD[:length], "f")
