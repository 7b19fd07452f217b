"""A study in W&B: one run with its history, its trials, plots of what mattered, and its front."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.records.mirror import Tracker
from bench.store.store import digest_of
from sweeps.journal import open_study
from sweeps.outcome import STATES, SweepResult, TrialRow, flat_row
from sweeps.sweep_config import SweepConfig

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_SLICES = 12
"""Parameters that the slice plot shows, the most important ones."""

_PATHS = ("model", "include_path")
"""Settings that may be paths of this machine; their last part is told."""


def track_study(config: SweepConfig, result: SweepResult, store: Path, tracker: Tracker) -> Path | None:
    """Mirror a study as it stands; nothing is sent where that was done before.

    The run's id follows from the study's name and identity, so that a study that went on is one run. Of its offline runs the
    last one holds everything, so an earlier one that nobody has synced goes.

    Args:
        config: the sweep.
        result: its study.
        store: folder of the store.
        tracker: where runs go.

    Returns:
        The run's folder; None where nothing was sent.
    """
    identifier = study_id(config)
    state = digest_of(
        [flat_row(row) for row in result.rows if row.state in ("complete", "pruned", "refused", "failed")]
    )[:8]
    begun = {
        "group": config.name,
        "id": identifier,
        "name": f"{Path(config.model).name} · sweep {config.name} · seed {config.sampler.seed}",
        "job_type": "sweep",
        "tags": [config.proposer.name, *config.labels],
        "config": configured(config),
    }

    def fill(wandb: Any, run: Any) -> None:
        _fill(wandb, run, config, result, open_study(config, config.folder(store)))

    folder = tracker.mirror(f"study {config.name}", f"{identifier}-{state}", begun, fill)
    if folder is not None:
        tracker.remove_earlier(identifier, folder)
    return folder


def study_id(config: SweepConfig) -> str:
    """Return the id of a study's run: the digest of its name and identity."""
    return digest_of({"study": config.name, "identity": config.identity()})[:16]


def configured(config: SweepConfig) -> dict[str, Any]:
    """Return what determined the study, without where things lie on this machine."""
    told = config.identity()
    named = {name: Path(told[name]).name for name in _PATHS if told.get(name)}
    return {**told, **named, "trials": config.trials}


def history(rows: Sequence[TrialRow], directions: Mapping[str, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield, for each complete trial, its number and what it found, with the best of each objective so far.

    Args:
        rows: trials by number.
        directions: ``minimize`` or ``maximize`` for each objective by label.
    """
    best: dict[str, float] = {}
    for row in rows:
        if row.state != "complete":
            continue
        for label, direction in directions.items():
            choose = max if direction == "maximize" else min
            best[label] = choose(best.get(label, row.scores[label]), row.scores[label])
        numbers = {f"score/{name}": value for name, value in row.scores.items()}
        numbers |= {f"best/{name}": value for name, value in best.items()}
        numbers |= {f"size/{name}": value for name, value in row.sizes.items()}
        yield row.number, {"trial": row.number, **numbers, "seconds": row.seconds}


def summary(result: SweepResult, directions: Mapping[str, str]) -> dict[str, Any]:
    """Return the study's numbers by name: trials by state, seconds, size of the front, best of each objective.

    Args:
        result: the study.
        directions: as for ``history``.
    """
    numbers: dict[str, Any] = {f"trials/{state}": result.count(state) for state in STATES.values()}
    numbers |= {"seconds": sum(row.seconds for row in result.rows), "front": len(result.front)}
    for _, found in history(result.rows, directions):
        numbers |= {name: value for name, value in found.items() if name.startswith("best/")}
    return numbers


@dataclass(frozen=True)
class Plots:
    """Plots of a study.

    Args:
        figures: plotly's figures by name.
        importance: share of each parameter in each objective, by ``LABEL/PARAMETER``.
        skipped: why there is none, by the name of the plot.
    """

    figures: dict[str, Any] = field(default_factory=dict)
    importance: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def attempt(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what ``make`` returns, or None, with the reason kept, where Optuna cannot compute it."""
        # It refuses one trial, equal values or no common parameter with errors of several kinds.
        try:
            return make()
        except (ValueError, RuntimeError, ArithmeticError, LookupError, ImportError) as error:
            self.skipped[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            return None


def plots(study: Study, labels: Sequence[str]) -> Plots:
    """Return history, importance and slices of each objective, as far as Optuna can compute them.

    Args:
        study: the study.
        labels: names of its objectives.
    """
    from optuna.logging import ERROR, get_verbosity, set_verbosity
    from optuna.trial import TrialState

    drawn = Plots()
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not trials:
        drawn.skipped["plots"] = "no trial is complete"
        return drawn
    told = get_verbosity()
    set_verbosity(ERROR)  # it names every value that it leaves out of a plot
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as it does what it calls experimental
            for place, label in enumerate(labels):
                _draw(drawn, study, place, label)
    finally:
        set_verbosity(told)
    return drawn


def _draw(drawn: Plots, study: Study, place: int, label: str) -> None:
    """Add the plots of one objective."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.visualization import plot_optimization_history, plot_param_importances, plot_slice

    def target(trial: FrozenTrial) -> float:
        return float(trial.values[place])

    forest = FanovaImportanceEvaluator(seed=0)
    makers: dict[str, Callable[[], Any]] = {
        "history": lambda: plot_optimization_history(study, target=target, target_name=label)
    }
    found = drawn.attempt(f"importance/{label}", lambda: get_param_importances(study, evaluator=forest, target=target))
    shown = list(study.best_trials[0].params if found is None else found)[:_SLICES]
    if found is not None:
        drawn.importance.update({f"{label}/{name}": share for name, share in found.items()})
        makers["importance"] = lambda: plot_param_importances(study, forest, shown, target=target, target_name=label)
    makers["slice"] = lambda: plot_slice(study, shown, target=target, target_name=label)
    for name, make in makers.items():
        figure = drawn.attempt(f"{name}/{label}", make)
        if figure is not None:
            drawn.figures[f"{name}/{label}"] = figure


def _fill(wandb: Any, run: Any, config: SweepConfig, result: SweepResult, study: Study) -> None:
    """Put the study into its run."""
    directions = dict(zip(config.labels, config.directions, strict=True))
    for number, numbers in history(result.rows, directions):
        run.log({name: value for name, value in numbers.items() if math.isfinite(value)}, step=number)
    lines = [flat_row(row) for row in result.rows]
    columns = list(dict.fromkeys(column for line in lines for column in line))
    data = [[line.get(column) for column in columns] for line in lines]
    drawn = plots(study, config.labels)
    figures = {f"plots/{name}": wandb.Plotly(figure) for name, figure in drawn.figures.items()}
    run.log({"trials": wandb.Table(columns=columns, data=data, allow_mixed_types=True), **figures})
    run.summary.update(summary(result, directions))
    run.summary.update({f"importance/{name}": share for name, share in drawn.importance.items()})
    run.summary.update({f"skipped/{name}": reason for name, reason in drawn.skipped.items()})
    _attach_front(wandb, run, result)


def _attach_front(wandb: Any, run: Any, result: SweepResult) -> None:
    """Attach table, front and plans, copied into the run's own folder, where `wandb sync` finds them."""
    artifact = wandb.Artifact(f"front-{run.id}", type="front")
    for name in ("trials.csv", "front.json", *(f"front/{str(row.plan)[:16]}.json" for row in result.front)):
        path = Path(run.dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(result.folder / name, path)
        artifact.add_file(str(path), name=name, policy="immutable")
    run.log_artifact(artifact)
