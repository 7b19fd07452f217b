"""What proposes the next trial."""

from __future__ import annotations

from typing import TYPE_CHECKING

from methods.framework.errors import ConfigError
from sweeps.sweep_config import Sampler

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


def sampler(settings: Sampler, draws: int, worker: int = 0) -> BaseSampler:
    """Return the sampler of the next trial, seeded with (seed, trials drawn so far, worker).

    So a study that was stopped and continued draws what it would have drawn in one go.
    """
    import numpy as np
    from optuna import samplers

    seed = int(np.random.SeedSequence((settings.seed, draws, worker)).generate_state(1)[0])
    match settings.name:
        case "tpe":
            return samplers.TPESampler(seed=seed, n_startup_trials=settings.startup)
        case "nsga2":
            return samplers.NSGAIISampler(seed=seed, population_size=settings.population)
        case "cmaes":
            _require("cmaes")
            return samplers.CmaEsSampler(seed=seed, n_startup_trials=settings.startup, warn_independent_sampling=False)
        case "random":
            return samplers.RandomSampler(seed=seed)


def _require(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise ConfigError(f"sampler cmaes needs the package {package}: `pip install {package}`, or choose tpe")
