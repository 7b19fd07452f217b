"""How often 95 % intervals hold the truth, case by case: ``python -m tests.support.coverage`` prints the table of docs/trust.md.

Intervals of 0/1 items are enumerated over all outcomes, so their coverage is exact; the others are simulated from fixed seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.stats import multinomial

from analysis.inference import Difference, average_difference
from bench.evaluation.items import Items
from bench.evaluation.paired import binary_interval, compare
from bench.timing.intervals import correlation, median_interval, spread

RATES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95, 0.999)
"""Shares of items that change."""

SHARES = (0.0, 0.02, 0.1, 0.25, 0.5)
"""Shares of the changes that are won; the other half follows by symmetry."""

Vector = NDArray[np.float64]
Line = tuple[str, str, str]


def of_items(items: int) -> tuple[float, float]:
    """Return the least and the mean coverage of ``binary_interval`` over ``RATES`` and ``SHARES``, exactly.

    At each rate only outcomes within seven standard deviations are looked at, which leaves less than 1e-9 out.
    """
    ends: dict[tuple[int, int], tuple[float, float]] = {}
    found = []
    for rate in RATES:
        reach = 7 * math.sqrt(items * rate * (1 - rate)) + 7
        lowest, highest = max(0, math.floor(items * rate - reach)), min(items, math.ceil(items * rate + reach))
        outcomes = [(won, changed - won) for changed in range(lowest, highest + 1) for won in range(changed + 1)]
        table = np.array([(won, lost, items - won - lost) for won, lost in outcomes])
        for share in SHARES:
            chances = multinomial.pmf(table, items, (rate * share, rate * (1 - share), 1 - rate))
            truth, covered = rate * (2 * share - 1), 0.0
            for outcome, chance in zip(outcomes, chances, strict=True):
                if chance < 1e-9:  # counted as not covered
                    continue
                if outcome not in ends:
                    ends[outcome] = binary_interval(*outcome, items)
                low, high = ends[outcome]
                covered += chance * (low - 1e-12 <= truth <= high + 1e-12)
            found.append(covered)
    return min(found), float(np.mean(found))


def of_perplexity(documents: int, kind: str, runs: int) -> float:
    """Return the coverage of the joined interval of a difference of perplexities, simulated.

    Documents have a log-likelihood around -3 nats each; the compressed model loses 0.1 on average.

    Args:
        documents: how many there are.
        kind: of the losses: ``normal``, ``skewed`` (log-normal), or ``correlated`` with how hard the document is.
        runs: simulated comparisons.
    """
    draw, held = np.random.default_rng(documents), 0
    truth = math.exp(3.1) - math.exp(3.0)
    ids, weights = tuple(map(str, range(documents))), (1.0,) * documents
    for seed in range(runs):
        hard = 0.5 * draw.standard_normal(documents)
        own = 0.2 * draw.standard_normal(documents)
        if kind == "skewed":
            own = 0.15 * (np.exp(draw.standard_normal(documents)) - math.exp(0.5))
        elif kind == "correlated":
            own = 0.3 * hard + 0.1 * draw.standard_normal(documents)
        base, other = (
            Items("t", "perplexity", "none", "perplexity", ids, tuple(values.tolist()), weights)
            for values in (-3.0 - hard, -3.1 - hard - own)
        )
        found = compare(base, other, seed=seed, resamples=1000)
        held += found.low <= truth <= found.high
    return held / runs


def of_average(items: int, tasks: int, rate: float, runs: int) -> float:
    """Return the coverage of the mean difference over tasks, a tenth of whose changes are won, simulated.

    Args:
        items: of each task.
        tasks: in the average.
        rate: share of items that change.
        runs: simulated averages.
    """
    draw, held = np.random.default_rng(items + tasks), 0
    known: dict[tuple[int, int], tuple[float, float]] = {}
    for _ in range(runs):
        parts = []
        for won, lost, _ in draw.multinomial(items, [0.1 * rate, 0.9 * rate, 1 - rate], size=tasks).tolist():
            if (won, lost) not in known:
                known[won, lost] = binary_interval(won, lost, items)
            parts.append(Difference((won - lost) / items, *known[won, lost], 1.0))
        found = average_difference(parts)
        held += found.low <= -0.8 * rate <= found.high
    return held / runs


def of_timing(
    noise: Callable[[int], Vector], runs: int, noisy: float = 0.10, alike: float = 0.5
) -> tuple[float, float]:
    """Return the coverage of unmarked rows of a timing that goes on, from 5 up to 15 pairs, while it is noisy; and their share.

    Args:
        noise: draws the logarithms of so many ratios, of median 0.
        runs: simulated timings.
        noisy: width from which a row is marked.
        alike: correlation of neighbours from which it is.
    """
    held = unmarked = 0
    for _ in range(runs):
        ratios, n = np.exp(noise(15)).tolist(), 5
        found = median_interval(ratios[:n], stopped=True)
        while n < 15 and spread(found) > noisy:
            n += 1
            found = median_interval(ratios[:n], stopped=True)
        if spread(found) <= noisy and correlation(ratios[:n]) < alike:
            unmarked += 1
            held += found.low <= 1.0 <= found.high
    return (held / unmarked if unmarked else math.nan), unmarked / runs


def correlated(draw: np.random.Generator, strength: float, sigma: float, n: int) -> Vector:
    """Return normal noise whose neighbours correlate by ``strength``.

    Args:
        draw: random numbers.
        strength: correlation of neighbours.
        sigma: standard deviation.
        n: how many values.
    """
    values = draw.standard_normal(n)
    for index in range(1, n):
        values[index] = strength * values[index - 1] + math.sqrt(1 - strength**2) * values[index]
    return np.asarray(sigma * values)


def table(scale: float = 1.0) -> Iterator[Line]:
    """Yield interval, case and coverage.

    Args:
        scale: multiplies the number of simulated runs.
    """
    for items in (20, 50, 100, 200):
        least, mean = of_items(items)
        yield "0/1 items, paired", f"n = {items}, 0.2 to 99.9 % change", f"least {_share(least)}, mean {_share(mean)}"
    runs = round(2000 * scale)
    for documents in (10, 20, 62):
        kinds = ", ".join(
            f"{kind} {of_perplexity(documents, kind, runs):.3f}" for kind in ("normal", "skewed", "correlated")
        )
        yield "perplexity, bootstrap and skewness", f"{documents} documents", kinds
    for items in (20, 100):
        shares = ", ".join(f"{rate:.1%} change {of_average(items, 4, rate, runs):.3f}" for rate in (0.005, 0.02, 0.1))
        yield "average over 4 tasks", f"n = {items} each", shares
    runs = round(1000 * scale)
    for name in ("normal", "t3"):
        told = []
        for sigma in (0.02, 0.035, 0.05, 0.065):
            held, share = of_timing(partial(_noise, np.random.default_rng(3), name, sigma), runs)
            told.append(f"{sigma:g}: {held:.3f} ({share:.0%} of rows)")
        yield "ratio of speeds, unmarked", f"stops when good, {name} noise of sigma", ", ".join(told)
    for strength in (0.3, 0.6):
        held, share = of_timing(partial(correlated, np.random.default_rng(4), strength, 0.02), runs)
        yield (
            "ratio of speeds, unmarked",
            f"neighbours correlate by {strength:g}, sigma 0.02",
            f"{held:.3f} ({share:.0%} of rows)",
        )


def _noise(draw: np.random.Generator, name: str, sigma: float, n: int) -> Vector:
    values = draw.standard_normal(n) if name == "normal" else draw.standard_t(3, n) / math.sqrt(3)
    return np.asarray(sigma * values)


def _share(value: float) -> str:
    return f"{math.floor(value * 1000) / 1000:.3f}"


def main() -> None:
    """Print the table as Markdown, line by line."""
    print("| interval | case | coverage |\n|---|---|---|")
    for line in table():
        print("| " + " | ".join(line) + " |", flush=True)


if __name__ == "__main__":
    main()
