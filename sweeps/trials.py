"""Trials in this process: ask for parameters, plan within the budget, realise in memory, measure, tell."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.store.store import Store, write_json
from methods.framework.errors import ConfigError, EvaluationError, MoebenchError, PlanError, RefusedError
from sweeps.asking import begin
from sweeps.budget import Limits
from sweeps.computed_by import computed_by
from sweeps.earlier_studies import enqueue_earlier
from sweeps.final import choose
from sweeps.flat import flattened
from sweeps.journal import JOURNAL, bind, bind_code, give_back, reap, running
from sweeps.knob_planner import KnobPlanner
from sweeps.meter import Meter
from sweeps.objectives.size import Size
from sweeps.outcome import TrialRow
from sweeps.planner import LayerPlanner, Planner
from sweeps.resident import Resident
from sweeps.samplers.chosen import sampler
from sweeps.samplers.history import History
from sweeps.scoring import Advance, Named, Scoring
from sweeps.stages import Stops, lacking, pruner_of
from sweeps.starts import enqueue_starts, sought, usual_parameters
from sweeps.sweep_config import SweepConfig

if TYPE_CHECKING:
    from optuna import Study, Trial

    from sweeps.latencies import Latencies

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
    advance: Advance = lambda done, number: None,
    resident: Resident | None = None,
) -> None:
    """Do trials in this process until the study has enough; several processes may do so at once.

    Args:
        config: the sweep.
        study: its study, open.
        store: folder of the store.
        worker: number of this process; each draws other trials.
        progress: called with each finished trial.
        advance: called with the measurements of the score table that are done, and their number.
        resident: the model and its statistics, where the caller has them.

    Raises:
        ConfigError: the study was begun on another model or other text, or with other libraries or code.
        EvaluationError: trials fail one after another; what is complete is kept.
        RefusedError: trials are refused one after another.
    """
    from sweeps.opening import open_resident

    bind_code(study, config, config.folder(store))
    resident = resident or open_resident(config, store)
    bind(study, "inputs", dict(resident.identity), config.folder(store) / JOURNAL)
    times = times_for(config, resident, store)
    if times is not None:
        bind(study, "times", times.identity, config.folder(store) / JOURNAL, "times of options")
    planner, meter = planner_for(config, resident, times), meter_for(config, resident, store, times)
    if isinstance(planner, LayerPlanner) and lacking(study, config.trials):
        prepare(config, study, planner, meter, store=store, worker=worker, advance=advance)
    bench = _Bench(config, study, planner, meter, Store(store))
    in_a_row = {"failed": 0, "refused": 0}
    while missing := lacking(study, config.trials):
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
    rows = [TrialRow.of(trial) for trial in study.get_trials(deepcopy=False)]
    choose(config, rows, resident, store)


def prepare(
    config: SweepConfig,
    study: Study,
    planner: LayerPlanner,
    meter: Meter,
    *,
    store: Path,
    worker: int = 0,
    advance: Advance = lambda done, number: None,
) -> None:
    """Measure the score table, where the sweep asks for one that it can afford, and put the first points into the study's queue.

    Args:
        config: the sweep.
        study: its study, open.
        planner: plans of the space.
        meter: measures plans.
        store: folder of the store.
        worker: number of this process; each begins with its share of the table.
        advance: called with the measurements done and their number.
    """
    label = sought(config.labelled)
    scoring = None
    starts = config.starts.settled(len(planner.space({}).units), config.trials)
    if starts.table and label is not None:
        direction = config.labelled[label].direction
        scoring = Scoring(planner, meter, usual_parameters(planner.steps), label, direction)
        scoring.measure(worker, config.jobs, advance)
    named = Named(config.name, config.model, str(meter.resident.identity["model"]))
    enqueue_starts(study, starts, planner, scoring, named, config.folder(store))
    enqueue_earlier(config, study, planner, store, named.content)


def times_for(config: SweepConfig, resident: Resident, store: Path) -> Latencies | None:
    """Return the measured times that a sweep asks for; None where it asks for none.

    Args:
        config: the sweep.
        resident: the model and its texts.
        store: folder of the store, which keeps them.
    """
    from sweeps.latencies import Latencies, prompts

    if config.timed is None:
        return None
    return Latencies(resident, config.timed, prompts(resident, config.labelled, config.timed), Store(store))


def planner_for(config: SweepConfig, resident: Resident, times: Latencies | None = None) -> Planner:
    """Return what plans the trials of a sweep.

    Args:
        config: the sweep.
        resident: the model and its statistics.
        times: measured times of options, where the sweep asks for them.
    """
    kind = LayerPlanner if config.layered else KnobPlanner
    limits = Limits(resident.inventory, config.budget, times)
    return kind(config.steps, resident.inventory, resident.stats, limits, resident.probe)


def meter_for(config: SweepConfig, resident: Resident, store: Path, times: Latencies | None = None) -> Meter:
    """Return what measures the trials of a sweep.

    Args:
        config: the sweep.
        resident: the model and its statistics.
        store: folder of the store, which keeps the answers.
        times: measured times, which an objective may be of.
    """
    by = computed_by(config)
    code = {
        name: digest
        for name, digest in by["code"].items()
        if name not in ("trials", "probe") and not name.startswith("method ")
    }
    settings = {"dtype": config.dtype, "libraries": by["libraries"], "code": code}
    if times is not None and any(isinstance(one, Size) and one.timed for one in config.objectives):
        settings["times"] = times.identity
    stages = () if config.stages is None else config.stages.windows
    return Meter(resident, config.labelled, settings, Store(store).cache / "objectives", stages)


class _Bench:
    """Does one trial after another on the resident model."""

    def __init__(self, config: SweepConfig, study: Study, planner: Planner, meter: Meter, store: Store) -> None:
        self.config, self.study, self.planner, self.meter, self.store = config, study, planner, meter, store
        self.distributions = planner.distributions
        self._past = History(planner.space({}).axes) if isinstance(planner, LayerPlanner) else None
        if config.stages is not None:
            study.pruner = pruner_of(config.stages)
        self._first: dict[str, int] = {}
        self._seen = 0

    def trial(self, worker: int) -> TrialRow:
        """Ask for one trial, do it, tell the result, and return it."""
        from optuna.exceptions import UpdateFinishedTrialError

        from sweeps.heartbeat import Pulse

        space = self.planner.space if isinstance(self.planner, LayerPlanner) else None
        trial = begin(
            self.study,
            self.distributions,
            lambda drawn: sampler(self.config.proposer, drawn, worker, space, self.study, self._past),
        )
        # UpdateFinishedTrialError: this process was silent for so long that others took the trial for lost.
        with Pulse(self.study._storage, trial._trial_id), suppress(UpdateFinishedTrialError):
            self._do(trial)
        return TrialRow.of(self._frozen(trial))

    def _do(self, trial: Trial) -> None:
        from optuna.trial import TrialState

        try:
            values = self._measured(trial)
            self.study.tell(trial, values, state=TrialState.PRUNED if values is None else TrialState.COMPLETE)
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

    def _measured(self, trial: Trial) -> list[float] | None:
        """Return the objectives of a trial; None where it was ended early."""
        from sweeps.storages import set_user_attrs

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
        stages = self.config.stages
        stops = None if stages is None else Stops(trial, stages)
        measured = self.meter.measured(drawn.plan, drawn.sizes, limits.source, stops)
        if stops is not None:
            stops.report(measured.windows)
        scores = measured.scores
        result = {
            "knobs": dict(drawn.knobs),
            "plan": digest,
            "scores": dict(scores),
            "sizes": dict(drawn.sizes),
            "seconds": time.process_time() - start,
            "same_as": same_as,
            **({} if stages is None else {"windows": len(measured.windows)}),
        }
        attributes = {"result": result, **flattened(score=scores, size=drawn.sizes)}  # flat ones for optuna-dashboard
        if drawn.levels is not None:
            attributes["levels"] = list(drawn.levels)
        set_user_attrs(self.study, trial._trial_id, attributes)
        if measured.ended:
            return None
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
