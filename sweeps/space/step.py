"""One step of what a sweep searches: a method, knobs that are fixed, and knobs that vary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from bench.settings.strict import Strict
from methods.framework.errors import MoebenchError, UnknownNameError
from methods.framework.method import Method
from methods.low_rank import Factoring
from sweeps.space.dimension import Dimension, Layers, Space, corners, own_space
from sweeps.space.statements import step_class, step_names


class SearchStep(Strict):
    """A method whose knobs are fixed or searched; those named in neither have the method's defaults."""

    method: str = Field(description="registry name, or top_k (experts of each token) or drop (none, moe or block)")
    fixed: dict[str, Any] = Field(default_factory=dict, description="knobs that are not searched")
    space: dict[str, Dimension] = Field(
        default_factory=dict, description="searched knobs; auto: the method's own range"
    )

    @model_validator(mode="before")
    @classmethod
    def _own(cls, data: Any) -> Any:
        """Replace ``auto`` by the method's own dimension."""
        if not isinstance(data, Mapping) or not isinstance(data.get("method"), str):
            return data
        space = data.get("space") or {}
        return {**data, "space": with_own(data["method"], space)} if isinstance(space, Mapping) else data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_knobs(self.kind, self.fixed, self.space)
        return self

    @property
    def kind(self) -> type[Method]:
        """The method's class."""
        return step_class(self.method)

    @property
    def layered(self) -> dict[str, Layers]:
        """The knobs that have a value for each layer."""
        return {name: dimension for name, dimension in self.space.items() if isinstance(dimension, Layers)}


def with_own(method: str, space: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``space`` with the method's own dimension wherever it says ``auto``.

    Raises:
        ValueError: no such method (with the closest name), or nothing to offer for a knob.
    """
    if method not in step_names():
        raise ValueError(str(UnknownNameError("method", method, step_names(), "`moebench methods` describes them.")))
    own = own_space(step_class(method))
    for name, value in space.items():
        if value == "auto" and name not in own:
            raise ValueError(f"space.{name}: auto has nothing to offer; method {method} has {', '.join(own)}")
    return {name: own[name] if value == "auto" else value for name, value in space.items()}


def check_knobs(kind: type[Method], fixed: Mapping[str, Any], space: Space) -> None:
    """Check that the method accepts the fixed knobs and both ends of every dimension.

    Args:
        kind: the method.
        fixed: knobs that are not searched.
        space: those that are.

    Raises:
        ValueError: with the knob and the reason.
    """
    if both := sorted(set(fixed) & set(space)):
        raise ValueError(f"{', '.join(both)}: a knob is either fixed or in the space, not both")
    try:
        kind.configured(fixed)
        for name, dimension in space.items():
            for value in corners(dimension):
                kind.configured({name: value})
    except MoebenchError as error:
        raise ValueError(str(error)) from error
    for name, dimension in space.items():
        if (
            isinstance(dimension, Layers)
            and dimension.by == "matrix"
            and not (issubclass(kind, Factoring) and name == "keep")
        ):
            raise ValueError(f"{name}: by matrix is for `keep` of methods that factor each matrix alone; use by: layer")
