"""Accuracy of a model after experts were removed at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bench.pocket.balance import routers, without
from bench.pocket.score import domain_accuracy

FRACTIONS = (0.0, 0.25, 0.5, 0.75)
SEEDS = (0, 1, 2)


def random_experts(layers: int, experts: int, fraction: float, seed: int) -> Tensor:
    """Return a mask of shape (layers, experts) with the same number of experts removed from every layer.

    Args:
        layers: MoE layers.
        experts: experts of each.
        fraction: share of them that goes, 0 to 1.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    order_LE = torch.stack([torch.randperm(experts, generator=generator) for _ in range(layers)])
    return order_LE < round(fraction * experts)


def random_removal(
    model: PreTrainedModel,
    fractions: Sequence[float] = FRACTIONS,
    seeds: Sequence[int] = SEEDS,
    items: int = 200,
) -> list[dict[str, Any]]:
    """Return, for each fraction of routed experts removed, the mean accuracy over the domains for each seed.

    Args:
        model: a pocket model.
        fractions: shares of the routed experts of each layer, 0 to 1.
        seeds: of the draws; nothing removed is measured once.
        items: questions a domain.
    """
    gates = routers(model)
    experts = gates[0].get_parameter("weight").shape[0]
    table = []
    for fraction in fractions:
        means = []
        for seed in seeds if fraction else seeds[:1]:
            with without(model, random_experts(len(gates), experts, fraction, seed)):
                accuracy = domain_accuracy(model, items)
            means.append(round(sum(accuracy.values()) / len(accuracy), 4))
        table.append({"removed": fraction, "mean_accuracy": round(sum(means) / len(means), 4), "by_seed": means})
    return table
