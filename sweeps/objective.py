"""What a trial is measured by.

An objective costs one file, ``sweeps/objectives/KIND.py``, or an entry point KIND of the group ``moebench.objectives``
in another distribution. It holds a subclass of ``Objective`` whose fields are the settings, ``kind: Literal[KIND]``
among them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from pydantic import Field

from bench.settings.strict import Strict
from sweeps.candidate import Candidate
from sweeps.plugin import offered
from sweeps.resident import Resident, Windows

if TYPE_CHECKING:
    from sweeps.losses import Reals

ENTRY_POINT_GROUP = "moebench.objectives"

HELD_OUT = "held-out text; refused when it shares windows with the calibration"

Measure: TypeAlias = Callable[[Candidate], float]
"""Returns one number for a candidate."""

ByWindow: TypeAlias = Callable[[Candidate, slice], "Reals"]
"""Returns one number for each window of a part of the text, equally many tokens in each."""


class Objective(Strict):
    """Settings of an objective, what it needs, and its measure."""

    kind: str = Field(description="name of the objective")

    @property
    def label(self) -> str:
        """Its name in tables; a second objective of that name gets a number."""
        return self.kind

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """Which values are better, in Optuna's words."""
        return "minimize"

    @property
    def held_out(self) -> Windows | None:
        """Text that it reads, which the statistics must not be measured on."""
        return None

    @property
    def calibration_sequences(self) -> int:
        """Number of calibration sequences that it runs the model on."""
        return 0

    @property
    def tasks(self) -> tuple[str, ...]:
        """lm-eval tasks whose answers it looks at; benchmarks among them are refused (``sweeps.task_guard``)."""
        return ()

    @abstractmethod
    def measure(self, resident: Resident) -> Measure:
        """Return the measure of candidates; what it needs of the uncompressed model is measured here, once."""


class TextObjective(Objective):
    """An objective on text, whose value is that of the mean over windows; it may be measured on some windows alone."""

    windows: Windows | None = Field(
        default=None, description="held-out text; refused when it shares windows with the calibration"
    )

    @property
    def held_out(self) -> Windows | None:
        """Text that it reads."""
        return self.windows

    @abstractmethod
    def by_window(self, resident: Resident) -> ByWindow:
        """Return the measure of single windows; what it needs of the uncompressed model is measured here, once."""

    def value(self, mean: float) -> float:
        """Return the objective of a mean over windows."""
        return mean

    def measure(self, resident: Resident) -> Measure:
        """Return the measure of candidates on all windows."""
        measured = self.by_window(resident)
        return lambda candidate: self.value(float(measured(candidate, slice(None)).mean()))

    def on(self, windows: Windows) -> Self:
        """Return the same objective on other text."""
        return self.model_copy(update={"windows": windows})


class HeldOutObjective(Objective):
    """An objective on held-out text that is measured as a whole."""

    windows: Windows = Field(description=HELD_OUT)

    @property
    def held_out(self) -> Windows:
        """Text that it reads."""
        return self.windows


def kinds() -> tuple[type[Objective], ...]:
    """Return all objectives."""
    found = offered("sweeps.objectives", ENTRY_POINT_GROUP, Objective, "kind")  # type: ignore[type-abstract]  # of subclasses
    return tuple(found.values())
