"""Weights of experts in a form of their own on their way from the files into the model.

What no stock loader knows is taken out of the stream of (name, tensor): parts of factored and pruned experts go to our
module, and matrices in few bits become values where no kernel takes the integers. Everything else passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from bench.experts.stored_module import CompressedExperts
from bench.experts.whole import unpacked_matrix, whole_matrix
from bench.models.filled import PACKED_PARTS
from methods.framework.errors import CheckpointError
from methods.framework.forms import has_own_form, packed_parts, part_of
from methods.framework.inventory import ExpertForm, Inventory, Packing, TensorEntry
from methods.framework.linears import part_of_linear

Named = tuple[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Matrix:
    """One matrix of one expert: the layer, the expert and the role."""

    layer: int
    expert: int | None
    role: str


class ExpertWeights:
    """Takes the tensors of experts in a form of their own out of a stream.

    Args:
        inventory: the checkpoint.
        modules: our module of each layer that has one here; other layers with a form of their own are on other devices.
        values: whether matrices in few bits of all other layers are passed on as values, else as they are.
    """

    def __init__(self, inventory: Inventory, modules: Mapping[int, CompressedExperts], values: bool) -> None:
        """Look up which names are ours."""
        self._modules = modules
        self._forms: dict[int, ExpertForm] = {}
        self._ours: dict[str, TensorEntry] = {}
        self._parts: dict[_Matrix, dict[str, Tensor]] = {}
        for index, layer in enumerate(inventory.layers):
            if layer.form is None or not (has_own_form(layer.form) or values):
                continue
            self._forms[index] = layer.form
            self._ours |= {entry.name: entry for entry in layer.tensors if entry.role.startswith("expert.")}
        self._linears: dict[int, Packing] = {}
        for index, layer in enumerate(inventory.layers):
            if layer.linear_bits is not None and values:
                self._linears[index] = layer.linear_bits
                self._ours |= {entry.name: entry for entry in layer.tensors if part_of_linear(entry) is not None}
        self._missing = set(self._ours)

    def rest(self, weights: Iterable[Named]) -> Iterator[Named]:
        """Yield what is left for the stock loader.

        Raises:
            CheckpointError: at the end, where a tensor of ours never came.
        """
        for name, tensor in weights:
            entry = self._ours.get(name)
            if entry is None:
                yield name, tensor
                continue
            self._missing.discard(name)
            yield from self._take(entry, tensor)
        if self._missing:
            some = ", ".join(sorted(self._missing)[:4])
            raise CheckpointError(f"{len(self._missing)} tensors of experts are not in the files: {some}")

    def _take(self, entry: TensorEntry, tensor: Tensor) -> Iterator[Named]:
        assert entry.layer is not None
        if part_of_linear(entry) is not None:
            yield from self._take_linear(entry, tensor)
            return
        form, module = self._forms[entry.layer], self._modules.get(entry.layer)
        if has_own_form(form) and module is None:
            return
        role, part = part_of(entry)
        if part in PACKED_PARTS:
            matrix = _Matrix(entry.layer, entry.expert, role)
            parts = self._parts.setdefault(matrix, {})
            parts[entry.role] = tensor
            if form.bits is None or len(parts) < len(packed_parts(form.bits)):
                return
            del self._parts[matrix]
            values = whole_matrix(role, parts, {}, form)
            if module is None:
                yield f"{entry.name.rpartition('.')[0]}.weight", values
            else:
                module.load(role, entry.expert, values)
        elif module is None:  # a form of few bits alone has no other parts
            yield entry.name, tensor
        else:
            module.load(entry.role, entry.expert, tensor)

    def _take_linear(self, entry: TensorEntry, tensor: Tensor) -> Iterator[Named]:
        """Yield the values of a linear layer beside the experts once all of its parts are there."""
        assert entry.layer is not None
        role, packing = entry.role.rpartition(".")[0], self._linears[entry.layer]
        parts = self._parts.setdefault(_Matrix(entry.layer, None, role), {})
        parts[entry.role] = tensor
        if len(parts) == len(packed_parts(packing)):
            del self._parts[_Matrix(entry.layer, None, role)]
            yield f"{entry.name.rpartition('.')[0]}.weight", unpacked_matrix(role, parts, packing)
