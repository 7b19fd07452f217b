"""Perplexity on held-out windows."""

from __future__ import annotations

import math
from typing import Literal

from sweeps.candidate import Candidate
from sweeps.objective import HeldOutObjective, Measure
from sweeps.resident import Resident


class Perplexity(HeldOutObjective):
    """Exponential of the mean negative log-likelihood of a token of held-out windows."""

    kind: Literal["perplexity"]

    def measure(self, resident: Resident) -> Measure:
        """Return the perplexity of a candidate."""
        from sweeps.losses import nll

        windows_NS = resident.windows(self.windows)

        def perplexity(candidate: Candidate) -> float:
            loss = nll(candidate.model, windows_NS, resident.batch_size)
            # exp of a very bad loss overflows a float; Optuna orders infinity after every finite value.
            return math.exp(loss) if loss < 700 else math.inf

        return perplexity
