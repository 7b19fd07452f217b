"""Size of the result, or its measured time."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sweeps.budget import Quantity
from sweeps.latency import MICROSECONDS, Timed
from sweeps.objective import Measure, Objective
from sweeps.resident import Resident


class Size(Objective):
    """A size of the result, or its time, as a share of the source's."""

    kind: Literal["size"]
    of: Quantity | Timed = Field(description="what is minimised")

    @property
    def label(self) -> str:
        """The quantity's name."""
        return f"{self.of}_kept"

    @property
    def timed(self) -> bool:
        """Whether it is a measured time."""
        return self.of in MICROSECONDS

    def measure(self, resident: Resident) -> Measure:
        """Return the size of a candidate."""
        name = MICROSECONDS.get(self.of, self.of)
        return lambda candidate: candidate.sizes[name] / candidate.source[name]
