"""Who runs: each searches one space until its tokens are spent."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sweeps.racing.track import Spent, Track
from sweeps.samplers.chosen import sampler
from sweeps.samplers.moves import shapes, uniform
from sweeps.samplers.settings import Sampler
from sweeps.solving.knapsack import best
from sweeps.space.anchors import anchors, spread
from sweeps.space.levels import Levels, Reals

if TYPE_CHECKING:
    from optuna import Study, Trial

Contender = Callable[[Track], None]

VERIFIED = 2
"""Solutions of the table that are measured before a search goes on from them."""
_TRIALS = 4  # drawn for each evaluation at most: plans that are drawn again cost nothing


def run(name: str, track: Track) -> None:
    """Let one contender spend its tokens; the uniform plan is everyone's first evaluation."""
    track.begin()
    try:
        track.value(uniform(track.space))
        CONTENDERS[name](track)
    except Spent:
        pass


def solutions(track: Track, count: int) -> list[Levels]:
    """Return the best assignments by a score table of a few options of each unit, whose tokens are counted.

    Args:
        track: where to measure.
        count: assignments wanted.
    """
    space = track.space
    top_A = space.highest
    whole = track.value(top_A, off_budget=True)
    damages: list[Reals] = []
    for own in space.members:
        shape, centre = [int(top_A[axis]) + 1 for axis in own], [int(top_A[axis]) for axis in own]
        known = {}
        for option in anchors(shape, centre, track.race.anchors):
            levels_A = top_A.copy()
            levels_A[list(own)] = option
            known[option] = track.value(levels_A, off_budget=True) - whole
        damages.append(spread(known, shape, centre))
    return solved(track, damages, count)


def solved(track: Track, damages: Sequence[Reals], count: int) -> list[Levels]:
    """Return the best assignments of a table, within the limit.

    Args:
        track: its space.
        damages: of each unit, for every combination of its axes' levels.
        count: assignments wanted.
    """
    space = track.space
    (quantity, limit), *_ = space.limits.items()
    options = [space.combinations(unit) for unit in range(len(space.units))]
    rows = [[float(grid[one]) for one in own] for grid, own in zip(damages, options, strict=True)]
    sizes = [[int(grid[one]) for one in own] for grid, own in zip(space.sizes[quantity], options, strict=True)]
    room = int(np.floor(limit - space.rest[quantity]))
    found = []
    for assignment in best(rows, sizes, room, count, most_room=1 << 14).assignments:
        levels_A = np.zeros_like(space.highest)
        for own, unit, place in zip(space.members, options, assignment.levels, strict=True):
            levels_A[list(own)] = unit[place]
        found.append(levels_A)
    return found


def _table(track: Track) -> None:
    """Measure the best assignments of the table, one after another."""
    for levels_A in solutions(track, track.race.evaluations):
        track.value(levels_A)


def _searched(track: Track, settings: Mapping[str, Any], starts: Sequence[Levels] = (), staged: bool = False) -> None:
    """Search with a sampler.

    Args:
        track: where to measure.
        settings: of the sampler.
        starts: assignments that it is told first, beside the uniform one.
        staged: whether a trial ends after its first window unless that is among the best quarter.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    chosen = Sampler.model_validate({"seed": track.seed, **settings})
    stages = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=4)
    study = optuna.create_study(direction="minimize", pruner=stages if staged else optuna.pruners.NopPruner())
    names = [axis.name for axis in track.space.axes]
    for levels_A in (uniform(track.space), *starts):
        study.enqueue_trial(dict(zip(names, levels_A.tolist(), strict=True)), user_attrs={"start": True})
    distributions = track.planner.distributions
    for number in range(_TRIALS * track.race.evaluations):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.sampler = sampler(chosen, number, 0, track.planner.space, study)
            trial = study.ask(distributions)
        _measured(track, study, trial, names, staged)


def _measured(track: Track, study: Study, trial: Trial, names: Sequence[str], staged: bool) -> None:
    from optuna.trial import TrialState

    levels_A = np.array([trial.params[name] for name in names], dtype=np.int64)
    start = "start" in trial.user_attrs
    if not (start and track.space.fits(levels_A)):
        levels_A = track.space.projected(levels_A.astype(np.float64))
    trial.set_user_attr("levels", levels_A.tolist())
    if staged and not start:
        trial.report(track.first(levels_A), 1)
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return
    study.tell(trial, track.value(levels_A))


def _from_table(**settings: Any) -> Contender:
    return lambda track: _searched(track, settings, solutions(track, VERIFIED))


def _from_shapes(**settings: Any) -> Contender:
    return lambda track: _searched(track, settings, shapes(track.space))


def _alone(staged: bool = False, **settings: Any) -> Contender:
    return lambda track: _searched(track, settings, staged=staged)


def _rco(track: Track) -> None:
    from sweeps.racing.gradient_run import run_rco

    run_rco(track)


CONTENDERS: dict[str, Contender] = {
    "uniform": lambda track: None,
    "table": _table,
    "table_local": _from_table(name="local", candidates=1),
    "table_model": _from_table(name="local"),
    "shapes_model": _from_shapes(name="local"),
    "table_cmaes": _from_table(name="cmaes", sigma=0.5),
    "local": _alone(name="local"),
    "tpe": _alone(name="tpe"),
    "cmaes": _alone(name="cmaes"),
    "nsga2": _alone(name="nsga2"),
    "gp": _alone(name="gp"),
    "evoesap": _alone(name="evoesap"),
    "evopress": _alone(name="evopress"),
    "evopress_staged": _alone(name="evopress", staged=True),
    "rco": _rco,
}
