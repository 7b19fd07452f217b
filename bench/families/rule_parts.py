"""What the parts of a family file are made of: expressions that are checked when they are read, and tables of known keys."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from bench.families.expression import parse
from methods.framework.errors import ConfigError


def _checked(text: str) -> str:
    try:
        parse(text)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return text


def _shape(text: str) -> str:
    for part in text.split(","):
        _checked(part)
    return text


def _with_none(values: dict[str, Any]) -> dict[str, Any]:
    return {key: None if value == "None" else value for key, value in values.items()}


Expression = Annotated[str, AfterValidator(_checked)]
Shape = Annotated[str, AfterValidator(_shape)]
Values = Annotated[dict[str, Any], AfterValidator(_with_none)]


class Part(BaseModel):
    """A table of a family file, whose keys are all known."""

    model_config = ConfigDict(frozen=True, extra="forbid")
