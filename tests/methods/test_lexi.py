"""LExI: numbers of experts per token against trying all, and what a model makes of them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from bench.checkpoint.checkpoint import Checkpoint
from bench.families.family import family_named
from bench.models.tiny import tiny_config
from bench.probing.model_probe import ModelProbe
from bench.text.corpus import Corpus
from methods.framework.cost import cost, cost_of
from methods.framework.errors import ConfigError, RefusedError
from methods.framework.stats import Stats
from methods.lexi import LExI
from tests.support.tiny import tiny_checkpoint, tiny_tokens


class Told:
    """A probe with given changes of each layer, for noise; for text all are 1."""

    def __init__(self, changes):
        self.changes = changes

    def noise_error(self, layer, candidates):
        return np.array([self.changes[layer][plan.top_k - 1] for plan in candidates])

    def layer_error(self, layer, candidates, decided):
        assert not decided
        return np.ones(len(candidates))


NOTHING = Stats({})


def inventory_of(top_k=4, layers=5):
    family = family_named("qwen3_moe")
    return family.inventory(tiny_config("qwen3_moe", num_hidden_layers=layers, num_experts_per_tok=top_k).to_dict())


def chosen(method, inventory, probe):
    plan = method.plan(inventory, NOTHING, probe)
    return [plan.layers[index].top_k or inventory.layers[index].top_k for index in inventory.moe_layers]


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.62, 0.9])
def test_the_numbers_change_least_among_all_that_add_up(keep):
    inventory = inventory_of()
    rng = np.random.default_rng(7)
    have = [inventory.layers[index].top_k for index in inventory.moe_layers]
    changes = {index: np.sort(rng.random(inventory.layers[index].top_k - 1))[::-1] for index in inventory.moe_layers}

    def change(numbers):
        lists = zip(changes.values(), numbers, strict=True)
        return sum(float(values[number - 1]) if number <= len(values) else 0.0 for values, number in lists)

    found = chosen(LExI(keep=keep), inventory, Told(changes))
    total = round(keep * sum(have))
    others = [numbers for numbers in product(*(range(1, k + 1) for k in have)) if sum(numbers) == total]
    assert sum(found) == total
    assert change(found) == pytest.approx(min(map(change, others)))


def test_min_top_k_holds_and_too_little_is_refused():
    inventory = inventory_of()
    have = [inventory.layers[index].top_k for index in inventory.moe_layers]
    told = Told({index: np.zeros(k - 1) for index, k in zip(inventory.moe_layers, have, strict=True)})
    assert min(chosen(LExI(keep=0.8, min_top_k=2), inventory, told)) >= 2
    with pytest.raises(RefusedError, match="the smallest keep is"):
        LExI(keep=0.1, min_top_k=2).plan(inventory, NOTHING, told)
    with pytest.raises(ConfigError, match="no probe"):
        LExI(keep=0.5).plan(inventory, NOTHING)


def test_no_weight_goes_and_active_parameters_do():
    checkpoint = Checkpoint.open(tiny_checkpoint("qwen3_moe"))
    probe = ModelProbe(checkpoint, Corpus.of(tiny_tokens().tolist(), "tiny"))
    base = cost_of(checkpoint.inventory)
    assert LExI(keep=1.0).plan(checkpoint.inventory, NOTHING).stages == frozenset()
    for inputs in ("noise", "text"):
        plan = LExI(keep=0.5, inputs=inputs).plan(checkpoint.inventory, NOTHING, probe)
        after = cost(plan, checkpoint.inventory)
        assert after.parameters == base.parameters
        assert after.active_parameters < base.active_parameters
