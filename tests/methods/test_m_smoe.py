"""M-SMoE: dominant experts, groups and weights, against loops over tokens and by hand."""

from collections.abc import Sequence

import numpy as np
import pytest

from methods import registry
from methods.framework.errors import RefusedError
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from tests.support.inventories import toy_inventory
from tests.support.token_layers import TokenLayer, moments, stats_from, stats_of

IDENTITY = np.eye(4)


def groups_of(layer: LayerPlan) -> dict[int, tuple[int, ...]]:
    """Return the members of each merge by ``into``."""
    return {merge.into: merge.members for merge in layer.merges}


def plan_of(hits: Sequence[Sequence[float]], gram: object = IDENTITY, **knobs: object) -> Plan:
    """Return the plan for two layers with these numbers of routed tokens."""
    stats = stats_from(gate_norm_moment=[moments(each) for each in hits], logit_gram=[gram] * len(hits))
    return registry.method("m_smoe", **knobs).plan(toy_inventory(), stats)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_equals_loops_over_tokens(seed: int, scope: str) -> None:
    layers = [TokenLayer.drawn(2 * seed + i, experts=8) for i in range(2)]
    plan = registry.method("m_smoe", keep=0.375, scope=scope).plan(toy_inventory(experts=8), stats_of(*layers))
    usage = [[len(layer.routed(j)) / (2 * len(layer.logits)) for j in range(8)] for layer in layers]
    ranked = sorted((-usage[at][j], at, j) for at in range(2) for j in range(8))
    if scope == "global":
        dominant = [(at, int(np.argmax(usage[at]))) for at in range(2)]
        dominant += [(at, j) for _, at, j in ranked if (at, j) not in dominant][: 6 - 2]
    else:
        dominant = [pair for at in range(2) for pair in [(a, j) for _, a, j in ranked if a == at][:3]]
    for at, (layer, decided) in enumerate(zip(layers, plan.layers[1:], strict=True)):
        cores = sorted(j for where, j in dominant if where == at)
        assert decided.experts == tuple(cores) and decided.router == "map"
        expected = {core: [core] for core in cores}
        for j in set(range(8)) - set(cores):
            z = layer.logits
            likeness = [(z[:, j] @ z[:, c]) / np.linalg.norm(z[:, j]) / np.linalg.norm(z[:, c]) for c in cores]
            expected[cores[int(np.argmax(likeness))]].append(j)
        assert groups_of(decided) == {c: tuple(sorted(m)) for c, m in expected.items() if len(m) > 1}
        for merge in decided.merges:
            total = sum(usage[at][j] for j in merge.members)
            assert merge.weights == pytest.approx([usage[at][j] / total for j in merge.members])
            assert merge.kernel == "aligned"


def test_global_scope_follows_concentration() -> None:
    # Layer 1 uses one expert almost alone, layer 2 all alike: one and three dominant experts.
    plan = plan_of([[97, 1, 1, 1], [25, 26, 25, 24]])
    assert [layer.experts for layer in plan.layers[1:]] == [(0,), (0, 1, 2)]
    assert groups_of(plan.layers[1]) == {0: (0, 1, 2, 3)}, (
        "fewer experts than top-k are allowed: the router keeps its rows"
    )
    layer_by_layer = plan_of([[97, 1, 1, 1], [25, 26, 25, 24]], scope="layer")
    assert [layer.experts for layer in layer_by_layer.layers[1:]] == [(0, 1), (0, 1)]


@pytest.mark.parametrize("keep", [0.25, 0.375, 0.5, 0.625, 0.75, 0.875])
def test_exactly_the_budget_where_everything_ties(keep: float) -> None:
    plan = plan_of([[5, 5, 5, 5], [5, 5, 5, 5]], keep=keep)
    kept = [layer.experts or (0, 1, 2, 3) for layer in plan.layers[1:]]
    assert sum(map(len, kept)) == 8 * keep
    assert kept[0] == tuple(range(len(kept[0]))) and len(kept[0]) >= len(kept[1]) >= 1, (
        "earlier layer, lower index first"
    )


def test_similarity_is_the_cosine_and_not_the_inner_product() -> None:
    # Expert 2 points as 1 does, yet has its largest inner product with the long column of expert 0.
    columns = np.array([[10.0, 0.0], [0.0, 1.0], [0.3, 1.0], [-1.0, -0.1]])
    plan = plan_of([[9, 8, 1, 1], [9, 8, 1, 1]], gram=columns @ columns.T)
    assert groups_of(plan.layers[1]) == {1: (1, 2, 3)}, (
        "3 points away from 0, at a right angle to 1: cos -0.995 and -0.1"
    )


def test_a_group_without_tokens_is_averaged_equally() -> None:
    gram = np.array([[2.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 1], [0, 0, 1, 2]])
    plan = plan_of([[5, 5, 0, 0], [5, 5, 0, 0]], gram=gram, scope="layer", keep=0.75)
    (merge,) = plan.layers[1].merges
    assert merge.members == (2, 3) and merge.weights == (0.5, 0.5)
    (unused,) = plan_of([[5, 4, 3, 0], [5, 4, 3, 0]], gram=np.ones((4, 4)), keep=0.75).layers[1].merges
    assert unused.members == (0, 3) and unused.weights == (1.0, 0.0), "an unused expert adds nothing to its group"


def test_knobs_and_refusals() -> None:
    assert plan_of([[4, 3, 2, 1]] * 2, alignment=False).layers[1].merges[0].kernel == "mean"
    knots = plan_of([[4, 3, 2, 1]] * 2, scope="layer", keep=(0.25, 0.75))
    assert [layer.experts for layer in knots.layers[1:]] == [(0,), (0, 1, 2)]
    with pytest.raises(RefusedError, match="depth knots contradict"):
        plan_of([[4, 3, 2, 1]] * 2, keep=(0.25, 0.75))
    with pytest.raises(RefusedError, match=r"1 experts for 2 layers.*smallest keep is 0\.25"):
        plan_of([[4, 3, 2, 1]] * 2, keep=0.125)
