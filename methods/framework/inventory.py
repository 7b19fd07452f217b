"""What a checkpoint contains: layers, experts, shapes, dtypes, tensor names and router semantics; no values.

Shape letters: L decoder layers, E routed experts, K experts per token, D hidden size, F expert width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, Literal, NamedTuple

BYTES_PER_ELEMENT: Mapping[str, int] = {
    "F64": 8,
    "F32": 4,
    "BF16": 2,
    "F16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}

EXPERT_ROLES = ("expert.gate", "expert.up", "expert.down")
"""Roles of the three matrices of a routed expert: gate and up are [F, D], down is [D, F]."""

EXPERT_BIAS_ROLES = ("expert.gate_bias", "expert.up_bias", "expert.down_bias")
"""Roles of the biases of a routed expert, where it has any: [F], [F] and [D]."""

ROUTER_ROLES = ("router.weight", "router.bias", "router.correction")
"""Roles whose first axis is the routed expert: [E, D], [E] and [E]."""

CONSTANT_ROLE = "constant.experts"
"""Role of the vectors that stand for experts in one layer: [constants, D]."""

PASSED_ROLE = "passed"
"""Role of tensors of the larger model that a language model is a part of; every result has them as they are."""

MLP_PREFIXES = ("router.", "expert.", "shared.", "dense.", "constant.")
"""Roles that belong to the feed-forward sub-layer; with ``MLP_NORMS`` they go when the sub-layer is dropped."""

MLP_NORMS = ("norm.mlp", "norm.mlp_bias", "norm.mlp_output")
"""Roles of the norms of that sub-layer: before it, with its bias, and of its output."""

MlpKind = Literal["moe", "dense", "none"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of a file: its name, its safetensors code (``BF16``) and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * BYTES_PER_ELEMENT[self.dtype]


@dataclass(frozen=True, slots=True)
class Storage:
    """How a matrix of a quantised source is stored: codes and their scales instead of its values.

    Args:
        format: one of ``bench.families.stored_formats``.
        group: rows and columns that share a scale.
        pieces: the tensors that hold it, the codes first; each is called like the matrix, with its own name in place of
            ``weight``.
        bits: of a code.
    """

    format: str
    group: tuple[int, int]
    pieces: tuple[Piece, ...]
    bits: int = 8


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a checkpoint under its classic (per-expert) name.

    ``template`` holds ``{layer}`` and, for experts, ``{expert}``; ``dtype`` is the safetensors code (``BF16``). ``weights`` is
    how many weights it stands for where that is not its number of elements: packed integers, or what describes other tensors.
    ``stored`` says how a matrix of a quantised source is stored; ``dtype`` is then the type that its values get where they
    are written as values. ``unit_axes`` counts axes of one entry that files have before those of ``shape``.
    """

    template: str
    role: str
    shape: tuple[int, ...]
    dtype: str
    layer: int | None = None
    expert: int | None = None
    weights: int | None = None
    stored: Storage | None = None
    unit_axes: int = 0

    @property
    def name(self) -> str:
        """The tensor's name in the checkpoint."""
        return self.template.format(layer=self.layer, expert=self.expert)

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Shape that it has in files."""
        return (1,) * self.unit_axes + self.shape

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def parameters(self) -> int:
        """Number of weights that it stands for."""
        return self.numel if self.weights is None else self.weights

    @property
    def nbytes(self) -> int:
        """Size in bytes, scales included."""
        if self.stored is not None:
            return sum(piece.nbytes for piece in self.stored.pieces)
        return self.numel * BYTES_PER_ELEMENT[self.dtype]

    def pieces(self, name: str | None = None) -> tuple[Piece, ...]:
        """Return the tensors of a file that hold it; ``name`` is another name that it has there, None for its own."""
        name = self.name if name is None else name
        if self.stored is None:
            return (Piece(name, self.dtype, self.file_shape),)
        stem = name.removesuffix("weight")
        return tuple(replace(piece, name=stem + piece.name) for piece in self.stored.pieces)


@dataclass(frozen=True, slots=True)
class Router:
    """How logits become the weights that multiply the experts' outputs.

    Args:
        score: ``softmax`` over all experts, or ``sigmoid`` of each logit; ``sparsemixer`` takes the two best logits one after
            the other, each with its share of a softmax over those that lie close to it.
        renormalise: whether the chosen weights are divided by their sum.
        scale: factor on the chosen weights, after renormalisation.
        groups: number of equal, consecutive groups of experts; 1 means no group limit.
        groups_kept: groups a token may choose from.
        group_score: how a group is ranked: by its ``max`` score, or by the sum of its two largest (``top2_sum``).
        correction_bias: whether selection (not the weight) uses score + a stored bias of shape [E].
        gated_shared: whether the shared experts' output is multiplied by ``sigmoid(w_s . x)``.
        eps: added to the sum before renormalising.
        floor: least value that the sum counts as.
        weighs_inputs: whether the score of the one chosen expert multiplies what that takes in; what it gives then counts once.
        jitter: half of the relative distance from the best within which a logit counts as close, of ``sparsemixer``.
    """

    score: Literal["softmax", "sigmoid", "sparsemixer"] = "softmax"
    renormalise: bool = False
    scale: float = 1.0
    groups: int = 1
    groups_kept: int = 1
    group_score: Literal["max", "top2_sum"] = "max"
    correction_bias: bool = False
    gated_shared: bool = False
    eps: float = 0.0
    floor: float = 0.0
    jitter: float = 0.0
    weighs_inputs: bool = False

    def fewest_experts(self, top_k: int) -> int:
        """Return the fewest experts among which this router can choose ``top_k`` for one token.

        With groups, those that a token may choose from must hold ``top_k`` experts together, and at least two each where
        a group is ranked by its two best.
        """
        if self.groups == 1:
            return top_k
        return self.groups * max(-(-top_k // self.groups_kept), 2 if self.group_score == "top2_sum" else 1)


class Packing(NamedTuple):
    """How matrices are stored as integers of few bits.

    Args:
        bits: of an integer.
        group: inputs that share a scale.
        symmetric: whether an integer of 0 stands for a weight of 0; else every group has a zero point beside its scale.
    """

    bits: int
    group: int
    symmetric: bool = True


@dataclass(frozen=True, slots=True)
class ExpertForm:
    """How the routed experts of a layer are stored where they are not three whole matrices each.

    Args:
        widths: channels of each expert; None: all have those that the config states.
        ranks: for each expert the ranks of gate, up and down; 0 is a whole matrix. None: all are whole.
        base: stored columns of the gate, up and down that all experts share, and to which their factors are added.
        bases: count, rank and activation of the bases that gates share, and ups.
        bits: how integers of few bits are packed.
    """

    widths: tuple[int, ...] | None = None
    ranks: tuple[tuple[int, int, int], ...] | None = None
    base: tuple[int, int, int] | None = None
    bases: tuple[int, int, Literal["silu", "tanh"]] | None = None
    bits: Packing | None = None


class Alike(NamedTuple):
    """Experts of a layer whose tensors are equal but for their numbers.

    Args:
        experts: their indices, ascending.
        tensors: of one of them, as expert 0 of no layer.
    """

    experts: tuple[int, ...]
    tensors: tuple[TensorEntry, ...]


@dataclass(frozen=True, slots=True)
class LayerInventory:
    """One decoder layer of a checkpoint.

    Args:
        mlp: kind of its feed-forward sub-layer.
        experts: routed experts that are stored.
        top_k: experts per token.
        tensors: everything that is stored for it.
        expert_map: for each router row the expert that it leads to; numbers from ``experts`` on are constant vectors.
            None: row e leads to expert e.
        constants: constant vectors that stand for experts.
        form: how experts are stored; None: as three whole matrices each.
        linear_bits: how the linear layers beside the experts (``methods.framework.linears``) are packed; None: they are not.
        alone: whether its model has no routed experts anywhere, so that dense sub-layers are what may be dropped.
    """

    mlp: MlpKind
    experts: int
    top_k: int
    tensors: tuple[TensorEntry, ...]
    expert_map: tuple[int, ...] | None = None
    constants: int = 0
    form: ExpertForm | None = None
    linear_bits: Packing | None = None
    alone: bool = False
    _sorted: list[tuple[tuple[TensorEntry, ...], tuple[Alike, ...]]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    @property
    def beside(self) -> tuple[TensorEntry, ...]:
        """The tensors that belong to no single expert, in order."""
        return self._parts()[0]

    @property
    def kinds(self) -> tuple[Alike, ...]:
        """The experts by what they store, in the order of the first of each kind."""
        return self._parts()[1]

    def _parts(self) -> tuple[tuple[TensorEntry, ...], tuple[Alike, ...]]:
        """Return ``beside`` and ``kinds``, which are found once."""
        if not self._sorted:
            self._sorted.append(_parted(self.tensors))
        return self._sorted[0]

    @property
    def droppable(self) -> bool:
        """Whether its feed-forward sub-layer may be dropped by itself: with experts, or in a model without any."""
        return self.mlp == "moe" or (self.alone and self.mlp == "dense")

    @property
    def rows(self) -> int:
        """Number of router rows."""
        return self.experts if self.expert_map is None else len(self.expert_map)

    @property
    def biased(self) -> bool:
        """Whether its experts have biases."""
        return any(entry.role in EXPERT_BIAS_ROLES for entry in self.tensors)

    def with_role(self, *roles: str) -> Iterator[TensorEntry]:
        """Yield the layer's tensors whose role is one of ``roles``, in order."""
        return (entry for entry in self.tensors if entry.role in roles)


_UNNUMBERED = attrgetter("template", "role", "shape", "dtype", "weights", "stored", "unit_axes")
"""What equal tensors of different experts have in common."""


def _parted(tensors: tuple[TensorEntry, ...]) -> tuple[tuple[TensorEntry, ...], tuple[Alike, ...]]:
    """Return the tensors of no single expert, and the experts by what they store."""
    beside: list[TensorEntry] = []
    stored: dict[int, list[Any]] = {}
    owned: dict[int, list[TensorEntry]] = {}
    for entry in tensors:
        if entry.expert is None:
            beside.append(entry)
        else:
            stored.setdefault(entry.expert, []).append(_UNNUMBERED(entry))
            owned.setdefault(entry.expert, []).append(entry)
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for expert, found in stored.items():
        kinds.setdefault(tuple(found), []).append(expert)
    return tuple(beside), tuple(
        Alike(tuple(sorted(experts)), tuple(replace(entry, layer=None, expert=0) for entry in owned[experts[0]]))
        for experts in kinds.values()
    )


@dataclass(frozen=True, slots=True)
class Attention:
    """Sizes of the attention that FLOPs depend on: heads, and the head dimension of queries/keys and of values."""

    heads: int
    qk_head_dim: int
    v_head_dim: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """A whole checkpoint, in source coordinates. ``outer`` holds embedding, final norm and output head.

    ``norm_offset`` is added to the stored weights of norms before they multiply. ``whole_depth`` is the reason why decoder layers
    cannot be dropped; None: they can be.
    """

    family: str
    hidden: int
    vocab: int
    attention: Attention
    router: Router
    layers: tuple[LayerInventory, ...]
    outer: tuple[TensorEntry, ...]
    tied_embeddings: bool = False
    norm_offset: float = 0.0
    whole_depth: str | None = field(default=None, compare=False)
    config: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False, repr=False)

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the decoder layers that hold routed experts."""
        return tuple(i for i, layer in enumerate(self.layers) if layer.mlp == "moe")

    @property
    def droppable_layers(self) -> tuple[int, ...]:
        """Indices of the decoder layers whose feed-forward sub-layer may be dropped by itself."""
        return tuple(i for i, layer in enumerate(self.layers) if layer.droppable)

    @property
    def attending_layers(self) -> tuple[int, ...]:
        """Indices of the decoder layers whose mixer is attention."""
        return tuple(
            i for i, layer in enumerate(self.layers) if any(e.role.startswith("attention.") for e in layer.beside)
        )

    @property
    def num_experts(self) -> int:
        """Routed experts of the whole model."""
        return sum(layer.experts for layer in self.layers)

    def tensors(self) -> Iterator[TensorEntry]:
        """Yield every tensor: outer ones first, then layer by layer."""
        yield from self.outer
        for layer in self.layers:
            yield from layer.tensors

    def with_layers(self, layers: tuple[LayerInventory, ...]) -> Inventory:
        """Return a copy with other decoder layers."""
        return replace(self, layers=layers)
