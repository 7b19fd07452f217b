"""Divergence from the uncompressed model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sweeps.objective import Measure, Objective
from sweeps.resident import Resident


class Kl(Objective):
    """Mean KL(base || compressed) of the next-token distribution, in nats, on the first calibration sequences."""

    kind: Literal["kl"]
    sequences: int = Field(default=4, ge=1, description="sequences of the calibration corpus")

    @property
    def calibration_sequences(self) -> int:
        """Number of calibration sequences that it runs the model on."""
        return self.sequences

    def measure(self, resident: Resident) -> Measure:
        """Return the divergence of a candidate; the base's hidden states are computed here."""
        from sweeps.losses import divergence, final_states

        windows_NS = resident.calibration[: self.sequences]
        base_NSD = final_states(resident.model, windows_NS, resident.batch_size)
        return lambda candidate: divergence(candidate.model, windows_NS, base_NSD, resident.batch_size)
