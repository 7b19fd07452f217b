"""Which weights a recovery trains, and how they come back into the model.

*Source*: LoRA, arXiv 2106.09685; on the attention and experts of a compressed MoE model, arXiv 2411.01016.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from bench.checkpoint.checkpoint import Checkpoint
from bench.experts.stored_module import CompressedExperts
from bench.recovery.placed import expert_weights, other_weights, weights_of_role
from bench.recovery.updates import add_updates, merge_updates
from bench.recovery.zeros import Kept, restore_zeros
from bench.settings.recovery import RecoverySettings
from methods.framework.errors import RefusedError
from methods.framework.inventory import ROUTER_ROLES

ATTENTION = "attention."


@dataclass(frozen=True, eq=False)
class Trained:
    """What is trained of a model.

    Args:
        weights: parameters that the optimiser moves, by a name that is the same each time.
        parts: names of the model's own parameters that differ afterwards.
        finish: brings what was learned into these parameters and returns the model.
    """

    weights: Mapping[str, nn.Parameter]
    parts: tuple[str, ...]
    finish: Callable[[], PreTrainedModel]


def prepared(model: PreTrainedModel, checkpoint: Checkpoint, settings: RecoverySettings, kept: Kept) -> Trained:
    """Freeze what is not trained in ``model``, add adapters for ``lora``, and return what is trained.

    Args:
        model: the loaded model of ``checkpoint``; changed in place.
        checkpoint: what is recovered.
        settings: what to train.
        kept: weights that are not zero, for parameters in which zeros stay.

    Raises:
        RefusedError: none of the weights that ``settings`` name can be trained.
    """
    stored = next((entry for entry in checkpoint.inventory.tensors() if entry.stored is not None), None)
    if stored is not None and stored.stored is not None and settings.kind != "router_kd":
        raise RefusedError(
            f"{settings.kind} trains matrices that {checkpoint.name} stores as {stored.stored.format} ({stored.name}), where "
            "trained values have no place; choose router_kd, which trains the router alone, or train the 16-bit checkpoint"
        )
    experts = expert_weights(model, checkpoint)
    if settings.trains_experts and not experts:
        raise RefusedError(
            f"{settings.kind} trains routed experts, and {checkpoint.name} has none that can be trained: they are stored "
            "in few bits, or every MoE sub-layer was dropped; set experts to false, or choose router_kd or lora"
        )
    if settings.kind == "lora":
        return _adapted(model, checkpoint, settings, kept, tuple(experts) if settings.trains_experts else ())
    if settings.kind == "router_kd":
        chosen = weights_of_role(model, checkpoint, ROUTER_ROLES)
        if not chosen:
            raise RefusedError(f"{checkpoint.name} has no router left: there is nothing that router_kd could train")
    else:
        chosen = other_weights(model, checkpoint) | (experts if settings.trains_experts else {})
    model.requires_grad_(False)
    for weight in chosen.values():
        weight.requires_grad_(True)
    return Trained(chosen, tuple(chosen), lambda: model)


def _adapted(
    model: PreTrainedModel, checkpoint: Checkpoint, settings: RecoverySettings, kept: Kept, experts: tuple[str, ...]
) -> Trained:
    """Add low-rank updates to the matrices of the attention, and to those of ``experts``.

    W + (alpha / rank) B A, with A random and B zero before the first step; nothing else of the model changes.

    *Differs*: updates of sparse experts are dense while they are trained; their zeros are restored after the updates were
    added. Alpha is the rank where none is given, so that updates are not scaled. Of experts that are stored as factors each
    factor gets an update; their weights over shared bases, which are vectors, stay.
    """
    from peft import LoraConfig, get_peft_model

    roles = {e.role for e in checkpoint.inventory.tensors() if e.role.startswith(ATTENTION) and len(e.shape) == 2}
    attention = tuple(weights_of_role(model, checkpoint, roles))
    if not attention and not experts:
        raise RefusedError(
            f"lora trains the attention, and that of {checkpoint.name} is stored in few bits; set experts to true where "
            "experts can be trained, or choose full, which trains what is left"
        )
    matrices = tuple(name for name in experts if model.get_parameter(name).ndim > 1)
    own = tuple(n for n in matrices if isinstance(model.get_submodule(n.rpartition(".")[0]), CompressedExperts))
    alpha = settings.alpha or float(settings.rank)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=[name.removesuffix(".weight") for name in attention],
        target_parameters=[name for name in matrices if name not in own] or None,
    )
    adapted = get_peft_model(model, config)
    add_updates(model, own, settings.rank, alpha / settings.rank)
    weights = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}

    def finish() -> PreTrainedModel:
        merge_updates(model, own)
        merged: PreTrainedModel = adapted.merge_and_unload()
        restore_zeros(merged, {name: mask for name, mask in kept.items() if name in (*attention, *matrices)})
        return merged

    return Trained(weights, (*attention, *matrices), finish)
