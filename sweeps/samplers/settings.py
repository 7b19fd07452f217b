"""What proposes the next trial: names and settings, without the libraries behind them."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field

from bench.settings.strict import Strict

SamplerName: TypeAlias = Literal[
    "auto", "local", "tpe", "cmaes", "gp", "nsga2", "nsga3", "evopress", "evoesap", "random"
]

LEVELLED = frozenset({"local", "evopress", "evoesap"})
"""Samplers that move between options of layers, so that they need a knob with ``by: layer`` or ``by: matrix``."""
SINGLE = LEVELLED | {"cmaes"}
"""Samplers of a single objective."""


class Sampler(Strict):
    """What proposes the next trial."""

    name: SamplerName = Field(
        default="auto",
        description="auto: local where layers choose for themselves and there is one objective, else tpe; local, evopress, "
        "evoesap move between options of layers; tpe, gp, cmaes, nsga2, nsga3, random are Optuna's",
    )
    seed: int = Field(default=0, ge=0, description="seed; trial n draws from a stream of its own (seed, n)")
    startup: int = Field(
        default=10, ge=1, description="tpe, gp, cmaes: random trials before the model of the space is used"
    )
    population: int = Field(default=16, ge=2, description="nsga2, nsga3, evoesap: size of a generation")
    offspring: int = Field(
        default=8, ge=1, description="evopress: children of a generation, of which the best may replace it"
    )
    elites: int = Field(default=4, ge=1, description="evoesap: plans that survive a generation")
    candidates: int = Field(
        default=64, ge=1, description="local: moves that are compared by a model of the trials so far; 1: none is made"
    )
    multivariate: bool = Field(default=False, description="tpe: model parameters together instead of one by one")
    sigma: float | None = Field(
        default=None,
        gt=0,
        description="cmaes: first width of draws in options of a layer, elsewhere as share of the range; None: a sixth of it",
    )
