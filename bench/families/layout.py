"""Where the tensors of a family lie: under which names on disk, alone or fused, and in which parameters of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bench.families.family_file import FamilyFile
from methods.framework.forms import whole_of_packed
from methods.framework.inventory import EXPERT_ROLES, ROUTER_ROLES, ExpertForm, Inventory, TensorEntry
from methods.framework.linears import part_of_linear, whole_linear
from methods.framework.transfer import constant_template


@dataclass(frozen=True, slots=True)
class Placement:
    """Where transformers keeps a tensor: parameter ``name``, and for experts rows ``start:stop`` of ``[expert]``."""

    name: str
    expert: int | None = None
    start: int = 0
    stop: int | None = None

    def within(self, parameter: Any) -> Any:
        """Return the part of ``parameter``, the tensor called ``name``, that is meant: a view."""
        return parameter if self.expert is None else parameter[self.expert][self.start : self.stop]


@dataclass(frozen=True, slots=True)
class FusedSlot:
    """A matrix inside a 3-D tensor on disk: candidate ``names``, the full ``shape`` [E, rows, columns], first row."""

    names: tuple[str, ...]
    shape: tuple[int, int, int]
    start: int


@dataclass(frozen=True, eq=False)
class Layout:
    """Names and places of the tensors of one family, as its file states them."""

    file: FamilyFile

    def placement(self, entry: TensorEntry) -> Placement:
        """Return where the transformers model keeps ``entry``; experts are fused into 3-D parameters there."""
        if entry.role in EXPERT_ROLES and (slot := self.fused_slot(entry, experts=0)):
            return Placement(slot.names[0], entry.expert, slot.start, slot.start + entry.shape[0])
        return Placement(self.disk_names(entry)[-1])

    def disk_names(self, entry: TensorEntry) -> tuple[str, ...]:
        """Return the names that ``entry`` may have on disk as a tensor of its own, the classic one first."""
        module = self._modules.get(entry.template)
        return (entry.name,) if module is None else (entry.name, module.format(layer=entry.layer, expert=entry.expert))

    def fused_slot(self, entry: TensorEntry, experts: int) -> FusedSlot | None:
        """Return where ``entry`` lies in a fused layout of ``experts`` experts; None if it is no expert's matrix."""
        for rule in self.file.tensors.fused:
            if entry.role in rule.roles:
                rows, columns = entry.shape
                shape = (experts, rows * len(rule.roles), columns)
                return FusedSlot(
                    tuple(name.format(layer=entry.layer) for name in rule.names),
                    shape,
                    rows * rule.roles.index(entry.role),
                )
        return None

    def mlp_modules(self, layer: int) -> tuple[str, str]:
        """Return the transformers module names of the norm before a layer's MoE block, and of the block itself."""
        norm = next(rule for rule in self.file.tensors.layer if rule.role == "norm.mlp")
        path = (norm.module or norm.name).rpartition(".")[0].format(layer=layer)
        if self.file.dense:
            gate = next(rule for rule in self.file.tensors.dense if rule.role == "dense.gate")
            return path, (gate.module or gate.name).format(layer=layer).rsplit(".", 2)[0]
        return path, self.experts_module(layer).rpartition(".")[0]

    def experts_module(self, layer: int) -> str:
        """Return the transformers name of the module that runs the routed experts of a layer."""
        return self.file.tensors.fused[0].names[0].rpartition(".")[0].format(layer=layer)

    def router_module(self, layer: int) -> str:
        """Return the transformers name of the module that chooses the experts of a layer."""
        router = next(rule for rule in self.file.tensors.moe if rule.role == "router.weight")
        return (router.module or router.name).rpartition(".")[0].format(layer=layer)

    def router_attributes(self) -> dict[str, str]:
        """Return the attributes of that module whose first axis is the routed expert, with their roles."""
        return {name: role for owner, name, role in self._router_tensors() if owner == self._router}

    def router_arguments(self) -> tuple[str, ...]:
        """Return the roles of tensors of the router that lie outside of that module, in the order in which it takes them in."""
        return tuple(role for owner, _, role in self._router_tensors() if owner != self._router)

    @cached_property
    def _router(self) -> str:
        return next(owner for owner, _, role in self._router_tensors() if role == "router.weight")

    def _router_tensors(self) -> Iterator[tuple[str, str, str]]:
        """Yield module, attribute and role of every tensor of the router."""
        for rule in self.file.tensors.moe:
            if rule.role in ROUTER_ROLES:
                owner, _, name = (rule.module or rule.name).rpartition(".")
                yield owner, name, rule.role

    def module_shapes(self, inventory: Inventory) -> dict[str, tuple[int, ...]]:
        """Return every parameter and stored buffer that the transformers model of ``inventory`` has, with its shape.

        Those of experts that are stored in another form are left out, since ``bench.experts.stored_module`` holds them; but for
        few bits alone, where the stock module holds what they stand for.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for entry, count in self.with_counts(inventory):
            if (form := _form(inventory, entry)) is not None:
                whole = whole_of_packed(entry) if form == ExpertForm(bits=form.bits) else None
                if whole is None:
                    continue
                entry = whole
            linear = whole_linear(entry)
            if linear is None and part_of_linear(entry) is not None:
                continue  # the module holds the matrix, not what describes its integers
            entry = linear or entry
            slot = self.fused_slot(entry, count)
            shapes[self.placement(entry).name] = entry.shape if slot is None else slot.shape
        return shapes

    def file_shapes(self, inventory: Inventory) -> dict[str, tuple[int, ...]]:
        """Return the tensors that files written by transformers or moebench hold of ``inventory``, with their shapes."""
        return {entry.name: entry.shape for entry in inventory.tensors()}

    def with_counts(self, inventory: Inventory) -> Iterator[tuple[TensorEntry, int]]:
        """Yield every tensor with the experts that its layer stores, 0 outside of layers."""
        yield from ((entry, 0) for entry in inventory.outer)
        for layer in inventory.layers:
            yield from ((entry, layer.experts) for entry in layer.tensors)

    @cached_property
    def _modules(self) -> dict[str, str]:
        tensors = self.file.tensors
        rules = (*tensors.outer, *tensors.layer, *tensors.dense, *tensors.moe)
        modules = {rule.name: rule.module for rule in rules if rule.module is not None}
        routers = [(rule.name, rule.module) for rule in rules if rule.role == "router.weight" and rule.module]
        return modules | {_constants_beside(name): _constants_beside(module) for name, module in routers}


def _form(inventory: Inventory, entry: TensorEntry) -> ExpertForm | None:
    """Return the form of the experts whose tensor ``entry`` is; None where they are whole, and for other tensors."""
    if entry.layer is None or not entry.role.startswith("expert."):
        return None
    return inventory.layers[entry.layer].form


def _constants_beside(router: str) -> str:
    return constant_template(TensorEntry(router, "router.weight", (), ""))
