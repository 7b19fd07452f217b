"""What the routers of a model decide: their outputs, the balance of their load, and experts taken away from them."""

# L MoE layers, N classes of text, E experts, K experts per token, T tokens.

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Routing = tuple[Tensor, Tensor, Tensor]  # router logits (T, E), weights (T, K), chosen experts (T, K)


def routers(model: nn.Module) -> list[nn.Module]:
    """Return the routers of a model, first layer first."""
    return [module for name, module in model.named_modules() if name.endswith("mlp.gate")]


@contextlib.contextmanager
def recorded(model: nn.Module) -> Iterator[list[Routing]]:
    """Collect the outputs of all routers of the forward passes made inside the block."""
    records: list[Routing] = []

    def keep(_module: nn.Module, _inputs: Any, output: Routing) -> None:
        records.append(output)

    handles = [router.register_forward_hook(keep) for router in routers(model)]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def load(routing: Routing) -> Tensor:
    """Return the share of the choices of one layer that each expert got, of shape (E,)."""
    logits_TE, _, chosen_TK = routing
    counts_E = torch.bincount(chosen_TK.flatten(), minlength=logits_TE.shape[-1])
    return counts_E / counts_E.sum()


def balance_loss(records: Sequence[Routing]) -> Tensor:
    """Return E Σ_e load_e probability_e, averaged over layers; it is 1 when all experts are used alike.

    *Source*: Fedus et al. 2022, "Switch Transformers", equation 4.
    """
    losses = []
    for routing in records:
        probability_E = routing[0].float().softmax(-1).mean(0)
        losses.append(len(probability_E) * (load(routing) * probability_E).sum())
    return torch.stack(losses).mean()


def entropy(load_E: Tensor) -> float:
    """Return the entropy of a load divided by its largest value, log E."""
    return float(torch.special.entr(load_E).sum() / torch.tensor(float(len(load_E))).log())


def specialisation(loads_NE: Tensor) -> float:
    """Return the mutual information of text class and expert, divided by the entropy of N classes alike, log N.

    Args:
        loads_NE: the load of a layer on each of N classes of text, rows summing to one.
    """
    joint_NE = loads_NE / len(loads_NE)
    independent_NE = joint_NE.sum(0, keepdim=True) / len(loads_NE)
    information = (torch.special.xlogy(joint_NE, joint_NE) - torch.special.xlogy(joint_NE, independent_NE)).sum()
    return float(information / torch.tensor(float(len(loads_NE))).log())


@contextlib.contextmanager
def without(model: PreTrainedModel, removed_LE: Tensor) -> Iterator[None]:
    """Route around experts inside the block: their logits are minus infinity, as if they had never been there.

    Args:
        model: a Mixtral, Qwen2-MoE or DeepSeek-V2 model.
        removed_LE: True for each expert that no token may choose.
    """
    renormalise = model.config.model_type == "mixtral" or bool(getattr(model.config, "norm_topk_prob", False))

    def reroute(removed_E: Tensor) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Routing) -> Routing:
            logits_TE = output[0].masked_fill(removed_E, float("-inf"))
            top = logits_TE.float().softmax(-1).topk(output[2].shape[-1], dim=-1)
            weights_TK = top.values / top.values.sum(-1, keepdim=True) if renormalise else top.values
            return logits_TE, weights_TK.to(output[1].dtype), top.indices

        return hook

    handles = [
        router.register_forward_hook(reroute(removed_E))
        for router, removed_E in zip(routers(model), removed_LE, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
