"""Score of an lm-eval task."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from methods.framework.errors import EvaluationError
from sweeps.candidate import Candidate
from sweeps.objective import Measure, Objective
from sweeps.resident import Resident


class Task(Objective):
    """A score of an lm-eval task."""

    kind: Literal["task"]
    task: str = Field(description="lm-eval task name")
    metric: str = Field(default="acc", description="metric without filter")
    filter: str = Field(default="none", description="lm-eval filter name")
    maximise: bool = Field(default=True, description="direction")
    limit: int | None = Field(default=None, ge=1, description="first items only")

    @property
    def label(self) -> str:
        """Task and metric."""
        return f"{self.task}.{self.metric}"

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """Which values are better."""
        return "maximize" if self.maximise else "minimize"

    @property
    def tasks(self) -> tuple[str, ...]:
        """The task."""
        return (self.task,)

    def measure(self, resident: Resident) -> Measure:
        """Return the score of a candidate."""

        def score(candidate: Candidate) -> float:
            scores = resident.scores(self.task, self.limit, candidate)
            for one in scores:
                if (one.task, one.metric, one.filter) == (self.task, self.metric, self.filter):
                    return one.value
            offered = ", ".join(sorted({f"{one.metric} (filter {one.filter})" for one in scores}))
            raise EvaluationError(
                f"task {self.task} has no metric {self.metric!r} with filter {self.filter!r}; it has {offered}"
            )

        return score
