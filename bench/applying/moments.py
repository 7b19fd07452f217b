"""Statistics whose values go into a checkpoint: constants, and moments of the inputs of experts' matrices.

Letters: C constants, E routed experts, D hidden size, F expert width, X inputs of a matrix.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from methods.framework import linears
from methods.framework.errors import StatsError
from methods.framework.inside import ENTRY_FISHER
from methods.framework.inventory import EXPERT_ROLES, Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.stats import CATALOGUE, Array, Stats
from methods.kernels.merging import ExpertMatrices
from methods.kernels.sparsity import InputMoments

CONSTANT_STATISTIC = "routed_output_mean"
"""Statistic whose rows stand for the experts that a plan replaces by constants."""

TOKENS = "routed_tokens"
"""Statistic that counts the tokens of each expert."""

CHANNEL_MAGNITUDE = "channel_magnitude"
"""Statistic of the mean magnitude of the inputs of down."""


def constants(moments: Stats | None, inventory: Inventory, layer: int, experts: Sequence[int]) -> Array:
    """Return the mean outputs of experts that a plan replaces by constants, shape (C, D).

    Args:
        moments: measured statistics; None is refused like those that lack this one.
        inventory: the model that they must be of.
        layer: index of a decoder layer.
        experts: C experts of that layer, in the order of the rows that are returned.

    Raises:
        StatsError: the statistics are missing, of another model, or not finite.
    """
    means_ED = statistic_of(moments, inventory, CONSTANT_STATISTIC, layer)
    values_CD = means_ED[list(experts)]
    check_finite(values_CD, CONSTANT_STATISTIC, layer)
    return values_CD


class ExpertMoments(NamedTuple):
    """What was measured of the inputs of one expert's matrices.

    Args:
        inputs: moments of the inputs of gate and up; None where none were asked for.
        channels: moments of the inputs of down, likewise.
        magnitude_F: mean |a|, a the inputs of down; None where it was not asked for.
        tokens: tokens that were routed to it; None where that was not asked for.
    """

    inputs: InputMoments | None = None
    channels: InputMoments | None = None
    magnitude_F: Tensor | None = None
    tokens: float | None = None


def expert_moments(
    moments: Stats | None,
    inventory: Inventory,
    layer: int,
    names: Collection[str],
    members: Sequence[int],
    orders: Mapping[int, Tensor],
) -> ExpertMoments:
    """Return the moments of the inputs of the matrices of the expert made of ``members``.

    Args:
        moments: statistics of the source.
        inventory: the source.
        layer: decoder layer.
        names: statistics that the kernel reads; none for a kernel without any.
        members: the expert, or the experts whose average it is, the one in whose place it stands first.
        orders: for members whose channels are aligned to those of the first, channels in their new order.

    Raises:
        StatsError: as ``constants``.

    *Differs*: members of an average count by their tokens where ``routed_tokens`` is among ``names``, else alike.
    """
    tokens: list[float] | None = None
    if TOKENS in names:
        counts_E = statistic_of(moments, inventory, TOKENS, layer)
        tokens = [float(counts_E[member]) for member in members]
    found: dict[str, Tensor] = {}
    for name in sorted(set(names) - {TOKENS, ENTRY_FISHER}):
        if CATALOGUE[name].dims[0] != "E":
            continue  # of the whole layer
        values = statistic_of(moments, inventory, name, layer)
        channels = CATALOGUE[name].dims[-1] == "F"
        found[name] = torch.from_numpy(_member_mean(values, name, layer, members, orders if channels else {}, tokens))
    sides: dict[bool, InputMoments] = {}
    for name, value in found.items():
        if name != CHANNEL_MAGNITUDE:
            side = InputMoments(gram_XX=value) if value.ndim == 2 else InputMoments(square_X=value)
            sides[CATALOGUE[name].dims[-1] == "F"] = side
    total = None if tokens is None else sum(tokens)
    return ExpertMoments(sides.get(False), sides.get(True), found.get(CHANNEL_MAGNITUDE), total)


def layer_moment(moments: Stats | None, inventory: Inventory, name: str, layer: int) -> Tensor:
    """Return a statistic of a whole layer, in float64.

    Args:
        moments: measured statistics; None is refused like those that lack this one.
        inventory: the model that they must be of.
        name: of the statistic in the catalogue.
        layer: index of a decoder layer.

    Raises:
        StatsError: as ``constants``.
    """
    values = statistic_of(moments, inventory, name, layer)
    check_finite(values, name, layer)
    return torch.from_numpy(np.array(values, dtype=np.float64))


def linear_moment(moments: Stats | None, inventory: Inventory, name: str, layer: int, where: slice) -> Tensor:
    """Return a part of a statistic of the inputs of linear layers beside the experts, in the type in which it was measured.

    Args:
        moments: measured statistics; None is refused like those that lack this one.
        inventory: the model that they must be of.
        name: of the statistic in the catalogue.
        layer: index of a decoder layer.
        where: its inputs, or the entries of its Gram matrix.

    Raises:
        StatsError: as ``constants``.
    """
    whole = statistic_of(moments, inventory, name, layer)
    values = np.array(whole[where])
    unmapped(whole)
    check_finite(values, name, layer)
    return torch.from_numpy(values)


def gram(moments: Stats | None, inventory: Inventory, name: str, layer: int, expert: int) -> Tensor:
    """Return the Gram matrix of one expert's inputs, float32, shape (X, X).

    Args:
        moments: measured statistics; None is refused like those that lack this one.
        inventory: the model that they must be of.
        name: statistic of shape (E, X, X) in each layer, X being D for the inputs of gate and up, F for those of down.
        layer: index of a decoder layer.
        expert: its number in that layer.

    Raises:
        StatsError: as ``constants``.
    """
    whole = statistic_of(moments, inventory, name, layer)
    values = np.array(whole[expert])
    unmapped(whole)
    check_finite(values, name, layer)
    return torch.from_numpy(values)


def entry_fisher(
    moments: Stats | None, inventory: Inventory, layer: int, members: Sequence[int], orders: Mapping[int, Tensor]
) -> ExpertMatrices:
    """Return the mean squared gradient in every entry of the expert made of ``members``, in float64, shaped as its matrices.

    Squares of members of an average add up, since what each saw is what the average sees.

    Args:
        moments: statistics of the source.
        inventory: the source.
        layer: decoder layer.
        members: as for ``expert_moments``.
        orders: as for ``expert_moments``.

    Raises:
        StatsError: as ``constants``.
    """
    values = statistic_of(moments, inventory, ENTRY_FISHER, layer)
    first_FMD = values[members[0]]
    check_finite(first_FMD, ENTRY_FISHER, layer)
    total_FMD = np.array(first_FMD, dtype=np.float64)
    for member in members[1:]:
        own_FMD = values[member]
        check_finite(own_FMD, ENTRY_FISHER, layer)
        if np.array_equal(own_FMD, first_FMD):
            continue  # measured on the average itself
        total_FMD += own_FMD[orders[member].cpu().numpy()] if member in orders else own_FMD
    unmapped(values)
    gate_FD, up_FD, down_FD = torch.from_numpy(total_FMD).unbind(1)
    return ExpertMatrices(gate_FD, up_FD, down_FD.T)


def _member_mean(
    values: Array,
    name: str,
    layer: int,
    members: Sequence[int],
    orders: Mapping[int, Tensor],
    tokens: Sequence[float] | None,
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64 | np.float32]]:
    """Return the mean of the rows of ``members``, weighted by ``tokens`` (None: alike); one row more is in memory."""
    weights = [1.0] * len(members) if tokens is None or not sum(tokens) else list(tokens)
    first = np.array(values[members[0]])
    unmapped(values)
    check_finite(first, name, layer)
    if len(members) == 1:
        return first
    share = sum(weights)
    total = first * (weights[0] / share)
    for member, weight in zip(members[1:], weights[1:], strict=True):
        row = np.array(values[member])
        unmapped(values)
        check_finite(row, name, layer)
        # Equal rows were measured on the average itself, whose channels are in order.
        if member in orders and not np.array_equal(row, first):
            order = orders[member].cpu().numpy()
            row = row[np.ix_(*[order] * row.ndim)]
        total += row * (weight / share)
    return total.astype(first.dtype)


def unmapped(values: Array) -> None:
    """Let go of the pages of a memory map that were read: they count as memory of the process for as long as it is there."""
    file = getattr(values, "_mmap", None)
    if file is not None:
        file.madvise(mmap.MADV_DONTNEED)


def used_experts(plan: LayerPlan, experts: int) -> list[int]:
    """Return the experts whose moments decide about weights that stay: those that stay, members of merges, of AWQ's scale."""
    kept = range(experts) if plan.experts is None else plan.experts
    scaling = plan.bits.members if plan.bits is not None else None
    return sorted({*kept, *(scaling or ()), *(member for merge in plan.merges for member in merge.members)})


def check_presence(names: Collection[str], moments: Stats | None) -> None:
    """Raise StatsError that names every statistic that is missing."""
    missing = sorted(names if moments is None else set(names) - set(moments.values))
    if missing:
        listed = ", ".join(map(repr, missing))
        found = "none were passed" if moments is None else f"those at hand lack {listed}"
        raise StatsError(
            f"what the plan makes of the experts takes values from the statistics: {found}; {_remedy(missing)}"
        )


def statistic_of(moments: Stats | None, inventory: Inventory, name: str, layer: int) -> Array:
    """Return a statistic of one layer, of the right shape.

    Args:
        moments: measured statistics; None is refused like those that lack this one.
        inventory: the model that they must be of.
        name: of the statistic in the catalogue.
        layer: index of a decoder layer.

    Raises:
        StatsError: it is missing, or of another model.
    """
    check_presence([name], moments)
    assert moments is not None
    values = moments.layer(name, layer)
    here = inventory.layers[layer]
    width = max((entry.shape[0] for entry in here.with_role("expert.gate")), default=0)
    sizes = {"E": here.experts, "D": inventory.hidden, "F": width, "M": len(EXPERT_ROLES)}
    sizes |= dict(zip("PQ", linears.sizes(here, "attention"), strict=True))
    sizes |= dict(zip("UV", linears.sizes(here, "network"), strict=True))
    expected = tuple(sizes[letter] for letter in CATALOGUE[name].dims)
    if values.shape != expected:
        raise StatsError(
            f"{name!r} of layer {layer} has shape {values.shape}, but this model needs {expected}: the statistics are of "
            f"another model; {_remedy([name])}"
        )
    return values


def check_finite(values: Array, name: str, layer: int) -> None:
    """Raise StatsError where a value is not finite.

    Args:
        values: to look at.
        name: of the statistic that they are of.
        layer: its decoder layer.
    """
    if not np.isfinite(values).all():
        raise StatsError(f"{name!r} of layer {layer} holds values that are not finite; {_remedy([name])}")


def _remedy(names: Sequence[str]) -> str:
    listed = ", ".join(map(repr, names))
    return f"measure {listed} on the source with `moebench calibrate`, and pass the result as `moments`"
