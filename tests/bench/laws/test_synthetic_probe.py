"""The synthetic probe by its own definition."""

from __future__ import annotations

import numpy as np
import pytest

from bench.laws.cases import case
from bench.laws.synthetic_probe import SyntheticProbe
from methods.framework.errors import RefusedError, StatsError
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from tests.support.tiny import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_synthetic_view_and_error_agree(family):
    one = case(family)
    probe = SyntheticProbe(one.inventory, one.stats)
    layer = one.inventory.moe_layers[0]
    view = probe.layer_view(layer, {})
    assert np.linalg.eigvalsh(view.gram_SXX).min() > -1e-9
    # The target is what the original routing adds up to, so its distance to itself is 0.
    assert probe.layer_error(layer, [LayerPlan()], {})[0] == 0.0
    everything_gone = probe.layer_error(layer, [LayerPlan(drop="moe")], {})[0]
    assert everything_gone == pytest.approx(np.sqrt(view.gram_SXX[:, -1, -1].sum()))
    masks = {index: np.linspace(0.5, 1.5, 16) for index in one.inventory.moe_layers}
    _, gradient = probe.mask_gradient(masks, 3)
    moved = {index: mask_E.copy() for index, mask_E in masks.items()}
    moved[layer][5] += 1e-5
    low = {index: mask_E.copy() for index, mask_E in masks.items()}
    low[layer][5] -= 1e-5
    slope = (probe.mask_gradient(moved, 3)[0] - probe.mask_gradient(low, 3)[0]) / 2e-5
    assert gradient[layer][5] == pytest.approx(slope, rel=1e-6)


def test_synthetic_blocks_merges_and_missing_statistics():
    one = case("qwen3_moe")
    probe = SyntheticProbe(one.inventory, one.stats)
    half = LayerPlan(experts=tuple(range(0, 16, 2)))
    merged = LayerPlan(
        experts=tuple(range(15)), merges=(Merge(into=0, members=(0, 15), weights=(0.5, 0.5)),), router="map"
    )
    layers = [1, 2]
    separate = [probe.layer_error(layer, [half, merged], {}) for layer in layers]
    expected = np.sqrt(separate[0][:, None] ** 2 + separate[1][None, :] ** 2)
    np.testing.assert_allclose(probe.block_error(layers, [[half, merged]] * 2, {}), expected)
    whole = Plan.of(one.inventory, [merged] * 5)
    with pytest.raises(RefusedError, match="merged"):
        SyntheticProbe(one.inventory, one.stats.restricted(whole)).layer_view(1, {})
    with pytest.raises(StatsError, match="not at hand"):
        SyntheticProbe(one.inventory, Stats({})).layer_view(1, {})
    with pytest.raises(RefusedError, match="of another model"):
        SyntheticProbe(
            case("mixtral").inventory,
            Stats({n: tuple(v[:, :8] for v in one.stats.values[n]) for n in ("token_logits", "token_gram")}),
        ).layer_view(1, {})
