"""Squares, Gram matrices and magnitudes of what goes into the matrices of experts.

That is x into gate and up, act(gate x) * (up x) into down. Shape letters: T tokens of a block, N some tokens of one expert,
E routed experts, D hidden size, F expert width, X one of these two; see ``methods.framework.stat_spec``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from methods.framework.accumulator import Accumulator, Seen, Shown
from methods.framework.place import LayerPlace
from methods.framework.stat_spec import Array, StatSpec

if TYPE_CHECKING:
    from torch import Tensor

_PIECE = 512
"""Tokens of which inputs are widened to float64 at once."""


class InputSquares(Accumulator):
    """Squared inputs of gate and up, plain and times squared gates, in float64."""

    specs = (
        StatSpec(
            "input_square", ("E", "D"), "moe", "routed", "mean over T_j of the squared inputs of gate and up", "input^2"
        ),
        StatSpec(
            "gated_input_square",
            ("E", "D"),
            "moe",
            "routed",
            "mean over T_j of the squared inputs of gate and up, times g_j^2",
            "input^2",
        ),
    )
    shown = frozenset({"inputs"})

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        self._sums_2EX = place.zeros(2, place.layer.experts, self._size(place))

    @staticmethod
    def _size(place: LayerPlace) -> int:
        return place.hidden

    def inputs(self, expert: int, x_ND: Tensor, gates_N: Tensor) -> None:
        self._add(expert, x_ND, gates_N)

    def _add(self, expert: int, x_NX: Tensor, gates_N: Tensor) -> None:
        from methods.kernels.experts import second_moments

        self._sums_2EX[:, expert] += second_moments(x_NX, gates_N)

    def finished(self, seen: Seen) -> dict[str, Array]:
        means_2EX = self._sums_2EX.cpu().numpy() / np.maximum(np.array(seen.hits_E, dtype=np.float64), 1.0)[:, None]
        names = (spec.name for spec in self.specs)
        return {name: mean_EX for name, mean_EX in zip(names, means_2EX, strict=True) if name in self.needs}


class ChannelSquares(InputSquares):
    """Squared inputs of down, likewise."""

    specs = (
        StatSpec(
            "channel_square", ("E", "F"), "moe", "routed", "mean over T_j of the squared inputs of down", "channel^2"
        ),
        StatSpec(
            "gated_channel_square",
            ("E", "F"),
            "moe",
            "routed",
            "mean over T_j of the squared inputs of down, times g_j^2",
            "channel^2",
        ),
    )
    shown = frozenset({"channels"})

    @staticmethod
    def _size(place: LayerPlace) -> int:
        return place.width

    def channels(self, expert: int, x_NF: Tensor, gates_N: Tensor) -> None:
        self._add(expert, x_NF, gates_N)


class InputGrams(Accumulator):
    """Products of inputs: float32 sums in files, of which one is in memory, whichever of the two it is of."""

    specs = (
        StatSpec(
            "input_gram",
            ("E", "D", "D"),
            "moe",
            "routed",
            "mean over T_j of x x^T, x the input of gate and up; float32, a memory map",
            "input^2",
            on_disk=True,
        ),
        StatSpec(
            "channel_gram",
            ("E", "F", "F"),
            "moe",
            "routed",
            "mean over T_j of a a^T, a the input of down; float32, a memory map",
            "channel^2",
            on_disk=True,
        ),
    )

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        self._grams = place.grams(lasting=True)
        for name, width in (("input_gram", place.hidden), ("channel_gram", place.width)):
            if name in needs:
                self._grams.create(name, place.layer.experts, width)
        sides: dict[str, Shown] = {"input_gram": "inputs", "channel_gram": "channels"}
        self.shown = frozenset(sides[name] for name in needs)

    def inputs(self, expert: int, x_ND: Tensor, gates_N: Tensor) -> None:
        if "input_gram" in self.needs:
            self._grams.add("input_gram", expert, x_ND)

    def channels(self, expert: int, x_NF: Tensor, gates_N: Tensor) -> None:
        if "channel_gram" in self.needs:
            self._grams.add("channel_gram", expert, x_NF)

    def finished(self, seen: Seen) -> dict[str, Array]:
        return {name: self._grams.finished(name, seen.hits_E) for name in sorted(self.needs, reverse=True)}


class InputMagnitude(Accumulator):
    """Sizes of what enters the MoE block."""

    specs = (
        StatSpec(
            "input_magnitude",
            ("D",),
            "moe",
            "routed",
            "mean over all tokens of |x|, x the input of the MoE block after its norm",
            "input",
        ),
    )

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        self._sum_D = place.zeros(place.hidden)

    def routed(self, input_TD: Tensor, output_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> None:
        for piece_ND in input_TD.split(_PIECE):
            self._sum_D += piece_ND.double().abs().sum(dim=0)

    def finished(self, seen: Seen) -> dict[str, Array]:
        return {"input_magnitude": self._sum_D.cpu().numpy() / seen.tokens}
