"""REAM: centroids, pseudo-groups and weights, against loops over tokens and by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bench.applying.apply import apply
from bench.calibration.calibrate import calibrate
from bench.calibration.decide import LayerwiseDecision
from bench.checkpoint.checkpoint import Checkpoint
from bench.text.corpus import Corpus
from methods import registry
from methods.framework.errors import RefusedError
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import LayerwiseMethod
from methods.framework.plan import Plan
from tests.support.inventories import toy_inventory
from tests.support.tiny import tiny_checkpoint, tiny_tokens
from tests.support.token_layers import TokenLayer, moments, stats_from, stats_of


def groups_of(layer: LayerPlan) -> dict[int, tuple[int, ...]]:
    """Return the members of each merge by ``into``."""
    return {merge.into: merge.members for merge in layer.merges}


def plan_of(saliency: Sequence[float], outputs: object = None, gram: object = None, **knobs: object) -> Plan:
    """Return the plan for one layer in which each expert saw one token, with ``saliency`` as gate times norm."""
    experts = len(saliency)
    stats = stats_from(
        gate_norm_moment=[moments([1.0] * experts, gate_norm=saliency)],
        output_cosine=[np.eye(experts) if outputs is None else outputs],
        logit_gram=[np.eye(experts) if gram is None else gram],
    )
    return registry.method("ream", **knobs).plan(toy_inventory(experts=experts, moe_layers=1), stats)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("gate_similarity", ["layer", "fixed"])
def test_equals_loops_over_tokens(seed: int, gate_similarity: str) -> None:
    layer = TokenLayer.drawn(seed, experts=8)
    method = registry.method("ream", keep=0.375, group_size=4, gate_similarity=gate_similarity)
    decided = method.plan(toy_inventory(experts=8, moe_layers=1), stats_of(layer)).layers[1]
    gates = layer.gates()
    saliency = []
    for j in range(8):
        contributions = [gates[t, j] * np.linalg.norm(layer.outputs[t, j]) for t in layer.routed(j)]
        saliency.append(float(np.mean(contributions)) if contributions else 0.0)
    columns = layer.logits / np.linalg.norm(layer.logits, axis=0)
    distance = np.array([[np.linalg.norm(columns[:, i] - columns[:, j]) for j in range(8)] for i in range(8)])
    near = 1.0 - distance / (distance.max() if gate_similarity == "layer" else 2.0)
    similarity = ((layer.statistics()["output_cosine"] + 1.0) / 2.0 + near) / 2.0
    free = sorted(range(8), key=lambda j: -saliency[j])
    centroids, free = free[:3], free[3:]
    expected = {}
    for centroid in centroids:
        taken = [j for j in np.argsort(-similarity[centroid]).tolist() if j in free][:3]
        free = [j for j in free if j not in taken]
        # Members without tokens have weight 0: they add nothing to the merge and are not named in it.
        expected[centroid] = tuple(sorted([centroid, *(j for j in taken if saliency[j] > 0.0)]))
    assert not free
    assert groups_of(decided) == {into: members for into, members in expected.items() if len(members) > 1}
    assert decided.experts == tuple(sorted(centroids)) and decided.router == "slice"
    for merge in decided.merges:
        total = sum(saliency[j] for j in merge.members)
        assert merge.weights == pytest.approx([saliency[j] / total for j in merge.members])
        assert merge.kernel == "aligned"


def test_the_most_salient_centroid_takes_all_it_can() -> None:
    # 6 looks like centroid 1 alone, but centroid 0 chooses first and has room.
    outputs = np.eye(8)
    outputs[1, 6] = outputs[6, 1] = 0.9
    saliency = [9.0, 8.0, 7.0, 6.0, 1.0, 1.0, 1.0, 1.0]
    assert groups_of(plan_of(saliency, outputs, keep=0.5).layers[1]) == {0: (0, 4, 5, 6, 7)}
    small = plan_of(saliency, outputs, keep=0.5, group_size=3).layers[1]
    assert groups_of(small) == {0: (0, 4, 5), 1: (1, 6, 7)}, (
        "a group counts its centroid; the last two stay as they are"
    )


def test_both_similarities_count() -> None:
    outputs, gram = np.eye(4), np.eye(4)
    outputs[0, 3] = outputs[3, 0] = 0.5
    gram[0, 2] = gram[2, 0] = 0.9
    saliency = [9.0, 8.0, 2.0, 1.0]
    # By outputs 3 is closer to 0 (0.75 against 0.5), by logits 2 is (distance 0.45 against 1.41): 2 wins the mean.
    assert groups_of(plan_of(saliency, outputs, gram, group_size=2).layers[1]) == {0: (0, 2), 1: (1, 3)}
    assert groups_of(plan_of(saliency, outputs, np.eye(4), group_size=2).layers[1]) == {0: (0, 3), 1: (1, 2)}


def test_groups_that_cannot_hold_all_experts_are_refused() -> None:
    with pytest.raises(
        RefusedError, match="3 groups of at most 2 cannot hold the 8 experts of layer 1; raise group_size to 3"
    ):
        plan_of([1.0] * 8, keep=0.375, group_size=2)
    assert len(plan_of([1.0] * 8, keep=0.5, group_size=2).layers[1].merges) == 4, "n C = E is just enough"


def test_an_expert_without_tokens_adds_nothing() -> None:
    grid = moments([3, 3, 3, 0], gate_norm=[3, 2, 1, 0])
    stats = stats_from(gate_norm_moment=[grid], output_cosine=[np.eye(4)], logit_gram=[np.ones((4, 4))])
    decided = registry.method("ream", keep=0.75).plan(toy_inventory(moe_layers=1), stats).layers[1]
    assert decided.experts == (0, 1, 2) and not decided.merges, "weight 0 with a sliced router is removal"


def test_the_gate_can_count_twice_as_in_the_official_code() -> None:
    grid = moments([1, 1, 1, 1], gate_norm=[4, 3, 2, 1])
    grid[:, 2, 1] = [1, 2, 3, 4]
    stats = stats_from(gate_norm_moment=[grid], output_cosine=[np.eye(4)], logit_gram=[np.eye(4)])
    inventory = toy_inventory(moe_layers=1)
    assert registry.method("ream").plan(inventory, stats).layers[1].experts == (0, 1)
    assert registry.method("ream", gate_power=2).plan(inventory, stats).layers[1].experts == (2, 3)


def test_groups_of_the_router_keep_equal_numbers() -> None:
    saliency = [8.0, 7, 6, 5, 4, 3, 2, 1]
    stats = stats_from(
        gate_norm_moment=[moments([1] * 8, gate_norm=saliency)], output_cosine=[np.eye(8)], logit_gram=[np.eye(8)]
    )
    decided = registry.method("ream").plan(toy_inventory(experts=8, moe_layers=1, groups=2), stats).layers[1]
    assert decided.experts == (0, 1, 4, 5)


def test_sequential_propagation_sees_the_layers_merged_before(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint("qwen3_moe", tmp_path / "source"))
    corpus, method = Corpus.of(tiny_tokens(6, 20).tolist(), "random ids"), registry.method("ream", keep=0.5)
    assert isinstance(method, LayerwiseMethod)
    decision = LayerwiseDecision(method, checkpoint.inventory)
    stats = calibrate(checkpoint, corpus, method.needs, decide=decision)
    plan = method.plan(checkpoint.inventory, stats)
    # The model whose first two layers are really merged, measured as it is, shows the third layer the same.
    layers = (*plan.layers[:2], LayerPlan())
    merged = Checkpoint.open(apply(checkpoint, plan.model_copy(update={"layers": layers}), tmp_path / "merged"))
    anew = calibrate(merged, corpus, method.needs)
    for need in method.needs:
        assert stats.layer(need, 2) == pytest.approx(anew.layer(need, 2), rel=1e-4, abs=1e-4)
    once = calibrate(checkpoint, corpus, method.needs)
    assert not np.allclose(stats.layer("logit_gram", 2), once.layer("logit_gram", 2), rtol=1e-2)
