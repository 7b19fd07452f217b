"""Statistics of a layer's weights, which need no tokens.

Shape letters: E routed experts, D hidden size, F expert width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.calibration.similarity import linear_cka
from bench.calibration.weights import WeightReader, expert_entries
from methods.inventory import LayerInventory
from methods.stats import CATALOGUE, Array

NAMES = frozenset(name for name, spec in CATALOGUE.items() if spec.cost == "weights")


def weight_statistics(
    reader: WeightReader, layer: LayerInventory, needs: Collection[str], scratch: Path | None
) -> dict[str, Array]:
    """Return those of ``needs`` that describe the weights of ``layer``; nothing for a layer without experts."""
    wanted = NAMES.intersection(needs)
    if layer.mlp != "moe":
        return {}
    values: dict[str, Array] = {}
    if "weight_norm" in wanted:
        norms = [reader.read_mlp("expert", *entries).squared_norms() for entries in expert_entries(layer)]
        values["weight_norm"] = np.array(norms, dtype=np.float64)
    if "router_row_gram" in wanted:
        rows_ED = reader.read_exact("router.weight", next(layer.with_role("router.weight"))).double()
        values["router_row_gram"] = (rows_ED @ rows_ED.T).cpu().numpy()
    if "router_correction" in wanted:
        entry = next(layer.with_role("router.correction"), None)
        stored = None if entry is None else reader.read_new(entry)
        values["router_correction"] = np.zeros(layer.experts) if stored is None else stored.double().cpu().numpy()
    if "weight_cka" in wanted:
        (_, hidden) = next(layer.with_role("router.weight")).shape
        values["weight_cka"] = linear_cka(_neurons(reader, layer), layer.experts, hidden, scratch)
    return values


def _neurons(reader: WeightReader, layer: LayerInventory) -> Iterator[Sequence[Tensor]]:
    """Yield the matrices of every expert with hidden dimensions as rows and neurons as columns."""
    for entries in expert_entries(layer):
        network = reader.read_mlp("expert", *entries)
        wide = torch.promote_types(network.down_DF.dtype, torch.float32)
        yield network.gate_up_2FD.to(wide).T, network.down_DF.to(wide)
