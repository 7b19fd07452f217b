"""One decoder layer of a transformers model in memory: its parts, by the names that the file of its family states."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from bench.checkpoint.tensor_files import TORCH_DTYPES
from bench.families.family import Family, family_named
from methods.framework.errors import PlanError
from methods.framework.inventory import EXPERT_ROLES, Inventory, LayerInventory, TensorEntry
from methods.kernels.merging import ExpertMatrices

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

WRITE_INSTEAD = "as transformers 5.19 has it; write the checkpoint with `moebench apply` instead"


@dataclass(frozen=True, eq=False)
class ResidentLayer:
    """A decoder layer of ``model``.

    Args:
        model: the uncompressed model, with all of its decoder layers in place.
        inventory: its inventory.
        index: number of the layer.
    """

    model: PreTrainedModel
    inventory: Inventory
    index: int

    @property
    def layer(self) -> LayerInventory:
        """What the checkpoint holds of this layer."""
        return self.inventory.layers[self.index]

    @cached_property
    def family(self) -> Family:
        """Family of the model."""
        return family_named(self.inventory.family)

    @cached_property
    def block(self) -> nn.Module:
        """The feed-forward sub-layer."""
        return self._module(self.family.mlp_modules(self.index)[1])

    @cached_property
    def experts(self) -> nn.Module:
        """The module that runs the routed experts."""
        return self._module(self.family.experts_module(self.index))

    @cached_property
    def dtypes(self) -> dict[str, torch.dtype]:
        """The dtype on disk by role, to which computed tensors are rounded before they take the model's."""
        return {entry.role: TORCH_DTYPES[entry.dtype] for entry in self.layer.tensors}

    def router(self) -> nn.Module:
        """Return the module that chooses the experts.

        Raises:
            PlanError: it is not built in the way that the routers of transformers are.
        """
        path = self.family.router_module(self.index)
        try:
            router: nn.Module | None = self._module(path)
        except AttributeError:
            router = None
        name = next(name for name, role in self.family.router_attributes().items() if role == "router.weight")
        weight = None if router is None else dict(router.named_parameters()).get(name)
        chooses = self.block if self.family.file.router.in_block else router
        if weight is None or not hasattr(chooses, "top_k") or weight.shape[0] != self.layer.rows:
            raise PlanError(
                f"cannot realise a plan on {type(self.block).__name__}: expected a router `{path.rpartition('.')[2]}` with "
                f"`top_k` and a {name} of {self.layer.rows} rows, {WRITE_INSTEAD}"
            )
        assert router is not None
        return router

    def tensor(self, entry: TensorEntry) -> Tensor:
        """Return where the model keeps ``entry``: a parameter or a view of a part of it."""
        place = self.family.placement(entry)
        found: Tensor = place.within(_named(self.model, place.name))
        return found

    def matrices(self, expert: int) -> ExpertMatrices:
        """Return where the model keeps gate, up and down of ``expert``."""
        return ExpertMatrices(*(self.tensor(self._entries[expert, role]) for role in EXPERT_ROLES))

    def check_experts(self) -> None:
        """Check that the experts can be overwritten one by one.

        Raises:
            PlanError: they are stored in another way than in the classes of transformers.
        """
        names = [rule.names[0].rpartition(".")[2] for rule in self.family.file.tensors.fused]
        stacks = [getattr(self.experts, name, None) for name in names]
        if any(stack is None or stack.shape[0] != self.layer.experts for stack in stacks):
            expected = " and ".join(f"`{name}`" for name in names)
            raise PlanError(
                f"cannot change experts in {type(self.experts).__name__}: expected {expected} of {self.layer.experts} "
                f"experts, {WRITE_INSTEAD}"
            )

    @cached_property
    def _entries(self) -> dict[tuple[int | None, str], TensorEntry]:
        return {(entry.expert, entry.role): entry for entry in self.layer.with_role(*EXPERT_ROLES)}

    def _module(self, path: str) -> nn.Module:
        found: nn.Module = self.model.get_submodule(path)
        return found


def nothing(outputs: int, hidden_BSD: Tensor) -> Any:
    """Return what a dropped block of so many ``outputs`` returns."""
    zeros = torch.zeros_like(hidden_BSD)
    return zeros if outputs == 1 else (zeros, *(None for _ in range(outputs - 1)))


def _named(model: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer of ``model``."""
    owner, _, attribute = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(owner), attribute)
    return found
