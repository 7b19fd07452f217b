"""Settings that say which method is applied: one with its knobs, a recipe of several, and their spelling on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import Field

from bench.settings.recovery import RecoverySettings
from bench.settings.strict import Strict
from methods.framework.errors import ConfigError
from methods.framework.method import Method
from methods.registry import method


class MethodConfig(Strict):
    """One method with its knobs."""

    name: str = Field(description="registry name")
    knobs: dict[str, Any] = Field(default_factory=dict, description="knobs that differ from the method's defaults")

    def configured(self) -> Method:
        """Return the method, or raise ConfigError with the closest match."""
        return method(self.name, **self.knobs)


class StepConfig(MethodConfig):
    """One step of a recipe: a method with its knobs, and where its statistics come from."""

    recalibrate: bool = Field(
        default=False,
        description="measure its statistics on what the steps before it leave, instead of slicing the source's",
    )


class RecipeConfig(Strict):
    """Methods that are applied one after the other, as one plan."""

    title: str = Field(min_length=1, description="name for tables")
    source: str = Field(default="", description="paper and table that the recipe follows")
    steps: tuple[StepConfig, ...] = Field(min_length=1, description="methods in their order")
    recovery: RecoverySettings | None = Field(default=None, description="training of the result; None: that of the run")


def parse_method(text: str) -> MethodConfig:
    """Read ``name`` or ``name:knob=value,knob=value``; values are YAML, depth knots are written ``0.3/0.5/0.7``.

    Raises:
        ConfigError: a part without ``=``.
    """
    name, _, rest = text.partition(":")
    knobs: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        knob, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"method {text!r}: {part!r} is not of the form knob=value")
        knobs[knob.strip()] = parse_value(value)
    return MethodConfig(name=name.strip(), knobs=knobs)


def expand(methods: Sequence[MethodConfig], keeps: Sequence[float]) -> list[MethodConfig]:
    """Return every method at every share; a method that states its own ``keep`` stays as it is."""
    if not keeps:
        return list(methods)
    return [
        one
        for method_config in methods
        for one in (
            [method_config]
            if "keep" in method_config.knobs
            else [MethodConfig(name=method_config.name, knobs={**method_config.knobs, "keep": keep}) for keep in keeps]
        )
    ]


def parse_value(text: str) -> Any:
    """Read one knob's value: YAML scalar, numbers joined by ``/`` as knots, or a pattern such as ``2:4`` as it stands."""
    if ":" in text:
        return text  # YAML 1.1 takes 2:4 for a number to the base 60
    if "/" in text:
        try:
            return tuple(float(part) for part in text.split("/"))
        except ValueError:
            return text
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{text!r} is not a value: {str(error).splitlines()[0]}") from error
