"""Loss on held-out windows."""

from __future__ import annotations

from typing import Literal

from sweeps.objective import HeldOutObjective, Measure
from sweeps.resident import Resident


class Nll(HeldOutObjective):
    """Mean negative log-likelihood of a token of held-out windows, in nats."""

    kind: Literal["nll"]

    def measure(self, resident: Resident) -> Measure:
        """Return the loss of a candidate."""
        from sweeps.losses import nll

        windows_NS = resident.windows(self.windows)
        return lambda candidate: nll(candidate.model, windows_NS, resident.batch_size)
