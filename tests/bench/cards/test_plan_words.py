"""Every statement of a plan has its words, and layers that are treated alike share a line."""

from __future__ import annotations

import pytest

from bench.cards.plan_words import layer_words, plan_words
from methods.framework.inside import Bases, LowRank, Quantisation, SharedBase, Sparsity
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan

PAIR = Merge(into=1, members=(1, 2), weights=(0.5, 0.5))


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (LayerPlan(), "as in the source"),
        (LayerPlan(drop="block"), "dropped as a whole"),
        (LayerPlan(drop="moe"), "its MoE sub-layer is dropped with the norm before it"),
        (LayerPlan(experts=(3,)), "1 expert stays; the router keeps the rows of the experts that stay"),
        (LayerPlan(top_k=1), "a token takes 1 expert"),
        (
            LayerPlan(experts=(0, 1), merges=(PAIR,), constants=(3, 4), router="map"),
            "2 experts stay; 1 of them is made of 2 experts each, by weighted averages; 2 experts are replaced by their mean "
            "output; the router keeps its rows, several of which lead to one expert",
        ),
        (LayerPlan(channels=((0, 1), (0, 1, 2))), "each expert keeps 2 to 3 hidden channels"),
        (
            LayerPlan(rank=LowRank(kernel="whitened", ranks=((4, 0, 8),))),
            "the matrices of each expert are two factors of rank 4 to 8 (whitened singular value decomposition)",
        ),
        (
            LayerPlan(rank=LowRank(ranks=((4, 4, 4),), base=SharedBase(members=(0, 1), weights=(0.5, 0.5)))),
            "the matrices of the difference of each expert to a base that all share are two factors of rank 4 (singular value "
            "decomposition)",
        ),
        (
            LayerPlan(bases=Bases(count=3, rank=5)),
            "gate and up of each expert are mixtures of 3 bases of rank 5 that the layer shares",
        ),
        (
            LayerPlan(sparsity=Sparsity(share=0.5, pattern="2:4", kernel="sparsegpt", scope="all")),
            "50 % of the weights of the routed experts and the other linear layers are zero in the pattern 2:4, chosen by "
            "SparseGPT",
        ),
        (
            LayerPlan(bits=Quantisation(bits=4, group=64, kernel="gptq", symmetric=False)),
            "the routed experts are stored in 4 bits, by GPTQ, in groups of 64, with zero points",
        ),
    ],
)
def test_words_of_a_layer(layer: LayerPlan, words: str) -> None:
    assert layer_words(layer) == words


def test_layers_alike_share_a_line_with_their_numbers() -> None:
    gone, same = LayerPlan(drop="block"), LayerPlan()
    plan = Plan(family="x", layers=(same, gone, gone, same))
    assert plan_words(plan) == [
        "Layer 0: as in the source.",
        "Layers 1 to 2: dropped as a whole.",
        "Layer 3: as in the source.",
    ]
