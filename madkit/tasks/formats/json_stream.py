"""The entries of one huge JSON list, one after the other, from a window of a few megabytes of the file.

VQA's annotations are single JSON objects of some 400 MB, whose parsed form takes 20 times that. Here the C scanner of
`json` decodes one entry at a time, and what has been handed out is dropped.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from madkit.core.archives import open_binary
from madkit.core.errors import DataError
from madkit.tasks.formats.source_lines import HALF, Advance, Place, kind_of, whole_characters

CHUNK = 1 << 20  # bytes read at once
LARGEST = 1 << 26  # characters of one entry; beyond it, a quotation mark is missing somewhere

# Where the end of the window cuts a value, the scanner complains there, or at the start of the last literal, number or
# escape, none of which is longer than this (of a string it complains at the start, which its message tells).
_MARGIN = 64
_SPACE = re.compile(r"[ \t\n\r]*")
_COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")
_AFTER_VALUE = frozenset(" \t\n\r,]}:")
_LITERALS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
_CUT_NUMBER = re.compile(r"\.|[eE][+-]?")  # what is left of a number whose end is missing
_UNTERMINATED = "Unterminated string"
_FOREIGN = ((codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"), (codecs.BOM_UTF16_LE, "UTF-16"),
            (codecs.BOM_UTF16_BE, "UTF-16"))  # fmt: skip


class JsonList:
    """Iterates over the entries of a list that is a JSON file's whole content, or the value of one key of its object.

    Lists under other keys are passed over and not kept, so that memory is bounded by the window and the largest entry.

    Attributes:
        path: the file, which may lie inside a zip (`madkit.core.archives`).
        key: the list's key.
        wrapper: the object's other keys and values. Those before the list are there when the first entry is, those
            behind it after the last one; empty for a bare list.
    """

    def __init__(self, path: Path, key: str, *, advance: Advance | None = None, chunk: int = CHUNK) -> None:
        """Opens nothing yet. `chunk`: bytes to read at once; `advance` is called with the bytes of every read."""
        self.path = path
        self.key = key
        self.wrapper: dict[str, Any] = {}
        self._advance = advance
        self._chunk = chunk

    def __iter__(self) -> Iterator[Any]:
        """Yield the entries.

        Raises NotFoundError for a missing file and DataError, naming line and entry, for text that is not UTF-8, that
        ends too early or breaks JSON's syntax, and for content in which there is no such list.
        """
        self.wrapper = {}
        with open_binary(self.path) as stream:
            window = _Window(self.path, stream, self._advance, self._chunk)
            start = window.peek()
            if start == "[":
                yield from window.entries(self.key)
            elif start == "{":
                yield from self._inside(window)
            elif start:
                found = kind_of(window.value())
                Place(self.path).fail(f"an object with '{self.key}' or a list is needed, found {found}")
            else:
                Place(self.path).fail("the file is empty")
            if window.peek():
                window.fail("Extra data")

    def _inside(self, window: _Window) -> Iterator[Any]:
        """The object's keys one by one, and the entries of the wanted list where it stands."""
        keys: list[str] = []
        window.step()
        while True:
            if window.peek() == "}" and not keys:
                break
            window.need('"', "Expecting property name enclosed in double quotes", step=False)
            key = window.value()
            window.need(":", "Expecting ':' delimiter")
            if key == self.key:
                if key in keys:
                    window.place().fail(f"the key '{key}' stands there twice")
                if window.peek() != "[":
                    found = kind_of(window.value())
                    Place(self.path).fail(f"'{key}' must be a list, found {found}")
                yield from window.entries(key)
            elif window.peek() == "[":
                self.wrapper.pop(key, None)
                for _ in window.entries(key):
                    pass
            else:
                self.wrapper[key] = window.value()
            keys.append(key)
            if window.peek() == "}":
                break
            window.need(",", "Expecting ',' delimiter")
        window.step()
        if self.key not in keys:
            shown = ", ".join(f"'{key}'" for key in keys[:8]) or "none"
            Place(self.path).fail(f"the key '{self.key}' is missing (the keys are {shown})")


def read_wrapper(path: Path, key: str) -> dict[str, Any]:
    """What stands beside the list of a file, before and behind it. Raises as iterating over a `JsonList` does."""
    found = JsonList(path, key)
    for _ in found:
        pass
    return found.wrapper


class _Window:
    """The part of the text that is being decoded: `at` is the position of what comes next."""

    def __init__(self, path: Path, stream: BinaryIO, advance: Advance | None, chunk: int) -> None:
        self._path = path
        self._stream = stream
        self._advance = advance
        self._chunk = chunk
        self._text = ""
        self._at = 0
        self._bytes = b""  # the start of a character whose end has not been read
        self._read = 0  # bytes read so far
        self._ended = False
        self._lines = 0  # line breaks before the window
        self._column = 0  # characters before the window on its first line
        self._list: str | None = None
        self._number = 0
        self._decode = json.JSONDecoder().raw_decode

    # -- text -------------------------------------------------------------------------------------------------------

    def _more(self) -> bool:
        """Drop what has been decoded and read on, as much again as is left. False at the end of the file."""
        if self._ended:
            return False
        done = self._text[: self._at]
        breaks = done.count("\n")
        self._lines += breaks
        self._column = len(done) - done.rfind("\n") - 1 if breaks else self._column + len(done)
        left = self._text[self._at :]
        try:
            data = self._stream.read(max(self._chunk, len(left)))
        except OSError as error:  # a damaged zip is a DataError already
            raise DataError(
                f"{self._path} cannot be read to its end ({error.strerror}).", hint="check the disk, or copy it again"
            ) from None
        if self._advance is not None and data:
            self._advance(len(data))
        self._text, self._at = left + self._decoded(data), 0
        return True

    def _decoded(self, data: bytes) -> str:
        first = self._read == 0
        if first and data:
            while len(data) < 4 and (rest := self._stream.read(4 - len(data))):
                data += rest
                if self._advance is not None:
                    self._advance(len(rest))
            self._check_encoding(data)
        self._ended = not data
        self._read += len(data)
        if first and data.startswith(codecs.BOM_UTF8):
            data = data[len(codecs.BOM_UTF8) :]
        data = self._bytes + data
        try:
            text, used = codecs.utf_8_decode(data, "strict", self._ended)
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                self.fail("", truncated=True)
            byte = self._read - len(data) + error.start + 1
            where = f"{self._list}[{self._number}] or a later entry, " if self._list is not None else ""
            Place(self._path).fail(
                f"{where}byte {byte} of the file is not UTF-8 text", hint=f"convert {self._path.name} to UTF-8"
            )
        self._bytes = data[used:]
        return text

    def _check_encoding(self, head: bytes) -> None:
        name = next((name for mark, name in _FOREIGN if head.startswith(mark)), None)
        if name is None and b"\0" in head[:4] and any(head[:4]):
            name = "UTF-32" if b"\0\0" in head[:4] else "UTF-16"
        if name is not None:
            Place(self._path).fail(f"the text is not UTF-8 but {name}", hint=f"convert {self._path.name} to UTF-8")

    # -- tokens -----------------------------------------------------------------------------------------------------

    def peek(self) -> str:
        """The next character that is no white space, "" at the end of the file."""
        while True:
            match = _SPACE.match(self._text, self._at)
            if match is not None:
                self._at = match.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def step(self) -> None:
        """Go past the character that `peek` gave."""
        self._at += 1

    def need(self, character: str, problem: str, *, step: bool = True) -> None:
        """Go past one character. Raises DataError with `problem` where another one stands."""
        found = self.peek()
        if found != character:
            self.fail(problem, truncated=self._is_cut())
        if step:
            self.step()

    def value(self) -> Any:
        """Decode the value that comes next, reading on until it is whole."""
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                self._look_again(error)
            except RecursionError:
                self.place().fail("the JSON is nested too deeply")
            except ValueError as error:  # an integer of thousands of digits
                self.fail(str(error).split(";")[0])
            else:
                left = len(self._text) - end
                # a number goes on where the window was cut
                if self._ended or (left and (self._text[end] in _AFTER_VALUE or left > _MARGIN)):
                    if self._has_escape(end) and not whole_characters(value):
                        self.place().fail(f"a text holds {HALF}")
                    self._at = end
                    return value
            if len(self._text) - self._at > LARGEST:
                self.place().fail(
                    f"one value has more than {LARGEST >> 20} million characters, so a quotation mark is missing"
                )
            self._more()

    def _has_escape(self, end: int) -> bool:
        r"""Whether the value that ends there may hold half of a surrogate pair, all of which begin with \ud."""
        return self._text.find("\\ud", self._at, end) >= 0 or self._text.find("\\uD", self._at, end) >= 0

    def _look_again(self, error: json.JSONDecodeError) -> None:
        """Raise for a real error, return for one that more text may mend."""
        unterminated = error.msg.startswith(_UNTERMINATED)
        if not self._ended:
            if error.pos < len(self._text) - _MARGIN and not unterminated:
                self._at = error.pos
                self.fail(error.msg)
            return
        tail = self._text[error.pos :].rstrip()
        cut = unterminated or not tail or any(literal.startswith(tail) for literal in _LITERALS)
        cut = cut or _CUT_NUMBER.fullmatch(tail) is not None
        if "\\u" in error.msg and len(tail) < 12 and '"' not in tail[1:]:
            cut = True
        self._at = len(self._text) if cut else error.pos
        self.fail(error.msg, truncated=cut)

    def entries(self, name: str) -> Iterator[Any]:
        """Yield the entries of the list that comes next; `name` is what errors call it."""
        self.step()
        self._list, self._number = name, 0
        if self.peek() != "]":
            while True:
                yield self.value()
                self._number += 1
                comma = _COMMA.match(self._text, self._at)
                if comma is not None and comma.end() < len(self._text):
                    self._at = comma.end()
                    continue
                if self.peek() == "]":
                    break
                self.need(",", "Expecting ',' delimiter")
                self.peek()
        self.step()
        self._list = None

    def _is_cut(self) -> bool:
        """Whether the file ends here, or within the number that was just read."""
        return not self.peek() or (self._ended and _CUT_NUMBER.fullmatch(self._text, self._at) is not None)

    # -- errors -----------------------------------------------------------------------------------------------------

    def place(self) -> Place:
        """The line and the entry of what comes next."""
        line = self._lines + self._text.count("\n", 0, self._at) + 1
        return Place(self._path, line, f"{self._list}[{self._number}]" if self._list is not None else "")

    def fail(self, problem: str, *, truncated: bool = False) -> NoReturn:
        """Raise DataError for what comes next."""
        if truncated:
            self.place().fail(
                "the JSON ends too early, so the file is truncated", hint=f"download {self._path.name} again"
            )
        line_break = self._text.rfind("\n", 0, self._at)
        column = self._at - line_break if line_break >= 0 else self._column + self._at + 1
        self.place().fail(f"not valid JSON ({problem} at column {column})")
