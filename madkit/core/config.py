"""Typed configuration: one schema, a YAML file and overrides, every mistake reported at once.

Precedence: overrides (command-line flags) > file > defaults. Unknown keys are errors with a near-miss suggestion.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import pydantic
import yaml

from madkit.core.errors import ConfigError, NotFoundError
from madkit.core.registry import suggest

_PART = re.compile(r'"([^"]*)"|[^.]+')  # of a dotted key


class StrictModel(pydantic.BaseModel):
    """Base of all configuration: unknown keys are refused, instances cannot be changed, defaults are checked too."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


M = TypeVar("M", bound=pydantic.BaseModel)


def load_config(
    cls: type[M],
    path: Path | None,
    overrides: Mapping[str, Any],
    *,
    below: Mapping[str, Any] | None = None,
    nulls: bool = False,
) -> M:
    """Build ``cls`` from its defaults, then ``below``, then a YAML file, then ``overrides``.

    Args:
        cls: the schema.
        path: a YAML file with a mapping at its top, or None.
        overrides: values by key; ``"mad.k_text"`` reaches into a section (`key_parts`). A mapping goes over the section
            that is there key by key, so that what it does not name stays.
        below: values that the file's replace, section by section.
        nulls: whether an override of None is a value like any other; else it means "not given".

    Raises:
        NotFoundError: there is no such file.
        ConfigError: not YAML, a key twice, unknown keys or wrong values; the message lists all of them, and names the
            file where it holds one of them.
    """
    values = _merged(below or {}, read_yaml(path) if path is not None else {})
    for key, value in overrides.items():
        if nulls or value is not None:
            values = _merged(values, _nested(key_parts(key), value))
    try:
        return cls.model_validate(values)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False)
        problems = [_describe(cls, item) for item in found]
        given = [leaf for key, value in overrides.items() for leaf, _ in _leaves(key_parts(key), value)]
        in_file = path is not None and not all(_set_by(given, item["loc"]) for item in found)
        where = f" in {path}" if in_file else ""
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(
            f"{count} with the configuration{where}:\n" + "\n".join(f"  {problem}" for problem in problems),
            hint="correct the keys above and run the command again.",
        ) from None


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`high` over `low`; where both have a mapping under a key, key by key."""
    merged = dict(low)
    for key, value in high.items():
        under = merged.get(key)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            value = _merged(under, value)
        merged[key] = value
    return merged


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (YAML 1.2 section 3.2.1.1; PyYAML silently keeps the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, "a key is no plain name", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def missing_file(path: Path) -> NotFoundError:
    """What is said of a configuration file that is not there, with the nearest of its neighbours."""
    folder = path.parent
    beside = [other.name for other in folder.iterdir() if other.suffix == path.suffix] if folder.is_dir() else []
    return NotFoundError(
        f"There is no configuration file {path}.{suggest(path.name, beside)}",
        hint="give one that exists, or copy a shipped one: madkit config init NAME (see: madkit config list)",
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file; empty for an empty file. Raises NotFoundError or ConfigError as `load_config`."""
    try:
        values = yaml.load(path.read_bytes(), Loader=_UniqueKeyLoader)  # a SafeLoader: builds plain values only
    except FileNotFoundError:
        raise missing_file(path) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{place}: {error.problem or 'not valid YAML'}.") from None
    except yaml.reader.ReaderError as error:  # its text has lines of its own
        raise ConfigError(f"{path} is not valid YAML ({error.reason} at position {error.position}).") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML ({error}).") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path} must hold a mapping of names to values at its top level.")
    return values


def _set_by(given: Sequence[tuple[str, ...]], place: Sequence[int | str]) -> bool:
    """Whether what stands at `place` came from an override: one of it, of a section around it, or of a part of it."""
    parts = tuple(map(str, place))
    return bool(parts) and any(parts[: len(key)] == key[: len(parts)] for key in given)


def key_parts(dotted: str) -> tuple[str, ...]:
    """The names along a dotted key. A part with dots of its own stands in double quotes: ``teachers."a.b".weight``."""
    if '"' not in dotted:
        return tuple(dotted.split("."))
    return tuple(found[1] if found[1] is not None else found[0] for found in _PART.finditer(dotted))


def _nested(parts: Sequence[str], value: object) -> dict[str, Any]:
    """`value` in the sections along its key."""
    for part in reversed(parts):
        value = {part: value}
    return cast(dict[str, Any], value)


def _leaves(parts: tuple[str, ...], value: object) -> Iterator[tuple[tuple[str, ...], object]]:
    """The keys that an override sets, with their values: itself, or those inside a mapping."""
    if not isinstance(value, Mapping) or not value:
        yield parts, value
        return
    for key, inner in value.items():
        yield from _leaves((*parts, str(key)), inner)


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same overrides without mappings, but for empty ones: each value by its whole dotted key, the last one last.

    An empty mapping is a value: it switches a section on, and leaves one that is there as it is.
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        for parts, leaf in _leaves(key_parts(key), value):
            dotted = ".".join(f'"{part}"' if "." in part or not part else part for part in parts)
            found.pop(dotted, None)  # what is set again is set where it comes last
            found[dotted] = leaf
    return found


def left_by(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `low` that stay where `high` goes before them: not what it names, what holds that, or what that holds.

    Both as `flat` makes them.
    """
    named = [(key_parts(key), value) for key, value in high.items()]

    def stays(parts: tuple[str, ...]) -> bool:
        return not any(
            parts[: len(other)] == other[: len(parts)] and not (value == {} and len(parts) > len(other))
            for other, value in named
        )

    return {key: value for key, value in low.items() if stays(key_parts(key))}


def _describe(cls: type[pydantic.BaseModel], item: Any) -> str:
    location = [str(part) for part in item["loc"]]
    key = ".".join(location) or "(top level)"
    if item["type"] == "extra_forbidden":
        siblings = _fields_at(cls, location[:-1])
        return f"{key}: unknown key.{suggest(location[-1], siblings)}"
    if item["type"] == "missing":
        return f"{key}: required, but not given"
    message = item["msg"].removeprefix("Value error, ")
    given = item.get("input")
    shown = f" (given: {given!r})" if isinstance(given, (str, int, float, bool)) and location else ""
    near = ""
    if item["type"] in ("literal_error", "enum") and isinstance(given, str):
        choices = re.findall(r"'([^']*)'", str(item["ctx"]["expected"]))
        near = suggest(given, choices).replace(" Did", "; did", 1)
    return f"{key}: {message[:1].lower()}{message[1:]}{shown}{near}"


def _fields_at(cls: type[pydantic.BaseModel], location: list[str]) -> list[str]:
    models = [cls]
    for part in location:
        inner = [found for model in models if part in model.model_fields for found in _models_in(model, part)]
        models = inner or models  # list indices and union tags name no field: stay
    return [name for model in models for name in model.model_fields]


def _models_in(model: type[pydantic.BaseModel], field: str) -> list[type[pydantic.BaseModel]]:
    found: list[type[pydantic.BaseModel]] = []
    todo: list[Any] = [model.model_fields[field].annotation]
    while todo:
        annotation = todo.pop()
        if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
            found.append(annotation)
        todo.extend(get_args(annotation))
    return found
