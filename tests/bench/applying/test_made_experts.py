"""Experts that are kept from one plan to the next change nothing in what is computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.applying.in_memory import realised
from bench.applying.made_experts import MadeExperts
from bench.checkpoint.checkpoint import Checkpoint
from methods.framework.inside import LowRank
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from methods.kernels.merging import ExpertMatrices
from tests.support.tiny import tiny_checkpoint, tiny_model, tiny_tokens

KEPT = [(0, 1, 2, 5), (1, 2, 6, 7), tuple(range(8))]


def statistics(inventory: object, tokens: float) -> Stats:
    """Return moments of experts of which every other one saw ``tokens`` tokens, the others very many."""
    layers = inventory.layers  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    found: dict[str, list[np.ndarray | None]] = {"input_gram": [], "channel_gram": [], "routed_tokens": []}
    for layer in layers:
        width, hidden = next(layer.with_role("expert.gate")).shape
        for name, size in (("input_gram", hidden), ("channel_gram", width)):
            roots = rng.normal(size=(layer.experts, size, size)).astype(np.float32)
            found[name].append(roots @ roots.transpose(0, 2, 1) / size)
        found["routed_tokens"].append(np.where(np.arange(layer.experts) % 2 == 0, tokens, 1e6))
    return Stats({name: tuple(values) for name, values in found.items()})


@pytest.mark.parametrize("kernel", ["svd", "whitened"])
@pytest.mark.parametrize("tokens", [1.0, 1e6])
def test_logits_are_those_without(kernel: str, tokens: float) -> None:
    """Also for experts with few tokens, whose factors depend on who stays beside them."""
    model, inventory = tiny_model("olmoe"), Checkpoint.open(tiny_checkpoint("olmoe")).inventory
    stats = statistics(inventory, tokens)
    made = MadeExperts()
    for kept in KEPT:
        for rank in (2, 3):
            factors = LowRank(kernel=kernel, ranks=((rank, rank, 0),) * len(kept))  # type: ignore[arg-type]  # of parameters
            plan = Plan.of(inventory, [LayerPlan(experts=kept, rank=factors)] * len(inventory.layers))
            found = []
            for keeping in (None, made):
                with realised(model, inventory, plan, stats, keeping) as changed, torch.no_grad():
                    found.append(changed(tiny_tokens()).logits)
            assert torch.equal(*found)
    # Three sets of experts share what is made of an expert alone; each set of those with few tokens is made anew.
    alone = kernel == "svd" or tokens > 1.0
    assert len(made._kept) == len(inventory.layers) * 2 * (8 if alone else 4 + 2 + 2 + 4)


def test_room_is_kept_to() -> None:
    def expert() -> ExpertMatrices:
        return ExpertMatrices(*(torch.zeros(2, 2) for _ in range(3)))

    made = MadeExperts(room=100)
    first = made.made("a", expert)
    assert made.made("a", expert) is first and made.used == 48
    made.made("b", expert)
    made.made("a", expert)
    made.made("c", expert)
    assert made.used == 96 and made.made("a", expert) is first, "the one that was asked for longest ago has gone"
