"""Which parameters of a loaded model hold which tensors of its checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from bench.checkpoint.checkpoint import Checkpoint
from bench.models.filled import places
from methods.framework.inventory import TensorEntry
from methods.framework.linears import whole_linear


def experts_module(checkpoint: Checkpoint, layer: int) -> str:
    """Return the name of the module that holds the routed experts of a layer."""
    return checkpoint.family.experts_module(layer)


def expert_weights(model: nn.Module, checkpoint: Checkpoint) -> dict[str, nn.Parameter]:
    """Return the parameters of the routed experts by name, without those of layers that are stored in few bits."""
    found: dict[str, nn.Parameter] = {}
    for layer in checkpoint.inventory.moe_layers:
        form = checkpoint.inventory.layers[layer].form
        if form is None or form.bits is None:
            path = experts_module(checkpoint, layer)
            found |= {f"{path}.{name}": weight for name, weight in model.get_submodule(path).named_parameters()}
    return found


def other_weights(model: nn.Module, checkpoint: Checkpoint) -> dict[str, nn.Parameter]:
    """Return the parameters of everything but the routed experts by name, without linear layers in few bits."""
    paths = tuple(f"{experts_module(checkpoint, layer)}." for layer in checkpoint.inventory.moe_layers)
    packed = {checkpoint.family.placement(e).name for e in map(whole_linear, checkpoint.inventory.tensors()) if e}
    return {
        name: weight for name, weight in model.named_parameters() if not name.startswith(paths) and name not in packed
    }


def weights_of_role(model: nn.Module, checkpoint: Checkpoint, roles: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return the parameters that hold the tensors with one of ``roles`` by name; buffers are none.

    Args:
        model: loaded from ``checkpoint``.
        checkpoint: says where its tensors lie in the model.
        roles: of the inventory.
    """
    wanted, known = set(roles), dict(model.named_parameters())
    names = (checkpoint.family.placement(e).name for e in checkpoint.inventory.tensors() if e.role in wanted)
    return {name: known[name] for name in names if name in known}


def held(model: nn.Module, checkpoint: Checkpoint, names: Iterable[str]) -> Iterator[tuple[TensorEntry, Tensor]]:
    """Yield every tensor of ``checkpoint`` that is a part of the parameters ``names`` of ``model``, with its values.

    Args:
        model: loaded from ``checkpoint``.
        checkpoint: says where its tensors lie in the model.
        names: parameters of the model.
    """
    memory = {model.get_parameter(name).untyped_storage().data_ptr() for name in names}
    for entry, value in places(model, checkpoint):
        if value.untyped_storage().data_ptr() in memory:
            yield entry, value.detach()
