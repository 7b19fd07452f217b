"""Paired comparison of two models on the same items."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binomtest

from bench.evaluation.items import Items, corpus_score
from bench.evaluation.resampled import Z, adjusted_wald, expanded_bootstrap, hull, influences, skewness_corrected
from bench.records.record import Paired, Score
from methods.framework.errors import EvaluationError

_CHUNK = 2_000_000  # resampled numbers in memory at a time


def compare(base: Items, other: Items, *, seed: int = 0, resamples: int = 10_000) -> Paired:
    """Compare ``other`` with ``base`` item by item.

    The interval of 0/1 items is ``binary_interval``, and their p-value the exact two-sided McNemar test: of the items on which
    the two differ, b and c, the count b is binomial(b + c, 1/2) if there is no difference; 1 where none differ. The interval
    leaves out 0 exactly where p < 0.05.

    The interval of all other items is the hull of two: the expanded 95 % percentile bootstrap of score(other) - score(base),
    items drawn with replacement, the same draw for both models, and both scores computed anew, perplexities from the drawn
    documents; and Student's interval of the difference with its skewness taken out, since no draw shows the rare document that
    was not there. Means of values between 0 and 1 also get the adjusted Wald interval, with half an item of difference +1,
    half of -1 and one of 0 added as for 0/1 items: few items of which hardly any changed say little, and a bootstrap of them
    says too much. Their p-value is the largest of the p-values of these, so the hull too leaves out 0 exactly where p < 0.05.

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
    difference = float(corpus_score(base.statistic, second, weights) - corpus_score(base.statistic, first, weights))
    if base.binary and other.binary:
        won, lost = int((second > first).sum()), int((second < first).sum())
        low, high = binary_interval(won, lost, len(first))
        wald = _wald(won + 0.5, lost + 0.5, len(first) + 2.0)
        return Paired(
            difference=difference,
            low=low,
            high=high,
            stderr=(wald[1] - wald[0]) / (2 * Z),
            p=mcnemar(won, lost),
            test="mcnemar",
            interval="score",
        )
    differences = _bootstrap(base, first, second, weights, seed, resamples)
    with np.errstate(invalid="ignore"):  # infinite perplexities of both have no difference of influences
        moves = influences(base.statistic, second, weights) - influences(base.statistic, first, weights)
    spans = [expanded_bootstrap(differences, len(first))]
    if (corrected := skewness_corrected(difference, moves)) is not None:
        spans.append(corrected)
    if base.statistic == "mean" and min(first.min(), second.min()) >= 0 and max(first.max(), second.max()) <= 1:
        spans.append(adjusted_wald(second - first, weights))
    found = hull(spans)
    return Paired(
        difference=difference,
        low=found.low,
        high=found.high,
        stderr=_spread(differences, len(first)),
        p=found.p,
        test="bootstrap",
        interval="joined",
    )


def mcnemar(won: int, lost: int) -> float:
    """Return the exact two-sided p-value of no difference between two models on 0/1 items; 1 where no item differs.

    Args:
        won: items that only the second model has right.
        lost: items that only the first model has right.
    """
    return float(binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0


def binary_interval(won: int, lost: int, items: int) -> tuple[float, float]:
    """Return a 95 % interval of the difference of two proportions on the same items, (won - lost) / items.

    It is the hull of three: Tango's score interval, never too short where changes are rare; Agresti and Min's adjusted Wald
    interval, never too short where they are common; and the exact conditional one, (2 s - 1) (won + lost) / items with s in the
    interval of Clopper and Pearson for the share of changes that are won, which leaves out 0 exactly where McNemar's exact test
    rejects at 5 %, and is needed where nearly every item changes. From 20 items on the hull covers at least 94 % at every
    rate of change (docs/trust.md). It is never a point.

    Args:
        won: items that only the second model has right.
        lost: items that only the first model has right.
        items: all items, at least one.

    *Source*: Tango, Statistics in Medicine 17 (1998) 891, equations 13 to 17; Agresti and Min, Statistics in Medicine 24 (2005)
    729, section 4; Clopper and Pearson, Biometrika 26 (1934) 404.
    """
    changed = won + lost
    exact = binomtest(won, changed).proportion_ci(0.95) if changed else (0.0, 1.0)
    ends = (
        _score_interval(won, lost, items),
        _wald(won + 0.5, lost + 0.5, items + 2.0),
        ((2 * exact[0] - 1) * changed / items, (2 * exact[1] - 1) * changed / items),
    )
    return float(min(low for low, _ in ends)), float(max(high for _, high in ends))


def _wald(won: float, lost: float, items: float) -> tuple[float, float]:
    middle = (won - lost) / items
    half = Z * math.sqrt(((won + lost) / items - middle**2) / items)
    return middle - half, middle + half


def _score_interval(won: int, lost: int, items: int) -> tuple[float, float]:
    """Return the differences D for which the score statistic of "the true difference is D" lies between -1.96 and 1.96."""

    def statistic(difference: float) -> float:
        a = 2.0 * items
        b = -won - lost + (2 * items - won + lost) * difference
        c = -lost * difference * (1 - difference)
        # The share of lost items under that hypothesis, the larger root of a q^2 + b q + c.
        share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = items * (2 * share + difference * (1 - difference))
        gap = won - lost - items * difference
        if abs(gap) < 1e-9 * items:
            return 0.0
        return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap)

    middle = (won - lost) / items

    def end(far: float, wanted: float) -> float:
        if abs(statistic(far)) <= Z:
            return far
        return float(brentq(lambda difference: max(-1e6, min(1e6, statistic(difference))) - wanted, far, middle))

    edge = 1.0 - 1e-12
    return (
        -1.0 if middle == -1.0 else end(-edge, Z),
        1.0 if middle == 1.0 else end(edge, -Z),
    )


def _spread(differences: NDArray[np.float64], items: int) -> float | None:
    """Return the standard deviation of the bootstrap, of n - 1 instead of n items; None where a draw is not finite."""
    if items < 2 or not np.isfinite(differences).all():
        return None
    return float(differences.std() * math.sqrt(items / (items - 1)))


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
