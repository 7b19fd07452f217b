"""Plans that merge, map and replace experts inside the streamed pass, and checkpoints that were made by such plans."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.applying.apply import apply
from bench.calibration.calibrate import calibrate
from bench.calibration.conditions import Effort
from bench.checkpoint.checkpoint import Checkpoint
from bench.models.load import load_model
from methods.framework.errors import StatsError
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.stats import CATALOGUE
from tests.support.streamed_pass import NEEDS, RAGGED, SQUARE, Fixed, model_states, streamed_states
from tests.support.tiny import tiny_checkpoint

ROW_STATISTICS = {name for name, spec in CATALOGUE.items() if spec.of_rows}
PAIR = Merge(into=2, members=(1, 2), weights=(0.25, 0.75))
TRIPLE = Merge(into=4, members=(4, 5, 6), weights=(1.0, 1.0, 2.0))
HEAVY = Merge(into=0, members=(0, 1, 2, 3), weights=(0.4, 0.3, 0.2, 0.1))
PLANS = {
    "mean": LayerPlan(experts=(0, 2, 3, 7), merges=(PAIR,)),
    "averaged rows": LayerPlan(experts=(0, 2, 3, 4), merges=(PAIR, TRIPLE), router="mean"),
    "aligned": LayerPlan(experts=(0, 2, 3, 7), merges=(PAIR.model_copy(update={"kernel": "aligned"}),), router="mean"),
    "svd": LayerPlan(
        experts=(0, 4, 6, 7), merges=(HEAVY.model_copy(update={"kernel": "svd", "rank": 9}),), router="map"
    ),
    "map": LayerPlan(experts=(0, 4, 5, 6, 7), merges=(HEAVY,), router="map"),
    "constants": LayerPlan(experts=(0, 3, 4, 6), constants=(1, 2, 5, 7), router="map"),
    "both": LayerPlan(experts=(0, 6), merges=(HEAVY,), constants=(4, 5, 7), router="map"),
    "fewer": LayerPlan(experts=(0, 4, 5, 6, 7), merges=(HEAVY,), router="map", top_k=1),
}
EVEN = LayerPlan(experts=(0, 2, 5, 6), merges=(PAIR, Merge(into=6, members=(4, 6), weights=(0.5, 0.5))), router="mean")
CASES = [
    *(("qwen3_moe", [plan] * 3) for plan in PLANS.values()),
    ("qwen2_moe", [PLANS["both"], PLANS["mean"], PLANS["averaged rows"]]),
    ("mixtral", [PLANS["svd"], PLANS["aligned"], LayerPlan()]),
    ("deepseek_v3", [LayerPlan(), EVEN, PLANS["both"]]),
    ("deepseek_v2", [LayerPlan(), PLANS["averaged rows"], PLANS["map"]]),
]


@pytest.mark.parametrize(("family", "plans"), CASES, ids=[*PLANS, *(family for family, _ in CASES[len(PLANS) :])])
def test_sequential_states_equal_those_of_the_written_checkpoint(tiny, family, plans, tmp_path):
    checkpoint = tiny(family)
    needs = {"routed_output_mean"}
    decide = Fixed(plans)
    stats = calibrate(checkpoint, SQUARE, needs, decide=decide)
    ours = streamed_states(checkpoint, SQUARE, Fixed(plans), needs)
    out = apply(checkpoint, Plan.of(checkpoint.inventory, plans), tmp_path / "compressed", moments=stats)
    theirs = model_states(load_model(out), SQUARE)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    again = streamed_states(Checkpoint.open(out), SQUARE)
    assert (again - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    original = streamed_states(checkpoint, SQUARE)
    assert (ours - original).abs().max() > 1e-2, "the plans change nothing, so nothing was tested"


def test_what_is_written_in_half_precision_is_what_the_next_layer_sees(tmp_path):
    checkpoint = Checkpoint.open(tiny_checkpoint("qwen3_moe", tmp_path / "source", dtype=torch.bfloat16))
    plans = [PLANS["both"], PLANS["averaged rows"], PLANS["svd"]]
    stats = calibrate(checkpoint, SQUARE, {"routed_output_mean"}, decide=Fixed(plans))
    ours = streamed_states(checkpoint, SQUARE, Fixed(plans), {"routed_output_mean"})
    out = apply(checkpoint, Plan.of(checkpoint.inventory, plans), tmp_path / "compressed", moments=stats)
    theirs = streamed_states(Checkpoint.open(out), SQUARE)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_constants_need_means(qwen):
    decide = Fixed([PLANS["constants"]] * 3)
    with pytest.raises(StatsError, match="measure 'routed_output_mean' too"):
        calibrate(qwen, SQUARE, {"block_cosine"}, decide=decide)


def test_statistics_of_a_mapped_checkpoint_count_stored_experts(tiny, tmp_path):
    source = tiny("qwen2_moe")
    plan = Plan.of(source.inventory, [PLANS["both"], PLANS["map"], LayerPlan()])
    moments = calibrate(source, SQUARE, {"routed_output_mean"})
    mapped = Checkpoint.open(apply(source, plan, tmp_path / "mapped", moments=moments))
    needs = NEEDS - ROW_STATISTICS
    stats = calibrate(mapped, RAGGED, needs)
    model = load_model(mapped.path)
    for index, (experts, places) in enumerate(
        [(2, (0, 0, 0, 0, 2, 3, 1, 4)), (5, (0, 0, 0, 0, 1, 2, 3, 4)), (8, tuple(range(8)))]
    ):
        assert (mapped.inventory.layers[index].expert_map or tuple(range(8))) == places
        for name in needs:
            if CATALOGUE[name].scope == "moe":
                shape = stats.layer(name, index).shape
                axes = zip(CATALOGUE[name].dims, shape, strict=True)
                assert all(size == experts for dim, size in axes if dim == "E"), name
        expected = mapped_reference(model, index, places, experts)
        for name, value in expected.items():
            atol = 1e-6 * np.abs(value).max()
            np.testing.assert_allclose(stats.layer(name, index), value, rtol=1e-5, atol=atol, err_msg=name)
    some = {"token_gram", "gate_norm_moment", "coactivation", "residual_gate_norm", "routed_norm"}
    small = Effort(output_bytes=3 * 8 * 64 * 4, expert_rows=5, batch_tokens=1)
    pieces = calibrate(mapped, RAGGED, some, effort=small)
    for name in some:
        np.testing.assert_allclose(pieces.layer(name, 0), stats.layer(name, 0), rtol=1e-4, atol=1e-5)


def mapped_reference(model, index, places, experts):
    """Return statistics of one layer from loops over tokens, rows that lead to one expert added up."""
    layer = model.model.layers[index].mlp
    seen = []
    hooks = [
        layer.gate.register_forward_hook(lambda module, args, output: seen.append(output)),
        layer.register_forward_hook(lambda module, args, output: seen.append(args[0][0])),
    ]
    constants = getattr(layer, "constant_experts", None)
    moments, together = np.zeros((experts, 3, 3)), np.zeros((experts, experts))
    norm, gram = 0.0, []
    for window in sorted(RAGGED.windows, key=len):
        seen.clear()
        with torch.no_grad():
            model.model(torch.tensor([window]), use_cache=False)
        (_, weights, rows), inputs = seen
        squared = 0.0
        for token, x in enumerate(inputs):
            outputs = [expert_output(layer.experts, e, x) for e in range(experts)]
            gram.append([[f @ g for g in outputs] for f in outputs])
            gate = np.zeros(max(places) + 1)
            for weight, row in zip(weights[token].tolist(), rows[token].tolist(), strict=True):
                gate[places[row]] += weight
            routed = sum(g * f for g, f in zip(gate, outputs, strict=False))
            for number, g in enumerate(gate[experts:]):
                routed = routed + g * constants[number].detach().double().numpy()
            squared += routed @ routed
            used = [e for e in range(experts) if gate[e] > 0]
            for e in used:
                together[e, used] += 1
                for a in range(3):
                    for b in range(3):
                        moments[e, a, b] += gate[e] ** a * np.linalg.norm(outputs[e]) ** b
        norm += squared**0.5
    for hook in hooks:
        hook.remove()
    return {
        "gate_norm_moment": moments,
        "coactivation": together,
        "routed_norm": np.array(norm),
        "token_gram": np.array(gram),
    }


def expert_output(experts, number, x):
    with torch.no_grad():
        gate, up = (experts.gate_up_proj[number].double() @ x.double()).chunk(2)
        return (experts.down_proj[number].double() @ (torch.nn.functional.silu(gate) * up)).numpy()


def test_statistics_of_router_rows_are_refused_where_rows_share_experts(qwen, tmp_path):
    plan = Plan.of(qwen.inventory, [LayerPlan(), PLANS["map"], LayerPlan()])
    mapped = Checkpoint.open(apply(qwen, plan, tmp_path / "mapped"))
    for name in ROW_STATISTICS:
        corpus = None if CATALOGUE[name].cost == "weights" else SQUARE
        with pytest.raises(StatsError, match=rf"{name} cannot be measured: .* layer 1 "):
            calibrate(mapped, corpus, {name})
