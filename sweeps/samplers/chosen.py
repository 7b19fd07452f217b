"""What proposes the next trial."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sweeps.sweep_config import Sampler

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


def sampler(settings: Sampler, draws: int, worker: int = 0) -> BaseSampler:
    """Return the sampler of the next trial, seeded with (seed, trials drawn so far, worker).

    So a study that was stopped and continued draws what it would have drawn in one go.

    Args:
        settings: which one, and its own settings.
        draws: trials drawn so far.
        worker: number of the worker.
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
            return samplers.CmaEsSampler(seed=seed, n_startup_trials=settings.startup, warn_independent_sampling=False)
        case "random":
            return samplers.RandomSampler(seed=seed)
