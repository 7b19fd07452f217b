"""Groups by CKA, merged or pruned: planted duplicates, decisions by hand, and weights fitted to outputs against loops."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from bench.applying.apply import apply
from bench.applying.in_memory import realised
from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from bench.text.corpus import Corpus
from methods import registry
from methods.framework.errors import RefusedError, StatsError
from methods.framework.inventory import Router
from methods.framework.knob_space import draw
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.stats import Array, Stats
from methods.kernels.learned_weights import fitted_weights, token_gates
from methods.registry import method_class
from tests.support.inventories import toy_inventory
from tests.support.merged_layer import MergedLayer, groups_of, plan_of, relabelling
from tests.support.tiny import tiny_checkpoint, tiny_model, tiny_tokens

PAIRS = [(0, 5), (1, 3), (2, 6), (4, 7)]


def cka_of(*links: tuple[int, int, float], experts: int = 4) -> Array:
    cka = np.full((experts, experts), 0.1)
    np.fill_diagonal(cka, 1.0)
    for i, j, value in links:
        cka[i, j] = cka[j, i] = value
    return cka


def stats_of(**values: object) -> Stats:
    return Stats({name: (None, np.asarray(value, dtype=float)) for name, value in values.items()}, 10)


@pytest.mark.parametrize("similarity", ["activations", "weights"])
@pytest.mark.parametrize("grouping", ["partition", "agglomerative"])
@pytest.mark.parametrize("weights", ["uniform", "frequency", "learned"])
@pytest.mark.parametrize("alignment", [False, True])
def test_planted_duplicates_merge_into_the_same_function(
    similarity: str, grouping: str, weights: str, alignment: bool
) -> None:
    layer = MergedLayer.of_pairs(0, PAIRS)
    knobs = {"similarity": similarity, "grouping": grouping, "weights": weights, "alignment": alignment}
    mapped = plan_of(registry.method("cka_merge", router="map", **knobs), layer)
    assert groups_of(mapped) == PAIRS and mapped.rows == tuple(range(8))
    assert np.abs(layer.forward(mapped) - layer.forward()).max() < 1e-10
    averaged = plan_of(registry.method("cka_merge", **knobs), layer)
    assert groups_of(averaged) == PAIRS and averaged.router == "mean"
    assert np.abs(layer.forward(averaged) - layer.forward()).max() > 1e-2, "one row for two copies is not the same"


def test_pruned_duplicates_are_missed_by_a_sliced_router_only() -> None:
    layer = MergedLayer.of_pairs(1, PAIRS)
    for representative in ("reap", "frequency", "medoid"):
        mapped = plan_of(registry.method("cka_prune", router="map", representative=representative), layer)
        assert groups_of(mapped) == PAIRS
        assert np.array_equal(layer.forward(mapped), layer.forward())
        sliced = plan_of(registry.method("cka_prune", representative=representative), layer)
        assert sliced.merges == () and all(len(set(pair) & set(sliced.experts or ())) == 1 for pair in PAIRS)
        assert np.abs(layer.forward(sliced) - layer.forward()).max() > 1e-2


def test_by_hand() -> None:
    # 0 and 2 are alike, 1 and 3 too; 0 and 1 are the more typical of each pair.
    cka = cka_of((0, 2, 0.9), (1, 3, 0.8), (0, 1, 0.4))
    moments = np.zeros((4, 3, 3))
    moments[:, 0, 0], moments[:, 1, 1] = [2, 6, 6, 2], [8, 6, 6, 10]
    stats = stats_of(output_cka=cka, weight_cka=cka[::-1, ::-1], gate_norm_moment=moments)
    inventory = toy_inventory(moe_layers=1)

    def decided(name: str, **knobs: object) -> LayerPlan:
        return registry.method(name, **knobs).plan(inventory, stats).layers[1]

    def merges(into: tuple[int, int], *weights: tuple[float, float], **other: str) -> tuple[Merge, ...]:
        members = ((0, 2), (1, 3))
        made = [Merge(into=i, members=m, weights=w, **other) for i, m, w in zip(into, members, weights, strict=True)]
        return tuple(sorted(made, key=lambda merge: merge.into))

    assert decided("cka_merge") == LayerPlan(
        experts=(0, 1), merges=merges((0, 1), (0.5, 0.5), (0.5, 0.5)), router="mean"
    )
    by_tokens = merges((2, 1), (0.25, 0.75), (0.75, 0.25), kernel="aligned")
    assert decided("cka_merge", weights="frequency", alignment=True, router="slice") == LayerPlan(
        experts=(1, 2), merges=by_tokens
    )
    assert decided("cka_merge", similarity="weights").experts == (2, 3), "its own similarity: 3, 2 are typical there"
    assert decided("cka_prune") == LayerPlan(experts=(0, 3)), "means of 4, 1, 1 and 5"
    assert decided("cka_prune", representative="frequency") == LayerPlan(experts=(1, 2))
    assert decided("cka_prune", representative="medoid") == LayerPlan(experts=(0, 1))


def test_a_group_without_tokens_is_averaged_equally() -> None:
    stats = stats_of(output_cka=cka_of((0, 1, 0.9), (2, 3, 0.9)), gate_norm_moment=np.zeros((4, 3, 3)))
    plan = registry.method("cka_merge", weights="frequency").plan(toy_inventory(moe_layers=1), stats)
    assert [merge.weights for merge in plan.layers[1].merges] == [(0.5, 0.5), (0.5, 0.5)]


def test_group_limited_routers_get_equal_groups_unless_rows_stay() -> None:
    cka = cka_of((0, 1, 0.99), (1, 2, 0.98), (0, 2, 0.97), (4, 5, 0.3), (3, 7, 0.9), experts=8)
    inventory, stats = toy_inventory(experts=8, moe_layers=1, groups=2), stats_of(output_cka=cka)
    for router in ("mean", "slice"):
        plan = registry.method("cka_merge", keep=0.75, router=router).plan(inventory, stats).layers[1]
        assert groups_of(plan) == [(0, 1), (4, 5)]
    mapped = registry.method("cka_merge", keep=0.625, router="map").plan(inventory, stats).layers[1]
    assert groups_of(mapped) == [(0, 1, 2), (3, 7)], "any number, across the router's groups"
    with pytest.raises(RefusedError, match="fewer than"):
        registry.method("cka_merge", keep=0.125).plan(inventory, stats)
    assert registry.method("cka_merge", keep=0.125, router="map").plan(inventory, stats).layers[1].experts == (1,)


@pytest.mark.parametrize("name", ["cka_merge", "cka_prune"])
def test_reads_what_its_knobs_need_and_no_more(name: str) -> None:
    rng = np.random.default_rng(3)
    layer = MergedLayer.drawn(2)
    inventory, stats = toy_inventory(experts=8, moe_layers=1), layer.stats()
    for _ in range(30):
        method = draw(method_class(name), rng).model_copy(update={"keep": 0.5})
        method.plan(inventory, stats.only(method.needs))
        for need in method.needs:
            with pytest.raises(StatsError, match=need):
                method.plan(inventory, stats.only(method.needs - {need}))


@pytest.mark.parametrize("name", ["cka_merge", "cka_prune"])
def test_keeping_all_is_the_identity_for_every_knob(name: str) -> None:
    rng = np.random.default_rng(4)
    inventory, stats = toy_inventory(experts=8, moe_layers=1, groups=2), MergedLayer.drawn(5).stats()
    for _ in range(20):
        method = draw(method_class(name), rng).model_copy(update={"keep": 1.0})
        assert method.plan(inventory, stats) == Plan.identity(inventory)


@pytest.mark.parametrize("name", ["cka_merge", "cka_prune"])
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_relabelling_relabels_for_every_knob(name: str, family: str) -> None:
    rng = np.random.default_rng(6)
    for _ in range(8):
        relabelling(draw(method_class(name), rng).model_copy(update={"keep": 0.5}), family)


def test_token_gates_equal_the_loop() -> None:
    layer = MergedLayer.drawn(7)
    gates = token_gates(layer.logits(), Router(), 2, np.zeros(8))
    assert np.allclose(gates, layer.gates(layer.logits()), atol=1e-12)
    biased = token_gates(layer.logits(), Router(score="sigmoid", correction_bias=True), 2, np.eye(8)[3] * 9.0)
    assert (biased[:, 3] > 0).all(), "the correction bias chooses"
    assert np.allclose(biased[:, 3], 1 / (1 + np.exp(-layer.logits()[:, 3]))), "and does not weigh"


def _loss(group: list[int], weights: Array, gates: Array, outputs: Array) -> float:
    """|sum g_i f_i - (sum g_i) sum a_i f_i|^2 over all tokens, by loops."""
    total = 0.0
    for g, f in zip(gates, outputs, strict=True):
        wanted = sum(g[i] * f[i] for i in group)
        given = sum(g[i] for i in group) * sum(a * f[i] for a, i in zip(weights, group, strict=True))
        total += float(np.sum((wanted - given) ** 2))
    return total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("group", [[1, 4], [0, 2, 7], [1, 3, 5, 6]])
def test_fitted_weights_are_the_best_convex_ones(seed: int, group: list[int]) -> None:
    layer = MergedLayer.drawn(seed)
    gates, outputs = layer.gates(layer.logits()), layer.outputs()
    gram = np.array([f @ f.T for f in outputs])
    fitted = np.array(fitted_weights(group, gates, gram))
    assert (fitted >= 0).all() and fitted.sum() == pytest.approx(1.0)
    reached = _loss(group, fitted, gates, outputs)
    steps = [np.array(point) / 12 for point in itertools.product(range(13), repeat=len(group)) if sum(point) == 12]
    others = [*steps, *(fitted + 0.01 * (step - fitted) for step in steps)]
    best = min(_loss(group, other, gates, outputs) for other in others)
    assert reached <= best * (1 + 1e-3), "up to the ridge, nothing on a grid or beside it is better"
    assert reached < _loss(group, np.full(len(group), 1 / len(group)), gates, outputs)


def test_fitted_weights_by_hand() -> None:
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(50, 3, 4))
    gram = np.array([f @ f.T for f in outputs])
    gates = np.tile([0.6, 0.2, 0.0], (50, 1))
    assert fitted_weights([0, 1], gates, gram) == pytest.approx((0.75, 0.25), abs=1e-3), "gates in one fixed proportion"
    assert fitted_weights([0, 2], gates, gram) == pytest.approx((1.0, 0.0), abs=1e-3), "2 is never chosen"
    assert fitted_weights([1, 2], np.zeros((50, 3)), gram) == (0.5, 0.5), "nobody is"
    outputs[:, 1] = outputs[:, 0]
    copies = np.array([f @ f.T for f in outputs]).astype(np.float32)
    assert fitted_weights([0, 1], gates, copies) == pytest.approx((0.5, 0.5), abs=1e-3), "copies share"


def test_learned_weights_reach_the_plan() -> None:
    layer = MergedLayer.drawn(9)
    plan = plan_of(registry.method("cka_merge", weights="learned", router="map"), layer)
    gates, gram = layer.gates(layer.logits()), layer.stats().layer("token_gram", 1)
    assert plan.merges
    for merge in plan.merges:
        assert merge.weights == pytest.approx(fitted_weights(merge.members, gates, gram))
        assert merge.into == max(zip(merge.weights, merge.members, strict=True))[1]


def test_the_correction_bias_reaches_the_learned_weights() -> None:
    # Experts 0 and 1 are alike and lose every choice, until the bias makes expert 1 one of the two chosen.
    layer = MergedLayer.drawn(3, experts=4)
    values = {name: value[1] for name, value in layer.stats().values.items()}
    values["token_logits"] = np.tile([-3.0, -3.0, 0.0, 0.0], (len(layer.tokens), 1))
    values["output_cka"] = cka_of((0, 1, 0.9))
    router = Router(score="sigmoid", correction_bias=True)
    inventory = replace(toy_inventory(moe_layers=1), router=router)
    method = registry.method("cka_merge", keep=0.75, weights="learned", router="map")
    for bias, expected in ((0.0, (0.5, 0.5)), (5.0, (0.0, 1.0))):
        values["router_correction"] = np.array([0.0, bias, 0.0, 0.0])
        merge = method.plan(inventory, stats_of(**values)).layers[1].merges[0]
        assert merge.members == (0, 1) and merge.weights == pytest.approx(expected, abs=1e-2)


METHODS = ("cka_merge", "cka_prune", "hc_smoe", "sub_moe", "stun")
FULL = {"sub_moe": {"rank_share": 1.0}}


def permute_channels(model: PreTrainedModel, seed: int) -> None:
    """Put the hidden channels of every expert into another order; each computes the same function."""
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if not name.endswith("experts.gate_up_proj"):
            continue
        down = model.get_parameter(name.replace("gate_up_proj", "down_proj"))
        width = down.shape[2]
        for expert in range(len(parameter)):
            order = torch.randperm(width, generator=rng)
            parameter[expert] = parameter[expert][torch.cat([order, order + width])]
            down[expert] = down[expert][:, order]


def plant_pairs(model: PreTrainedModel) -> None:
    """Make expert 2i + 1 of every layer a copy of expert 2i, router row and correction bias included."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith(("experts.gate_up_proj", "experts.down_proj", "mlp.gate.weight", "e_score_correction_bias")):
            tensor[1::2] = tensor[::2]


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_planted_duplicates_of_a_model(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    with torch.no_grad():
        plant_pairs(model)
        permute_channels(model, seed=1)  # copies stay hidden behind another order of channels
        model.save_pretrained(tmp_path / "model")
        before = model(tiny_tokens(2, 16, seed=1)).logits
    checkpoint = Checkpoint.open(tmp_path / "model")
    inventory, pairs = checkpoint.inventory, [(i, i + 1) for i in range(0, 8, 2)]
    methods = {name: registry.method(name, router="map", **FULL.get(name, {})) for name in METHODS}
    methods["cka_merge weights"] = registry.method("cka_merge", router="map", similarity="weights", alignment=True)
    methods["hc_smoe weights"] = registry.method("hc_smoe", feature="weights", alignment=True)
    aligned = {"cka_merge": {"alignment": True}, "hc_smoe": {"alignment": True}}
    corpus = Corpus.of(tiny_tokens().tolist(), "random ids")
    stats = calibrate(checkpoint, corpus, frozenset().union(*(method.needs for method in methods.values())))
    for name, method in methods.items():
        method = method.model_copy(update=aligned.get(name, {}))
        plan = method.plan(inventory, stats)
        for index in inventory.moe_layers:
            assert groups_of(plan.layers[index]) == pairs, name
        if name == "sub_moe":
            continue  # its paper averages channels as they stand, which copies in another order do not survive
        with realised(model, inventory, plan), torch.no_grad():
            after = model(tiny_tokens(2, 16, seed=1)).logits
        assert float((after - before).abs().max()) < 1e-4, name


def test_merged_experts_are_stored_once(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint("mixtral", tmp_path / "model"))
    stats = calibrate(checkpoint, Corpus.of(tiny_tokens().tolist(), "random ids"), {"output_cka"})
    experts = sum(e.nbytes for e in checkpoint.inventory.tensors() if e.role.startswith("expert."))
    for router in ("map", "slice", "mean"):
        plan = registry.method("cka_merge", keep=0.5, router=router).plan(checkpoint.inventory, stats)
        written = Checkpoint.open(apply(checkpoint, plan, tmp_path / router))
        stored = sum(e.nbytes for e in written.inventory.tensors() if e.role.startswith("expert."))
        assert 2 * stored == experts
        files = [sum(f.stat().st_size for f in c.path.glob("*.safetensors")) for c in (checkpoint, written)]
        assert files[0] - files[1] == pytest.approx(experts / 2, rel=0.1)


def test_similarity_ignores_the_order_of_channels(tmp_path: Path) -> None:
    plans, model = [], tiny_model("qwen3_moe")
    for turn in range(2):
        with torch.no_grad():
            permute_channels(model, seed=turn)
        model.save_pretrained(tmp_path / str(turn))
        checkpoint = Checkpoint.open(tmp_path / str(turn))
        needs = {"weight_cka", "output_cka", "dense_output_mean", "output_cosine", "gate_norm_moment"}
        stats = calibrate(checkpoint, Corpus.of(tiny_tokens().tolist(), "random ids"), needs)
        knobs = [("cka_merge", {"similarity": "weights"}), ("cka_merge", {}), ("cka_prune", {}), ("hc_smoe", {})]
        knobs += [("hc_smoe", {"feature": "weights"}), ("sub_moe", {})]
        plans.append([registry.method(name, **each).plan(checkpoint.inventory, stats) for name, each in knobs])
    for one, other in zip(*plans, strict=True):
        assert [groups_of(layer) for layer in one.layers] == [groups_of(layer) for layer in other.layers]
        assert [layer.experts for layer in one.layers] == [layer.experts for layer in other.layers]
