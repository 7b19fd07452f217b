"""Statistics whose values go into a checkpoint: constants, and the moments by which weights are zeroed.

Letters: C constants, E routed experts, D hidden size, X inputs of a matrix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from methods.errors import StatsError
from methods.inventory import Inventory
from methods.kernels.sparsity import InputMoments
from methods.plan import LayerPlan, Plan
from methods.stats import CATALOGUE, Array, Stats

CONSTANT_STATISTIC = "routed_output_mean"
"""Statistic whose rows stand for the experts that a plan replaces by constants."""


def constants(moments: Stats | None, inventory: Inventory, layer: int, experts: Sequence[int]) -> Array:
    """Return the mean outputs of ``experts`` in decoder layer ``layer`` of ``inventory``, shape (C, D).

    Raises:
        StatsError: the statistics are missing, of another model, or not finite.
    """
    means_ED = _statistic(moments, inventory, CONSTANT_STATISTIC, layer)
    values_CD = means_ED[list(experts)]
    _check_finite(values_CD, CONSTANT_STATISTIC, layer)
    return values_CD


def expert_moments(
    moments: Stats | None,
    inventory: Inventory,
    layer: int,
    names: Collection[str],
    members: Sequence[int],
    orders: Mapping[int, Tensor],
) -> tuple[InputMoments | None, InputMoments | None]:
    """Return the moments of the inputs of gate and up, and of those of down, for the expert made of ``members``.

    Args:
        moments: statistics of the source.
        inventory: the source.
        layer: decoder layer.
        names: statistics that the kernel reads; none for a kernel without any.
        members: the expert, or the experts whose average it is, the one in whose place it stands first.
        orders: for members whose channels are aligned to those of the first, channels in their new order.

    Raises:
        StatsError: as ``constants``.

    *Differs*: members of an average count alike (those that saw no token: not at all), though tokens should: the numbers of
    tokens are not among the statistics that a plan writes.
    """
    found: dict[bool, InputMoments] = {}
    for name in names:
        values = _statistic(moments, inventory, name, layer)
        channels = CATALOGUE[name].dims[-1] == "F"
        total = torch.from_numpy(_member_sum(values, name, layer, members, orders if channels else {}))
        found[channels] = InputMoments(gram_XX=total) if total.ndim == 2 else InputMoments(square_X=total)
    return found.get(False), found.get(True)


def _member_sum(
    values: Array, name: str, layer: int, members: Sequence[int], orders: Mapping[int, Tensor]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64 | np.float32]]:
    """Return the sum of the rows of ``members``, one of which is in memory at a time; their scale does not matter."""
    total = np.array(values[members[0]])
    _check_finite(total, name, layer)
    for member in members[1:]:
        row = np.array(values[member])
        _check_finite(row, name, layer)
        # Equal rows were measured on the average itself, whose channels are in order.
        if member in orders and not np.array_equal(row, values[members[0]]):
            order = orders[member].cpu().numpy()
            row = row[np.ix_(*[order] * row.ndim)]
        total += row
    return total


def check_moments(plan: Plan, inventory: Inventory, moments: Stats | None) -> None:
    """Check that the statistics named in ``plan.moments`` are at hand, fit the model, and are finite where that is quick.

    Raises:
        StatsError: as ``constants``. Of Gram matrices only the shape is looked at here.
    """
    _check_presence(plan.moments, moments)
    for _ in _pieces(plan, inventory, moments, grams=False):
        pass


def moments_digest(plan: Plan, inventory: Inventory, moments: Stats | None) -> str | None:
    """Return the SHA-256 of the measured values that ``plan`` writes into its checkpoint; None where it writes none.

    Values of experts that the plan does not use are left out; of Gram matrices one is in memory at a time.

    Args:
        plan: in the coordinates of ``inventory``.
        inventory: the source.
        moments: statistics of the source.

    Raises:
        StatsError: as ``constants``.
    """
    if not plan.moments:
        return None
    _check_presence(plan.moments, moments)
    digest = hashlib.sha256()
    for label, values in _pieces(plan, inventory, moments, grams=True):
        digest.update(label.encode())
        digest.update(values)
    return digest.hexdigest()


def _pieces(plan: Plan, inventory: Inventory, moments: Stats | None, grams: bool) -> Iterator[tuple[str, memoryview]]:
    """Yield a label and the bytes of all values that ``plan`` uses, checked, with or without those of Gram matrices."""
    for index, layer in enumerate(plan.layers):
        if layer.constants:
            values_CD = constants(moments, inventory, index, layer.constants)
            yield f"{index} {layer.constants} {values_CD.shape}", _bytes(values_CD, "<f8")
        for name in sorted(layer.sparsity.moments if layer.sparsity else ()):
            values = _statistic(moments, inventory, name, index)
            is_gram = values.ndim == 3
            for expert in _used(layer, inventory.layers[index].experts):
                if is_gram and not grams:
                    continue
                _check_finite(values[expert], name, index)
                label = f"{index} {name} {expert} {values.shape[1:]}"
                yield label, _bytes(values[expert], "<f4" if is_gram else "<f8")


def _used(plan: LayerPlan, experts: int) -> list[int]:
    """Return the experts whose moments decide about weights that stay: those that stay, and members of merges."""
    kept = range(experts) if plan.experts is None else plan.experts
    return sorted({*kept, *(member for merge in plan.merges for member in merge.members)})


def _bytes(values: Array, dtype: str) -> memoryview:
    return np.ascontiguousarray(values, dtype=dtype).view(np.uint8).data


def _check_presence(names: Collection[str], moments: Stats | None) -> None:
    """Raise StatsError that names every statistic that is missing."""
    missing = sorted(names if moments is None else set(names) - set(moments.values))
    if missing:
        listed = ", ".join(map(repr, missing))
        found = "none were passed" if moments is None else f"those at hand lack {listed}"
        raise StatsError(
            f"what the plan makes of the experts takes values from the statistics: {found}; {_remedy(missing)}"
        )


def _statistic(moments: Stats | None, inventory: Inventory, name: str, layer: int) -> Array:
    """Return a statistic of one layer, of the right shape."""
    _check_presence([name], moments)
    assert moments is not None
    values = moments.layer(name, layer)
    gate = next(inventory.layers[layer].with_role("expert.gate"))
    sizes = {"E": inventory.layers[layer].experts, "D": inventory.hidden, "F": gate.shape[0]}
    expected = tuple(sizes[letter] for letter in CATALOGUE[name].dims)
    if values.shape != expected:
        raise StatsError(
            f"{name!r} of layer {layer} has shape {values.shape}, but this model needs {expected}: the statistics are of "
            f"another model; {_remedy([name])}"
        )
    return values


def _check_finite(values: Array, name: str, layer: int) -> None:
    if not np.isfinite(values).all():
        raise StatsError(f"{name!r} of layer {layer} holds values that are not finite; {_remedy([name])}")


def _remedy(names: Sequence[str]) -> str:
    listed = ", ".join(map(repr, names))
    return f"measure {listed} on the source with `moebench calibrate`, and pass the result as `moments`"
