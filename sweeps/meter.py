"""Objectives of plans on the resident model, each plan measured once."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from bench.store.store import digest_of, write_json
from methods.framework.errors import EvaluationError, RecordError
from methods.framework.outside import an_object, read_json
from methods.framework.plan import Plan
from sweeps.candidate import Candidate
from sweeps.objective import ByWindow, Measure, Objective, TextObjective
from sweeps.resident import Resident

SCHEMA = 1

Ends: TypeAlias = Callable[[Sequence[float]], bool]
"""Whether measuring ends after the windows whose values are given."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What objectives say of one plan.

    Args:
        scores: value of each objective by label.
        seconds: CPU seconds of measuring; 0 where the answer was there.
        windows: value of each window that counts, where the objective is measured in stages.
        ended: whether measuring ended before the last window; there are no scores then.
    """

    scores: Mapping[str, float]
    seconds: float
    windows: tuple[float, ...] = ()
    ended: bool = False


class Meter:
    """Measures plans; answers are kept in the store under all that they depend on, for every study that asks again."""

    def __init__(
        self,
        resident: Resident,
        objectives: Mapping[str, Objective],
        settings: Mapping[str, Any],
        folder: Path,
        stages: tuple[int, ...] = (),
    ) -> None:
        """Prepare; what an objective needs of the uncompressed model is measured when a plan is.

        Args:
            resident: the model and its statistics.
            objectives: by label.
            settings: what else the answers depend on, as JSON values.
            folder: of the answers.
            stages: windows of the one objective, on text, after which measuring may end.
        """
        self.stages = stages
        self.resident, self.objectives, self.folder = resident, dict(objectives), folder
        self._key = {
            "schema": SCHEMA,
            "settings": dict(settings),
            "inputs": dict(resident.identity),
            "objectives": {
                label: [one.model_dump(mode="json"), digest_of(inspect.getsource(type(one)))]
                for label, one in objectives.items()
            },
            **({"stages": list(stages)} if stages else {}),  # sums over other batches may differ in the last digit
        }
        # Answers on tasks are kept by the evaluation, whose key holds the tasks' items.
        self._kept = not any(one.tasks for one in objectives.values())
        self._measures: dict[str, Measure] | None = None
        self._by_window: ByWindow | None = None

    def measured(
        self, plan: Plan, sizes: Mapping[str, int], source: Mapping[str, int], ends: Ends | None = None
    ) -> Measured:
        """Return the objectives of a plan.

        Args:
            plan: in the coordinates of the model.
            sizes: its cost by name.
            source: that of the uncompressed model.
            ends: asked after each stage; None: all windows are measured.

        Raises:
            EvaluationError: an objective is not a number.
        """
        if self.stages:
            return self._in_stages(plan, sizes, source, ends)
        path = self._file(plan)
        if (known := self._known(path)) is not None:
            return Measured(known, 0.0)
        start = time.process_time()
        scores = self._scores(plan, sizes, source)
        if self._kept:
            write_json(path, {"plan": plan.digest, "scores": {label: repr(score) for label, score in scores.items()}})
        return Measured(scores, time.process_time() - start)

    def _file(self, plan: Plan) -> Path:
        """Return where the answer for a plan is kept."""
        return self.folder / f"{digest_of({**self._key, 'plan': plan.digest})}.json"

    def _in_stages(
        self, plan: Plan, sizes: Mapping[str, int], source: Mapping[str, int], ends: Ends | None
    ) -> Measured:
        """Return the value of the windows; windows that were measured before are not measured again, but ``ends`` is asked."""
        from bench.applying.in_memory import realised

        ((label, objective),) = self.objectives.items()
        assert isinstance(objective, TextObjective)
        resident = self.resident
        path = self._file(plan)
        values, complete = self._known_windows(path)
        start, known, ended = time.process_time(), len(values), False
        with ExitStack() as stack:
            model = None
            for first, last in pairwise((0, *self.stages, None)):
                if not complete and (last is None or last > len(values)):
                    by_window = self._by_window = self._by_window or objective.by_window(resident)  # of the whole model
                    if model is None:
                        made = realised(resident.model, resident.inventory, plan, resident.stats, resident.made)
                        model = stack.enter_context(made)
                    one = Candidate(plan, sizes, source, model)
                    values += [float(value) for value in by_window(one, slice(first, last))]
                if last is not None and ends is not None and ends(values[:last]):
                    values, ended = values[:last], True
                    break
        if len(values) > known:
            told = {"plan": plan.digest, "windows": [repr(value) for value in values], "complete": not ended}
            write_json(path, told)
        if any(math.isnan(value) for value in values):
            raise EvaluationError(f"objective {label} is not a number")
        scores = {} if ended else {label: objective.value(float(np.mean(values)))}
        return Measured(scores, time.process_time() - start if len(values) > known else 0.0, tuple(values), ended)

    def _known_windows(self, path: Path) -> tuple[list[float], bool]:
        """Return the values of the windows that were measured before, and whether those are all."""
        if not path.is_file():
            return [], False
        try:
            document = an_object(read_json(path, RecordError), str(path), RecordError)
            values = [float(value) for value in document["windows"]]
            complete = bool(document["complete"])
        except (RecordError, KeyError, TypeError, ValueError):
            return [], False  # damaged: measured again, and written anew
        whole = complete or len(values) in self.stages
        return (values, complete) if whole and not any(math.isnan(value) for value in values) else ([], False)

    def _known(self, path: Path) -> dict[str, float] | None:
        if not (self._kept and path.is_file()):
            return None
        try:
            document = an_object(read_json(path, RecordError), str(path), RecordError)
            scores = {label: float(document["scores"][label]) for label in self.objectives}
        except (RecordError, KeyError, TypeError, ValueError):
            return None  # damaged: measured again, and written anew
        return None if any(math.isnan(score) for score in scores.values()) else scores

    def _scores(self, plan: Plan, sizes: Mapping[str, int], source: Mapping[str, int]) -> dict[str, float]:
        from bench.applying.in_memory import realised

        resident = self.resident
        if self._measures is None:
            self._measures = {label: objective.measure(resident) for label, objective in self.objectives.items()}
        with realised(resident.model, resident.inventory, plan, resident.stats, resident.made) as model:
            candidate = Candidate(plan, sizes, source, model)
            scores = {label: float(measure(candidate)) for label, measure in self._measures.items()}
        for label, score in scores.items():
            if math.isnan(score):
                raise EvaluationError(f"objective {label} is not a number")
        return scores
