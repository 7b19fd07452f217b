"""Perplexity on held-out windows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sweeps.candidate import Candidate
from sweeps.objective import HELD_OUT, ByWindow, TextObjective
from sweeps.resident import Resident, Windows

if TYPE_CHECKING:
    from sweeps.losses import Reals


class Perplexity(TextObjective):
    """Exponential of the mean negative log-likelihood of a token of held-out windows."""

    kind: Literal["perplexity"]
    windows: Windows = Field(description=HELD_OUT)

    def by_window(self, resident: Resident) -> ByWindow:
        """Return the loss of a candidate on each window."""
        import sweeps.losses

        windows_NS = resident.windows(self.windows)

        def loss(candidate: Candidate, part: slice) -> Reals:
            return sweeps.losses.nll(candidate.model, windows_NS[part], resident.batch_size)

        return loss

    def value(self, mean: float) -> float:
        """Return the exponential; of a very bad loss infinity, which Optuna orders after every finite value."""
        return math.exp(mean) if mean < 700 else math.inf
