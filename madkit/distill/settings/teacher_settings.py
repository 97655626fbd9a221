"""What a configuration says of each of several teachers: a weight, and where its `mad` differs from the arm's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic
from pydantic import Field

from madkit.core.config import StrictModel
from madkit.core.registry import suggest
from madkit.mad.config import MADConfig


class TeacherSettings(StrictModel):
    """One entry of ``teachers``. A bare number is its weight, nothing at all is weight 1."""

    weight: float = Field(1.0, ge=0, description="factor of all that this teacher adds to the loss; 0 leaves it out")
    mad: dict[str, Any] = Field(default_factory=dict, description="settings of mad that differ for this teacher")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _a_number_is_a_weight(cls, value: Any) -> Any:
        if value is None:
            return {}
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            return {"weight": value}
        return value

    @pydantic.field_validator("mad", mode="before")
    @classmethod
    def _nothing_differs(cls, value: Any) -> Any:
        return {} if value is None else value

    @pydantic.field_validator("mad")
    @classmethod
    def _settings_of_mad(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Names and values checked one by one, in the form in which a configuration is written to JSON."""
        values, problems = {}, []
        for name, value in given.items():
            found = MADConfig.model_fields.get(name)
            if found is None:
                problems.append(f"{name}: unknown key.{suggest(name, MADConfig.model_fields)}")
                continue
            adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(found.rebuild_annotation())
            try:
                values[name] = adapter.dump_python(adapter.validate_python(value), mode="json")
            except pydantic.ValidationError as error:
                problems.append(f"{name}: {_said(error)} (given: {value!r})")
        if problems:
            raise ValueError("; ".join(problems))
        return values

    @property
    def plain(self) -> bool:
        """Whether this is what a teacher without an entry gets."""
        return self.weight == 1 and not self.mad

    def applied(self, mad: MADConfig) -> MADConfig:
        """`mad` with what differs for this teacher. Raises ValueError where that cannot be taught."""
        if not self.mad:
            return mad
        try:
            return MADConfig.model_validate({**mad.model_dump(), **self.mad})
        except pydantic.ValidationError as error:
            raise ValueError(_said(error)) from None


def check_teachers(teachers: Mapping[str, TeacherSettings], mad: MADConfig | None) -> None:
    """Raise ValueError, with every problem, for entries that do not go together or with the arm's `mad`."""
    problems = []
    if teachers and all(settings.weight == 0 for settings in teachers.values()):
        problems.append("teachers: all weights are 0, so nobody would teach")
    for name, settings in teachers.items():
        if settings.mad and mad is None:
            problems.append(f"teachers.{name}.mad: there is no mad in this configuration that could differ")
        elif mad is not None and settings.weight > 0:
            try:
                settings.applied(mad)
            except ValueError as error:
                problems.append(f"teachers.{name}.mad: {error}")
    if problems:
        raise ValueError("; ".join(problems))


def _said(error: pydantic.ValidationError) -> str:
    """Every problem of a validation in a few words."""
    found = (str(item["msg"]).removeprefix("Value error, ") for item in error.errors(include_url=False))
    return ", ".join(f"{text[:1].lower()}{text[1:]}" for text in found)
