"""How much the experts of a layer take once a plan is applied: one row for equal experts instead of one for each matrix.

What is stored of an expert of some width and ranks is enumerated by ``methods.framework.forms``, as where it is written, once for
each width and ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from methods.framework.forms import LEFT, MIX, PACKED, parts
from methods.framework.inside_fit import form_of, stays
from methods.framework.inventory import EXPERT_ROLES, Alike, ExpertForm, LayerInventory, TensorEntry
from methods.framework.layer_plan import LayerPlan

REMEMBERED = 2**16
"""Most sizes that are remembered of one kind of experts; then they are forgotten."""

Ranks = tuple[int, int, int]
Inside = tuple[int | None, Ranks | None]
"""Channels of an expert (None: as many as it has) and the ranks of its matrices (None: they are whole)."""


class Sizes(NamedTuple):
    """What tensors of experts add up to.

    Args:
        parameters: weights that they stand for.
        bytes: on disk.
        channels: hidden channels.
        mixtures: those of the parameters that are weights over shared bases.
    """

    parameters: int = 0
    bytes: int = 0
    channels: int = 0
    mixtures: int = 0


def expert_sizes(plan: LayerPlan, layer: LayerInventory) -> Sizes:
    """Return what the routed experts of ``layer`` store by themselves, without what they share, once ``plan`` is applied."""
    if plan.drop != "none" or not layer.kinds:
        return Sizes()
    kept, form = stays(plan, layer), form_of(plan, layer)
    if plan.inside and form is not None:
        by_kind = _places(kept, layer.kinds)
        return _weighted((_formed_sizes(kind, form, at), 1) for kind, at in zip(layer.kinds, by_kind, strict=True))
    left = None if plan.experts is None else frozenset(kept)
    values = bool(plan.merges) or plan.inside  # readers take the experts of a layer in one type
    counts = (len(kind.experts if left is None else left.intersection(kind.experts)) for kind in layer.kinds)
    stored = (_kind(kind.tensors).as_stored[values] for kind in layer.kinds)
    return _weighted(zip(stored, counts, strict=True))


def _places(kept: Sequence[int], kinds: Sequence[Alike]) -> list[Sequence[int]]:
    """Return, for each kind, the places of its experts among those that are kept."""
    if len(kinds) == 1:
        return [range(len(kept))]
    place = {expert: at for at, expert in enumerate(kept)}
    return [[place[expert] for expert in kind.experts if expert in place] for kind in kinds]


def _formed_sizes(kind: Alike, form: ExpertForm, places: Sequence[int]) -> Sizes:
    """Return what the experts at some places of ``form`` take."""
    remembered = _kind(kind.tensors).formed(replace(form, widths=None, ranks=None))
    if form.widths is None and form.ranks is None:
        return _weighted([(remembered.sizes((None, None)), len(places))])
    none: tuple[None, ...] = (None,) * len(places)
    widths = none if form.widths is None else [form.widths[at] for at in places]
    ranks = none if form.ranks is None else [form.ranks[at] for at in places]
    counted = Counter(zip(widths, ranks, strict=True))
    return _weighted((remembered.sizes(each), count) for each, count in counted.items())


class _Kind:
    """Experts whose tensors are equal but for their numbers."""

    def __init__(self, tensors: tuple[TensorEntry, ...]) -> None:
        self._tensors = tensors
        self._formed: dict[ExpertForm, _Formed] = {}
        self.as_stored = {values: _sizes(tensors, values) for values in (False, True)}
        """What one takes as it is: as the source stores it, and with its values in place of codes."""

    def formed(self, form: ExpertForm) -> _Formed:
        """Return what those in ``form`` take, which states no widths and no ranks."""
        if form not in self._formed:
            self._formed[form] = _Formed(self._tensors, form)
        return self._formed[form]


class _Formed:
    """Experts of one kind in one form, by width and ranks."""

    def __init__(self, tensors: tuple[TensorEntry, ...], form: ExpertForm) -> None:
        self._tensors, self._form = tensors, form
        self._experts: dict[Inside, Sizes] = {}
        self._matrices: dict[tuple[int, int | None, int | None], Sizes] = {}

    def sizes(self, inside: Inside) -> Sizes:
        """Return what one expert takes."""
        found = self._experts.get(inside)
        if found is None:
            if len(self._experts) >= REMEMBERED:
                self._experts.clear()
                self._matrices.clear()
            found = _weighted((self._matrix(at, *inside), 1) for at in range(len(self._tensors)))
            self._experts[inside] = found
        return found

    def _matrix(self, at: int, width: int | None, ranks: Ranks | None) -> Sizes:
        entry = self._tensors[at]
        rank = None if ranks is None else ranks[EXPERT_ROLES.index(entry.role)]
        found = self._matrices.get((at, width, rank))
        if found is None:
            one = replace(
                self._form,
                widths=None if width is None else (width,),
                ranks=None if rank is None else ((rank, rank, rank),),
            )
            found = _sizes(parts(replace(entry, expert=0, stored=None), one), values=True)
            self._matrices[at, width, rank] = found
        return found


@lru_cache(maxsize=64)
def _kind(tensors: tuple[TensorEntry, ...]) -> _Kind:
    return _Kind(tensors)


def _sizes(entries: Iterable[TensorEntry], values: bool) -> Sizes:
    """Return what tensors take; with ``values`` as though none were stored as codes."""
    found = []
    for entry in entries:
        spans = entry.role in ("expert.gate", f"expert.gate.{LEFT}", f"expert.gate.{PACKED}")  # once for each expert
        mixed = entry.parameters if entry.role.endswith(MIX) else 0
        stored = replace(entry, stored=None).nbytes if values else entry.nbytes
        found.append((Sizes(entry.parameters, stored, entry.shape[0] if spans else 0, mixed), 1))
    return _weighted(found)


def _weighted(sizes: Iterable[tuple[Sizes, int]]) -> Sizes:
    """Return the sum of sizes, each so many times."""
    parameters = stored = channels = mixtures = 0
    for one, count in sizes:
        parameters += one[0] * count
        stored += one[1] * count
        channels += one[2] * count
        mixtures += one[3] * count
    return Sizes(parameters, stored, channels, mixtures)
