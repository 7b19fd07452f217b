"""What the routed experts of a running transformers model do, by hooks on its own modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bench.checkpoint.checkpoint import Checkpoint
from methods.framework.stats import GATE_POWERS, NORM_POWERS


def gate_norm_moments(model: Any, checkpoint: Checkpoint, windows: Sequence[Sequence[int]]) -> dict[int, Any]:
    """Return the sums of g^a |f|^b over the tokens of each expert, by layer, in float64.

    Each output is that of the model's own experts module, which is given one expert with weight 1.

    Args:
        model: of transformers.
        checkpoint: whose model it is.
        windows: token ids, each run alone.
    """
    inventory, found = checkpoint.inventory, {}
    if inventory.router.weighs_inputs:
        return _moments_of_weighed_inputs(model, checkpoint, windows)
    modules = {layer: model.get_submodule(checkpoint.family.experts_module(layer)) for layer in inventory.moe_layers}
    seen: dict[int, list[tuple[Any, ...]]] = {layer: [] for layer in modules}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs, layer=layer: seen[layer].append((*args, *kwargs.values())), with_kwargs=True
        )
        for layer, module in modules.items()
    ]
    with torch.no_grad():
        for window in windows:
            model(input_ids=torch.tensor([list(window)]), use_cache=False)
        for hook in hooks:
            hook.remove()
        for layer, module in modules.items():
            sums = np.zeros((inventory.layers[layer].experts, len(GATE_POWERS), len(NORM_POWERS)))
            for states, chosen, weights in seen[layer]:
                _add(sums, module, states.reshape(-1, states.shape[-1]), chosen, weights)
            found[layer] = sums
    return found


def _moments_of_weighed_inputs(model: Any, checkpoint: Checkpoint, windows: Sequence[Sequence[int]]) -> dict[int, Any]:
    """Return the same where scores multiply inputs: each output counts once, and the module gets one expert's input alone."""
    found = {}
    for layer in checkpoint.inventory.moe_layers:
        module = model.get_submodule(checkpoint.family.experts_module(layer))
        experts = checkpoint.inventory.layers[layer].experts
        seen: list[torch.Tensor] = []
        handle = module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            for window in windows:
                model(input_ids=torch.tensor([list(window)]), use_cache=False)
            handle.remove()
            sums = np.zeros((experts, len(GATE_POWERS), len(NORM_POWERS)))
            for rows in seen:
                for expert, states in enumerate(rows.view(experts, -1, rows.shape[-1])):
                    for state in states[(states != 0).any(dim=1)]:
                        alone = torch.zeros(experts, len(state))
                        alone[expert] = state
                        norm = float(module(alone)[expert].double().norm())
                        sums[expert] += np.array([[norm**b for b in NORM_POWERS]] * len(GATE_POWERS))
        found[layer] = sums
    return found


def _add(sums: Any, module: Any, states_TD: torch.Tensor, chosen_TK: torch.Tensor, weights_TK: torch.Tensor) -> None:
    for token, (experts, gates) in enumerate(zip(chosen_TK.tolist(), weights_TK.double().tolist(), strict=True)):
        for expert, gate in zip(experts, gates, strict=True):
            one = module(states_TD[token : token + 1], torch.tensor([[expert]]), torch.ones(1, 1))
            norm = float(one.double().norm())
            for a in GATE_POWERS:
                for b in NORM_POWERS:
                    sums[expert, a, b] += gate**a * norm**b


def layer_states(model: Any, checkpoint: Checkpoint, windows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the residual stream before the first and behind every decoder layer, (B, T, D), one window behind the other."""
    columns = []
    for window in windows:
        taken: list[torch.Tensor] = []
        hooks = [layer.register_forward_hook(_keeper(taken)) for layer in decoder_layers(model, checkpoint)]
        hooks.append(
            decoder_layers(model, checkpoint)[0].register_forward_pre_hook(_early_keeper(taken), with_kwargs=True)
        )
        with torch.no_grad():
            model(input_ids=torch.tensor([list(window)]), use_cache=False)
        for hook in hooks:
            hook.remove()
        columns.append(torch.stack(taken))
    return torch.cat(columns, dim=1)


def _keeper(taken: list[torch.Tensor]) -> Any:
    return lambda _, args, output: taken.append((output[0] if isinstance(output, tuple) else output)[0])


def _early_keeper(taken: list[torch.Tensor]) -> Any:
    return lambda _, args, kwargs: taken.append((args[0] if args else kwargs["hidden_states"])[0])


def decoder_layers(model: Any, checkpoint: Checkpoint) -> list[Any]:
    """Return the decoder layers of the model, by the place of the experts of one of them."""
    some = checkpoint.inventory.moe_layers[0]
    stack = checkpoint.family.experts_module(some).partition(f".{some}.")[0]
    return list(model.get_submodule(stack))
