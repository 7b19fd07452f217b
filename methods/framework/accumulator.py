"""How a statistic is measured: an accumulator is shown what passes through the model, and makes arrays of it in the end.

A statistic costs one file: a subclass of ``Accumulator`` (or, of ``ModelAccumulator``) with its definitions in ``specs``, in the
folder ``methods/stats`` or in another distribution that names the class under the entry-point group ``moebench.statistics``.
Such files take torch from ``methods.framework.deferred`` and import kernels where they use them, since listings read them.

Shape letters: T tokens of a block, N some of them, K experts per token, R router rows, E routed experts, D hidden size, F expert
width, X inputs of a linear layer.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from methods.framework.place import ExpertGradient, Experts, LayerPlace, Place
from methods.framework.stat_spec import Array, StatSpec

if TYPE_CHECKING:
    from torch import Tensor

Shown = Literal[
    "inputs", "channels", "removals", "sampled_logits", "sampled_outputs", "layer_input", "attention", "network"
]
"""What takes work or memory beyond the forward pass, so that it is shown only where an accumulator asks for it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the pass itself knows of a layer once all tokens went through it.

    Args:
        tokens: tokens of the corpus.
        hits_E: tokens that each expert saw.
        experts: the layer's experts.
    """

    tokens: int
    hits_E: Sequence[int]
    experts: Experts


class Accumulator:
    """Sums of one layer. Blocks are shown one after the other between ``begin`` and ``end``, in the order of the methods here.

    Class attributes:
        specs: the statistics that it makes.

    Attributes:
        shown: what the pass has to keep or compute for it.
    """

    specs: ClassVar[tuple[StatSpec, ...]]
    shown: frozenset[Shown] = frozenset()

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        """Begin with zeros.

        Args:
            needs: names of those of ``specs`` that are asked for.
            place: the layer, and where its sums are kept.
        """
        self.needs, self.place = needs, place

    @classmethod
    def passing_bytes(cls, sizes: Mapping[str, int]) -> int:
        """Return the bytes that it keeps in files until a layer is done; ``sizes`` are those of the axes."""
        return 0

    def begin(self, window_T: Tensor, windows: int) -> None:
        """Take the tokens of the next block, ``window_T`` the window in it that each belongs to."""

    def linear(self, site: str, x_NX: Tensor) -> None:
        """Take inputs of linear layers that every token passes; only with the site's half of the layer in ``shown``.

        Those of the attention come after ``begin`` and before anything else of the block.

        Args:
            site: where they are read (``methods.framework.linears``).
            x_NX: the inputs of some tokens.
        """

    def entered(self, residual_TD: Tensor) -> None:
        """Take the residual stream that enters the feed-forward sub-layer, before its norm; it stays as it is until ``end``.

        Shown before anything else of the sub-layer.
        """

    def decided(self, logits_NR: Tensor, scores_NR: Tensor, indices_NK: Tensor) -> None:
        """Take what the router decides for some tokens.

        Args:
            logits_NR: its logits, a column for each of its rows.
            scores_NR: all scores, before any is chosen.
            indices_NK: the rows that are chosen.
        """

    def inputs(self, expert: int, x_ND: Tensor, gates_N: Tensor) -> None:
        """Take the inputs of one expert before it runs; only with "inputs" in ``shown``.

        Args:
            expert: its number.
            x_ND: inputs of its gate and up on some of its tokens.
            gates_N: weights of its outputs on them.
        """

    def channels(self, expert: int, x_NF: Tensor, gates_N: Tensor) -> None:
        """Take the inputs of the down of one expert; only with "channels" in ``shown``.

        Args:
            expert: its number.
            x_NF: the inputs on some of its tokens.
            gates_N: weights of its outputs on them.
        """

    def expert(self, expert: int, tokens_N: Tensor, places_N: Tensor, gates_N: Tensor, output_ND: Tensor) -> None:
        """Take outputs of one expert.

        Args:
            expert: its number.
            tokens_N: some of its tokens, as rows of the block.
            places_N: its column in the routing decision of each.
            gates_N: weights of the outputs.
            output_ND: the outputs, not yet weighted; they are overwritten later.
        """

    def removed(self, tokens_N: Tensor, squares_NE: Tensor) -> None:
        """Take the squared change of the routed output of some tokens for the removal of each expert; "removals"."""

    def sampled_logits(self, logits_NR: Tensor) -> None:
        """Take the router logits of the next sampled tokens; only with "sampled_logits" in ``shown``."""

    def sampled_outputs(self, outputs_NED: Tensor) -> None:
        """Take the outputs of all experts on the next sampled tokens, in at least float32; "sampled_outputs"."""

    def routed(self, input_TD: Tensor, output_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> None:
        """Take what the routed experts make of all tokens of the block.

        Args:
            input_TD: input of the MoE block, after its norm.
            output_TD: sum of the weighted outputs of the routed experts.
            indices_TK: router rows that are chosen.
            weights_TK: their weights.
        """

    def sublayer(self, residual_TD: Tensor, input_TD: Tensor, output_TD: Tensor) -> None:
        """Take what the feed-forward sub-layer makes of all tokens of the block.

        Args:
            residual_TD: the residual stream before its output is added.
            input_TD: its input, after its norm.
            output_TD: its output, shared experts included.
        """

    def through(self, input_TD: Tensor, output_TD: Tensor) -> None:
        """Take input and output of the decoder layer; the input is the layer's only with "layer_input" in ``shown``."""

    def end(self) -> None:
        """Close the block."""

    def gradient(self, part: ExpertGradient) -> None:
        """Take what one window shows of one expert; for statistics of cost ``gradient``, which see nothing else."""

    def finished(self, seen: Seen) -> dict[str, Array]:
        """Return the statistics that were asked for."""
        raise NotImplementedError


class ModelAccumulator(abc.ABC):
    """Sums over the whole model.

    Class attributes:
        specs: the statistics that it makes, all of scope ``model``.
    """

    specs: ClassVar[tuple[StatSpec, ...]]

    def __init__(self, needs: frozenset[str], place: Place) -> None:
        """Begin with zeros; ``needs`` are names of those of ``specs`` that are asked for."""
        self.needs, self.place = needs, place

    @abc.abstractmethod
    def boundary(self, boundary: int, start: int, hidden_TD: Tensor) -> None:
        """Take hidden states between two layers.

        Args:
            boundary: the decoder layer that they enter; the number of layers where they leave the last one.
            start: position of the first of the tokens in the corpus.
            hidden_TD: the states.
        """

    @abc.abstractmethod
    def finished(self) -> dict[str, Array]:
        """Return the statistics that were asked for."""
