"""How alike the experts of a model are, from the records of runs whose method compared them.

A record holds the comparison of every two experts of each layer (``similarity``) and the sizes of the groups that were merged
(``groups``). Shape letters: E experts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from analysis.formatting import fixed
from analysis.inference import SeedMean, mean, over_seeds
from analysis.provenance import Block
from bench.records.record import Record, SimilarityInfo

STATISTICS: Mapping[str, str] = {
    "output_cka": "linear CKA of outputs",
    "output_cosine": "cosine of outputs on the same token",
    "weight_cka": "linear CKA of weights",
}
"""Names of the statistics in words; the first that was measured is drawn."""

NOTE = (
    "Mean over all pairs of two experts and over layers, ± half of its 95 % interval over texts (Student t). Measured on the "
    "uncompressed model, in the runs of methods that read the statistic."
)


@dataclass(frozen=True)
class Likeness:
    """How alike the experts of one model are by one statistic on texts of one name.

    Args:
        model: name of the model.
        content: digest of its files.
        statistic: key in ``STATISTICS``.
        corpus: name of the text; empty where the statistic reads weights alone.
        texts: for each draw of the text, the comparison of every layer.
    """

    model: str
    content: str
    statistic: str
    corpus: str
    texts: Mapping[str, tuple[SimilarityInfo, ...]]

    @cached_property
    def overall(self) -> SeedMean:
        """Mean over pairs and layers, with its interval over texts."""
        return over_seeds([mean([layer.mean for layer in text]) for text in self.texts.values()])

    @cached_property
    def layers(self) -> Mapping[int, float]:
        """Mean over pairs and texts of each layer."""
        found: dict[int, list[float]] = defaultdict(list)
        for text in self.texts.values():
            for layer in text:
                found[layer.layer].append(layer.mean)
        return {layer: mean(values) for layer, values in sorted(found.items())}

    @cached_property
    def matrices(self) -> Mapping[int, Any]:
        """Mean over texts of every pair, for each layer whose pairs are known: arrays (E, E), 1 on the diagonal."""
        found: dict[int, list[Any]] = defaultdict(list)
        for text in self.texts.values():
            for layer in text:
                if layer.pairs is not None:
                    found[layer.layer].append(matrix(layer))
        return {layer: np.mean(values, axis=0) for layer, values in sorted(found.items())}


def matrix(layer: SimilarityInfo) -> Any:
    """Return the pairs of one layer as a symmetric array (E, E) with 1 on the diagonal."""
    value_EE = np.eye(layer.experts)
    above = np.triu_indices(layer.experts, 1)
    value_EE[above] = [int(part) / 100 for part in (layer.pairs or "").split()]
    value_EE.T[above] = value_EE[above]
    return value_EE


def likenesses(records: Iterable[Record]) -> list[Likeness]:
    """Return what complete runs measured: one entry for each model, statistic and name of a text, in this order."""
    texts: dict[tuple[str, str, str, str], dict[str, tuple[SimilarityInfo, ...]]] = defaultdict(dict)
    for record in sorted(records, key=lambda record: record.id):
        if record.status != "complete":
            continue
        name, digest = (record.corpus.name, record.corpus.digest) if record.corpus else ("", "")
        for statistic in STATISTICS:
            layers = tuple(one for one in record.similarity if one.statistic == statistic)
            if layers:
                key = (record.model.name, record.model.content, statistic, name)
                texts[key].setdefault(digest, layers)
    order = list(STATISTICS)
    keys = sorted(texts, key=lambda key: (key[0], key[1], order.index(key[2]), key[3]))
    return [Likeness(*key, dict(sorted(texts[key].items()))) for key in keys]


def drawn_ones(found: Sequence[Likeness]) -> list[Likeness]:
    """Return for each model and text the one that a figure shows: by the first statistic with known pairs."""
    chosen: dict[tuple[str, str], Likeness] = {}
    for one in found:
        if one.matrices:
            chosen.setdefault((one.content, one.corpus), one)
    return list(chosen.values())


def similarity_block(found: Sequence[Likeness]) -> Block:
    """Return the table of means: one line for each model, statistic and text."""
    head = ("model", "experts", "compared by", "text", "mean", "lowest and highest layer", "texts")
    lines = []
    for one in found:
        layers = list(one.layers.values())
        experts = sorted({layer.experts for text in one.texts.values() for layer in text})
        lines.append(
            (
                one.model,
                ", ".join(map(str, experts)),
                STATISTICS[one.statistic],
                one.corpus or "–",
                _with_half(one.overall),
                f"{fixed(min(layers), 3)} to {fixed(max(layers), 3)}",
                str(one.overall.n),
            )
        )
    return Block("Similarity of experts", head, tuple(lines))


def _with_half(value: SeedMean) -> str:
    text = fixed(value.value, 3)
    return text if value.half is None else f"{text} ± {fixed(value.half, 3)}"


@dataclass(frozen=True)
class Grouping:
    """Sizes of the groups that runs of one method made on one model at one share, over layers and seeds.

    Args:
        sizes: of each layer of each run, descending.
    """

    sizes: tuple[tuple[int, ...], ...]

    @property
    def told(self) -> str:
        """The sizes in words: the largest group and the experts that stay alone, of how many, means over layers and seeds."""
        largest = [layer[0] for layer in self.sizes]
        alone = mean([layer.count(1) for layer in self.sizes])
        groups = mean([len(layer) for layer in self.sizes])
        return f"largest {fixed(mean(largest))} ({min(largest)} to {max(largest)}), {fixed(alone)} of {fixed(groups)} alone"


def grouping(records: Iterable[Record]) -> Grouping | None:
    """Return the sizes of the groups of these runs; None where none merges."""
    sizes = tuple(record.groups[layer] for record in records for layer in sorted(record.groups))
    return Grouping(sizes) if sizes else None
