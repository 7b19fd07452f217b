"""Runs that differ only in their seeds become one row, with the errors of seeds and of items kept apart."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from analysis.digest import digest
from analysis.frame import frame, scores_frame
from analysis.inference import Difference, difference_over_seeds, over_seeds
from analysis.plain_rows import rows_of
from analysis.protocol import HEALTH, headline, without_groups
from analysis.summary import lead, messages
from analysis.table import average_text, csv, run_name
from bench.evaluation.health import METRICS
from bench.evaluation.scores import group_scores
from bench.records.record import CorpusInfo, Record
from tests.support.records import board, paired, record, refused, score

Z = 1.959963984540054


def run(
    method: str = "alpha", seed: int = 0, text: str = "synthetic text", value: float = 0.7, **changes: Any
) -> Record:
    """Return a run calibrated on ``text`` drawn with ``seed``, whose two tasks lie 0.1 around ``value``."""
    base = {"a": 0.9, "b": 0.8}
    values = {"a": value + 0.1, "b": value - 0.1}
    knobs = changes.pop("knobs", {"keep": 0.5})
    fields: dict[str, Any] = {
        "id": f"{method}-{seed}-{text}-{knobs}-{changes.get('group')}",
        "plan": f"plan-{method}-{seed}",
        "corpus": CorpusInfo(name=text, digest=f"{text} {seed}", tokens=64, sequences=2, propagation="one_shot"),
        "seeds": {"calibration": seed},
        "scores": tuple(
            score(task, own, stderr=0.02 + 0.01 * seed, paired=paired(own - base[task], Z * 0.03, 0.01))
            for task, own in values.items()
        ),
        **changes,
    }
    return record(method, knobs=knobs, **fields)


BASE = record(None, scores=(score("a", 0.9), score("b", 0.8)))


def test_three_seeds_are_one_row_with_a_student_interval() -> None:
    values = [0.70, 0.72, 0.77]
    rows = frame([BASE, *(run(seed=seed, value=value) for seed, value in enumerate(values))])
    row = rows.iloc[1]
    assert len(rows) == 2 and (row["seeds"], row["seed_set"]) == (3, "0, 1, 2")
    assert row["average"] == pytest.approx(0.73)
    low, high = t.interval(0.95, 2, loc=0.73, scale=np.std(values, ddof=1) / math.sqrt(3))
    assert row["average_seeds"] == pytest.approx((high - low) / 2)
    assert row["average_error"] == pytest.approx(0.03 / math.sqrt(2)), "of the items: not made smaller by seeds"
    items = Z * 0.03 / math.sqrt(2)
    assert row["difference"] == pytest.approx(0.73 - 0.85)
    assert row["difference_high"] - row["difference"] == pytest.approx(math.hypot(items, (high - low) / 2))
    assert rows["plan"].isna()[1], "three plans are no plan"
    assert average_text(rows_of(rows)[1]) == "73.0 ± 9.0 (3 seeds)"
    assert lead(rows).startswith("4 complete runs")


def test_plan_files_are_repeats_of_each_other_only_where_the_plan_is_one() -> None:
    def rows(*plans: str) -> int:
        runs = [run("plan", seed, plan=plan, title="Plan") for seed, plan in enumerate(plans)]
        return len(frame([BASE, *runs])) - 1

    assert (rows("a", "a"), rows("a", "b")) == (1, 2)


def test_scores_of_tasks_are_averaged_too() -> None:
    found = scores_frame([BASE, *(run(seed=seed, value=value) for seed, value in enumerate((0.7, 0.72, 0.77)))])
    row = found[(found["method"] == "alpha") & (found["task"] == "a")].iloc[0]
    assert len(found) == 4
    assert row["value"] == pytest.approx(0.83) and row["stderr"] == pytest.approx(0.03) and row["seeds"] == 3
    assert row["seed_half"] == pytest.approx(over_seeds([0.8, 0.82, 0.87]).half)
    assert row["difference"] == pytest.approx(0.83 - 0.9)
    assert row["difference_high"] - row["difference"] == pytest.approx(math.hypot(Z * 0.03, row["seed_half"]))
    assert row["test"] == "normal over items and seeds"


def test_one_seed_stays_as_it_was() -> None:
    records = board()
    rows = frame(records)
    assert sorted(rows["id"]) == sorted(one.id for one in records)
    assert (rows["seeds"] == 1).all() and rows["average_seeds"].isna().all()
    assert not re.search(r"[0-9] seeds\)", digest(records, rows, scores_frame(records), title="t", floor=0.9))


def test_the_methods_own_seed_is_a_seed_too() -> None:
    runs = [run(knobs={"keep": 0.5, "seed": seed}, corpus=None, value=0.7 + seed / 100) for seed in range(3)]
    row = frame([BASE, *runs]).iloc[1]
    assert (row["seeds"], row["seed_set"], row["knobs"]) == (3, "0, 1, 2", "keep=0.5")


@pytest.mark.parametrize(
    "other",
    [
        run(seed=1, knobs={"keep": 0.25}),
        run(seed=1, text="another text"),
        run(seed=1, group="another group"),
        run(seed=1, method="beta"),
        run(seed=1, scores=(score("a", 0.7),)),
        run(seed=1, model="synthetic-other"),
        run(seed=1, corpus=run(seed=1).corpus.model_copy(update={"propagation": "sequential"})),  # type: ignore[union-attr]  # it has one
    ],
    ids=["knobs", "corpus", "group", "method", "tasks", "model", "propagation"],
)
def test_runs_that_differ_in_more_stay_apart(other: Record) -> None:
    rows = frame([BASE, run(), other])
    assert len(rows) == 3 and (rows["seeds"] == 1).all()


def test_two_runs_of_the_same_seed_are_no_repeats() -> None:
    same = run(
        corpus=CorpusInfo(name="synthetic text", digest="x", tokens=64, sequences=2, propagation="one_shot"), id="y"
    )
    rows = frame([BASE, run(), same, run(seed=1)])
    assert len(rows) == 4 and (rows["seeds"] == 1).all()


def test_corpora_are_labelled_where_they_differ() -> None:
    rows = frame([BASE, run(), run(seed=1), run(text="synthetic text:facts")])
    assert [run_name(row) for row in rows_of(rows)[1:]] == [
        "Alpha (keep=0.5; on synthetic text)",
        "Alpha (keep=0.5; on synthetic text:facts)",
    ]
    assert rows["seeds"].tolist() == [1, 2, 1]
    assert frame([BASE, run()])["variant"].isna().all()


def test_rows_of_other_seeds_are_not_compared_in_silence() -> None:
    first = [run(seed=seed, value=0.75) for seed in (0, 1, 2)]
    second = [run("beta", seed=seed, value=0.74) for seed in (0, 1)]
    free = run("gamma", corpus=None, value=0.73)
    rows = frame([BASE, *first, *second, free])
    assert rows["method"].tolist()[1:] == ["alpha", "beta", "gamma"]
    assert rows["next_other_seeds"].tolist()[1:3] == [True, False], "a row that no seed can change goes with any"
    assert rows["tie_next"].isna().tolist()[1:] == [True, False, True]
    told = [message for message in messages(rows) if "same seeds" in message]
    assert len(told) == 1 and "1 with 0, 1; 1 with 0, 1, 2" in told[0]
    text = digest([], rows, scores_frame([BASE, *first, *second, free]), title="t", floor=0.9)
    assert "| 1 ? |" in text
    assert not [message for message in messages(frame([BASE, *first, free])) if "same seeds" in message]


def test_refusals_of_all_seeds_are_one_line() -> None:
    runs = [refused().model_copy(update={"id": str(seed), "seeds": {"calibration": seed}}) for seed in range(3)]
    rows = frame([BASE, *runs])
    assert rows["status"].tolist() == ["complete", "refused"] and rows["seeds"].tolist() == [1, 3]


def test_perplexities_are_averaged_in_logarithms() -> None:
    def text(value: float, **changes: Any) -> Any:
        return score("text", value, metric="word_perplexity", higher_is_better=False, stderr=0.1, **changes)

    base = record(None, scores=(text(4.0),))
    runs = [run(seed=seed, scores=(text(value),)) for seed, value in enumerate((5.0, 8.0))]
    row = frame([base, *runs]).iloc[1]
    assert row["perplexity_retention"] == pytest.approx(math.sqrt(4 / 5 * 4 / 8))
    assert row["quality"] == row["perplexity_retention"]
    half = over_seeds([math.log(4 / 5), math.log(4 / 8)]).half
    assert half is not None
    items = np.mean([math.hypot(0.1 / 4, 0.1 / 5), math.hypot(0.1 / 4, 0.1 / 8)])
    assert row["perplexity_retention_error"] == pytest.approx(
        row["perplexity_retention"] * math.hypot(items, half / Z), rel=1e-4
    )


def test_order_does_not_matter() -> None:
    records = [
        BASE,
        *(run(method, seed=seed, value=0.7 + seed / 50) for method in ("alpha", "beta") for seed in range(3)),
    ]
    assert csv(frame(records)) == csv(frame(records[::-1]))
    assert csv(scores_frame(records)) == csv(scores_frame(records[::-1]))


def test_interval_over_items_and_seeds_covers_as_it_says() -> None:
    rng = np.random.default_rng(4)
    items, seeds, covered, trials = 200, 3, 0, 800
    for _ in range(trials):
        hard = rng.normal(0, 0.3, items)
        parts = []
        for shift in rng.normal(0, 0.02, seeds):
            values = hard + shift + rng.normal(0, 0.2, items)
            error = values.std(ddof=1) / math.sqrt(items)
            parts.append(Difference(values.mean(), values.mean() - Z * error, values.mean() + Z * error, 1.0))
        found = difference_over_seeds(parts)
        covered += found.low <= 0 <= found.high
    assert covered / trials >= 0.94, "conservative: the seeds' spread holds part of the items' own"


class Group(SimpleNamespace):
    def aggregate(self, metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
        return {"acc,none": float(np.mean([one["acc,none"] for one in metrics.values()])), "acc_stderr,none": 0.01}


def test_a_group_beside_its_tasks_does_not_count_twice() -> None:
    parts = {
        name: [score(name, value, n=100 + place)]
        for place, (name, value) in enumerate(zip("bcd", (0.2, 0.3, 0.7), strict=True))
    }
    group, _ = group_scores(Group(name="zoo", version=1), parts, [])
    single = score("a", 0.8, n=303)
    scores = (single, *(one for part in parts.values() for one in part), *group)
    assert group[0].task == "zoo" and [one.task for one in without_groups(scores)] == ["a", "b", "c", "d"]
    row = frame([record(None, scores=scores)]).iloc[0]
    assert (row["tasks"], row["average"]) == (4, pytest.approx((0.8 + 0.2 + 0.3 + 0.7) / 4))
    assert list(headline((single, *group))) == ["a", "zoo"], "a group without its tasks speaks for them"
    alike = group[0].model_copy(update={"digest": "another"})
    assert len(without_groups((*scores[:-1], alike))) == 5, "as many items as others together, but not made of them"


def test_the_health_of_texts_speaks_for_no_task_that_has_answers() -> None:
    health = [score("told", 0.5, metric=name) for name in HEALTH]
    assert headline([*health, score("told", 0.3, metric="rouge1")])["told"].metric == "rouge1"
    assert set(HEALTH) == set(METRICS)
