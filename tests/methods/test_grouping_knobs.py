"""Methods that group experts, under random draws of their knobs: what they read, and that labels do not matter."""

from __future__ import annotations

import numpy as np
import pytest

from methods.framework.errors import StatsError
from methods.framework.knob_space import draw
from methods.framework.plan import Plan
from methods.registry import method_class
from tests.support.inventories import toy_inventory
from tests.support.merged_layer import MergedLayer, relabelling

METHODS = ("hc_smoe", "stun", "sub_moe")


@pytest.mark.parametrize("name", METHODS)
def test_reads_what_its_knobs_need_and_keeps_all_when_asked(name: str) -> None:
    rng = np.random.default_rng(0)
    inventory, stats = toy_inventory(experts=8, moe_layers=1, groups=2), MergedLayer.drawn(1).stats()
    for _ in range(20):
        method = draw(method_class(name), rng)
        for need in method.needs:
            with pytest.raises(StatsError, match=need):
                method.model_copy(update={"keep": 0.5}).plan(inventory, stats.only(method.needs - {need}))
        assert method.model_copy(update={"keep": 1.0}).plan(inventory, stats) == Plan.identity(inventory)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_relabelling_relabels_for_every_knob(name: str, family: str) -> None:
    rng = np.random.default_rng(2)
    for _ in range(8):
        relabelling(draw(method_class(name), rng).model_copy(update={"keep": 0.5}), family)
