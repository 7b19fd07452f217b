"""A whole transformers model in memory, with its experts' modules at hand.

Letters: T tokens, K experts per token, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from methods.framework.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bench.checkpoint.checkpoint import Checkpoint


def frozen_model(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> tuple[Any, dict[int, nn.Module]]:
    """Return the model, of which no weight takes a gradient, and the experts' module of every MoE layer.

    The modules are called with (states TD, chosen rows TK, their weights TK) and return the sum of the weighted outputs.

    Args:
        checkpoint: an open checkpoint that fits into the memory of ``device`` as a whole.
        device: where the model is.
        dtype: type of its weights and activations.

    Raises:
        CheckpointError: transformers has no class for it, or one whose experts are no module of their own.
    """
    from bench.experts.weighed_inputs import by_token
    from bench.models.load import load_model

    # Eager experts: their backward pass exists on every device, and in float64.
    model: Any = load_model(checkpoint.complete(), dtype=dtype, experts_implementation="eager").to(device)
    model.requires_grad_(False)
    found: dict[int, nn.Module] = {}
    for layer in checkpoint.inventory.moe_layers:
        _, block = checkpoint.family.mlp_modules(layer)
        experts = getattr(model.get_submodule(block), "experts", None)
        if experts is None:
            raise CheckpointError(
                f"{block} of {type(model).__name__} has no `experts`, a module whose inputs and output are at hand"
            )
        found[layer] = by_token(experts) if checkpoint.inventory.router.weighs_inputs else experts
    return model, found
