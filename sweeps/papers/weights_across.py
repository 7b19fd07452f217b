"""How alike the weights of experts of all layers are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from methods.framework.errors import RefusedError
from methods.framework.stat_spec import Array

if TYPE_CHECKING:
    import torch

    from bench.checkpoint.checkpoint import Checkpoint


def weights_across(checkpoint: Checkpoint, device: str) -> tuple[list[int], Array]:
    """Return the similarity of every two experts of a model: linear CKA of their weights, hidden dimensions as samples.

    Args:
        checkpoint: the model.
        device: torch device of the computation.

    Returns:
        The layer of each expert, layer by layer, and the matrix of all experts.

    Raises:
        RefusedError: experts that are stored in another form than three whole matrices.
    """
    import torch

    from bench.calibration.layers.layer_experts import LayerExperts
    from bench.calibration.layers.weights import WeightReader
    from bench.calibration.sums.places import ModelPlace
    from methods.framework.layer_plan import LayerPlan
    from methods.kernels.cka import linear_cka

    inventory = checkpoint.inventory
    moe = inventory.moe_layers
    if any(inventory.layers[index].form is not None for index in moe):
        raise RefusedError("experts that are stored in another form than three whole matrices are not compared here")
    reader = WeightReader(checkpoint, torch.device(device), torch.float32)

    def features() -> Iterator[Sequence[torch.Tensor]]:
        for index in moe:
            experts = LayerExperts(reader, inventory.layers[index], LayerPlan())
            for number in range(len(experts)):
                network = experts.read(number)
                yield network.gate_up_2FD.T, network.down_DF

    place = ModelPlace.without_tokens(inventory, torch.device(device), None)
    layers = [index for index in moe for _ in range(inventory.layers[index].experts)]
    return layers, linear_cka(features(), len(layers), inventory.hidden, place.rows)
