"""Best plans of earlier studies as first points of another one of the same space."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from methods.framework.errors import ConfigError, RefusedError
from sweeps.journal import open_study
from sweeps.outcome import TrialRow, best_rows, front, signs
from sweeps.planner import LayerPlanner
from sweeps.sweep_config import CONFIG, SweepConfig, load_sweep

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial


def enqueue_earlier(config: SweepConfig, study: Study, planner: LayerPlanner, store: Path, content: str) -> None:
    """Put the best plans of the studies that ``config.starts`` names into the queue, brought onto the budget of this one.

    A study whose plans are in the queue already is not read again, so that what it finds meanwhile changes nothing.

    Args:
        config: the sweep.
        study: its study, open.
        planner: plans of its space.
        store: folder of the store, in which studies are looked for by name.
        content: digest of the model.

    Raises:
        ConfigError: there is no such study, or it is of another model or another space.
    """
    known = {str(trial.user_attrs.get("start")) for trial in study.get_trials(deepcopy=False)}
    for name in config.starts.studies or ():
        if any(start.startswith(f"study {name}, ") for start in known):
            continue
        folder = _folder(name, store)
        other = load_sweep(folder / CONFIG)
        earlier = open_study(other, folder)
        _check(name, config, other, earlier.user_attrs.get("inputs", {}), content)
        for trial in _best(other, earlier, config.starts.best):
            parameters = _parameters(trial, planner, same=other.budget == config.budget)
            _check_parameters(name, parameters, planner)
            start = {"start": f"study {name}, trial {trial.number}"}
            study.enqueue_trial(parameters, user_attrs=start, skip_if_exists=True)


def _folder(name: str, store: Path) -> Path:
    """Return the folder of a study, in the store or by its path."""
    for folder in (store / "sweeps" / name, Path(name)):
        if (folder / CONFIG).is_file():
            return folder
    raise ConfigError(
        f"starts.studies: there is no study {name!r} in {store / 'sweeps'}, and no folder of that name with a {CONFIG}; "
        "give the name of a study of this store, or the folder of one"
    )


def _check(name: str, config: SweepConfig, other: SweepConfig, inputs: Mapping[str, Any], content: str) -> None:
    """Check that two studies search the same space of the same model."""
    ours, theirs = ([step.model_dump(mode="json") for step in one.steps] for one in (config, other))
    if ours != theirs:
        pairs = enumerate(zip(theirs, ours, strict=False), start=1)
        different = [f"step {place} is {before}, here {now}" for place, (before, now) in pairs if before != now]
        told = different[0] if different else f"it has {len(theirs)} steps, here {len(ours)}"
        raise ConfigError(
            f"starts.studies: study {name!r} searches another space: {told}; its plans have no place in this one. Leave it "
            "out, or search what it searched (budget, objectives and sampler may differ)"
        )
    if inputs.get("model") != content:
        raise ConfigError(
            f"starts.studies: study {name!r} is of another model (content {str(inputs.get('model'))[:16]}, here "
            f"{content[:16]}); leave it out"
        )


def _best(config: SweepConfig, study: Study, count: int) -> list[FrozenTrial]:
    """Return the best complete trials of different plans; of several objectives those of the front, by the first one."""
    trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    rows = [TrialRow.of(trial) for trial in trials.values()]
    directions = dict(zip(config.labels, config.directions, strict=True))
    label, sign = config.labels[0], signs(directions)[config.labels[0]]
    if len(directions) > 1:
        rows = list(front(rows, directions))
    return [trials[row.number] for row in best_rows(rows, label, sign, count)]


def _parameters(trial: FrozenTrial, planner: LayerPlanner, same: bool) -> dict[str, Any]:
    """Return a trial's parameters, its levels on the budget of ``planner``; with the ``same`` budget as they were planned."""
    axes = [axis.name for axis in planner.space({}).axes]
    shared = {name: value for name, value in trial.params.items() if name not in axes}
    space = planner.space(shared)
    levels_A = np.array(trial.user_attrs["levels"], dtype=np.int64)
    if len(levels_A) == len(axes) and space.limits and not (same and space.fits(levels_A)):
        with suppress(RefusedError):  # the trial is refused with that reason
            levels_A = space.projected(levels_A.astype(np.float64))
    return {**shared, **{name: int(level) for name, level in zip(axes, levels_A, strict=False)}}


def _check_parameters(name: str, parameters: Mapping[str, Any], planner: LayerPlanner) -> None:
    """Check that parameters are what is drawn here: options also follow from statistics, which may be of other text."""
    drawn = planner.distributions
    wrong = sorted(set(drawn) ^ set(parameters)) or [
        key for key, value in parameters.items() if not drawn[key]._contains(drawn[key].to_internal_repr(value))
    ]
    if wrong:
        raise ConfigError(
            f"starts.studies: study {name!r} has other options than this one: {', '.join(wrong[:4])}; leave it out, or "
            "give both the same calibration"
        )
