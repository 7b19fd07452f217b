"""Linear layers beside the routed experts: which of a decoder layer there are, and which of them read the same inputs.

A *site* is a place where inputs are read: by query, key and value together, by the output projection, by gate and up of the
networks that every token passes (dense ones and shared experts), by their down. Moments of the sites lie behind each other in one
row of a statistic. Router, gate of the shared experts, embedding and output head belong to no site and keep their weights.
Shape letters: X inputs of a site.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from methods.framework.inventory import EXPERT_ROLES, LayerInventory, TensorEntry

Part = Literal["attention", "network"]
"""Half of a decoder layer: its attention, or the networks in its feed-forward sub-layer that every token passes."""

_READERS: Mapping[Part, Mapping[str, tuple[str, ...]]] = {
    "attention": {
        "attention": ("attention.q", "attention.k", "attention.v", "attention.q_a", "attention.kv_a", "attention.gate"),
        "query_latent": ("attention.q_b",),
        "latent": ("attention.kv_b",),
        "values": ("attention.o",),
    },
    "network": {
        "network": ("shared.gate", "shared.up", "dense.gate", "dense.up"),
        "shared": ("shared.down",),
        "dense": ("dense.down",),
    },
}
"""Sites of each half, with the roles of the matrices that read their inputs."""

LINEAR_ROLES = tuple(role for sites in _READERS.values() for roles in sites.values() for role in roles)
"""Roles of the matrices beside the routed experts that can be made sparse or stored in few bits."""

NORMS: Mapping[str, str] = {
    "attention": "norm.attention",
    "query_latent": "attention.q_a_norm",
    "latent": "attention.kv_a_norm",
    "network": "norm.mlp",
}
"""Role of the norm whose output the inputs of a site are."""

ROWS: Mapping[str, str] = {"values": "attention.v", "shared": "shared.up", "dense": "dense.up"}
"""Role of the matrix in whose rows the inputs of a site are linear, each row one input."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where inputs are read.

    Args:
        name: of the site.
        roles: of the matrices that read them.
        inputs: X.
        start: place of the first input among those of all sites of the half.
        gram_start: place of the first entry of their Gram matrix, likewise.
    """

    name: str
    roles: tuple[str, ...]
    inputs: int
    start: int
    gram_start: int

    @property
    def row(self) -> slice:
        """Its inputs among those of the half."""
        return slice(self.start, self.start + self.inputs)

    @property
    def gram(self) -> slice:
        """The entries of its Gram matrix, row by row, among those of the half."""
        return slice(self.gram_start, self.gram_start + self.inputs**2)


def linears(tensors: Iterable[TensorEntry]) -> tuple[TensorEntry, ...]:
    """Return the matrices among ``tensors`` that can be slimmed beside the routed experts, in their order."""
    return tuple(entry for entry in tensors if entry.role in LINEAR_ROLES)


def slimmed(layer: LayerInventory, scope: Literal["experts", "all"]) -> tuple[TensorEntry, ...]:
    """Return the whole matrices of a layer that ``scope`` names: those of the routed experts, or all."""
    experts = tuple(layer.with_role(*EXPERT_ROLES))
    return experts if scope == "experts" else (*experts, *linears(layer.tensors))


def sites(layer: LayerInventory, part: Part) -> tuple[Site, ...]:
    """Return the sites of one half of a decoder layer."""
    inputs = {entry.role: entry.shape[1] for entry in linears(whole_linears(layer.tensors))}
    found: list[Site] = []
    start = gram_start = 0
    for name, readers in _READERS[part].items():
        roles = tuple(role for role in readers if role in inputs)
        if not roles:
            continue
        size = inputs[roles[0]]
        found.append(Site(name, roles, size, start, gram_start))
        start, gram_start = start + size, gram_start + size**2
    return tuple(found)


def all_sites(layer: LayerInventory) -> tuple[tuple[Part, Site], ...]:
    """Return the sites of both halves of a decoder layer, each with its half."""
    return tuple((part, site) for part in _READERS for site in sites(layer, part))


def sizes(layer: LayerInventory, part: Part) -> tuple[int, int]:
    """Return how many inputs, and entries of Gram matrices, the sites of one half have together."""
    last = sites(layer, part)[-1:]
    return (last[0].row.stop, last[0].gram.stop) if last else (0, 0)


def part_of_linear(entry: TensorEntry) -> str | None:
    """Return which part of a linear layer in few bits ``entry`` is; None for all other tensors."""
    role, _, part = entry.role.rpartition(".")
    return part if role in LINEAR_ROLES else None


def whole_linear(entry: TensorEntry) -> TensorEntry | None:
    """Return the matrix that packed integers beside the experts stand for; None for all other tensors."""
    if part_of_linear(entry) != "packed":
        return None
    role, outputs = entry.role.rpartition(".")[0], entry.shape[0]
    shape = (outputs, (entry.weights or 0) // outputs)
    return replace(entry, template=entry.template.removesuffix("_packed"), role=role, shape=shape, weights=None)


def whole_linears(tensors: Iterable[TensorEntry]) -> tuple[TensorEntry, ...]:
    """Return ``tensors`` with whole matrices in place of linear layers in few bits."""
    wholes = ((entry, whole_linear(entry)) for entry in tensors)
    return tuple(whole or entry for entry, whole in wholes if whole or part_of_linear(entry) is None)


def scaled_rows(layer: LayerInventory, site: Site) -> str | None:
    """Return the role of the matrix whose rows can undo a scale of the inputs of ``site``; None: no matrix can.

    The inputs of the output projection are sums of values, head by head; where fewer heads have values than queries, one value
    enters several inputs.
    """
    rows = {entry.role: entry.shape[0] for entry in layer.tensors}
    role = ROWS.get(site.name)
    return role if role is not None and rows.get(role) == site.inputs else None


def scaled_beside(layer: LayerInventory) -> tuple[str, ...]:
    """Return the roles of all tensors, beside the matrices themselves, that change where inputs of linear layers are scaled.

    They are norms, and the bias of a matrix whose rows are divided. The norm before routed experts is not among them: their own
    scale reaches it.
    """
    present = {entry.role for entry in layer.tensors}
    found = {NORMS.get(site.name) for _, site in all_sites(layer)}
    found |= {f"{role}_bias" for role in (scaled_rows(layer, site) for _, site in all_sites(layer)) if role is not None}
    if layer.mlp == "moe":
        found.discard("norm.mlp")
    return tuple(sorted(role for role in found if role in present))


def unknown_readers(layer: LayerInventory) -> tuple[str, ...]:
    """Return the names of matrices of the attention that belong to no site, so that nobody knows what they read."""
    return tuple(
        entry.name
        for entry in layer.tensors
        if entry.role.startswith("attention.") and entry.role.count(".") == 1 and len(entry.shape) == 2
        if entry.role not in LINEAR_ROLES
    )
