"""Gram matrices of every expert of a layer, one in memory and the others in their file.

Sums over tokens and products are in float32. A sum over n tokens is then off by at most n 2^-24 (G_ii G_jj)^0.5, and by some
n^0.5 2^-24 of it where rounding errors are independent. Small singular values of a factor of G would drown in that, so sums
from which they are taken are in float64. Shape letters: E routed experts, N some tokens of one expert, X inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bench.calibration.sums.disk_array import DiskArray, DiskArrays

_STRIP = 256
"""Rows of a Gram matrix that one product computes, from the diagonal on: what is below follows by symmetry."""


class Grams:
    """Sums of x x^T by statistic and expert; the one that was added to last is in memory until another is."""

    def __init__(
        self, arrays: DiskArrays, layer: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        """Begin without statistics.

        Args:
            arrays: where files are made for them.
            layer: index of the decoder layer.
            device: where sums are added up.
            dtype: of the sums, float32 or float64.
        """
        self._arrays, self._layer, self._device, self._dtype = arrays, layer, device, dtype
        self._files: dict[str, DiskArray] = {}
        self._widths: dict[str, int] = {}
        self._written: set[tuple[str, int]] = set()
        self._held: tuple[str, int] | None = None
        self._flat = torch.empty(0, dtype=dtype)

    def __contains__(self, name: str) -> bool:
        """Return whether statistic ``name`` is kept here."""
        return name in self._files

    def create(self, name: str, experts: int, width: int) -> None:
        """Begin statistic ``name`` with zeros.

        Args:
            name: of the statistic.
            experts: E.
            width: X, entries of an input.

        Raises:
            StatsError: as ``DiskArrays.create``.
        """
        code = f"<f{self._dtype.itemsize}"
        self._files[name] = self._arrays.create(name, self._layer, (experts, width, width), code)
        self._widths[name] = width
        size = max(self._widths.values()) ** 2
        self._flat = torch.empty(size, dtype=self._dtype, device=self._device)

    def add(self, name: str, expert: int, x_NX: Tensor) -> None:
        """Add the inputs of ``expert`` on some of its tokens.

        Args:
            name: of a statistic that was begun.
            expert: its number.
            x_NX: its inputs, one row a token.
        """
        gram_XX = self._hold(name, expert)
        x_NX = x_NX.to(self._dtype)
        for start in range(0, len(gram_XX), _STRIP):
            rows_NY = x_NX[:, start : start + _STRIP]
            gram_XX[start : start + _STRIP, start:].addmm_(rows_NY.T, x_NX[:, start:])

    def finished(self, name: str, counts_E: Sequence[int]) -> Any:
        """Return the means over ``counts_E`` tokens as a read-only memory map of shape (E, X, X).

        Raises:
            StatsError: a value is not finite, or the disk refuses.
        """
        file = self._files[name]
        for expert, count in enumerate(counts_E):
            file.append(self.mean(name, expert, count).unsqueeze(0).cpu().numpy())
        return file.finished()

    def mean(self, name: str, expert: int, count: int) -> Tensor:
        """Return the mean of x x^T over the tokens of an expert, (X, X), which the next call of any kind overwrites.

        Args:
            name: of a statistic that was begun.
            expert: its number.
            count: tokens that were added; 0 leaves zeros.
        """
        self._release()
        gram_XX = self._view(name)
        self._fill(name, expert, gram_XX)
        _mirror(gram_XX)
        return gram_XX.div_(max(count, 1))

    def close(self) -> None:
        """Close the files, and remove them unless they have a lasting name."""
        self._arrays.close()

    def _view(self, name: str) -> Tensor:
        width = self._widths[name]
        return self._flat[: width * width].view(width, width)

    def _hold(self, name: str, expert: int) -> Tensor:
        """Return the sum of ``expert`` in memory, once the one that was there is in its file."""
        gram_XX = self._view(name)
        if self._held != (name, expert):
            self._release()
            self._fill(name, expert, gram_XX)
            self._held = (name, expert)
        return gram_XX

    def _fill(self, name: str, expert: int, gram_XX: Tensor) -> None:
        if (name, expert) in self._written:
            on_cpu_XX = gram_XX.cpu()  # itself on a processor
            self._files[name].read(expert, on_cpu_XX.numpy())
            if on_cpu_XX is not gram_XX:
                gram_XX.copy_(on_cpu_XX)
        else:
            gram_XX.zero_()

    def _release(self) -> None:
        if self._held is not None:
            name, expert = self._held
            self._files[name].write(expert, self._view(name).cpu().numpy())
            self._written.add(self._held)
            self._held = None


def _mirror(gram_XX: Tensor) -> None:
    """Fill the lower triangle, in place, with the upper one."""
    for start in range(0, len(gram_XX), _STRIP):
        stop = min(start + _STRIP, len(gram_XX))
        gram_XX[stop:, start:stop] = gram_XX[start:stop, stop:].T
        block_YY = gram_XX[start:stop, start:stop]
        block_YY.copy_(block_YY.triu() + block_YY.triu(1).T)
