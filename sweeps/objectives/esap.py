"""Overlap with the uncompressed model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sweeps.candidate import Candidate
from sweeps.objective import HELD_OUT, ByWindow, TextObjective
from sweeps.resident import Resident, Windows

if TYPE_CHECKING:
    from sweeps.losses import Reals


class Esap(TextObjective):
    """Mean over held-out tokens of sum_v min(p_v, q_v), p the base's and q the candidate's next-token distribution.

    *Source*: arXiv 2603.06003 (EvoESAP), the expected acceptance of speculative decoding.
    """

    kind: Literal["esap"]
    windows: Windows = Field(description=HELD_OUT)

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """More overlap is better."""
        return "maximize"

    def by_window(self, resident: Resident) -> ByWindow:
        """Return the overlap of a candidate on each window; the base's hidden states are computed here."""
        import sweeps.losses

        windows_NS = resident.windows(self.windows)
        base_NSD = sweeps.losses.final_states(resident.model, windows_NS, resident.batch_size)

        def shared(candidate: Candidate, part: slice) -> Reals:
            model = candidate.model
            return sweeps.losses.overlap(model, windows_NS[part], base_NSD[part], resident.batch_size)

        return shared
