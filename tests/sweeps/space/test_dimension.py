"""Search spaces: flat parameters and knobs, and a method's own space."""

from __future__ import annotations

from typing import ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from methods.framework.method import Method
from sweeps.space.dimension import Choice, Knots, Layers, Range, assemble, corners, distributions, own_space


class Everything(Method):
    """A method with one knob of each kind."""

    name: ClassVar[str] = "everything"
    title: ClassVar[str] = "Everything"
    source: ClassVar[str] = "test"
    stages: ClassVar[frozenset[str]] = frozenset({"experts"})

    unsearched: ClassVar[frozenset[str]] = frozenset({"pattern"})

    mode: Literal["a", "b"] = "a"
    fixed: Literal["only"] = "only"
    flag: bool = False
    count: int = Field(default=2, ge=1, lt=5)
    strength: float = Field(default=0.5, ge=0.0, le=2.0)
    half_open: float = Field(default=0.5, gt=0.0, lt=1.0)
    pattern: Literal["a", "b"] = "a"
    seed: int = Field(default=0, ge=0)

    def decide(self, inventory: object, stats: object) -> list[object]:  # type: ignore[override]  # never called
        raise AssertionError


def test_own_space_holds_each_searchable_knob() -> None:
    space = own_space(Everything)
    assert set(space) == {"keep", "mode", "flag", "count", "strength", "half_open"}, (
        "a single value and a seed are not searched"
    )
    assert space["mode"] == Choice(choices=("a", "b"))
    assert space["flag"] == Choice(choices=(False, True))
    assert space["strength"] == Range(low=0.0, high=2.0)
    assert space["keep"] == Layers(by="layer", low=0.1)
    assert space["half_open"] == Range(low=0.05, high=0.95)


def test_knots_are_spread_over_parameters_and_collected_again() -> None:
    space = {"keep": Knots(knots=3, low=0.2, high=0.9), "b": Choice(choices=(0, 1))}
    assert set(distributions(space)) == {"keep.0", "keep.1", "keep.2", "b"}
    assert assemble(space, {"keep.0": 0.2, "keep.1": 0.5, "keep.2": 0.9, "b": 1}) == {"keep": (0.2, 0.5, 0.9), "b": 1}
    assert assemble({"keep": Knots(knots=1, low=0.2, high=0.9)}, {"keep.0": 0.4}) == {"keep": 0.4}


def test_corners_are_ends() -> None:
    assert corners(Range(type="int", low=1, high=4)) == [1, 4]
    assert corners(Knots(knots=2, low=0.1, high=0.8)) == [(0.1, 0.1), (0.8, 0.8)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"low": 2, "high": 1}, "above high"),
        ({"low": 0, "high": 1, "log": True}, "log needs low above 0"),
        ({"type": "int", "low": 0.5, "high": 2}, "whole ends"),
        ({"low": 0, "hihg": 1}, "did you mean 'high'"),
    ],
)
def test_impossible_ranges_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Range.model_validate(fields)
