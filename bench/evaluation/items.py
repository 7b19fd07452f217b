"""Per-item results: what a score is computed from, and what pairs two models item by item."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bench.records.item_files import file_name
from bench.store.store import write_json

Statistic = Literal["mean", "perplexity", "bits"]


@dataclass(frozen=True)
class Items:
    """The results of one metric of one task on each item.

    ``statistic`` says how they become a score, with values x and weights w:
    ``mean`` is sum(w x) / sum(w); ``perplexity`` is exp(-sum(x) / sum(w)) with x the log-likelihood of a document in
    nats and w its words or bytes (1 where the harness averages over items); ``bits`` is -sum(x) / sum(w) / ln 2.
    """

    task: str
    metric: str
    filter: str
    statistic: Statistic
    ids: tuple[str, ...]  # position and digest of document, prompt and target
    values: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def key(self) -> tuple[str, str, str]:
        """Task, metric and filter: what must agree for a comparison."""
        return self.task, self.metric, self.filter

    @property
    def binary(self) -> bool:
        """Whether every item is right (1) or wrong (0), each counting the same."""
        return self.statistic == "mean" and set(self.values) <= {0.0, 1.0} and len(set(self.weights)) == 1


def corpus_score(
    statistic: Statistic, values: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the score over the last axis: items, or resampled items in each row.

    Args:
        statistic: how items become a score.
        values: (..., n).
        weights: (..., n).
    """
    if statistic == "mean":
        return np.asarray((values * weights).sum(-1) / weights.sum(-1))
    rate = -values.sum(-1) / weights.sum(-1)
    with np.errstate(over="ignore"):  # a broken model has perplexity inf, which is what it should show
        return np.asarray(np.exp(rate) if statistic == "perplexity" else rate / math.log(2.0))


def standard_error(items: Items) -> float | None:
    """Return the standard error of the score over items, None for a single item.

    For a mean it is the sample standard deviation over sqrt(n), lm-eval's own. For perplexity and bits, where lm-eval
    gives none or resamples 100,000 times, it is the delta method on the ratio r = -sum(x) / sum(w):
    se(r) = sqrt(n / (n - 1) * sum((x + r w)^2)) / sum(w), times the derivative of the score by r.
    """
    n = len(items.values)
    if n < 2:
        return None
    values, weights = np.asarray(items.values), np.asarray(items.weights)
    total = weights.sum()
    if items.statistic == "mean":
        residuals = weights * (values - (values * weights).sum() / total)
        slope = 1.0
    else:
        rate = -values.sum() / total
        residuals = values + rate * weights
        slope = math.exp(min(rate, 700.0)) if items.statistic == "perplexity" else 1.0 / math.log(2.0)
    return float(slope * math.sqrt(n / (n - 1) * (residuals**2).sum()) / total)


def save_items(items: Iterable[Items], folder: Path) -> None:
    """Write one JSON file for each task into ``folder``, each in one atomic step.

    Raises:
        RecordError: the disk refuses.
    """
    tasks: dict[str, list[Items]] = {}
    for one in items:
        tasks.setdefault(one.task, []).append(one)
    for task, group in tasks.items():
        write_json(folder / f"{file_name(task)}.json", [asdict(one) for one in group])


def items_from(fields: dict[str, object]) -> Items:
    """Return the items written as the JSON object ``fields``."""
    lists = ("ids", "values", "weights")
    return Items(**{key: tuple(value) if key in lists else value for key, value in fields.items()})  # type: ignore[arg-type]  # checked by the caller's except
