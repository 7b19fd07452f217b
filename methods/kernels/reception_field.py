"""Block-wise KT-Reception Field: choose among several candidates of each layer by the error after several layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from methods.framework.layer_plan import LayerPlan
from methods.framework.probe import Probe
from methods.kernels.subset_search import ranking


def reception_field(
    probe: Probe, options: Mapping[int, Sequence[LayerPlan]], length: int, sequential: bool
) -> dict[int, LayerPlan]:
    """Return the candidate of each layer that lies on its block's best path.

    A block holds ``length`` successive MoE layers, the last one maybe fewer, and whatever decoder layers lie between them.
    Every combination of candidates is tried; the path with the least error at the block's output wins, the first among
    equal ones.

    Args:
        probe: the running model.
        options: candidates of each MoE layer, the one that is best on its own first.
        length: MoE layers in a block.
        sequential: whether a block's input is that of the model compressed so far, rather than the original one.

    Returns:
        One of the candidates for each MoE layer.
    """
    moe = sorted(options)
    chosen: dict[int, LayerPlan] = {}
    for start in range(0, len(moe), length):
        layers = list(range(moe[start], moe[min(start + length, len(moe)) - 1] + 1))
        paths = [list(options.get(layer, (LayerPlan(),))) for layer in layers]
        best = (0,) * len(layers)
        if any(len(candidates) > 1 for candidates in paths):
            errors = probe.block_error(layers, paths, dict(chosen) if sequential else {})
            best = tuple(int(i) for i in np.unravel_index(ranking(errors.ravel())[0], errors.shape))
        chosen |= {layer: paths[place][best[place]] for place, layer in enumerate(layers) if layer in options}
    return chosen
