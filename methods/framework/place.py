"""What a measurement offers to those who sum: where sums are kept, the experts of a layer, gradients.

The classes are in ``bench.calibration``; here stands what an accumulator may rely on. Shape letters: N some tokens of one expert,
E routed experts, D hidden size, F expert width, X inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from methods.framework.inventory import LayerInventory

if TYPE_CHECKING:
    from torch import Tensor, device, dtype


class Network(Protocol):
    """The matrices of one expert, gate above up; they are gone when another expert is read."""

    @property
    def gate_up_2FD(self) -> Tensor:
        """Gate above up."""
        ...

    @property
    def down_DF(self) -> Tensor:
        """Down."""
        ...


class Experts(Protocol):
    """The routed experts of one layer, one in memory at a time."""

    def __len__(self) -> int:
        """Return the number of experts."""
        ...

    def read(self, number: int) -> Network:
        """Return an expert."""
        ...

    def router(self, role: str) -> Tensor | None:
        """Return the router's tensor of ``role`` in at least float32, None where the family has none."""
        ...


class Rows(Protocol):
    """A matrix in a temporary file, by rows."""

    def write(self, start: int, rows_ND: Tensor) -> None:
        """Write rows from index ``start`` on."""
        ...

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows ``start:stop`` on the processor."""
        ...


class FileArray(Protocol):
    """An array that grows along its first axis in a file."""

    def append(self, rows: Any) -> None:
        """Add rows, a numpy array; values that are not finite are refused."""
        ...

    def write(self, row: int, values: Any) -> None:
        """Keep ``values``, an array of float32, as a row that is not yet added."""
        ...

    def read(self, row: int, out: Any) -> None:
        """Read what is kept as a row, zeros if nothing is, into ``out``, an array of float32."""
        ...

    def finished(self) -> Any:
        """Return the whole array as a read-only memory map."""
        ...


class GramSums(Protocol):
    """Sums of x x^T by name and expert, one of them in memory."""

    def __contains__(self, name: str) -> bool:
        """Return whether ``name`` is kept here."""
        ...

    def create(self, name: str, experts: int, width: int) -> None:
        """Begin with zeros.

        Args:
            name: of the sums.
            experts: how many experts have one.
            width: X, entries of an input.
        """
        ...

    def add(self, name: str, expert: int, x_NX: Tensor) -> None:
        """Add x x^T.

        Args:
            name: of the sums.
            expert: whose.
            x_NX: inputs, one a row.
        """
        ...

    def mean(self, name: str, expert: int, count: int) -> Tensor:
        """Return a mean, (X, X), which the next call of any kind overwrites.

        Args:
            name: of the sums.
            expert: whose.
            count: tokens that were added.
        """
        ...

    def finished(self, name: str, counts_E: Sequence[int]) -> Any:
        """Return the means over ``counts_E`` tokens as a read-only memory map of shape (E, X, X)."""
        ...

    def close(self) -> None:
        """Remove files without a lasting name."""
        ...


class Sampled(Protocol):
    """Things that are evenly spaced among others."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def within(self, start: int, stop: int) -> tuple[int, Tensor]:
        """Return those in ``start:stop``: how many come before, and their offsets from ``start``, ascending."""
        ...


class Place(Protocol):
    """Where sums are kept, whatever they are of."""

    @property
    def hidden(self) -> int:
        """D."""
        ...

    @property
    def depth(self) -> int:
        """Decoder layers of the model."""
        ...

    @property
    def device(self) -> device:
        """Of the computation."""
        ...

    @property
    def boundary(self) -> Sampled:
        """Tokens that are compared at the boundaries between layers."""
        ...

    def zeros(self, *shape: int) -> Tensor:
        """Return zeros in float64 on the device."""
        ...

    def rows(self, count: int, width: int, kind: dtype, content: str) -> Rows:
        """Return a temporary matrix.

        Args:
            count: its rows.
            width: of a row.
            kind: type of its entries.
            content: what it holds, for messages.
        """
        ...


class LayerPlace(Place, Protocol):
    """Where sums of one layer are kept."""

    @property
    def index(self) -> int:
        """Number of the decoder layer."""
        ...

    @property
    def layer(self) -> LayerInventory:
        """What the checkpoint holds for it."""
        ...

    @property
    def width(self) -> int:
        """F, that of the widest expert."""
        ...

    @property
    def sampled(self) -> Sampled:
        """Tokens of the corpus on which every expert runs."""
        ...

    @property
    def compared(self) -> Sampled:
        """Those of the sampled tokens on which outputs are compared."""
        ...

    def file(self, name: str, shape: tuple[int, ...]) -> FileArray:
        """Return a new array for statistic ``name`` of this layer."""
        ...

    def grams(self, *, lasting: bool) -> GramSums:
        """Return sums in float32 that become statistics (``lasting``), or in float64 that go when the layer is done."""
        ...


class ExpertGradient(Protocol):
    """What one window shows of one expert when its loss, summed over the tokens, is differentiated."""

    @property
    def expert(self) -> int:
        """Number of the expert."""
        ...

    @property
    def targets(self) -> int:
        """Tokens that the loss is a sum over, at least 1."""
        ...

    @property
    def channels_NF(self) -> Tensor:
        """Inputs of down."""
        ...

    @property
    def slope_NF(self) -> Tensor:
        """Gradient in the inputs of down."""
        ...

    def in_matrices(self) -> Sequence[Tensor]:
        """Return the gradients in gate, up and down."""
        ...
