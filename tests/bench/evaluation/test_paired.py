"""Paired comparison: known answers, loops, and refusals."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from bench.evaluation.items import Items, Statistic
from bench.evaluation.paired import compare, pair_scores
from bench.records.record import Score
from methods.framework.errors import EvaluationError


def _items(values: list[float], statistic: Statistic = "mean", weights: list[float] | None = None) -> Items:
    ids = tuple(f"{index}:x" for index in range(len(values)))
    return Items("t", "acc", "none", statistic, ids, tuple(values), tuple(weights or [1.0] * len(values)))


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
    # The standard error of a mean of paired differences; the percentile interval is close to 1.96 of it here.
    error = math.sqrt((22 / 100 - 0.12**2) / 100)
    assert paired.low == pytest.approx(-0.12 - 1.96 * error, abs=0.011)
    assert paired.high == pytest.approx(-0.12 + 1.96 * error, abs=0.011)


def test_concordant_items_do_not_matter_to_mcnemar_but_to_the_difference() -> None:
    few, many = compare(*_discordant(5, 17, 78)), compare(*_discordant(5, 17, 378))
    assert few.p == many.p and many.difference == pytest.approx(-12 / 400)


def test_equal_models_have_no_difference() -> None:
    base, _ = _discordant(5, 17, 78)
    paired = compare(base, base)
    assert paired.model_dump() == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "test": "mcnemar"}
    text = _items([-10.0, -20.0, -31.0], "perplexity", [3.0, 4.0, 5.0])
    assert compare(text, text).p == 1.0 and compare(text, text).test == "bootstrap"


def test_bootstrap_of_a_mean_agrees_with_all_resamples() -> None:
    base, other = _items([0.1, 0.5, 0.4, 0.9]), _items([0.3, 0.4, 0.8, 1.0])
    paired = compare(base, other, resamples=40_000)
    gaps = [b - a for a, b in zip(base.values, other.values, strict=True)]
    means = sorted(sum(draw) / 4 for draw in itertools.product(gaps, repeat=4))
    assert paired.test == "bootstrap" and paired.difference == pytest.approx(sum(gaps) / 4)
    assert means[int(0.018 * len(means))] <= paired.low <= means[int(0.032 * len(means))]
    assert means[int(0.968 * len(means))] <= paired.high <= means[int(0.982 * len(means))]
    below = sum(mean <= 0 for mean in means) / len(means)
    assert paired.p == pytest.approx(2 * below, abs=0.005)


@pytest.mark.parametrize("statistic", ["perplexity", "bits"])
def test_perplexity_resamples_documents_and_recomputes_the_corpus_metric(statistic: Statistic) -> None:
    draw = np.random.default_rng(5)
    weights = draw.integers(5, 50, 12).astype(float)
    first = -weights * draw.uniform(2, 3, 12)
    second = first - weights * draw.uniform(-0.1, 0.4, 12)
    base = _items(first.tolist(), statistic, weights.tolist())
    other = _items(second.tolist(), statistic, weights.tolist())
    paired = compare(base, other, seed=9, resamples=400)

    def score(values: np.ndarray, chosen: list[int]) -> float:
        rate = -sum(values[i] for i in chosen) / sum(weights[i] for i in chosen)
        return math.exp(rate) if statistic == "perplexity" else rate / math.log(2)

    picks = np.random.default_rng(9).integers(12, size=(400, 12)).tolist()
    differences = sorted(score(second, pick) - score(first, pick) for pick in picks)
    assert paired.difference == pytest.approx(score(second, range(12)) - score(first, range(12)))
    # 0.025 and 0.975 of 399 steps, rounded outwards.
    assert paired.low == pytest.approx(differences[9]) and paired.high == pytest.approx(differences[390])
    side = min(sum(d <= 0 for d in differences), sum(d >= 0 for d in differences))
    assert paired.p == pytest.approx(min(1, 2 * (side + 1) / 401))


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
