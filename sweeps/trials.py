"""Trials in this process: ask for parameters, plan within the budget, realise in memory, measure, tell."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.store.store import Store, write_json
from methods.framework.errors import ConfigError, EvaluationError, MoebenchError, PlanError, RefusedError
from sweeps.budget import Limits
from sweeps.journal import JOURNAL, bind, draws, give_back, missing_trials, reap, running, sign
from sweeps.knob_planner import KnobPlanner
from sweeps.meter import Meter
from sweeps.outcome import TrialRow
from sweeps.planner import LayerPlanner, Planner
from sweeps.resident import Resident
from sweeps.samplers.chosen import sampler
from sweeps.sweep_config import SweepConfig

if TYPE_CHECKING:
    from optuna import Study, Trial


FAILURES = 3
"""Trials that may fail one after another before the sweep stops: the set-up is at fault then, not a plan."""

REFUSALS = 50
"""Trials that may be refused one after another before the sweep stops: the budget leaves too little of the space."""

Progress = Callable[[TrialRow], None]


def work(
    config: SweepConfig,
    study: Study,
    *,
    store: Path,
    worker: int = 0,
    progress: Progress | None = None,
    resident: Resident | None = None,
) -> None:
    """Do trials in this process until the study has enough; several processes may do so at once.

    Args:
        config: the sweep.
        study: its study, open.
        store: folder of the store.
        worker: number of this process; each draws other trials.
        progress: called with each finished trial.
        resident: the model and its statistics, where the caller has them.

    Raises:
        ConfigError: the study was begun on another model or other text.
        EvaluationError: trials fail one after another; what is complete is kept.
        RefusedError: trials are refused one after another.
    """
    from sweeps.opening import open_resident

    resident = resident or open_resident(config, store)
    bind(study, "inputs", dict(resident.identity), config.folder(store) / JOURNAL)
    bench = _Bench(config, study, planner_for(config, resident), meter_for(config, resident, store), Store(store))
    in_a_row = {"failed": 0, "refused": 0}
    while missing := missing_trials(study, config.trials):
        reap(study, config.stale_after)
        if running(study) >= missing:
            time.sleep(0.2)  # other workers have the last trials in hand; one of them may yet be refused or lost
            continue
        row = bench.trial(worker)
        if progress is not None:
            progress(row)
        in_a_row = {state: in_a_row[state] + 1 if row.state == state else 0 for state in in_a_row}
        if in_a_row["failed"] >= FAILURES:
            raise EvaluationError(
                f"{FAILURES} trials failed one after another, the last one: {row.reason}. Complete trials are kept; "
                "mend the cause and start the same sweep again"
            )
        if in_a_row["refused"] >= REFUSALS:
            raise RefusedError(
                f"{REFUSALS} trials were refused one after another, the last one: {row.reason}. Widen the space or "
                "the budget"
            )


def planner_for(config: SweepConfig, resident: Resident) -> Planner:
    """Return what plans the trials of a sweep."""
    kind = LayerPlanner if config.layered else KnobPlanner
    limits = Limits(resident.inventory, config.budget)
    return kind(config.steps, resident.inventory, resident.stats, limits, resident.probe)


def meter_for(config: SweepConfig, resident: Resident, store: Path) -> Meter:
    """Return what measures the trials of a sweep.

    Args:
        config: the sweep.
        resident: the model and its statistics.
        store: folder of the store, which keeps the answers.
    """
    return Meter(resident, config.labelled, {"dtype": config.dtype}, Store(store).cache / "objectives")


class _Bench:
    """Does one trial after another on the resident model."""

    def __init__(self, config: SweepConfig, study: Study, planner: Planner, meter: Meter, store: Store) -> None:
        self.config, self.study, self.planner, self.meter, self.store = config, study, planner, meter, store
        self.distributions = planner.distributions
        self._first: dict[str, int] = {}
        self._seen = 0

    def trial(self, worker: int) -> TrialRow:
        """Ask for one trial, do it, tell the result, and return it."""
        from optuna.trial import TrialState

        space = self.planner.space if isinstance(self.planner, LayerPlanner) else None
        self.study.sampler = sampler(self.config.sampler, draws(self.study), worker, space, self.study)
        trial = self.study.ask(self.distributions)
        sign(trial.number, self.study)
        try:
            values = self._measured(trial)
            self.study.tell(trial, values)
        except (RefusedError, PlanError, ConfigError) as error:
            trial.set_user_attr("reason", str(error))
            self.study.tell(trial, state=TrialState.PRUNED)
        except (KeyboardInterrupt, SystemExit):
            give_back(self.study, self._frozen(trial), "cancelled")
            raise
        except (MoebenchError, RuntimeError, ArithmeticError, ValueError) as error:
            # One plan's trouble (out of memory, a loss that is not a number) is recorded and does not end the study.
            trial.set_user_attr("reason", f"{type(error).__name__}: {error}".splitlines()[0])
            self.study.tell(trial, state=TrialState.FAIL)
        return TrialRow.of(self._frozen(trial))

    def _measured(self, trial: Trial) -> list[float]:
        planner, limits = self.planner, self.planner.limits
        drawn = planner.drawn(trial.params, as_stated="start" in trial.user_attrs)
        if limits.budgets and not limits.projecting:
            trial.set_constraint("budget", limits.excess(drawn.sizes))
        limits.check(drawn.sizes)
        start = time.process_time()
        digest = drawn.plan.digest
        same_as = self._same_plan(digest)
        if same_as is None:
            write_json(self.store.plans / f"{digest}.json", json.loads(drawn.plan.dumps()))
        scores = self.meter.measured(drawn.plan, drawn.sizes, limits.source).scores
        result = {
            "knobs": dict(drawn.knobs),
            "plan": digest,
            "scores": dict(scores),
            "sizes": dict(drawn.sizes),
            "seconds": time.process_time() - start,
            "same_as": same_as,
        }
        if drawn.levels is not None:
            trial.set_user_attr("levels", list(drawn.levels))
        trial.set_user_attr("result", result)
        return [scores[label] for label in self.config.labels]

    def _same_plan(self, digest: str) -> int | None:
        """Return the number of the first complete trial with this plan, if there is one."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        settled = True
        for trial in trials[self._seen :]:
            if trial.state == TrialState.COMPLETE:
                row = TrialRow.of(trial)
                if row.plan is not None and row.same_as is None:
                    self._first.setdefault(row.plan, row.number)
            settled = settled and trial.state.is_finished()
            self._seen += settled  # of later ones, some may finish after this look
        return self._first.get(digest)

    def _frozen(self, trial: Trial) -> Any:
        return self.study.get_trials(deepcopy=False)[trial.number]
