"""Where the tensors of a family lie: under which names on disk, alone or fused, and in which parameters of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from bench.families.family_file import FamilyFile
from bench.families.wrapped_config import own_name, wrapped_name
from methods.framework.forms import whole_of_packed
from methods.framework.inventory import EXPERT_ROLES, PASSED_ROLE, ROUTER_ROLES, ExpertForm, Inventory, TensorEntry
from methods.framework.linears import part_of_linear, whole_linear
from methods.framework.transfer import constant_template


@dataclass(frozen=True, slots=True)
class Cut:
    """Which part of what a fused tensor holds of one expert is a matrix, or a bias.

    Args:
        part: its place among the roles of the tensor.
        parts: how many there are.
        transposed: whether columns come before rows.
        interleaved: whether rows of the roles alternate.
    """

    part: int
    parts: int
    transposed: bool = False
    interleaved: bool = False

    def of(self, whole: Any) -> Any:
        """Return the part of ``whole``, a tensor [rows, columns] or [rows]: a view."""
        rows = whole.T if self.transposed else whole
        if self.interleaved:
            return rows[self.part :: self.parts]
        size = rows.shape[0] // self.parts
        return rows[self.part * size : (self.part + 1) * size]

    @property
    def is_run(self) -> bool:
        """Whether it is one run of bytes."""
        return not self.transposed and (self.parts == 1 or not self.interleaved)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where transformers keeps a tensor: parameter ``name``, and for experts a part of ``[expert]``."""

    name: str
    expert: int | None = None
    cut: Cut | None = None

    def within(self, parameter: Any) -> Any:
        """Return the part of ``parameter``, the tensor called ``name``, that is meant: a view."""
        return parameter if self.expert is None or self.cut is None else self.cut.of(parameter[self.expert])


@dataclass(frozen=True, slots=True)
class FusedSlot:
    """A matrix or bias inside a tensor of all experts of a layer.

    Args:
        names: of that tensor on disk; the first is that of transformers.
        rows: shape [E, rows, columns] with rows first, or [E, rows].
        cut: part of one expert, as transformers has it.
        swapped: whether files have rows and columns the other way round.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    cut: Cut
    swapped: bool = False

    @property
    def start(self) -> int:
        """First row, where rows do not alternate."""
        return self.rows[1] // self.cut.parts * self.cut.part

    @property
    def on_disk(self) -> Cut:
        """The part of one expert, as files have it."""
        return replace(self.cut, transposed=self.cut.transposed != self.swapped)

    def shape(self, cut: Cut) -> tuple[int, ...]:
        """Return the shape of the whole tensor where an expert's part is ``cut``."""
        return (self.rows[0], *reversed(self.rows[1:])) if cut.transposed else self.rows

    def cut_of(self, shape: tuple[int, ...]) -> Cut | None:
        """Return the part of one expert in a file's tensor of ``shape``; None where it has another shape."""
        ways = (self.on_disk, self.cut) if self.swapped else (self.cut,)
        return next((cut for cut in ways if self.shape(cut) == shape), None)


@dataclass(frozen=True, eq=False)
class Layout:
    """Names and places of the tensors of one family, as its file states them."""

    file: FamilyFile

    def placement(self, entry: TensorEntry) -> Placement:
        """Return where the transformers model keeps ``entry``; experts are fused into 3-D parameters there."""
        if entry.expert is not None and (slot := self.fused_slot(entry, experts=0)):
            return Placement(slot.names[0], entry.expert, slot.cut)
        return Placement(self._module_name(entry))

    def disk_names(self, entry: TensorEntry) -> tuple[str, ...]:
        """Return the names that ``entry`` may have on disk as a tensor of its own, the classic one first."""
        own, module = own_name(self.file, entry.name), self._module_name(entry)
        return tuple(dict.fromkeys((entry.name, *self._either(own), *self._either(module))))

    def _either(self, name: str) -> tuple[str, str]:
        """Return what a tensor of a language model is called where that stands alone, and within a larger model."""
        return name, wrapped_name(self.file, name)

    def _module_name(self, entry: TensorEntry) -> str:
        """Return the name of ``entry`` in transformers, where it is no expert's matrix."""
        module = self._modules.get(own_name(self.file, entry.template))
        if module is None:
            return own_name(self.file, entry.name)
        return module.format(layer=entry.layer, expert=entry.expert)

    def fused_slot(self, entry: TensorEntry, experts: int) -> FusedSlot | None:
        """Return where ``entry`` lies in a fused layout of ``experts`` experts; None if it is no expert's matrix."""
        for rule in self.file.tensors.fused:
            if entry.role in rule.roles:
                parts = len(rule.roles)
                names = [name.format(layer=entry.layer) for name in rule.names]
                return FusedSlot(
                    tuple(dict.fromkeys(one for name in names for one in self._either(name))),
                    (experts, entry.shape[0] * parts, *entry.shape[1:]),
                    Cut(rule.roles.index(entry.role), parts, rule.transposed, rule.interleaved),
                    rule.swapped,
                )
        return None

    def written_fused(self, entry: TensorEntry, experts: int) -> tuple[str, FusedSlot] | None:
        """Return the tensor of all experts in which files must hold ``entry``, and where; None where it has one of its own.

        Args:
            entry: what is stored of an expert that is whole.
            experts: of its layer, all of which are whole.
        """
        written = any(entry.role in rule.roles and rule.written for rule in self.file.tensors.fused)
        slot = self.fused_slot(entry, experts) if written and entry.expert is not None else None
        if slot is None:
            return None
        wrapped = own_name(self.file, entry.template) != entry.template
        return (wrapped_name(self.file, slot.names[0]) if wrapped else slot.names[0]), slot

    def mlp_modules(self, layer: int) -> tuple[str, str]:
        """Return the transformers module names of the norm before a layer's MoE block, and of the block itself."""
        norm = next(rule for rule in self.file.tensors.layer if rule.role == "norm.mlp")
        path = (norm.module or norm.name).rpartition(".")[0].format(layer=layer)
        if self.file.dense:
            gate = next(rule for rule in self.file.tensors.dense if rule.role == "dense.gate")
            return path, (gate.module or gate.name).format(layer=layer).rsplit(".", 2)[0]
        return path, self.experts_module(layer).rpartition(".")[0]

    def final_norm_module(self) -> str:
        """Return the transformers name of the norm before the output head."""
        rule = next(rule for rule in self.file.tensors.outer if rule.role == "norm.final")
        return (rule.module or rule.name).rpartition(".")[0]

    def output_norm_module(self, layer: int) -> str | None:
        """Return the transformers name of the norm that the output of a feed-forward sub-layer passes; None: there is none."""
        rules = (rule for rule in self.file.tensors.layer if rule.role == self.file.sublayer.norm)
        return next(((rule.module or rule.name).rpartition(".")[0].format(layer=layer) for rule in rules), None)

    def experts_module(self, layer: int) -> str:
        """Return the transformers name of the module that runs the routed experts of a layer."""
        return self.file.tensors.fused[0].names[0].rpartition(".")[0].format(layer=layer)

    def router_module(self, layer: int) -> str:
        """Return the transformers name of the module that chooses the experts of a layer."""
        return self._router.format(layer=layer)

    def router_attributes(self) -> dict[str, str]:
        """Return the attributes of that module, or of modules in it (``wg.weight``), that hold the rows, with their roles."""
        inside = f"{self._router}."
        return {name.removeprefix(inside): role for name, role in self._router_tensors() if name.startswith(inside)}

    def router_arguments(self) -> tuple[str, ...]:
        """Return the roles of tensors of the router that lie outside of that module, in the order in which it takes them in."""
        inside = f"{self._router}."
        return tuple(role for name, role in self._router_tensors() if not name.startswith(inside))

    @cached_property
    def _router(self) -> str:
        weight = next(name for name, role in self._router_tensors() if role == "router.weight")
        return self.file.router.module or weight.rpartition(".")[0]

    def _router_tensors(self) -> Iterator[tuple[str, str]]:
        """Yield name and role of every tensor of the router."""
        for rule in self.file.tensors.moe:
            if rule.role in ROUTER_ROLES:
                yield rule.module or rule.name, rule.role

    def module_shapes(self, inventory: Inventory) -> dict[str, tuple[int, ...]]:
        """Return every parameter and stored buffer that the transformers model of ``inventory`` has, with its shape.

        Those of experts that are stored in another form are left out, since ``bench.experts.stored_module`` holds them; but for
        few bits alone, where the stock module holds what they stand for.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for entry, count in self.with_counts(inventory):
            if entry.role == PASSED_ROLE:
                continue
            if (form := _form(inventory, entry)) is not None:
                whole = whole_of_packed(entry) if form == ExpertForm(bits=form.bits) else None
                if whole is None:
                    continue
                entry = whole
            linear = whole_linear(entry)
            if linear is None and part_of_linear(entry) is not None:
                continue  # the module holds the matrix, not what describes its integers
            entry = linear or entry
            slot = self.fused_slot(entry, count) if entry.expert is not None else None
            shapes[self.placement(entry).name] = entry.file_shape if slot is None else slot.shape(slot.cut)
        return shapes

    def file_shapes(self, inventory: Inventory) -> dict[str, tuple[int, ...]]:
        """Return the tensors that files written by transformers or moebench hold of ``inventory``, with their shapes."""
        shapes: dict[str, tuple[int, ...]] = {}
        for entry, count in self.with_counts(inventory):
            fused = self.written_fused(entry, count) if _form(inventory, entry) is None else None
            if fused is None:
                shapes[entry.name] = entry.file_shape
            else:
                shapes[fused[0]] = fused[1].shape(fused[1].on_disk)
        return shapes

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
        expert = next((rule.name for rule in tensors.moe if rule.role in EXPERT_ROLES), None)
        if expert is None:  # a dense family
            return modules
        block = tensors.fused[0].names[0].rsplit(".", 2)[0]
        return modules | {constant_template(TensorEntry(expert, "", (), "")): f"{block}.constant_experts"}


def _form(inventory: Inventory, entry: TensorEntry) -> ExpertForm | None:
    """Return the form of the experts whose tensor ``entry`` is; None where they are whole, and for other tensors."""
    if entry.layer is None or not entry.role.startswith("expert."):
        return None
    return inventory.layers[entry.layer].form
