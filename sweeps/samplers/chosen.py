"""The sampler of the next trial."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from sweeps.samplers.settings import LEVELLED, Sampler

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler

    from sweeps.samplers.history import History
    from sweeps.samplers.level_sampler import SpaceOf


def sampler(
    settings: Sampler,
    draws: int,
    worker: int = 0,
    space: SpaceOf | None = None,
    study: Study | None = None,
    past: History | None = None,
) -> BaseSampler:
    """Return the sampler of the next trial, seeded with (seed, trials drawn so far, worker).

    So a study that was stopped and continued draws what it would have drawn in one go.

    Args:
        settings: which one, and its own settings.
        draws: trials drawn so far.
        worker: number of the worker.
        space: the assignments that layers choose among, where they do.
        study: whose best trial CMA-ES starts from; None: from the middle.
        past: what was read of the study for the trial before; None: nothing.

    Raises:
        ValueError: the sampler moves between options of layers, and there are none.
    """
    import numpy as np

    seed = int(np.random.SeedSequence((settings.seed, draws, worker)).generate_state(1)[0])
    if settings.name not in LEVELLED:
        levelled = None
        if settings.name == "cmaes" and study is not None and space is not None:
            levelled = _start(study, space, past)
        longest = None if space is None else int(space({}).highest.max(initial=1))
        return _of_optuna(settings, seed, levelled, longest)
    if space is None:
        raise ValueError(f"sampler {settings.name} needs a knob that each layer chooses")
    match settings.name:
        case "evopress":
            from sweeps.samplers.evopress import EvoPressSampler

            return EvoPressSampler(space, seed, settings.offspring, past)
        case "evoesap":
            from sweeps.samplers.evoesap import EvoEsapSampler

            return EvoEsapSampler(space, seed, settings.population, settings.elites, past)
        case _:
            from sweeps.samplers.local import LocalSampler

            return LocalSampler(space, seed, settings.candidates, past)


def _of_optuna(settings: Sampler, seed: int, start: dict[str, Any] | None, longest: int | None) -> BaseSampler:
    """Return one of Optuna's samplers; ``start`` is the best trial so far, ``longest`` the largest level."""
    from optuna import samplers
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.simplefilter("ignore", FutureWarning)  # x0 and sigma0 have no successor in Optuna 5
        match settings.name:
            case "tpe":
                return samplers.TPESampler(
                    seed=seed, n_startup_trials=settings.startup, multivariate=settings.multivariate
                )
            case "gp":
                return samplers.GPSampler(
                    seed=seed,
                    n_startup_trials=settings.startup,
                    deterministic_objective=True,
                    warn_independent_sampling=False,
                )
            case "nsga2":
                return samplers.NSGAIISampler(seed=seed, population_size=settings.population)
            case "nsga3":
                return samplers.NSGAIIISampler(seed=seed, population_size=settings.population)
            case "cmaes":
                return samplers.CmaEsSampler(
                    x0=start,
                    sigma0=None if settings.sigma is None else settings.sigma / (longest or 1),  # as share of the range
                    seed=seed,
                    n_startup_trials=1 if start else settings.startup,
                    with_margin=start is not None,
                    warn_independent_sampling=False,
                )
            case _:
                return samplers.RandomSampler(seed=seed)


def _start(study: Study, space: SpaceOf, past: History | None) -> dict[str, Any] | None:
    """Return the parameters of the best trial, its levels as they are on the budget; None before there is one."""
    from sweeps.samplers.history import History

    if len(study.directions) > 1:
        return None
    axes = space({}).axes
    past = History(axes) if past is None else past
    past.read(study)
    if not past.ranked:
        return None
    best = past.ranked[0]
    return {**best.shared, **{axis.name: level for axis, level in zip(axes, best.levels, strict=True)}}
