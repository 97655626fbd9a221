"""A configuration written out in full: every key of its schema with value, default and what it means, as YAML."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import pydantic
import yaml
from pydantic.fields import FieldInfo

WIDTH = 80
INDENT = "  "


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a configuration.

    Attributes:
        name: dotted.
        value: as JSON has it; None for an absent section.
        default: the same, of the schema.
        required: there is no default.
        choices: the values it may take, where these are a few names.
        description: what it means.
        section: it holds other keys.
        absent: it lies in a section that is not there; `value` is what it would be.
        schema: name of the schema whose key it is, of a section's own keys where it is one.
        usual: the default of that schema, wherever the section lies.
    """

    name: str
    value: Any
    default: Any
    required: bool
    choices: tuple[Any, ...]
    description: str
    section: bool
    absent: bool
    schema: str = ""
    usual: Any = None

    def as_row(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = ("name", "value", "default", "required", "choices", "description", "section", "absent")
        return {name: getattr(self, name) for name in names}

    @property
    def depth(self) -> int:
        """How many sections it lies in."""
        return self.name.count(".")


def keys_of(config: pydantic.BaseModel) -> list[Key]:
    """Every key of a configuration, sections before what they hold, in the order of the schema."""
    return list(_walk(type(config), config, _defaults(type(config)), "", absent=False))


def documented(config: pydantic.BaseModel) -> str:
    """A configuration as YAML with every key, what it means, and its default where the value is another.

    Sections that are not there stand in it as comments. Read again, the text gives an equal configuration.
    """
    lines: list[str] = []
    told: dict[str, str] = {}  # schema -> the section that has told its keys
    left_out = ""
    before = 0
    for key in keys_of(config):
        if left_out and key.name.startswith(left_out) and (key.section or key.value == key.usual):
            continue  # what has been told and is as usual
        known = told.get(key.schema, "") if key.section else ""
        indent = ("# " if key.absent else "") + INDENT * key.depth
        if not key.depth and lines and (key.section or before):
            lines.append("")
        before = key.depth
        about = [key.description] if key.description else []
        if key.choices:
            about.append(f"one of: {', '.join(map(_text, key.choices))}")
        gone = key.section and (key.absent or key.value is None)
        if gone and known:
            about.append(f"keys as in {known}")
            left_out = f"{key.name}."
        elif key.section:
            told.setdefault(key.schema, key.name)
        note = textwrap.wrap("; ".join(about), WIDTH - len(indent) - 2, break_on_hyphens=False)
        lines += [f"{indent}# {line}" for line in note]
        lines += [f"{indent}{line}" for line in _written(key)]
    return "\n".join(lines) + "\n"


def _written(key: Key) -> list[str]:
    """A key's own lines, without what stands before or below it."""
    name = key.name.rpartition(".")[2]
    if key.section and key.value is not None:
        return [f"{name}:"]
    if isinstance(key.value, dict) and key.value:  # a section whose keys another schema checks
        return [f"{name}:", *(f"{INDENT}{one}: {_text(value)}" for one, value in key.value.items())]
    changed = not (key.required or key.absent or key.section or key.value == key.default)
    return [f"{name}: {_text(key.value)}" + (f"  # default: {_text(key.default)}" if changed else "")]


def _walk(
    cls: type[pydantic.BaseModel],
    config: pydantic.BaseModel | None,
    defaults: pydantic.BaseModel | None,
    prefix: str,
    *,
    absent: bool,
) -> Iterator[Key]:
    values, usual = _plain(config), _plain(defaults)
    for name, field in cls.model_fields.items():
        inner = _section(field)
        default = usual[name] if defaults is not None else _own_default(field)
        value = values[name] if config is not None else default
        yield Key(
            prefix + name,
            value,
            default,
            required=field.is_required(),
            choices=_choices(field),
            description=field.description or (_first_sentence(inner) if inner is not None else ""),
            section=inner is not None,
            absent=absent,
            schema=(inner or cls).__name__,
            usual=_own_default(field),
        )
        if inner is None:
            continue
        mine: Any = None if config is None else getattr(config, name)
        theirs: Any = getattr(defaults, name) if defaults is not None else _default(field)
        if theirs is None:
            theirs = _defaults(inner)
        missing = absent or mine is None
        if missing and inner is cls:
            continue
        yield from _walk(inner, theirs if missing else mine, theirs, f"{prefix}{name}.", absent=missing)


def _plain(config: pydantic.BaseModel | None) -> dict[str, Any]:
    return {} if config is None else config.model_dump(mode="json")


def _default(field: FieldInfo) -> Any:
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _own_default(field: FieldInfo) -> Any:
    found = _default(field)
    if isinstance(found, pydantic.BaseModel):
        return found.model_dump(mode="json")
    return list(found) if isinstance(found, tuple) else found


def _defaults(cls: type[pydantic.BaseModel]) -> pydantic.BaseModel | None:
    """A configuration of defaults alone; None where the schema requires keys."""
    try:
        return cls()
    except pydantic.ValidationError:
        return None


def _section(field: FieldInfo) -> type[pydantic.BaseModel] | None:
    todo: list[Any] = [field.annotation]
    while todo:
        one = todo.pop()
        if isinstance(one, type) and issubclass(one, pydantic.BaseModel):
            return one
        if get_origin(one) not in (dict, list):
            todo.extend(get_args(one))
    return None


def _choices(field: FieldInfo) -> tuple[Any, ...]:
    found: list[Any] = []
    todo: list[Any] = [field.annotation]
    while todo:
        one = todo.pop(0)
        if get_origin(one) is Literal:
            found += get_args(one)
        else:
            todo.extend(get_args(one))
    return tuple(found)


def _first_sentence(cls: type[pydantic.BaseModel]) -> str:
    text = " ".join((cls.__doc__ or "").strip().partition("\n\n")[0].split())
    return text.partition(". ")[0].rstrip(".").replace("``", "").replace("`", "")


def _text(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("...\n").strip()
