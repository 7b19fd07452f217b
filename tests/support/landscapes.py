"""A space of levels with a landscape that is known, and a study that walks over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from sweeps.samplers.chosen import sampler
from sweeps.samplers.history import History
from sweeps.samplers.moves import uniform
from sweeps.samplers.settings import Sampler
from sweeps.space.levels import Axis, Levels, LevelSpace


def level_space(
    axes: int = 6, levels: int = 8, share: float = 0.5, weights: tuple[int, ...] | None = None
) -> LevelSpace:
    """Return axes that are units of their own; a level of axis a weighs ``weights[a]``."""
    heavy = weights or (1,) * axes
    sizes = tuple(np.arange(1, levels + 1, dtype=np.float64) * weight for weight in heavy)
    limit = share * levels * sum(heavy)
    return LevelSpace(
        tuple(Axis(f"keep.layer.{index}", index, tuple(range(levels))) for index in range(axes)),
        tuple(f"layer {index}" for index in range(axes)),
        {"bytes": sizes},
        {"bytes": 0.0},
        {"bytes": limit},
    )


def damage(space: LevelSpace, seed: int = 0) -> Callable[[Levels], float]:
    """Return a separable convex damage of what is missing, and pairs that make it worse together."""
    rng = np.random.default_rng(seed)
    axes = len(space.axes)
    weights, pairs = rng.lognormal(0, 1, axes), rng.random((axes, axes)) * 0.3

    def value(levels: Levels) -> float:
        missing = 1.0 - np.asarray(levels) / space.highest
        return float(weights @ missing**2 + missing @ pairs @ missing)

    return value


def distributions(space: LevelSpace, shared: bool = False) -> dict[str, BaseDistribution]:
    own: dict[str, BaseDistribution] = {axis.name: IntDistribution(0, len(axis.values) - 1) for axis in space.axes}
    return {"b": FloatDistribution(0.0, 1.0), **own} if shared else own


def walked(
    space: LevelSpace,
    settings: Mapping[str, Any],
    trials: int,
    value: Callable[[Levels], float],
    study: optuna.Study | None = None,
    shared: bool = False,
    past: History | None = None,
) -> optuna.Study:
    """Return a study of ``trials`` trials, begun at the uniform plan; one that is given goes on.

    Args:
        space: the assignments.
        settings: of the sampler.
        trials: in all.
        value: of an assignment.
        study: with its trials so far.
        shared: whether all layers share a parameter as well.
        past: kept from trial to trial; None: each sampler reads the study anew.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    chosen = Sampler.model_validate(settings)
    if study is None:
        study = optuna.create_study()
        start = dict(zip((axis.name for axis in space.axes), uniform(space).tolist(), strict=True))
        study.enqueue_trial(start, user_attrs={"start": True})
    for number in range(sum(trial.state.is_finished() for trial in study.trials), trials):
        study.sampler = sampler(chosen, number, 0, lambda parameters: space, study, past)
        trial = study.ask(distributions(space, shared))
        wished = np.array([trial.params[axis.name] for axis in space.axes], dtype=np.int64)
        assert ((wished >= 0) & (wished <= space.highest)).all()
        levels = wished if space.fits(wished) and "start" in trial.user_attrs else space.projected(wished.astype(float))
        trial.set_user_attr("levels", levels.tolist())
        study.tell(trial, value(levels))
    return study


def levels_of(study: optuna.Study) -> list[tuple[int, ...]]:
    return [tuple(trial.user_attrs["levels"]) for trial in study.trials]
