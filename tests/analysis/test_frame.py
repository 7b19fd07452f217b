"""Numbers of the frame against computations by hand, and against slow references."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm

from analysis.columns import COLUMNS
from analysis.frame import frame, scores_frame
from analysis.inference import Difference, average_difference, between, difference, holm
from analysis.pareto import pareto
from analysis.protocol import PUBLISHED_AVERAGES
from analysis.ranking import FLOOR
from bench.evaluation.paired import binary_interval
from tests.support.records import board, cost, paired, record, refused, score


def test_average_retention_and_difference_by_hand() -> None:
    base = record(None, scores=(score("a", 0.8, stderr=0.03), score("b", 0.6, stderr=0.04)))
    run = record(
        scores=(
            score("a", 0.7, stderr=0.05, paired=paired(-0.1, 1.959963984540054 * 0.03, 0.002)),
            score("b", 0.64, stderr=0.12, paired=paired(0.04, 1.959963984540054 * 0.04, 0.3)),
        )
    )
    row = frame([run, base]).iloc[1]
    assert row["average"] == pytest.approx(0.67)
    assert row["average_error"] == pytest.approx(0.065)  # sqrt(0.05^2 + 0.12^2) / 2
    assert row["base_average"] == pytest.approx(0.7)
    assert row["retention"] == pytest.approx(0.67 / 0.7)
    assert row["difference"] == pytest.approx(-0.03)
    error = 0.025  # sqrt(0.03^2 + 0.04^2) / 2
    assert row["difference_low"] == pytest.approx(-0.03 - 1.959963984540054 * error)
    assert row["difference_p"] == pytest.approx(2 * norm.cdf(-0.03 / error))
    assert row["retention_low"] == pytest.approx(1 + row["difference_low"] / 0.7)
    assert row["pairing"] == "paired"
    assert (row["worse"], row["worse_raw"]) == (1, 1)


def test_normal_interval_covers_as_it_says() -> None:
    rng = np.random.default_rng(0)
    items, tasks, covered = 300, 4, 0
    for _ in range(600):
        parts = []
        for _ in range(tasks):
            change = rng.choice([-1, 0, 1], size=items, p=[0.15, 0.8, 0.05])
            parts.append(difference(float(change.mean()), float(change.std(ddof=1) / math.sqrt(items))))
        found = average_difference(parts)
        covered += found.low <= -0.1 <= found.high
    assert 0.92 <= covered / 600 <= 0.975


def test_average_over_tasks_where_changes_are_rare_covers() -> None:
    """Four tasks of 30 items of which 1 or 2 in a hundred change: hardly any task changes, and no error may be 0."""
    rng = np.random.default_rng(1)
    items, tasks, covered, runs = 30, 4, 0, 400
    for _ in range(runs):
        parts = []
        for _ in range(tasks):
            lost, won = rng.multinomial(items, [0.02, 0.005, 0.975])[:2]
            parts.append(Difference((won - lost) / items, *binary_interval(int(won), int(lost), items), 1.0))
        found = average_difference(parts)
        covered += found.low <= -0.015 <= found.high
    assert covered / runs >= 0.94


def test_a_lopsided_interval_keeps_its_longer_side() -> None:
    found = average_difference([Difference(0.1, 0.07, 0.15, 0.01), Difference(0.0, -0.04, 0.12, 1.0)])
    # Below 3, 4 and 5; above 5, 12 and 13.
    assert (found.value, found.low, found.high) == pytest.approx((0.05, 0.05 - 0.05 / 2, 0.05 + 0.13 / 2))
    assert found.p == pytest.approx(2 * norm.sf(1.959963984540054 * 0.05 / 0.025))
    for value, below, above in ((0.02, 0.03, 0.01), (-0.02, 0.01, 0.03), (0.02, 0.01, 0.05), (-0.02, 0.03, 0.01)):
        one = between(value, below, above)
        assert (one.p < 0.05) == (one.low > 0 or one.high < 0)


def test_the_error_of_a_full_score_is_not_zero() -> None:
    base = record(None, scores=(score("a", 1.0, stderr=0.0, n=96), score("b", 0.5, stderr=0.05, n=96)))
    row = frame([base, record(scores=(score("a", 1.0, stderr=0.0, n=96), score("b", 0.5, stderr=0.05, n=96)))]).iloc[1]
    share = 98 / 100  # (96 + 2) / (96 + 4)
    assert row["average_error"] == pytest.approx(math.hypot(math.sqrt(share * (1 - share) / 100), 0.05) / 2)


def test_only_shared_tasks_and_equal_digests_are_compared() -> None:
    base = record(None, scores=(score("a", 0.8), score("b", 0.6), score("c", 0.2, digest="other items")))
    run = record(scores=(score("a", 0.4), score("c", 0.9), score("d", 0.9)))
    row = frame([base, run]).iloc[1]
    assert (row["tasks"], row["average"], row["base_average"], row["retention"]) == (1, 0.4, 0.8, 0.5)
    assert row["pairing"] == "unpaired"


def test_base_of_another_model_or_protocol_is_no_base() -> None:
    base = record(None, model="synthetic-other")
    run = record(scores=(score("a", 0.4),))
    rows = frame([base, run])
    assert rows[rows["method"] == "alpha"].iloc[0][["base_average", "retention", "difference"]].isna().all()


def test_base_with_most_shared_tasks_is_taken() -> None:
    small = record(None, id="0" * 16, created="2026-02-01T00:00:00Z", scores=(score("a", 0.9),))
    large = record(None, id="1" * 16, scores=(score("a", 0.8), score("b", 0.8)))
    run = record(scores=(score("a", 0.4), score("b", 0.4)))
    rows = frame([small, large, run])
    assert rows[rows["method"] == "alpha"].iloc[0]["base_average"] == pytest.approx(0.8)


def test_runs_on_other_tasks_rank_on_their_own_board() -> None:
    base = record(None, scores=(score("a", 0.8), score("b", 0.6)))
    both = [record(method, scores=(score("a", 0.5), score("b", 0.5))) for method in ("alpha", "beta")]
    one = record("gamma", scores=(score("a", 0.79),))
    rows = frame([base, *both, one]).set_index("id")
    assert rows.loc[one.id, "rank"] == 1 and rows.loc[both[0].id, "rank"] == 1
    assert rows.loc[base.id, "board"] == rows.loc[both[0].id, "board"] != rows.loc[one.id, "board"]


def test_holm_against_definition() -> None:
    rng = np.random.default_rng(1)
    for size in (1, 2, 5, 9):
        p = rng.uniform(0, 0.3, size).round(3).tolist()
        for level in np.linspace(0.001, 0.999, 97):
            rejected, alive = set(), sorted(range(size), key=lambda i: p[i])
            while alive and p[alive[0]] * len(alive) <= level:
                rejected.add(alive.pop(0))
            assert {i for i, value in enumerate(holm(p)) if value <= level} == rejected


def test_holm_family_is_the_tasks_of_a_run() -> None:
    base = record(None, scores=tuple(score(task, 0.8) for task in "abc"))
    pairs = {"a": 0.03, "b": 0.04, "c": 0.9}
    run = record(scores=tuple(score(t, 0.7, paired=paired(-0.1, 0.05, p)) for t, p in pairs.items()))
    row = frame([base, run]).iloc[1]
    assert (row["worse_raw"], row["worse"]) == (2, 0)
    rows = scores_frame([base, run])
    assert rows[rows["id"] == run.id]["p_holm"].tolist() == pytest.approx([0.09, 0.09, 0.9])


def test_lower_is_better_counts_as_worse_when_larger() -> None:
    ppl = {"metric": "word_perplexity", "higher_is_better": False, "stderr": 0.1}
    base = record(None, scores=(score("text", 4.0, **ppl),))
    run = record(scores=(score("text", 5.0, **ppl, paired=paired(1.0, 0.1, 0.001, "bootstrap")),))
    row = frame([base, run]).iloc[1]
    assert row["worse"] == 1
    assert row["perplexity_retention"] == pytest.approx(0.8)
    assert row["quality"] == pytest.approx(0.8) and bool(row["below_floor"])
    assert np.isnan(row["average"])
    assert scores_frame([base, run])["retention"].tolist() == pytest.approx([1.0, 0.8])


def test_normalised_accuracy_speaks_for_a_task() -> None:
    scores = (score("a", 0.5), score("a", 0.7, metric="acc_norm"))
    row = frame([record(None, scores=scores)]).iloc[0]
    assert row["average"] == 0.7
    rows = scores_frame([record(None, scores=scores)])
    assert rows.set_index("metric")["headline"].to_dict() == {"acc": False, "acc_norm": True}


def test_published_averages_need_all_their_tasks() -> None:
    rule = PUBLISHED_AVERAGES["avg_moei2"]
    scores = tuple(score(task, 0.1 * (place + 1)) for place, task in enumerate(rule.tasks))
    assert frame([record(None, scores=scores)]).iloc[0]["avg_moei2"] == pytest.approx(0.4)
    local = tuple(s.model_copy(update={"task": s.task + "_local"}) for s in scores)
    assert frame([record(None, scores=local)]).iloc[0]["avg_moei2"] == pytest.approx(0.4)
    row = frame([record(None, scores=scores[1:])]).iloc[0]
    assert math.isnan(row["avg_moei2"]) and math.isnan(row["avg_holistic"])


def test_shares_and_sizes() -> None:
    run = record(knobs={"keep": 0.25})
    row = frame([record(None), run]).iloc[1]
    assert (row["keep"], row["keep_count"], row["keep_asked"]) == (0.25, 0.25, 0.25)
    assert row["keep_total"] == pytest.approx(0.4)
    assert row["bytes"] == 8_000_000
    assert row["flops_share"] == pytest.approx(cost(0.25).flops / cost().flops)


def test_rank_ties_and_floor() -> None:
    base = record(None, scores=(score("a", 0.9),))
    runs = [
        record(method, scores=(score("a", value, paired=paired(value - 0.9, 0.02, 0.01)),))
        for method, value in (("alpha", 0.88), ("beta", 0.87), ("gamma", 0.7))
    ]
    rows = frame([*runs, base, refused("delta")])
    assert rows["method"].tolist()[1:] == ["alpha", "beta", "gamma", "delta"]
    assert rows["rank"].tolist()[1:4] == [1, 2, 3]
    assert rows["rank"].isna().tolist() == [True, False, False, False, True]
    assert rows["tie_next"].tolist()[1:3] == [True, False] and rows["tie_next"].isna().tolist()[3]
    assert rows["below_floor"].tolist()[1:4] == [False, False, True]
    assert rows["below_floor"].isna().tolist() == [True, False, False, False, True]
    assert frame([*runs, base], floor=0.7)["below_floor"].tolist()[1:] == [False, False, False]
    assert FLOOR == 0.9


@pytest.mark.parametrize(("gap", "tie"), [(0.027, True), (0.03, False)], ids=["below", "above"])
def test_noise_of_two_runs_adds_in_squares(gap: float, tie: bool) -> None:
    base = record(None, scores=(score("a", 0.9),))
    runs = [  # intervals of half-width 0.02, so that of the difference has sqrt(2) times that, 0.0283
        record(method, scores=(score("a", value, paired=paired(value - 0.9, 0.02, 0.01)),))
        for method, value in (("alpha", 0.88), ("beta", 0.88 - gap))
    ]
    assert frame([base, *runs])["tie_next"].tolist()[1] is tie


def test_order_of_records_does_not_matter() -> None:
    records = board()
    shuffled = [records[place] for place in np.random.default_rng(3).permutation(len(records))]
    assert frame(records).equals(frame(shuffled))
    assert scores_frame(records).equals(scores_frame(shuffled))


@pytest.mark.parametrize(
    "records", [[], [record(None)], [refused()], [record()]], ids=["none", "base", "refused", "run"]
)
def test_degenerate_inputs_keep_their_columns(records: list) -> None:  # type: ignore[type-arg]  # parametrised
    rows = frame(records)
    assert rows.columns.tolist() == [column.name for column in COLUMNS]
    assert len(rows) == len(records)


def test_every_column_is_described() -> None:
    assert len({column.name for column in COLUMNS}) == len(COLUMNS)
    assert all(column.doc for column in COLUMNS)


def test_pareto_against_brute_force() -> None:
    rng = np.random.default_rng(2)
    for count in (0, 1, 2, 7, 40):
        size = rng.integers(0, 6, count).astype(float).tolist()
        quality = rng.integers(0, 6, count).astype(float).tolist()
        wanted = [
            not any(
                s <= size[i] and q >= quality[i] and (s < size[i] or q > quality[i])
                for s, q in itertools.zip_longest(size, quality)
            )
            for i in range(count)
        ]
        assert pareto(size, quality) == wanted
    assert pareto([1.0, math.nan, None, 2.0], [0.5, 1.0, 1.0, None]) == [True, False, False, False]
