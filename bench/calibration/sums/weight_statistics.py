"""Statistics of a layer's weights, which need no tokens.

Shape letters: E routed experts, D hidden size, F expert width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.calibration.layers.layer_experts import LayerExperts
from bench.calibration.layers.weights import WeightReader
from bench.calibration.sums.similarity import linear_cka
from bench.calibration.sums.spectra import weight_spectra
from methods.framework.inventory import LayerInventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.stats import CATALOGUE, Array

NAMES = frozenset(name for name, spec in CATALOGUE.items() if spec.cost == "weights")


def weight_statistics(
    reader: WeightReader, layer: LayerInventory, needs: Collection[str], scratch: Path | None
) -> dict[str, Array]:
    """Return those of ``needs`` that describe the weights of ``layer``; nothing for a layer without experts."""
    wanted = NAMES.intersection(needs)
    if layer.mlp != "moe":
        return {}
    values: dict[str, Array] = {}
    experts = LayerExperts(reader, layer, LayerPlan())
    if "weight_norm" in wanted:
        norms = [experts.read(expert).squared_norms() for expert in range(len(experts))]
        values["weight_norm"] = np.array(norms, dtype=np.float64)
    if "weight_spectrum" in wanted:
        values["weight_spectrum"] = np.stack([weight_spectra(experts.read(expert)) for expert in range(len(experts))])
    if "router_row_gram" in wanted:
        rows_ED = reader.read_exact("router.weight", next(layer.with_role("router.weight"))).double()
        values["router_row_gram"] = (rows_ED @ rows_ED.T).cpu().numpy()
    if "router_correction" in wanted:
        entry = next(layer.with_role("router.correction"), None)
        stored = None if entry is None else reader.read_new(entry)
        values["router_correction"] = np.zeros(layer.experts) if stored is None else stored.double().cpu().numpy()
    if "weight_cka" in wanted:
        (_, hidden) = next(layer.with_role("router.weight")).shape
        values["weight_cka"] = linear_cka(_neurons(experts), layer.experts, hidden, scratch)
    return values


def _neurons(experts: LayerExperts) -> Iterator[Sequence[Tensor]]:
    """Yield the matrices of every expert with hidden dimensions as rows and neurons as columns."""
    for expert in range(len(experts)):
        network = experts.read(expert)
        wide = torch.promote_types(network.down_DF.dtype, torch.float32)
        yield network.gate_up_2FD.to(wide).T, network.down_DF.to(wide)
