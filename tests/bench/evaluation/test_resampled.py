"""Interval and p of items that are not 0/1 are one construction; skewness is taken out as the formulas say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm, t

from bench.evaluation.items import Items, Statistic, corpus_score
from bench.evaluation.paired import compare
from bench.evaluation.resampled import (
    Span,
    adjusted_wald,
    expanded_bootstrap,
    hull,
    influences,
    skewness_corrected,
)


def agrees(span: Span) -> bool:
    return (span.low > 0 or span.high < 0) == (span.p < 0.05)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["mean", "perplexity", "bits"]),
    st.integers(1, 40),
    st.floats(-2.0, 2.0),
    st.sampled_from(["normal", "skewed", "few", "wide", "bounded"]),
    st.integers(0, 10**6),
)
def test_the_interval_leaves_out_zero_exactly_where_p_is_small(
    statistic: Statistic, n: int, shift: float, kind: str, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    first = -draw.uniform(1, 4, n)
    noise = draw.standard_normal(n)
    change = {
        "normal": noise,
        "skewed": np.exp(noise),
        "few": noise * (draw.random(n) < 0.2),
        "wide": noise * 100,
        "bounded": noise,
    }[kind]
    second = first + 0.3 * change + 0.3 * shift / math.sqrt(n)
    if kind == "bounded":
        first, second = (np.clip(1 + one / 4, 0, 1) for one in (first, second))
    weights = draw.integers(1, 9, n).astype(float)
    base, other = (
        Items("t", "m", "none", statistic, tuple(map(str, range(n))), tuple(one.tolist()), tuple(weights.tolist()))
        for one in (first, second)
    )
    found = compare(base, other, seed=seed, resamples=300)
    assert (found.low > 0 or found.high < 0) == (found.p < 0.05), found
    assert 0 < found.p <= 1 and found.low <= found.high


def test_both_answers_occur_near_the_edge() -> None:
    """Differences of two to three standard errors: both sides of 0.05 are met, and never a contradiction."""
    small = 0
    for seed in range(200):
        values = np.random.default_rng(seed).standard_normal(15) + 0.55
        spans = (
            expanded_bootstrap(
                values[np.random.default_rng(seed).integers(15, size=(999, 15))].mean(axis=1), len(values)
            ),
            skewness_corrected(float(values.mean()), values - values.mean()),
        )
        assert all(span is not None and agrees(span) for span in spans)
        joined = hull(span for span in spans if span is not None)
        assert agrees(joined)
        small += joined.p < 0.05
    assert 40 < small < 160


def test_intervals_on_two_sides_of_zero_reject_nothing() -> None:
    both = hull([Span(0.1, 0.2, 0.01), Span(-0.2, -0.1, 0.02)])
    assert both == Span(-0.2, 0.2, 1.0)
    assert hull([Span(0.1, 0.2, 0.01), Span(0.05, 0.3, 0.02)]) == Span(0.05, 0.3, 0.02)


def test_too_few_draws_for_the_level_reject_nothing() -> None:
    """Four items: the level is 0.0001, which a hundred draws cannot show, though all of them are positive."""
    found = expanded_bootstrap(np.linspace(1.0, 2.0, 100), 4)
    assert found.low == 0.0 and found.high == 2.0 and found.p > 0.05
    nothing = expanded_bootstrap(np.array([math.nan, math.nan]), 4)
    assert math.isnan(nothing.low) and nothing.p == 1.0


def test_p_of_the_bootstrap_is_the_level_that_reaches_zero() -> None:
    draws = np.arange(-30, 969, dtype=float) / 100  # 31 of 999 draws are not positive
    found = expanded_bootstrap(draws, 12)
    level = norm.cdf(math.sqrt(12 / 11) * t.ppf(found.p / 2, 11))
    assert level == pytest.approx(32 / 1000)
    plain = expanded_bootstrap(draws, 10**6)
    assert plain.p == pytest.approx(2 * 32 / 1000, rel=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_skewness_is_taken_out_as_the_formula_says(seed: int) -> None:
    """The ends are where sqrt(n) Q((difference - truth) / (sqrt(n) s)) is plus and minus t, found without its inverse."""
    values = np.exp(np.random.default_rng(seed).standard_normal(14))
    n, mean = len(values), float(values.mean())
    moves = values - mean
    found = skewness_corrected(mean, moves)
    assert found is not None
    s = math.sqrt(float((moves**2).sum()) / (n - 1))
    g = n / ((n - 1) * (n - 2)) * float(((moves / s) ** 3).sum())

    def value(truth: float) -> float:
        w = (mean - truth) / s
        return math.sqrt(n) * (w + g * w**2 / 3 + g**2 * w**3 / 27 + g / (6 * n))

    for end, wanted in ((found.low, t.ppf(0.975, n - 1)), (found.high, -t.ppf(0.975, n - 1))):
        assert brentq(
            lambda truth, aim: value(truth) - aim, mean - 60 * s, mean + 60 * s, args=(wanted,)
        ) == pytest.approx(end, abs=1e-6 * s)
    assert found.p == pytest.approx(2 * t.sf(abs(value(0.0)), n - 1))
    assert found.high - mean > mean - found.low, "what is not seen lies on the long side"
    flat = np.array([-1.0, 1.0] * 10)
    even = skewness_corrected(0.3, flat)
    half = t.ppf(0.975, 19) * math.sqrt(20 / 19 / 20)
    assert even is not None and (even.low, even.high) == pytest.approx((0.3 - half, 0.3 + half))


def test_what_has_no_skewness_has_no_correction() -> None:
    assert skewness_corrected(0.0, np.zeros(9)) is None
    assert skewness_corrected(0.0, np.array([-1.0, 1.0])) is None
    assert skewness_corrected(1.0, np.array([0.0, math.inf, 1.0])) is None


@pytest.mark.parametrize("statistic", ["mean", "perplexity", "bits"])
def test_influences_are_derivatives_by_the_weights(statistic: Statistic) -> None:
    draw = np.random.default_rng(3)
    values, weights = -draw.uniform(5, 9, 7), draw.uniform(1, 3, 7)
    found = influences(statistic, values, weights)
    for item in range(7):
        copies = np.ones(7)
        copies[item] += 1e-6
        drawn = values * (copies if statistic != "mean" else 1.0)
        moved = corpus_score(statistic, drawn, weights * copies) - corpus_score(statistic, values, weights)
        assert found[item] == pytest.approx(float(moved) / 1e-6 * 7, rel=1e-4, abs=1e-6)
    assert found.sum() == pytest.approx(0.0, abs=1e-9)


def test_the_adjusted_wald_interval_agrees_with_its_p() -> None:
    for seed in range(100):
        draw = np.random.default_rng(seed)
        assert agrees(adjusted_wald(np.clip(draw.standard_normal(20) / 4 + 0.12, -1, 1), np.ones(20)))
