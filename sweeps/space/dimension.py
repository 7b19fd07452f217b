"""Dimensions of a search: what a knob may be, how a sampler's flat parameters become knobs, and a method's own space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

from annotated_types import Gt, Le, Lt
from pydantic import Discriminator, Field, Tag, model_validator

from bench.settings.strict import Strict
from methods.framework import knob_space
from methods.framework.method import Method, ProbingMethod

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

OPEN_PARTS = 20
"""A range without its end stops short of it by one of so many parts of its length."""


class Choice(Strict):
    """One of several values, in no order."""

    choices: tuple[bool | int | float | str | None, ...] = Field(min_length=1, description="values to choose from")


class Range(Strict):
    """A number between two ends, both included."""

    type: Literal["int", "float"] = Field(default="float", description="whole numbers or real ones")
    low: float = Field(description="smallest value")
    high: float = Field(description="largest value")
    log: bool = Field(default=False, description="whether the logarithm is drawn evenly")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low above 0, found {self.low}")
        if self.type == "int" and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"type int needs whole ends, found {self.low} and {self.high}")
        return self


class Knots(Strict):
    """Shares at equally spaced depths, interpolated linearly between (see ``methods.framework.allocation.depth_shares``)."""

    knots: int = Field(ge=1, le=64, description="number of knots; 1 is one share for the whole depth")
    low: float = Field(gt=0.0, le=1.0, description="smallest share")
    high: float = Field(gt=0.0, le=1.0, description="largest share")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class Layers(Strict):
    """One value for each MoE layer, or for each of the three matrices of each layer, from a few options.

    Without ``choices`` the options of a share are: of experts every number that the router allows, at most ``levels`` of them;
    of few bits those that exist; else ``levels`` shares from ``low`` to ``high``, evenly spaced.
    """

    by: Literal["layer", "matrix"] = Field(description="whether a layer's matrices share the value")
    choices: tuple[bool | int | float | str | None, ...] | None = Field(
        default=None, min_length=2, description="the options; None: shares between low and high"
    )
    low: float = Field(default=0.1, gt=0.0, le=1.0, description="smallest share")
    high: float = Field(default=1.0, gt=0.0, le=1.0, description="largest share")
    levels: int = Field(default=16, ge=2, le=1024, description="options at most")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        return self


def _kind(value: Any) -> str:
    if isinstance(value, (Choice, Range, Knots, Layers)):
        return type(value).__name__
    keys = value if isinstance(value, Mapping) else ()
    return "Layers" if "by" in keys else "Choice" if "choices" in keys else "Knots" if "knots" in keys else "Range"


Dimension: TypeAlias = Annotated[
    Annotated[Choice, Tag("Choice")]
    | Annotated[Range, Tag("Range")]
    | Annotated[Knots, Tag("Knots")]
    | Annotated[Layers, Tag("Layers")],
    Discriminator(_kind),
]
"""One knob's part of a space, told apart by its keys: ``by``, ``choices``, ``knots``, or ``low`` and ``high``."""

Space: TypeAlias = Mapping[str, Choice | Range | Knots | Layers]


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return Optuna's distribution of each flat parameter; knot i of knob ``keep`` is called ``keep.i``.

    They come in the order of their names, since samplers draw one after another and a file's order must not matter. What has
    a value for each layer is left out: its options are known with the model (``sweeps.space.levels``).
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    flat: dict[str, BaseDistribution] = {}
    for name, dimension in sorted(space.items()):
        match dimension:
            case Choice():
                flat[name] = CategoricalDistribution(dimension.choices)
            case Range(type="int"):
                flat[name] = IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
            case Range():
                flat[name] = FloatDistribution(dimension.low, dimension.high, log=dimension.log)
            case Knots():
                for index in range(dimension.knots):
                    flat[f"{name}.{index}"] = FloatDistribution(dimension.low, dimension.high)
    return flat


def assemble(space: Space, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return knobs from flat parameters, but those of single layers; a single knot is a plain share."""
    knobs: dict[str, Any] = {}
    for name, dimension in space.items():
        if isinstance(dimension, Layers):
            continue
        if isinstance(dimension, Knots):
            shares = tuple(float(parameters[f"{name}.{index}"]) for index in range(dimension.knots))
            knobs[name] = shares[0] if dimension.knots == 1 else shares
        else:
            knobs[name] = parameters[name]
    return knobs


def corners(dimension: Choice | Range | Knots | Layers) -> list[Any]:
    """Return the values at the ends of a dimension; a knob that accepts them accepts what lies between."""
    match dimension:
        case Choice():
            return list(dimension.choices)
        case Layers():
            return [dimension.low, dimension.high] if dimension.choices is None else list(dimension.choices)
        case Range(type="int"):
            return [int(dimension.low), int(dimension.high)]
        case Range():
            return [dimension.low, dimension.high]
        case Knots(knots=1):
            return [dimension.low, dimension.high]
        case Knots():
            return [(dimension.low,) * dimension.knots, (dimension.high,) * dimension.knots]


def own_space(method_class: type[Method]) -> dict[str, Choice | Range | Knots | Layers]:
    """Return the part of a method's space (``methods.framework.knob_space``) that is worth searching.

    Each layer has a share of its own, but where the method finds the depth profile itself, runs the model, or removes layers:
    there is one share.

    Left out are knobs with a single value, numbers without an upper bound (choosing the best of many seeds fits noise), and
    those that the method calls ``unsearched``.
    """
    space: dict[str, Choice | Range | Knots | Layers] = {}
    for name, dimension in knob_space.space_of(method_class).items():
        field = method_class.model_fields[name]
        bounded = any(isinstance(mark, (Le, Lt)) for mark in field.metadata)
        if name in method_class.unsearched:
            continue
        match dimension:
            case knob_space.Choice(values) if name == "keep" and len(values) > 1:
                space[name] = Layers(by="layer", low=min(values), high=max(values))
            case knob_space.Choice(values) if len(values) > 1 and None not in values:
                space[name] = Choice(choices=values)
            case knob_space.Integer(low, high) if bounded and low < high:
                space[name] = Range(type="int", low=low, high=high)
            case knob_space.Real(low, high):
                part = (high - low) / OPEN_PARTS
                below = part if any(isinstance(mark, Gt) for mark in field.metadata) else 0.0
                above = part if any(isinstance(mark, Lt) for mark in field.metadata) else 0.0
                space[name] = Range(low=low + below, high=high - above)
            case knob_space.Share(low, high, depth):
                space[name] = _own_share(method_class, low, high, depth)
    return space


def _own_share(method_class: type[Method], low: float, high: float, depth: bool) -> Knots | Layers:
    """Return how a method's share is searched; ``depth`` tells whether it takes knots at all."""
    finds_depth = "scope" in method_class.model_fields or issubclass(method_class, ProbingMethod)
    return Layers(by="layer", low=low, high=high) if depth and not finds_depth else Knots(knots=1, low=low, high=high)
