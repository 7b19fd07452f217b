"""Trials in this process: ask for knobs, plan within the budget, realise in memory, measure, tell."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.store.store import Store, write_json
from methods.framework.errors import ConfigError, EvaluationError, MoebenchError, PlanError, RefusedError
from methods.framework.plan import Plan
from methods.registry import method_class
from sweeps.asking import begin
from sweeps.budget import Planner
from sweeps.candidate import Candidate
from sweeps.journal import JOURNAL, bind, give_back, missing_trials, reap, running
from sweeps.objective import Measure
from sweeps.outcome import TrialRow
from sweeps.resident import Resident
from sweeps.samplers import sampler
from sweeps.search_space import assemble, distributions
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
    planner = Planner(method_class(config.method), resident.inventory, resident.stats, config.budget, resident.probe)
    measures = {label: objective.measure(resident) for label, objective in config.labelled.items()}
    bench = _Bench(config, study, planner, measures, resident, Store(store))
    in_a_row = {"failed": 0, "refused": 0}
    while missing := missing_trials(study, config.trials):
        reap(study)
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


class _Bench:
    """Does one trial after another on the resident model."""

    def __init__(
        self,
        config: SweepConfig,
        study: Study,
        planner: Planner,
        measures: dict[str, Measure],
        resident: Resident,
        store: Store,
    ) -> None:
        self.config, self.study, self.planner = config, study, planner
        self.measures, self.resident, self.store = measures, resident, store
        self.distributions = distributions(config.space)

    def trial(self, worker: int) -> TrialRow:
        """Ask for one trial, do it, tell the result, and return it."""
        from optuna.exceptions import UpdateFinishedTrialError

        from sweeps.heartbeat import Pulse

        trial = begin(self.study, self.distributions, lambda drawn: sampler(self.config.sampler, drawn, worker))
        # UpdateFinishedTrialError: this process was silent for so long that others took the trial for lost.
        with Pulse(self.study._storage, trial._trial_id), suppress(UpdateFinishedTrialError):
            self._do(trial)
        return TrialRow.of(self._frozen(trial))

    def _do(self, trial: Trial) -> None:
        from optuna.trial import TrialState

        try:
            values = self._measured(trial)
            self.study.tell(trial, values)
        except (RefusedError, PlanError, ConfigError) as error:
            trial.set_user_attr("reason", str(error))
            self.study.tell(trial, state=TrialState.PRUNED)
        except (KeyboardInterrupt, SystemExit):
            give_back(self.study, self._frozen(trial))
            raise
        except (MoebenchError, RuntimeError, ArithmeticError, ValueError) as error:
            # One plan's trouble (out of memory, a loss that is not a number) is recorded and does not end the study.
            trial.set_user_attr("reason", f"{type(error).__name__}: {error}".splitlines()[0])
            self.study.tell(trial, state=TrialState.FAIL)

    def _measured(self, trial: Trial) -> list[float]:
        knobs = {**self.config.fixed, **assemble(self.config.space, trial.params)}
        method, plan = self.planner.plan(knobs)
        self._constrain(trial, self.planner.excess(plan))
        sizes = self.planner.cost(plan)
        start = time.process_time()
        earlier = self._same_plan(plan.digest)
        if earlier is None:
            write_json(self.store.plans / f"{plan.digest}.json", json.loads(plan.dumps()))
            scores = self._scores(plan)
        else:
            scores = dict(earlier.scores)
        result = {
            "knobs": method.knobs,
            "plan": plan.digest,
            "scores": scores,
            "sizes": sizes,
            "seconds": time.process_time() - start,
            "same_as": None if earlier is None else earlier.number,
        }
        trial.set_user_attr("result", result)
        return [scores[label] for label in self.config.labels]

    def _scores(self, plan: Plan) -> dict[str, float]:
        from bench.applying.in_memory import realised

        with realised(self.resident.model, self.resident.inventory, plan, self.resident.stats) as model:
            candidate = Candidate(plan, self.planner.cost(plan), self.planner.source, model)
            scores = {label: float(measure(candidate)) for label, measure in self.measures.items()}
        for label, score in scores.items():
            if math.isnan(score):
                raise EvaluationError(f"objective {label} is not a number")
        return scores

    def _constrain(self, trial: Trial, excess: float) -> None:
        """Tell the sampler how far the plan is from the budget, and refuse what is above it."""
        budget, limit = self.config.budget, self.planner.limit
        if budget is None or limit is None or budget.how == "project":
            return
        trial.set_constraint("budget", excess / limit)
        if excess > 0:
            raise RefusedError(
                f"{budget.of} of the result is {(limit + excess) / self.planner.source[budget.of]:.4g} of the "
                f"source's, above the budget of {budget.keep:.4g}"
            )

    def _same_plan(self, digest: str) -> TrialRow | None:
        from optuna.trial import TrialState

        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            row = TrialRow.of(trial)
            if row.plan == digest and row.same_as is None:
                return row
        return None

    def _frozen(self, trial: Trial) -> Any:
        return self.study.get_trials(deepcopy=False)[trial.number]
