"""What weights alone tell: norms, products of router rows, corrections.

Shape letters: E routed experts, D hidden size; see ``methods.framework.stat_spec``.
"""

from __future__ import annotations

import numpy as np

from methods.framework.accumulator import Accumulator, Seen
from methods.framework.stat_spec import Array, StatSpec


class WeightNorm(Accumulator):
    """Squared norms of the matrices of experts."""

    specs = (
        StatSpec(
            "weight_norm",
            ("E", "M"),
            "moe",
            "weights",
            "squared Frobenius norm of gate, up, down",
            "weight^2",
            of_whole_experts=True,
        ),
    )

    def finished(self, seen: Seen) -> dict[str, Array]:
        from methods.kernels.norms import squared_norm

        norms = []
        for expert in range(len(seen.experts)):
            network = seen.experts.read(expert)
            norms.append([squared_norm(matrix) for matrix in (*network.gate_up_2FD.chunk(2), network.down_DF)])
        return {"weight_norm": np.array(norms, dtype=np.float64)}


class RouterRowGram(Accumulator):
    """Products of router rows."""

    specs = (
        StatSpec(
            "router_row_gram",
            ("E", "E"),
            "moe",
            "weights",
            "inner products of the router's weight rows",
            "weight^2",
            of_rows=True,
        ),
    )

    def finished(self, seen: Seen) -> dict[str, Array]:
        stored = seen.experts.router("router.weight")
        assert stored is not None
        rows_ED = stored.double()
        return {"router_row_gram": (rows_ED @ rows_ED.T).cpu().numpy()}


class RouterCorrection(Accumulator):
    """What is added to scores for the choice of experts."""

    specs = (
        StatSpec(
            "router_correction",
            ("E",),
            "moe",
            "weights",
            "correction bias of the router; 0 if it has none",
            "score",
            of_rows=True,
        ),
    )

    def finished(self, seen: Seen) -> dict[str, Array]:
        stored = seen.experts.router("router.correction")
        value = np.zeros(len(seen.experts)) if stored is None else stored.double().cpu().numpy()
        return {"router_correction": value}
