"""Statistics of the sampled tokens of one decoder layer, on each of which every expert runs.

Shape letters: N some sampled tokens, R router rows, E routed experts, D hidden size, C tokens of the CKA.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.calibration.layers.hidden import Block, ScratchRows
from bench.calibration.layers.sample import Sample
from bench.calibration.sums.disk_array import DiskArrays
from bench.calibration.sums.similarity import linear_cka
from methods.framework.inventory import LayerInventory
from methods.framework.stats import Array

_GRAM_BYTES = 16 << 20
"""Bound on Gram matrices that are in memory at once."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which tokens are sampled, and where big statistics are kept.

    Args:
        tokens: tokens of the corpus on which every expert runs.
        cka: those of them that the CKA compares outputs on.
        arrays: files of statistics that are too big for memory.
        scratch: folder for temporary files.
    """

    tokens: Sample
    cka: Sample
    arrays: DiskArrays
    scratch: Path | None


class SampledSums:
    """Takes the outputs of all experts on the sampled tokens, in the order of the tokens."""

    def __init__(
        self,
        needs: Collection[str],
        layer: LayerInventory,
        hidden: int,
        device: torch.device,
        index: int,
        sampling: Sampling,
    ) -> None:
        """Begin with zeros and empty files."""
        self._needs, self._experts, self._sampling = frozenset(needs), layer.experts, sampling
        experts, count = layer.experts, sampling.tokens.count
        shapes = {"token_logits": (count, layer.rows), "token_gram": (count, experts, experts)}
        self._arrays = {
            name: sampling.arrays.create(name, index, shape) for name, shape in shapes.items() if name in needs
        }
        self._mean_ED = torch.zeros(experts, hidden, dtype=torch.float64, device=device)
        self._cosine_EE = torch.zeros(experts, experts, dtype=torch.float64, device=device)
        self._outputs: ScratchRows | None = None
        self._hidden, self._seen = hidden, 0
        self._device = device

    @property
    def dense(self) -> bool:
        """Whether outputs are asked for, and not logits alone."""
        return self._needs != {"token_logits"}

    def begin(self, block: Block) -> None:
        """Choose the sampled tokens of ``block``."""
        _, tokens_N = self._sampling.tokens.within(block.start, block.stop)
        self.tokens_N = tokens_N.to(self._device)

    def logits(self, logits_NR: Tensor) -> None:
        """Add router logits of sampled tokens."""
        if "token_logits" in self._needs:
            self._arrays["token_logits"].append(logits_NR.float().cpu().numpy())

    def outputs(self, outputs_NED: Tensor) -> None:
        """Add the outputs of all experts on the next sampled tokens, in at least float32."""
        count, experts, _ = outputs_NED.shape
        if "dense_output_mean" in self._needs:
            self._mean_ED += outputs_NED.sum(dim=0, dtype=torch.float64)
        if not self._needs.isdisjoint({"token_gram", "output_cosine"}):
            for some_NED in outputs_NED.split(max(1, _GRAM_BYTES // (4 * experts * experts))):
                self._gram(torch.bmm(some_NED, some_NED.mT))
        if "output_cka" in self._needs:
            self._keep(outputs_NED)
        self._seen += count

    def _gram(self, gram_NEE: Tensor) -> None:
        if "output_cosine" in self._needs:
            norms_NE = gram_NEE.diagonal(dim1=1, dim2=2).clamp_min(0.0).sqrt()
            norms_NEE = norms_NE.unsqueeze(2) * norms_NE.unsqueeze(1)
            cosine_NEE = torch.where(norms_NEE > 0, gram_NEE / norms_NEE, 0.0)
            self._cosine_EE += cosine_NEE.sum(dim=0, dtype=torch.float64)
        if "token_gram" in self._needs:
            self._arrays["token_gram"].append(gram_NEE.float().cpu().numpy())

    def _keep(self, outputs_NED: Tensor) -> None:
        """Put the outputs that the CKA compares on the disk, expert by expert."""
        first, chosen_N = self._sampling.cka.within(self._seen, self._seen + len(outputs_NED))
        if not len(chosen_N):
            return
        count = self._sampling.cka.count
        if self._outputs is None:
            self._outputs = ScratchRows(
                self._experts * count, self._hidden, outputs_NED.dtype, self._sampling.scratch, "expert outputs"
            )
        for expert in range(self._experts):
            self._outputs.write(expert * count + first, outputs_NED[chosen_N.to(outputs_NED.device), expert])

    def _features(self) -> Iterator[Sequence[Tensor]]:
        count = self._sampling.cka.count
        assert self._outputs is not None
        for expert in range(self._experts):
            yield [self._outputs.read(expert * count, (expert + 1) * count).to(self._device)]

    def finished(self) -> dict[str, Array]:
        """Return the statistics; those kept token by token are float32 memory maps."""
        values: dict[str, Any] = {name: array.finished() for name, array in self._arrays.items()}
        count = max(self._sampling.tokens.count, 1)
        if "dense_output_mean" in self._needs:
            values["dense_output_mean"] = (self._mean_ED / count).cpu().numpy()
        if "output_cosine" in self._needs:
            values["output_cosine"] = np.clip((self._cosine_EE / count).cpu().numpy(), -1.0, 1.0)
        if "output_cka" in self._needs:
            sampling = self._sampling
            values["output_cka"] = linear_cka(self._features(), self._experts, sampling.cka.count, sampling.scratch)
            self._outputs = None
        return values
