"""EASY-EP against the formula, token by token."""

import numpy as np

from methods import registry
from tests.support.inventories import toy_inventory
from tests.support.token_layers import TokenLayer, stats_from, stats_of


def test_keeps_what_the_formula_ranks_highest() -> None:
    layers = [TokenLayer.drawn(seed, experts=6) for seed in (1, 2)]
    plan = registry.method("easy_ep", keep=0.5).plan(toy_inventory(experts=6), stats_of(*layers))
    for layer, decided in zip(layers, plan.layers[1:], strict=True):
        gates = layer.gates()
        routed = np.einsum("te,ted->td", gates, layer.outputs)
        turned = layer.inputs + routed
        lengths = np.linalg.norm(layer.inputs, axis=1) * np.linalg.norm(turned, axis=1)
        turn = np.maximum(0.0, 1.0 - (layer.inputs * turned).sum(axis=1) / lengths)
        scores = (turn[:, None] * gates * np.linalg.norm(layer.outputs, axis=2)).sum(axis=0)
        assert decided.experts == tuple(sorted(np.argsort(-scores)[:3].tolist()))
        assert decided.router == "slice" and not decided.merges


def test_a_token_counts_by_how_far_the_layer_turns_it() -> None:
    # Two tokens with equal gates and norms: the first is only stretched, the second turned by a right angle.
    inputs = np.array([[1.0, 0.0], [1.0, 0.0]])
    outputs = np.zeros((2, 4, 2))
    outputs[0, :2], outputs[1, 2:] = [1.0, 0.0], [-1.0, 1.0]
    outputs[0, 0], outputs[1, 2] = [5.0, 0.0], [-1.0, 1.0]
    layer = TokenLayer(np.array([[9.0, 9.0, 0.0, 0.0], [0.0, 0.0, 9.0, 9.0]]), outputs, inputs)
    scores = layer.statistics()["residual_gate_norm"]
    assert scores[0] == scores[1] == 0.0, "five times longer, yet the token keeps its direction"
    assert np.allclose(scores[2:], np.sqrt(2.0) / 2.0)
    plan = registry.method("easy_ep", keep=0.5).plan(toy_inventory(moe_layers=1), stats_of(layer))
    assert plan.layers[1].experts == (2, 3)


def test_groups_of_the_router_keep_equal_numbers() -> None:
    stats = stats_from(residual_gate_norm=[[5, 4, 3, 2, 1, 0, 0, 1], [0, 0, 0, 0, 1, 1, 1, 1]])
    plan = registry.method("easy_ep", keep=0.5).plan(toy_inventory(experts=8, groups=2), stats)
    assert plan.layers[1].experts == (0, 1, 4, 7)
    assert plan.layers[2].experts == (0, 1, 4, 5), "experts without tokens score 0; ties keep the lower index"
