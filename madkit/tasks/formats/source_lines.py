"""Reading the owners' JSON and JSONL files with errors that name file, line and key."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from madkit.core.archives import exists as file_exists
from madkit.core.archives import open_binary, read_bytes
from madkit.core.errors import DataError

Row = dict[str, Any]
Advance = Callable[[int], None]  # told how many more bytes of an owner's file have been read


class Place:
    """Where in a file a value stands; gives every complaint its address."""

    __slots__ = ("_extra", "line", "path")

    def __init__(self, path: Path, line: int = 0, extra: str = "") -> None:
        self.path = path
        self.line = line
        self._extra = extra

    def __str__(self) -> str:
        parts = [str(self.path)]
        if self.line:
            parts.append(f"line {self.line}")
        if self._extra:
            parts.append(self._extra)
        return ", ".join(parts)

    def fail(self, problem: str, *, hint: str | None = None) -> NoReturn:
        """Raise DataError for this place."""
        raise DataError(f"{self}: {problem}.", hint=hint or f"correct or download {self.path.name} again")


@contextmanager
def many_small_objects() -> Iterator[None]:
    """Hold the cyclic garbage collector: reading makes millions of objects, none in a cycle, and it would visit all."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


HALF = "half of a surrogate pair, which is no character"


def whole_characters(value: Any) -> bool:
    r"""Whether a JSON value can be stored as UTF-8: "\ud83d" without its other half can be read, and not written."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def iter_json_lines(path: Path, advance: Advance | None = None, *, whole: bool = False) -> Iterator[tuple[Place, Row]]:
    """Yield every non-blank line of a UTF-8 JSONL file as (place, object), reading the file as a stream.

    The file may lie in a zip (see `madkit.core.archives`). `advance` receives the bytes of every line. With `whole` a
    text with half of a surrogate pair is an error; a caller that names the key by itself leaves it out.

    Raises NotFoundError for a missing file, DataError for text that is not UTF-8, for a line that is no JSON object
    (the last one is called truncated when the file ends inside it), and for a file without any line.
    """
    loads = json.loads
    empty = True
    with open_binary(path) as stream:
        for number, raw in enumerate(stream, 1):
            if advance is not None:
                advance(len(raw))
            if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
                raw = raw[3:]
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                Place(path, number).fail(
                    f"byte {error.start + 1} of the line is not UTF-8 text", hint=f"convert {path.name} to UTF-8"
                )
            if not text.strip():
                continue
            place = Place(path, number)
            try:
                row = loads(text)
            except json.JSONDecodeError as error:
                if not text.endswith("\n"):
                    place.fail("the last line is not complete JSON, so the file is truncated")
                place.fail(f"not valid JSON ({error.msg} at column {error.colno})")
            except RecursionError:
                place.fail("the JSON is nested too deeply")
            except ValueError:  # Python reads no whole number of more than 4,300 digits
                place.fail("a whole number has too many digits to be read")
            if not isinstance(row, dict):
                place.fail(f"a JSON object is needed, found {kind_of(row)}")
            if whole and (b"\\ud" in raw or b"\\uD" in raw) and not whole_characters(row):
                key = next((key for key, value in row.items() if not whole_characters(value)), "a key")
                place.fail(f"'{key}' holds {HALF}")
            empty = False
            yield place, row
    if empty:
        Place(path).fail("the file holds no lines")


def load_json(path: Path) -> Any:
    """The content of a UTF-8 JSON file, in a zip or not.

    Raises NotFoundError or DataError (encoding, truncation, syntax).
    """
    data = read_bytes(path)
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        Place(path).fail(f"byte {error.start + 1} is not UTF-8 text", hint=f"convert {path.name} to UTF-8")
    except json.JSONDecodeError as error:
        if error.pos >= len(error.doc.rstrip()):
            Place(path, error.lineno).fail("the JSON ends too early, so the file is truncated")
        Place(path, error.lineno).fail(f"not valid JSON ({error.msg} at column {error.colno})")
    except RecursionError:
        Place(path).fail("the JSON is nested too deeply")
    except ValueError:  # Python reads no whole number of more than 4,300 digits
        Place(path).fail("a whole number has too many digits to be read")


def kind_of(value: object) -> str:
    """The JSON name of a value's type, for messages."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"


def need_string(row: Mapping[str, Any], key: str, place: Place) -> str:
    """row[key] as a non-empty string."""
    value = row.get(key)
    if not isinstance(value, str) or not value:
        _fail_key(row, key, place, "a non-empty string")
    return value


def need_int(row: Mapping[str, Any], key: str, place: Place) -> int:
    """row[key] as an integer (a boolean is none)."""
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        _fail_key(row, key, place, "an integer")
    return value


def need_list(row: Mapping[str, Any], key: str, place: Place) -> list[Any]:
    """row[key] as a list."""
    value = row.get(key)
    if not isinstance(value, list):
        _fail_key(row, key, place, "a list")
    return value


def _fail_key(row: Mapping[str, Any], key: str, place: Place, wanted: str) -> NoReturn:
    if key not in row:
        place.fail(f"the key '{key}' is missing")
    place.fail(f"'{key}' must be {wanted}, found {kind_of(row[key])}" if row[key] != "" else f"'{key}' is empty")


class UniqueIds:
    """Refuses an id that a file has already used, and says on which line it stood first."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._first: dict[object, int] = {}

    def add(self, value: object, place: Place) -> None:
        """Remember the id. Raises DataError for a repeated one."""
        first = self._first.setdefault(value, place.line)
        if first != place.line:
            place.fail(f"'{self._key}' {value!r} was used before, on line {first}")


def check_files(paths: Mapping[Path, Place], what: str, *, exists: Callable[[Path], bool] = file_exists) -> None:
    """Raise one DataError with the count and the first five of the `paths` that do not exist."""
    missing = [path for path in paths if not exists(path)]
    if missing:
        shown = ", ".join(str(path) for path in missing[:5])
        more = ", ..." if len(missing) > 5 else ""
        paths[missing[0]].fail(
            f"{len(missing)} of {len(paths)} {what} are missing: {shown}{more}",
            hint="check the folder of the images",
        )
