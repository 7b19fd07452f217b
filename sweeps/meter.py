"""Objectives of plans on the resident model, each plan measured once."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.store.store import digest_of, write_json
from methods.framework.errors import EvaluationError, RecordError
from methods.framework.outside import an_object, read_json
from methods.framework.plan import Plan
from sweeps.candidate import Candidate
from sweeps.objective import Measure, Objective
from sweeps.resident import Resident

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Measured:
    """What objectives say of one plan.

    Args:
        scores: value of each objective by label.
        seconds: CPU seconds of measuring; 0 where the answer was there.
    """

    scores: Mapping[str, float]
    seconds: float


class Meter:
    """Measures plans; answers are kept in the store under all that they depend on, for every study that asks again."""

    def __init__(
        self, resident: Resident, objectives: Mapping[str, Objective], settings: Mapping[str, Any], folder: Path
    ) -> None:
        """Prepare; what an objective needs of the uncompressed model is measured when a plan is.

        Args:
            resident: the model and its statistics.
            objectives: by label.
            settings: what else the answers depend on, as JSON values.
            folder: of the answers.
        """
        self.resident, self.objectives, self.folder = resident, dict(objectives), folder
        self._key = {
            "schema": SCHEMA,
            "settings": dict(settings),
            "inputs": dict(resident.identity),
            "objectives": {
                label: [one.model_dump(mode="json"), digest_of(inspect.getsource(type(one)))]
                for label, one in objectives.items()
            },
        }
        # Answers on tasks are kept by the evaluation, whose key holds the tasks' items.
        self._kept = not any(one.tasks for one in objectives.values())
        self._measures: dict[str, Measure] | None = None

    def measured(self, plan: Plan, sizes: Mapping[str, int], source: Mapping[str, int]) -> Measured:
        """Return the objectives of a plan.

        Args:
            plan: in the coordinates of the model.
            sizes: its cost by name.
            source: that of the uncompressed model.

        Raises:
            EvaluationError: an objective is not a number.
        """
        path = self.folder / f"{digest_of({**self._key, 'plan': plan.digest})}.json"
        if (known := self._known(path)) is not None:
            return Measured(known, 0.0)
        start = time.process_time()
        scores = self._scores(plan, sizes, source)
        if self._kept:
            write_json(path, {"plan": plan.digest, "scores": {label: repr(score) for label, score in scores.items()}})
        return Measured(scores, time.process_time() - start)

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
