"""Divergence from the uncompressed model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sweeps.candidate import Candidate
from sweeps.objective import ByWindow, TextObjective
from sweeps.resident import Resident

if TYPE_CHECKING:
    from sweeps.losses import Reals


class Kl(TextObjective):
    """Mean KL(base || compressed) of the next-token distribution, in nats, on held-out windows or on calibration sequences."""

    kind: Literal["kl"]
    sequences: int = Field(
        default=4, ge=1, description="calibration sequences that are read where no windows are given"
    )

    @property
    def calibration_sequences(self) -> int:
        """Number of calibration sequences that it runs the model on."""
        return 0 if self.windows is not None else self.sequences

    def by_window(self, resident: Resident) -> ByWindow:
        """Return the divergence of a candidate on each window; the base's hidden states are computed here."""
        import sweeps.losses

        asked = self.windows
        windows_NS = resident.calibration[: self.sequences] if asked is None else resident.windows(asked)
        base_NSD = sweeps.losses.final_states(resident.model, windows_NS, resident.batch_size)

        def divergence(candidate: Candidate, part: slice) -> Reals:
            model = candidate.model
            return sweeps.losses.divergence(model, windows_NS[part], base_NSD[part], resident.batch_size)

        return divergence
