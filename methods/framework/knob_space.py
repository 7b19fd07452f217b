"""The search space of a method, read from its typed knobs: what a study may suggest and what the laws draw at random."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union

import annotated_types
import numpy as np
from pydantic.fields import FieldInfo

from methods.framework.method import Method

M = TypeVar("M", bound=Method)
KEEP_LOW = 0.1
UNBOUNDED_SPAN = 8


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few values."""

    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number, both ends included."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Real:
    """A number, both ends included."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Share:
    """What remains: one share, or ``knots`` shares over the depth where the method takes them."""

    low: float
    high: float
    depth: bool


Dimension = Choice | Integer | Real | Share


def space_of(cls: type[Method]) -> Mapping[str, Dimension]:
    """Return one dimension for each knob of ``cls``; a knob of a kind that cannot be searched is left out."""
    dimensions = {name: _dimension(name, field) for name, field in cls.model_fields.items()}
    if cls.shares:
        dimensions["keep"] = Choice(cls.shares)
    return {name: dimension for name, dimension in dimensions.items() if dimension is not None}


def draw(cls: type[M], rng: np.random.Generator) -> M:
    """Return ``cls`` with every knob drawn at random from its space."""
    return cls.configured({name: _sample(dimension, rng) for name, dimension in space_of(cls).items()})


def _dimension(name: str, field: FieldInfo) -> Dimension | None:
    """Return the dimension of one field, or None if its type gives no finite range."""
    if name == "keep":
        return Share(KEEP_LOW, 1.0, depth=field.annotation is not float)
    options = _members(field.annotation)
    if any(typing.get_origin(option) is Literal for option in options):
        return Choice(tuple(value for option in options for value in _literal_values(option)))
    if bool in options:
        return Choice((False, True))
    low, high = _bounds(field)
    if int in options:
        start = int(low) if low is not None else 0
        integer = Integer(start, int(high) if high is not None else start + UNBOUNDED_SPAN)
        return Choice((None, *range(integer.low, integer.high + 1))) if types.NoneType in options else integer
    if float in options and low is not None and high is not None:
        return Real(low, high)
    return None


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation itself."""
    union = typing.get_origin(annotation) in (Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def _literal_values(option: Any) -> tuple[Any, ...]:
    if typing.get_origin(option) is Literal:
        return typing.get_args(option)
    return (None,) if option is types.NoneType else ()


def _bounds(field: FieldInfo) -> tuple[float | None, float | None]:
    """Return the lower and upper bound among the field's constraints; open bounds count as closed."""
    low: float | None = None
    high: float | None = None
    for mark in field.metadata:
        match mark:
            case annotated_types.Ge(ge=bound) | annotated_types.Gt(gt=bound):
                low = float(bound)  # type: ignore[arg-type]  # knobs are bounded by numbers
            case annotated_types.Le(le=bound) | annotated_types.Lt(lt=bound):
                high = float(bound)  # type: ignore[arg-type]  # as above
    return low, high


def _sample(dimension: Dimension, rng: np.random.Generator) -> Any:
    match dimension:
        case Choice(values):
            return values[int(rng.integers(len(values)))]
        case Integer(low, high):
            return int(rng.integers(low, high + 1))
        case Real(low, high):
            return float(rng.uniform(low, high))
        case Share(low, high, depth):
            knots = int(rng.integers(1, 4)) if depth else 1
            shares = tuple(float(share) for share in rng.uniform(low, high, knots))
            return shares[0] if knots == 1 else shares
