"""Paired comparison: known answers, loops, and refusals."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, multinomial, norm, t

from bench.evaluation.items import Items, Statistic
from bench.evaluation.paired import _bootstrap, _score_interval, binary_interval, compare, mcnemar, pair_scores
from bench.evaluation.resampled import expanded_bootstrap
from bench.records.record import Score
from methods.framework.errors import EvaluationError


def _items(values: list[float], statistic: Statistic = "mean", weights: list[float] | None = None) -> Items:
    ids = tuple(f"{index}:x" for index in range(len(values)))
    return Items("t", "acc", "none", statistic, ids, tuple(values), tuple(weights or [1.0] * len(values)))


def _arrays(base: Items, other: Items) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.asarray(base.values), np.asarray(other.values), np.asarray(base.weights)


def _discordant(won: int, lost: int, same: int) -> tuple[Items, Items]:
    base = [0.0] * won + [1.0] * lost + [1.0, 0.0] * (same // 2)
    other = [1.0] * won + [0.0] * lost + [1.0, 0.0] * (same // 2)
    return _items(base), _items(other)


def test_exact_mcnemar_of_5_against_17() -> None:
    base, other = _discordant(5, 17, 78)
    paired = compare(base, other)
    # Two-sided: twice the binomial tail of at most 5 among 22 fair coins.
    expected = 2 * sum(math.comb(22, count) for count in range(6)) / 2**22
    assert expected == pytest.approx(0.0169, abs=5e-5)
    assert paired.test == "mcnemar" and paired.p == pytest.approx(expected, rel=1e-12)
    assert paired.difference == pytest.approx(-0.12)
    # The standard error of a mean of paired differences; the interval is close to 1.96 of it here.
    error = math.sqrt((22 / 100 - 0.12**2) / 100)
    assert paired.low == pytest.approx(-0.12 - 1.96 * error, abs=0.011)
    assert paired.high == pytest.approx(-0.12 + 1.96 * error, abs=0.011)


def test_score_interval_is_where_the_restricted_test_turns() -> None:
    """Tango's statistic at an end, with the share of lost items maximised by a fine grid over the likelihood instead."""
    won, lost, items = 9, 2, 60
    for end, sign in zip(_score_interval(won, lost, items), (1, -1), strict=True):
        shares = np.linspace(max(0.0, -end) + 1e-9, (1 - end) / 2 - 1e-9, 400_001)
        same = 1 - end - 2 * shares
        likelihood = won * np.log(shares + end) + lost * np.log(shares) + (items - won - lost) * np.log(same)
        share = shares[np.argmax(likelihood)]
        value = (won - lost - items * end) / math.sqrt(items * (2 * share + end - end**2))
        assert value == pytest.approx(sign * 1.959964, abs=2e-4)


@pytest.mark.parametrize("items", [20, 60])
def test_interval_of_rare_and_common_changes_covers(items: int) -> None:
    """Coverage by full enumeration of the trinomial, no simulation: at least 94 % at every rate of change."""
    won, lost = (array.ravel() for array in np.meshgrid(np.arange(items + 1), np.arange(items + 1), indexing="ij"))
    won, lost = won[won + lost <= items], lost[won + lost <= items]
    ends = np.array([binary_interval(int(b), int(c), items) for b, c in zip(won, lost, strict=True)])
    assert (ends[:, 0] < ends[:, 1]).all()
    for rate in (0.002, 0.01, 0.03, 0.08, 0.2, 0.4, 0.7, 0.999):
        for share in (0.0, 0.05, 0.2, 0.5):
            cells = (rate * share, rate * (1 - share), 1 - rate)
            chance = multinomial.pmf(np.stack([won, lost, items - won - lost], axis=1), items, cells)
            truth = rate * (2 * share - 1)
            covered = chance[(ends[:, 0] <= truth + 1e-12) & (truth <= ends[:, 1] + 1e-12)].sum()
            assert covered >= 0.94, (rate, share)


def test_interval_covers_where_nearly_every_item_changes_for_the_worse() -> None:
    """Of 100 items 99.9 % are lost: the score interval and the exact one alone would hold the truth in 90 % of cases."""
    covered = 0.0
    for same in range(6):
        low, high = binary_interval(0, 100 - same, 100)
        covered += binom.pmf(same, 100, 0.001) * (low <= -0.999 <= high)
    assert covered >= 0.94


def test_interval_and_mcnemar_never_contradict_each_other() -> None:
    for items in (1, 7, 20, 33):
        for won in range(items + 1):
            for lost in range(items + 1 - won):
                low, high = binary_interval(won, lost, items)
                assert (low > 0 or high < 0) == (mcnemar(won, lost) < 0.05), (items, won, lost)
                assert (-high, -low) == pytest.approx(binary_interval(lost, won, items), abs=1e-9)


def test_bounded_items_that_hardly_change_have_an_interval() -> None:
    """Partial credit on 20 items, one of which changed: a bootstrap alone would say [0, 0.075] or less."""
    base, other = _items([0.5, 0.25] * 10), _items([1.0, 0.25] + [0.5, 0.25] * 9)
    paired = compare(base, other)
    assert paired.interval == "joined" and paired.low < -0.05 and paired.high > 0.09
    same = compare(base, base)
    assert same.low < 0 < same.high and same.p == 1.0


def test_concordant_items_do_not_matter_to_mcnemar_but_to_the_difference() -> None:
    few, many = compare(*_discordant(5, 17, 78)), compare(*_discordant(5, 17, 378))
    assert few.p == many.p and many.difference == pytest.approx(-12 / 400)


def test_equal_models_have_no_difference() -> None:
    base, _ = _discordant(5, 17, 78)
    paired = compare(base, base)
    assert (paired.difference, paired.p, paired.test, paired.interval) == (0.0, 1.0, "mcnemar", "score")
    # Nothing changed in 100 items: the score interval ends at z^2 / (n + z^2).
    assert paired.high == pytest.approx(1.96**2 / (100 + 1.96**2), rel=1e-3) and paired.low == pytest.approx(
        -paired.high
    )
    text = _items([-10.0, -20.0, -31.0], "perplexity", [3.0, 4.0, 5.0])
    assert compare(text, text).p == 1.0 and compare(text, text).test == "bootstrap"


def test_bootstrap_of_a_mean_agrees_with_all_resamples() -> None:
    base, other = _items([1.125, 1.5, 1.375, 1.875]), _items([1.375, 1.375, 1.75, 2.0])
    paired = compare(base, other, resamples=40_000)
    drawn = expanded_bootstrap(_bootstrap(base, *_arrays(base, other), 0, 40_000), 4)
    gaps = [b - a for a, b in zip(base.values, other.values, strict=True)]
    means = sorted(sum(draw) / 4 for draw in itertools.product(gaps, repeat=4))
    assert paired.test == "bootstrap" and paired.difference == pytest.approx(sum(gaps) / 4)
    # Four items: the level Phi(sqrt(4 / 3) * -3.182) = 0.0001 is less than the share of the smallest mean, 1 / 256.
    assert (drawn.low, drawn.high) == pytest.approx((means[0], means[-1]))
    below = sum(mean <= 0 for mean in means) / len(means)
    assert drawn.p == pytest.approx(2 * t.cdf(norm.ppf(below) / math.sqrt(4 / 3), 3), abs=0.005)
    assert paired.low <= drawn.low and paired.high >= drawn.high and paired.p >= drawn.p


@pytest.mark.parametrize("statistic", ["perplexity", "bits"])
def test_perplexity_resamples_documents_and_recomputes_the_corpus_metric(statistic: Statistic) -> None:
    draw = np.random.default_rng(5)
    weights = draw.integers(5, 50, 12).astype(float)
    first = -weights * draw.uniform(2, 3, 12)
    second = first - weights * draw.uniform(-0.1, 0.4, 12)
    base = _items(first.tolist(), statistic, weights.tolist())
    other = _items(second.tolist(), statistic, weights.tolist())
    paired = compare(base, other, seed=9, resamples=400)
    drawn = expanded_bootstrap(_bootstrap(base, *_arrays(base, other), 9, 400), 12)

    def score(values: np.ndarray, chosen: list[int]) -> float:
        rate = -sum(values[i] for i in chosen) / sum(weights[i] for i in chosen)
        return math.exp(rate) if statistic == "perplexity" else rate / math.log(2)

    picks = np.random.default_rng(9).integers(12, size=(400, 12)).tolist()
    differences = sorted(score(second, pick) - score(first, pick) for pick in picks)
    assert paired.difference == pytest.approx(score(second, range(12)) - score(first, range(12)))
    # Twelve documents: level Phi(sqrt(12 / 11) * -2.201), of 401 places between and beyond the draws, rounded outwards.
    level = 0.5 * math.erfc(math.sqrt(12 / 11) * 2.200985 / math.sqrt(2))
    place = math.floor(level * 401) - 1
    assert place == 3  # a plain percentile interval would take the tenth
    assert drawn.low == pytest.approx(differences[place]) and drawn.high == pytest.approx(differences[399 - place])
    side = min(sum(d <= 0 for d in differences), sum(d >= 0 for d in differences))
    assert drawn.p == pytest.approx(min(1, 2 * t.cdf(norm.ppf((side + 1) / 401) / math.sqrt(12 / 11), 11)))
    assert paired.low <= drawn.low and paired.high >= drawn.high and paired.p >= drawn.p


def test_coverage_of_the_interval() -> None:
    hits = 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        skill = draw.random(150)
        base = (draw.random(150) < 0.4 + 0.4 * skill).astype(float)
        other = (draw.random(150) < 0.3 + 0.4 * skill).astype(float)  # truly 0.1 worse on every item
        paired = compare(_items(base.tolist()), _items(other.tolist()), seed=seed, resamples=1000)
        hits += paired.low <= -0.1 <= paired.high
    assert 180 <= hits <= 199


def test_seed_decides_the_interval() -> None:
    base, other = _discordant(5, 17, 78)
    assert compare(base, other, seed=1) == compare(base, other, seed=1)


def test_infinite_perplexity_is_shown() -> None:
    base = _items([-1.0, -2.0], "perplexity")
    paired = compare(base, _items([-1e6, -2.0], "perplexity"))
    assert paired.difference == math.inf and paired.high == math.inf and paired.low == 0.0


def test_different_items_are_refused() -> None:
    base, other = _discordant(5, 17, 78)
    with pytest.raises(EvaluationError, match="t/acc/none: the base has 100 items, the other 99, and 1 differ"):
        compare(base, replace(other, ids=other.ids[:-1], values=other.values[:-1], weights=other.weights[:-1]))
    with pytest.raises(EvaluationError, match="1 differ in document"):
        compare(base, replace(other, ids=("0:y", *other.ids[1:])))
    with pytest.raises(EvaluationError, match="1 differ in document, prompt, target or weight"):
        compare(base, replace(other, weights=(2.0, *other.weights[1:])))
    with pytest.raises(EvaluationError, match="not the same metric"):
        compare(base, replace(other, metric="acc_norm"))
    with pytest.raises(EvaluationError, match="no items"):
        compare(_items([]), _items([]))


def test_scores_are_paired_where_both_have_items() -> None:
    base, other = _discordant(5, 17, 78)
    scores = tuple(
        Score(task="t", metric=metric, value=0.4, stderr=None, n=100, higher_is_better=True, version="1", digest="d")
        for metric in ("acc", "f1")
    )
    first, second = pair_scores(scores, {other.key: other}, {base.key: base})
    assert first.paired == compare(base, other) and second.paired is None
