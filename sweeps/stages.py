"""Measuring a trial part by part: after some windows Optuna's pruner may end it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sweeps.journal import missing_trials
from sweeps.pruning_settings import Stages

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.pruners import BasePruner


def pruner_of(stages: Stages) -> BasePruner:
    """Return the pruner: one that reads values of trials alone, so that a trial that is queued again meets it afresh."""
    import optuna
    from optuna.pruners import MedianPruner, NopPruner, WilcoxonPruner

    match stages.pruner:
        case "wilcoxon":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return WilcoxonPruner(p_threshold=stages.p)
        case "median":
            return MedianPruner(n_startup_trials=stages.startup)
        case "none":
            return NopPruner()


class Stops:
    """Reports the windows of one trial, and says whether it ends here."""

    def __init__(self, trial: Trial, stages: Stages) -> None:
        """Begin with no window.

        Args:
            trial: of a study that has the pruner.
            stages: what the pruner reads.
        """
        self.trial, self.stages = trial, stages
        self._told = 0

    def __call__(self, values: Sequence[float]) -> bool:
        """Report the values of all windows so far, one each, and return whether the trial is ended."""
        self.report(values)
        return self.trial.should_prune()

    def report(self, values: Sequence[float]) -> None:
        """Report windows that were not; later trials are compared with the whole of this one."""
        if self.stages.pruner == "median":
            self.trial.report(sum(values) / len(values), len(values))
        else:
            for window in range(self._told, len(values)):
                self.trial.report(values[window], window)
        self._told = len(values)


def lacking(study: Study, wanted: int) -> int:
    """Return how many trials a study lacks of those ``wanted``; one that was ended early counts, as its answer is known."""
    return missing_trials(study, wanted - pruned(study))


def pruned(study: Study) -> int:
    """Return how many trials were ended early."""
    from optuna.trial import TrialState

    return sum(bool(trial.intermediate_values) for trial in study.get_trials(False, (TrialState.PRUNED,)))
