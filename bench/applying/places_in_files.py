"""Which tensors of files hold the tensors of a result: each its own, or for all experts of a layer one.

Some families are read in no other form than with all experts of a layer in one tensor. So these are written so wherever the
experts are whole; in another form every expert has tensors of its own, which only moebench reads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from bench.checkpoint.located import fused_codes
from bench.families.layout import Cut, Layout
from bench.families.stored_formats import MXFP4_FUSED
from methods.framework.inventory import TensorEntry
from methods.framework.transfer import Transfer


@dataclass(frozen=True, slots=True)
class Place:
    """Where a piece of a tensor lies.

    Args:
        name: of the file's tensor.
        dtype: of it.
        shape: of it.
        expert: which of its experts; None: the tensor is the piece.
        cut: part of that expert.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    expert: int | None = None
    cut: Cut | None = None


def placed(items: Sequence[Transfer], layout: Layout) -> list[tuple[Place, ...]]:
    """Return for each of ``items`` where the pieces of its target lie.

    Args:
        items: all tensors of a result.
        layout: of its family.
    """
    experts: dict[int | None, list[TensorEntry]] = defaultdict(list)
    for item in items:
        if item.target.expert is not None:
            experts[item.target.layer].append(item.target)
    counts = {layer: _whole_experts(entries, layout) for layer, entries in experts.items()}
    return [_places(item.target, counts.get(item.target.layer, 0), layout) for item in items]


def units(items: Sequence[Transfer], places: Sequence[tuple[Place, ...]]) -> Iterable[list[int]]:
    """Yield the numbers of items that belong into one file: those of one layer that share tensors."""

    def shared(number: int) -> tuple[int, int]:
        alone = places[number][0].expert is None
        return (1, number) if alone else (0, items[number].target.layer or 0)

    key: Callable[[int], tuple[int, int]] = shared
    for _, numbers in groupby(range(len(items)), key=key):
        yield list(numbers)


def _whole_experts(entries: Sequence[TensorEntry], layout: Layout) -> int:
    """Return how many experts a layer has where all of them are whole and of one size; 0 where they are in another form."""
    count = 1 + max(entry.expert or 0 for entry in entries)
    alike = {(entry.role, entry.shape, entry.dtype, entry.stored and entry.stored.format) for entry in entries}
    fits = len(alike) == len({role for role, *_ in alike}) and len(entries) == count * len(alike)
    plain = all(entry.stored is None or entry.stored.format == MXFP4_FUSED for entry in entries)
    return count if fits and plain and all(layout.written_fused(entry, count) for entry in entries) else 0


def _places(entry: TensorEntry, experts: int, layout: Layout) -> tuple[Place, ...]:
    found = layout.written_fused(entry, experts) if experts else None
    if found is None:
        return tuple(Place(piece.name, piece.dtype, piece.shape) for piece in entry.pieces())
    name, slot = found
    if entry.stored is None:
        return (Place(name, entry.dtype, slot.shape(slot.on_disk), entry.expert, slot.on_disk),)
    rows = replace(slot.cut, transposed=False)
    return tuple(
        Place(f"{name}_{piece.name}", piece.dtype, fused_codes(slot, piece), entry.expert, rows)
        for piece in entry.stored.pieces
    )
