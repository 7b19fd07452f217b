"""Paired comparison of two models on the same items."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import binomtest

from bench.evaluation.items import Items, corpus_score
from bench.records.record import Paired, Score
from methods.framework.errors import EvaluationError

_CHUNK = 2_000_000  # resampled numbers in memory at a time


def compare(base: Items, other: Items, *, seed: int = 0, resamples: int = 10_000) -> Paired:
    """Compare ``other`` with ``base`` item by item.

    The interval is the 95 % percentile bootstrap of score(other) - score(base): items are drawn with replacement, the
    same draw for both models, and both scores are computed anew, perplexities from the drawn documents.

    The p-value of 0/1 items is the exact two-sided McNemar test: of the items on which the two differ, b and c, the
    count b is binomial(b + c, 1/2) if there is no difference; 1 where none differ. That of all other items is twice the
    smaller share of bootstrap differences on either side of zero, (count + 1) / (resamples + 1), at most 1.

    Args:
        base: items of the base.
        other: items of the compressed model.
        seed: of the bootstrap.
        resamples: bootstrap samples.

    Raises:
        EvaluationError: the two do not hold the same items of the same metric.
    """
    _check_same(base, other)
    first, second = np.asarray(base.values), np.asarray(other.values)
    weights = np.asarray(base.weights)
    differences = _bootstrap(base, first, second, weights, seed, resamples)
    difference = float(corpus_score(base.statistic, second, weights) - corpus_score(base.statistic, first, weights))
    # An infinite perplexity gives inf - inf; such draws say nothing and the interval is what the others say.
    finite = differences[~np.isnan(differences)]
    if len(finite):
        # Without interpolation, which between two infinities gives no number.
        low, high = np.quantile(finite, 0.025, method="lower"), np.quantile(finite, 0.975, method="higher")
    else:
        low = high = difference
    if base.binary and other.binary:
        won, lost = int((second > first).sum()), int((second < first).sum())
        p = float(binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0
        return Paired(difference=difference, low=float(low), high=float(high), p=p, test="mcnemar")
    side = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    p = min(1.0, 2.0 * (side + 1) / (resamples + 1))
    return Paired(difference=difference, low=float(low), high=float(high), p=p, test="bootstrap")


def pair_scores(
    scores: tuple[Score, ...], items: Mapping[tuple[str, str, str], Items], base: Mapping[tuple[str, str, str], Items]
) -> tuple[Score, ...]:
    """Return ``scores`` with the comparison to the base filled in wherever both have items.

    Args:
        scores: scores of the compressed model.
        items: its items by task, metric and filter.
        base: the base's items.

    Raises:
        EvaluationError: a metric is there on both sides with different items.
    """
    paired = []
    for score in scores:
        key = (score.task, score.metric, score.filter)
        both = key in items and key in base
        paired.append(score.model_copy(update={"paired": compare(base[key], items[key])}) if both else score)
    return tuple(paired)


def _check_same(base: Items, other: Items) -> None:
    if (base.key, base.statistic) != (other.key, other.statistic):
        raise EvaluationError(f"cannot pair {base.key} with {other.key}: not the same metric of the same task")
    first, second = (list(zip(one.ids, one.weights, strict=True)) for one in (base, other))
    if first != second:
        differing = sum(a != b for a, b in zip(first, second, strict=False)) + abs(len(first) - len(second))
        raise EvaluationError(
            f"cannot pair {'/'.join(base.key)}: the base has {len(base.ids)} items, the other {len(other.ids)}, and "
            f"{differing} differ in document, prompt, target or weight; evaluate both with the same tasks, data, "
            "limit, number of examples and seed"
        )
    if not base.ids:
        raise EvaluationError(f"cannot pair {'/'.join(base.key)}: there are no items")


def _bootstrap(
    items: Items,
    first: np.ndarray[tuple[int], np.dtype[np.float64]],
    second: np.ndarray[tuple[int], np.dtype[np.float64]],
    weights: np.ndarray[tuple[int], np.dtype[np.float64]],
    seed: int,
    resamples: int,
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    draw = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(first))
    parts = []
    for start in range(0, resamples, rows):
        chosen = draw.integers(len(first), size=(min(rows, resamples - start), len(first)))
        picked = weights[chosen]
        with np.errstate(invalid="ignore"):  # inf - inf, dealt with by the caller
            parts.append(
                corpus_score(items.statistic, second[chosen], picked)
                - corpus_score(items.statistic, first[chosen], picked)
            )
    return np.concatenate(parts)
