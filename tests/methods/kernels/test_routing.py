"""Routing against the router modules of transformers and against loops."""

from __future__ import annotations

import pytest
import torch

from bench.families.family import family_of
from methods.framework.errors import RefusedError
from methods.framework.inventory import Router
from methods.kernels.experts import Assignment, cosine_sum, gate_norm_moments, gated_mlp
from methods.kernels.routing import route
from tests.support.tiny import FAMILIES, tiny_model

VARIANTS = [
    *((family, {}) for family in FAMILIES),
    ("qwen2_moe", {"norm_topk_prob": True}),
    ("olmoe", {"norm_topk_prob": True, "num_experts_per_tok": 3}),
    (
        "deepseek_v2",
        {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.7},
    ),
    ("deepseek_v3", {"n_group": 4, "topk_group": 3, "num_experts_per_tok": 5}),
    ("deepseek_v3", {"n_group": 1, "topk_group": 1, "norm_topk_prob": False}),
]


@pytest.mark.parametrize(("family", "overrides"), VARIANTS, ids=lambda value: str(value)[:40])
def test_route_equals_the_router_module_of_transformers(family, overrides):
    model = tiny_model(family, **overrides)
    gate = model.model.layers[-1].mlp.gate
    hidden_TD = torch.randn(300, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits_TE, weights_TK, indices_TK = gate(hidden_TD)
    router = family_of(model.config.to_dict()).inventory(model.config.to_dict()).router
    correction_E = getattr(gate, "e_score_correction_bias", None)
    ours = route(logits_TE, router, indices_TK.shape[1], correction_E)
    # The order within a token is free, so both are brought into the order of expert indices.
    theirs_order, our_order = indices_TK.argsort(1), ours.indices_TK.argsort(1)
    assert torch.equal(ours.indices_TK.gather(1, our_order), indices_TK.gather(1, theirs_order))
    torch.testing.assert_close(
        ours.weights_TK.gather(1, our_order), weights_TK.gather(1, theirs_order), rtol=2e-7, atol=0.0
    )
    assert len(set(map(tuple, indices_TK.tolist()))) > 5, "the input routes all tokens alike, so nothing was tested"


def test_correction_bias_changes_the_choice_and_never_the_weight():
    router = Router(score="sigmoid", correction_bias=True)
    logits_TE = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    ours = route(logits_TE, router, 2, torch.tensor([0.0, 0.0, 0.0, 5.0]))
    assert set(ours.indices_TK[0].tolist()) == {0, 3}
    weight = dict(zip(ours.indices_TK[0].tolist(), ours.weights_TK[0].tolist(), strict=True))
    assert weight[3] == pytest.approx(torch.tensor(-1.0).sigmoid().item())


def test_more_experts_than_the_groups_allow_are_refused():
    with pytest.raises(RefusedError, match="2 only"):
        route(torch.zeros(1, 8), Router(groups=4, groups_kept=1), 3)


def test_missing_correction_bias_is_refused():
    with pytest.raises(RefusedError, match="correction bias"):
        route(torch.zeros(1, 4), Router(correction_bias=True), 1)


def test_double_logits_stay_double():
    assert route(torch.zeros(2, 4, dtype=torch.float64), Router(), 1).weights_TK.dtype == torch.float64
    assert route(torch.zeros(2, 4, dtype=torch.bfloat16), Router(), 1).weights_TK.dtype == torch.float32


def test_assignment_lists_every_pair_once_in_pieces():
    indices_TK = torch.tensor([[2, 0], [0, 3], [3, 2], [0, 2]])
    weights_TK = torch.arange(8.0).view(4, 2)
    assignment = Assignment.of(indices_TK, weights_TK, 5)
    pairs = {}
    for expert in range(5):
        for tokens_N, gates_N in assignment.pieces(expert, 2):
            assert len(tokens_N) <= 2
            pairs.update({(int(t), expert): float(g) for t, g in zip(tokens_N, gates_N, strict=True)})
    expected = {(t, int(indices_TK[t, k])): float(weights_TK[t, k]) for t in range(4) for k in range(2)}
    assert pairs == expected
    assert [assignment.count(expert) for expert in range(5)] == [3, 0, 3, 2, 0]


def test_gated_mlp_equals_two_products():
    generator = torch.Generator().manual_seed(0)
    x, gate, up, down = (torch.randn(*s, generator=generator) for s in ((7, 6), (4, 6), (4, 6), (6, 4)))
    ours = gated_mlp(x, torch.cat([gate, up]), down, torch.nn.functional.silu)
    torch.testing.assert_close(ours, (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T)


def test_moments_equal_a_loop():
    gates, norms = [0.1, 0.5, 0.25], [3.0, 1.0, 7.0]
    ours = gate_norm_moments(torch.tensor(gates, dtype=torch.float64), torch.tensor(norms, dtype=torch.float64))
    for a in range(3):
        for b in range(3):
            expected = sum(g**a * n**b for g, n in zip(gates, norms, strict=True))
            assert ours[a, b].item() == pytest.approx(expected, rel=1e-14)


def test_cosine_of_a_zero_vector_counts_as_zero():
    a = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[4.0, 3.0], [1.0, 1.0], [-2.0, 0.0]])
    assert cosine_sum(a, b).item() == pytest.approx(24 / 25 - 1)
