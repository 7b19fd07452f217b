"""How a measurement is made: where, in what type, on how many tokens, and within what memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """Bounds on work and memory; but for the numbers of tokens and ``rounded_states`` they change values by rounding alone.

    Args:
        hidden_bytes: bound on the hidden states in memory; above it they lie in a file under ``scratch``.
        boundary_tokens: tokens, evenly spaced, that ``hidden_cosine`` compares.
        cka_tokens: those of the sampled tokens, evenly spaced, on which ``output_cka`` compares outputs.
        batch_tokens: tokens of one attention call (at least one sequence).
        expert_rows: rows of one matrix product in the feed-forward sub-layers.
        output_bytes: bound on outputs of several experts that are held for the same tokens; where those of a block take
            more, experts are read once for each part.
        scratch: folder for temporary files; None takes the system's.
        rounded_states: whether hidden states are kept in bfloat16 between two layers.
    """

    hidden_bytes: int = 2**30
    boundary_tokens: int = 4096
    cka_tokens: int = 1024
    batch_tokens: int = 1024
    expert_rows: int = 2048
    output_bytes: int = 128 << 20
    scratch: Path | None = None
    rounded_states: bool = False

    @property
    def stated(self) -> dict[str, Any]:
        """What of it can change the values of any statistic, as JSON values."""
        rounded = {"states": "bfloat16"} if self.rounded_states else {}
        return {"boundary_tokens": self.boundary_tokens, **rounded}


@dataclass(frozen=True, slots=True)
class Conditions:
    """Everything that a measurement is told beside the model, the text and the names of statistics.

    Args:
        device: torch device of the computation.
        dtype: name of the torch type of weights and activations.
        sampled_tokens: tokens, evenly spaced, on which every expert runs, for statistics of cost ``sampled``.
        effort: bounds.
    """

    device: str
    dtype: str
    sampled_tokens: int = 4096
    effort: Effort = Effort()
