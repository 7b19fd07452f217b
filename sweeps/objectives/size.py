"""Size of the result."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sweeps.budget import Quantity
from sweeps.objective import Measure, Objective
from sweeps.resident import Resident


class Size(Objective):
    """A size of the result, as a share of the source's."""

    kind: Literal["size"]
    of: Quantity = Field(description="what is minimised")

    @property
    def label(self) -> str:
        """The quantity's name."""
        return f"{self.of}_kept"

    def measure(self, resident: Resident) -> Measure:
        """Return the size of a candidate."""
        return lambda candidate: candidate.sizes[self.of] / candidate.source[self.of]
