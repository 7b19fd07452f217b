"""Squares, Gram matrices and magnitudes of what goes into linear layers that every token passes.

They are those of attention, dense networks and shared experts, site by site behind each other (``methods.framework.linears``).
Shape letters: N some tokens, X inputs of a site.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from methods.framework.accumulator import Accumulator, Seen, Shown
from methods.framework.deferred import torch
from methods.framework.linears import Part, sites
from methods.framework.place import LayerPlace
from methods.framework.stat_spec import Array, StatSpec

if TYPE_CHECKING:
    from torch import Tensor

_PIECE = 512
"""Tokens of which inputs are widened to float64 at once."""


class _LinearInputs(Accumulator):
    """Sums of one half of a layer: squares and magnitudes in float64, products in float32."""

    part: ClassVar[Part]

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        shown: Shown = self.part
        self.shown = frozenset({shown})
        self._sites = {site.name: site for site in sites(place.layer, self.part)}
        self._square, self._magnitude, self._gram = (f"{self.part}_{kind}" for kind in ("square", "magnitude", "gram"))
        width = sum(site.inputs for site in self._sites.values())
        self._sums = {name: place.zeros(width) for name in (self._square, self._magnitude) if name in needs}
        self._grams_XX = {
            site.name: torch.zeros(site.inputs, site.inputs, device=place.device)
            for site in self._sites.values()
            if self._gram in needs
        }

    def linear(self, site: str, x_NX: Tensor) -> None:
        here = self._sites.get(site)
        if here is None:
            return
        if site in self._grams_XX:
            x_float_NX = x_NX.float()
            self._grams_XX[site].addmm_(x_float_NX.T, x_float_NX)
        for piece_NX in x_NX.split(_PIECE) if self._sums else ():
            wide_NX = piece_NX.double()
            if self._square in self._sums:
                self._sums[self._square][here.row] += wide_NX.square().sum(dim=0)
            if self._magnitude in self._sums:
                self._sums[self._magnitude][here.row] += wide_NX.abs().sum(dim=0)

    def finished(self, seen: Seen) -> dict[str, Array]:
        tokens = max(seen.tokens, 1)
        found: dict[str, Array] = {name: sums.cpu().numpy() / tokens for name, sums in self._sums.items()}
        if self._gram in self.needs:
            total = sum(site.inputs**2 for site in self._sites.values())
            file = self.place.file(self._gram, (total,))
            for name in self._sites:
                gram_XX = self._grams_XX.pop(name).div_(tokens)
                # Products are the same both ways but for the order of their sums.
                file.append(np.ascontiguousarray(gram_XX.add(gram_XX.T).div_(2).cpu().numpy()).reshape(-1))
            found[self._gram] = file.finished()
        return found


def _specs(part: Part, dims: tuple[str, str], of: str) -> tuple[StatSpec, ...]:
    """Return the definitions for one half.

    Args:
        part: the half.
        dims: axes of squares and magnitudes, and of Gram matrices.
        of: the linear layers, in words.
    """
    each, gram = dims
    return (
        StatSpec(
            f"{part}_square", (each,), part, "routed", f"mean over all tokens of x^2, x the inputs of {of}", "input^2"
        ),
        StatSpec(
            f"{part}_magnitude", (each,), part, "routed", f"mean over all tokens of |x|, x the inputs of {of}", "input"
        ),
        StatSpec(
            f"{part}_gram",
            (gram,),
            part,
            "routed",
            f"mean over all tokens of x x^T, x the inputs of {of}; float32, a memory map",
            "input^2",
            on_disk=True,
        ),
    )


class AttentionInputs(_LinearInputs):
    """What goes into query, key and value, the output projection and, of latent attention, what follows the latent states."""

    part = "attention"
    specs = _specs("attention", ("P", "Q"), "the attention's linear layers")


class NetworkInputs(_LinearInputs):
    """What goes into gate and up, and into down, of dense networks and shared experts."""

    part = "network"
    specs = _specs("network", ("U", "V"), "dense networks or shared experts")
