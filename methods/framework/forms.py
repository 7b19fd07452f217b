"""What a layer with experts in another form stores: factors, a shared base, shared bases, packed integers, fewer channels.

The same enumeration serves the plan's result (``methods.framework.transfer``) and the config of a written
checkpoint (``bench.families.family``).
Letters: D hidden size, F expert width, R rank, C columns of a base or number of bases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from methods.framework.inventory import EXPERT_ROLES, ExpertForm, Packing, TensorEntry
from methods.framework.linears import LINEAR_ROLES

LEFT, RIGHT = "left", "right"
"""Parts of a factored matrix: left [out, R] and right [R, in]."""
PACKED, SCALE, SHAPE, ZERO_POINT = "packed", "scale", "shape", "zero_point"
"""Parts of a matrix in few bits, named as the compressed-tensors library names them; zero points only where there are any."""
MIX = "mix"
"""Part of a matrix made of shared bases: its weights over them."""
COLUMNS = "columns"
"""Part of a shared base: the columns of the matrix that it stores."""

SHARED_PREFIX = "expert.shared_"
"""Prefix of the roles of what all experts of a layer share: a base or bases."""

_SUFFIX = {part: f"weight_{part}" for part in (PACKED, SCALE, SHAPE, ZERO_POINT)}
_WEIGHT = ".weight"


def formed(
    tensors: Iterable[TensorEntry], form: ExpertForm | None, linear_bits: Packing | None = None
) -> tuple[TensorEntry, ...]:
    """Return the tensors of a layer in the form in which they are stored, given those with whole matrices.

    Args:
        tensors: of the layer, all matrices whole.
        form: of its experts.
        linear_bits: packing of the linear layers beside them.
    """
    found = tuple(tensors) if form is None else tuple(_formed(tuple(tensors), form))
    return tuple(part for entry in found for part in linear_parts(entry, linear_bits))


def linear_parts(entry: TensorEntry, bits: Packing | None) -> tuple[TensorEntry, ...]:
    """Return what is stored of a tensor beside the experts; whatever is no linear layer stays as it is."""
    return (entry,) if bits is None or entry.role not in LINEAR_ROLES else _packed(entry, bits)


def _formed(tensors: Sequence[TensorEntry], form: ExpertForm) -> Iterator[TensorEntry]:
    begun = False
    for entry in tensors:
        if entry.expert is None:
            yield entry
            continue
        if not begun:
            yield from shared(tensors, form)
            begun = True
        yield from parts(entry, form)


def shared(tensors: Sequence[TensorEntry], form: ExpertForm) -> Iterator[TensorEntry]:
    """Yield what the experts of a layer share; ``tensors`` hold whole experts."""
    if form.base is None and form.bases is None:
        return
    first = {entry.role: entry for entry in reversed(tensors) if entry.role in EXPERT_ROLES}
    for place, role in enumerate(EXPERT_ROLES):
        entry = replace(first[role], expert=None)
        outputs, inputs = entry.shape
        own = SHARED_PREFIX + role.partition(".")[2]
        if form.base is not None:
            columns = form.base[place]
            template = entry.template.replace(".{expert}.", ".base.")
            yield replace(entry, template=template, role=own, shape=(outputs, columns))
            if columns < inputs:
                stem = template.removesuffix(_WEIGHT)
                name, dtype = f"{stem}.{COLUMNS}", "I32"
                yield replace(entry, template=name, role=f"{own}.{COLUMNS}", shape=(columns,), dtype=dtype, weights=0)
        elif form.bases is not None and role != "expert.down":
            count, rank, _ = form.bases
            template = entry.template.replace(".{expert}.", ".bases.")
            yield replace(entry, template=template, role=own, shape=(count, rank, inputs))


def parts(entry: TensorEntry, form: ExpertForm) -> tuple[TensorEntry, ...]:
    """Return what is stored of one whole matrix of an expert; ``entry.expert`` is its place in ``form``."""
    assert entry.expert is not None
    outputs, inputs = entry.shape
    if form.widths is not None:
        width = form.widths[entry.expert]
        outputs, inputs = (outputs, width) if entry.role == "expert.down" else (width, inputs)
    whole = replace(entry, shape=(outputs, inputs))
    rank = form.ranks[entry.expert][EXPERT_ROLES.index(entry.role)] if form.ranks is not None else 0
    if rank:
        return (_part(whole, LEFT, (outputs, rank)), _part(whole, RIGHT, (rank, inputs)))
    if form.bases is not None and entry.role != "expert.down":
        count, rank, _ = form.bases
        return (_part(whole, LEFT, (outputs, rank)), _part(whole, MIX, (count,), "F32"))
    if form.bits is not None:
        return _packed(whole, form.bits)
    return (whole,)


def packed_parts(packing: Packing) -> tuple[str, ...]:
    """Return the parts of a matrix that is packed so."""
    return (PACKED, SCALE, SHAPE) if packing.symmetric else (PACKED, SCALE, SHAPE, ZERO_POINT)


def _packed(whole: TensorEntry, packing: Packing) -> tuple[TensorEntry, ...]:
    """Return what is stored of a matrix in few bits."""
    outputs, inputs = whole.shape
    words, groups = -(-inputs * packing.bits // 32), inputs // packing.group
    parts = [
        replace(_part(whole, PACKED, (outputs, words), "I32"), weights=outputs * inputs),
        replace(_part(whole, SCALE, (outputs, groups)), weights=0),
        replace(_part(whole, SHAPE, (2,), "I64"), weights=0),
    ]
    if not packing.symmetric:
        rows = -(-outputs * packing.bits // 32)
        parts.append(replace(_part(whole, ZERO_POINT, (rows, groups), "I32"), weights=0))
    return tuple(parts)


def _part(entry: TensorEntry, part: str, shape: tuple[int, ...], dtype: str | None = None) -> TensorEntry:
    template = f"{entry.template.removesuffix(_WEIGHT)}.{_SUFFIX.get(part, part)}"
    return replace(entry, template=template, role=f"{entry.role}.{part}", shape=shape, dtype=dtype or entry.dtype)


def part_of(entry: TensorEntry) -> tuple[str, str]:
    """Return the role of the matrix that ``entry`` belongs to (``expert.gate``) and the part (empty for a whole one)."""
    kind, matrix, *part = entry.role.split(".")
    return f"{kind}.{matrix}", ".".join(part)


def whole_of_packed(entry: TensorEntry) -> TensorEntry | None:
    """Return the matrix that packed integers stand for; None for what describes them, and for all other tensors."""
    role, part = part_of(entry)
    if part != PACKED:
        return None
    outputs = entry.shape[0]
    return replace(entry, role=role, shape=(outputs, (entry.weights or 0) // outputs))


def restricted(form: ExpertForm | None, experts: Sequence[int] | None) -> ExpertForm | None:
    """Return ``form`` for those of its experts that stay (None: all)."""
    if form is None or experts is None:
        return form
    return replace(
        form,
        widths=None if form.widths is None else tuple(form.widths[e] for e in experts),
        ranks=None if form.ranks is None else tuple(form.ranks[e] for e in experts),
    )


def has_own_form(form: ExpertForm | None) -> bool:
    """Return whether experts of ``form`` need a module of their own; few bits alone are held by the stock one."""
    return form is not None and form != ExpertForm(bits=form.bits)
