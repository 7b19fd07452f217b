"""Cells of a paper's table: which run stands in a row, how means are formed, and what is said where there is none."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import Any

import pytest

from analysis.papers.filling import Filled, fill, matches
from analysis.papers.printed import printed
from analysis.papers.sheet import Block, Column, Line, Sheet
from analysis.papers.tables import csv_text, latex, markdown
from bench.records.record import CorpusInfo, Record, Timing
from methods.framework.errors import ConfigError, UnknownNameError
from tests.support.records import paired, record, score, timing

COLUMNS = (
    Column("mem_gb", "Memory", "gib"),
    Column("facts", "Facts", task="zoo_facts"),
    Column("sums", "Sums", task="zoo_sums"),
    Column("avg", "Avg.", "mean", of=("facts", "sums")),
)
BASE = Line("Baseline", published={"mem_gb": 10.0, "facts": 90.0, "sums": 80.0, "avg": 85.0})
HALF = Line(
    "half",
    "alpha",
    {"keep": 0.5, "scope": "all"},
    frozenset({"scope"}),
    {"facts": 80.0, "sums": 60.0, "avg": 70.0},
    corpus=("zoo", 8),
)


def block(*lines: Line, **changes: Any) -> Block:
    fields: dict[str, Any] = {"columns": COLUMNS, "paper_columns": COLUMNS, **changes}
    return Block("Zoo-7B", "zoo-7b", lines=lines, **fields)


def scored(facts: float, sums: float, gap: float = 0.0) -> tuple[Any, ...]:
    pair = {} if not gap else {"paired": paired(gap, 0.02, 0.01)}
    return (
        score("zoo_facts", facts - 0.05, metric="acc", **pair),
        score("zoo_facts", facts, metric="acc_norm", **pair),
        score("zoo_sums_local", sums, metric="acc", **pair),
    )


def runs(**changes: Any) -> list[Record]:
    corpus = CorpusInfo(name="zoo", digest="d", tokens=64, sequences=8, propagation="one_shot")
    half = {"knobs": {"keep": 0.5, "scope": "all"}, "scores": scored(0.7, 0.5, -0.2), "corpus": corpus}
    return [
        record(None, "hub/zoo-7b", scores=scored(0.9, 0.7)),
        record("alpha", "hub/zoo-7b", **{**half, **changes}),
    ]


def filled(*lines: Line, records: list[Record] | None = None, **changes: Any) -> Filled:
    return fill(block(*lines, **changes), runs() if records is None else records)


def test_cells_hold_the_preferred_metric_and_the_mean_of_the_columns_it_is_formed_of() -> None:
    base, half = filled(BASE, HALF).rows
    assert base.cells["facts"].ours == pytest.approx(90.0), "acc_norm before acc"
    assert half.cells["sums"].ours == pytest.approx(50.0), "a task with local data is the task"
    mean = half.cells["avg"]
    assert mean.ours == pytest.approx(60.0)
    assert mean.difference is not None and mean.difference.value == pytest.approx(-20.0)
    assert mean.difference.high - mean.difference.value == pytest.approx(100 * 0.02 / 2**0.5), "errors add in squares"
    assert mean.published_difference == pytest.approx(-15.0)
    assert base.cells["avg"].difference is None


def test_a_mean_is_not_formed_of_less_than_the_paper_forms_it_of() -> None:
    records = [one.model_copy(update={"scores": one.scores[:2]}) for one in runs()]
    _, half = filled(BASE, HALF, records=records).rows
    assert half.cells["facts"].ours is not None and half.cells["avg"].ours is None


def test_plain_accuracy_where_the_paper_takes_that() -> None:
    base = filled(BASE, metrics=("acc",)).rows[0]
    assert base.cells["facts"].ours == pytest.approx(85.0)


def test_a_row_takes_only_runs_of_its_method_and_knobs() -> None:
    run = runs()[1]
    assert matches(HALF, run)
    assert not matches(replace(HALF, method="beta"), run)
    assert not matches(HALF, run.model_copy(update={"knobs": {"keep": 0.25, "scope": "all"}}))
    assert matches(HALF, run.model_copy(update={"knobs": {"keep": 0.5, "scope": "all", "seed": 3}}))
    assert not matches(HALF, run.model_copy(update={"knobs": {"keep": 0.5}})), (
        "scope came later: it was the default then"
    )
    assert matches(replace(HALF, stated=frozenset()), run.model_copy(update={"knobs": {"keep": 0.5}}))
    assert not matches(HALF, run.model_copy(update={"knobs": {"keep": 0.5, "scope": "all", "own": 1}}))


def test_seeds_are_averaged_and_another_model_is_left_out() -> None:
    base, half = runs()
    corpus = half.corpus
    assert corpus is not None
    other = half.model_copy(
        update={
            "id": "b" * 16,
            "scores": scored(0.8, 0.6, -0.1),
            "seeds": {"calibration": 1},
            "corpus": corpus.model_copy(update={"digest": "e"}),
        }
    )
    stranger = half.model_copy(
        update={"id": "c" * 16, "model": half.model.model_copy(update={"name": "ape-7b"}), "scores": scored(0.1, 0.1)}
    )
    row = filled(BASE, HALF, records=[base, half, other, stranger]).rows[1]
    assert row.cells["facts"].ours == pytest.approx(75.0)


def test_a_run_on_the_right_text_goes_before_a_later_one_on_another() -> None:
    base, half = runs()
    assert half.corpus is not None
    elsewhere = half.model_copy(
        update={
            "id": "d" * 16,
            "created": "2027-01-01T00:00:00Z",
            "corpus": half.corpus.model_copy(update={"name": "moon", "digest": "m"}),
            "scores": scored(0.3, 0.3, -0.6),
        }
    )
    assert filled(BASE, HALF, records=[base, half, elsewhere]).rows[1].cells["facts"].ours == pytest.approx(70.0)
    only = filled(BASE, HALF, records=[base, elsewhere]).rows[1]
    assert only.cells["facts"].ours == pytest.approx(30.0)
    assert only.notes == ("half: calibrated on 8 windows of moon, not 8 of zoo.",)


def test_what_is_missing_is_said() -> None:
    later = replace(HALF, label="later", reason="not yet possible: no such knob")
    refused = runs(status="refused", reason="too small", scores=())
    assert filled(BASE, later, HALF, records=refused).missing == [
        "Zoo-7B, later: not yet possible: no such knob",
        "Zoo-7B, half: refused: too small",
    ]
    assert filled(BASE, records=[]).missing == ["Zoo-7B, Baseline: no run of it is in the store"]
    assert fill(block(HALF), runs(), only={"none"}).missing == ["Zoo-7B, half: no run of it is in the store"]


def sheet(**changes: Any) -> Sheet:
    fields: dict[str, Any] = {"departs": ("Seeds: one.",), "lost": ("A row.",), "blocks": (), **changes}
    return Sheet("table-3", "Halves", "arXiv 1", **fields)


def test_a_comparable_table_says_cell_by_cell_what_lies_between() -> None:
    text = markdown(sheet(), [filled(BASE, replace(HALF, mark="quoted"))])
    assert "| half | – | 80.0° | 60.0° | 70.0° |" in text and "° quoted by another paper." in text
    error = 1.96 * 100 * (0.7 * 0.3 / 400) ** 0.5
    assert f"| half | – | −10.0 ± {error:.1f} |" in text
    assert "| half | −15.0 | −20.0 [−21.4, −18.6] |" in text
    assert "- Seeds: one." in text and "- A row." in text


def test_without_the_papers_tasks_only_changes_stand_side_by_side() -> None:
    ours = (Column("facts", "zoo", task="zoo_facts"), Column("mean", "mean", "mean", of=("facts",)))
    lines = (
        BASE,
        replace(HALF, printed_label="H1/2"),
        replace(HALF, label="gone", method="gamma", mark="lost", published={}),
    )
    one = filled(*lines, columns=ours)
    text = markdown(sheet(small=True), [one])
    assert "Measured minus printed" not in text and "neither confirm nor refute" in text
    assert "| half (printed: H1/2) | −15.0 | −20.0 [−22.0, −18.0] |" in text
    assert "| gone | lost | lost | lost | lost |" in text
    rows = list(csv.DictReader(io.StringIO(csv_text([one]))))
    assert {row["measured_minus_printed"] for row in rows} == {""}


def test_the_order_of_rows_is_counted() -> None:
    worse = replace(HALF, label="worse", method="beta", knobs={}, stated=frozenset(), published={"avg": 60.0})
    level = replace(HALF, label="level", method="gamma", knobs={}, stated=frozenset(), published={"avg": 50.0})
    records = [
        *runs(),
        record("beta", "hub/zoo-7b", knobs={}, scores=scored(0.8, 0.6, -0.1)),
        record("gamma", "hub/zoo-7b", knobs={}, scores=scored(0.8, 0.6, -0.1)),
    ]
    text = markdown(sheet(), [filled(BASE, HALF, worse, level, records=records)])
    assert "Of 6 pairs of rows, 3 lie in the printed order, 1 are level here." in text


SPEED = Column("speedup", "SpeedUp", "speedup", digits=2)


def test_a_speed_has_its_interval_and_says_when_it_is_noise() -> None:
    base, half = (one.model_copy(update={"timing": None}) for one in runs())
    quiet = half.model_copy(update={"id": "e" * 16, "timing": timing(1.25), "created": "2020-01-01T00:00:00Z"})
    noisy = quiet.model_copy(update={"timing": timing(1.25).model_copy(update={"marks": ("noisy",)})})
    for timed, sign in ((quiet, ""), (noisy, "~")):
        one = filled(BASE, HALF, records=[base, half, timed], columns=(SPEED, *COLUMNS))
        assert one.rows[1].record is not None and one.rows[1].record.timing is not None, "before a later one untimed"
        text = markdown(sheet(), [one])
        ratio = timed.timing and timed.timing.decode_ratio
        assert ratio is not None
        assert f"| half | 1.25 [{ratio.low:.2f}, {ratio.high:.2f}]{sign} |" in text
        assert "- SpeedUp: generating with synthetic" in text
        cell = next(row for row in csv.DictReader(io.StringIO(csv_text([one]))) if row["low"])
        assert (cell["column"], cell["noise"]) == ("speedup", "noisy" if sign else "")
    untimed = half.model_copy(update={"timing": Timing(reason="no engine")})
    one = filled(BASE, HALF, records=[base, untimed], columns=(SPEED, *COLUMNS))
    assert (
        "not timed, no engine." in markdown(sheet(), [one])
        and "SpeedUp |" not in markdown(sheet(), [one]).split("Printed")[0]
    )
    assert one.untimed and filled(BASE, HALF).untimed is False, "the paper prints no speed there"
    failed = untimed.model_copy(update={"id": "f" * 16, "created": "2030-01-01T00:00:00Z"})
    again = filled(BASE, HALF, records=[base, quiet, failed], columns=(SPEED, *COLUMNS))
    assert again.rows[1].record is not None and again.rows[1].record.id == quiet.id, "a later timing failed"
    assert not again.untimed


def test_a_run_that_read_the_text_goes_before_a_later_one_that_did_not() -> None:
    text = Column("text", "Text", "perplexity", "zoo_text")
    early = record(
        None, "hub/zoo-7b", scores=(score("zoo_text", 9.0, metric="word_perplexity"),), created="2020-01-01T00:00:00Z"
    )
    row = filled(BASE, records=[early, *runs()], columns=(text,)).rows[0]
    assert row.cells["text"].ours == pytest.approx(9.0)


def test_the_order_by_perplexity_has_the_smaller_first() -> None:
    worse = replace(HALF, label="worse", method="beta", knobs={}, stated=frozenset(), published={"avg": 60.0})
    beta = record("beta", "hub/zoo-7b", knobs={}, scores=scored(0.8, 0.6, -0.1))
    read = [
        one.model_copy(update={"scores": (*one.scores, score("zoo_text", value, metric="word_perplexity"))})
        for one, value in zip([*runs(), beta], (8, 9, 99), strict=True)
    ]
    text = Column("text", "Text", "perplexity", "zoo_text")
    told = markdown(sheet(), [filled(BASE, HALF, worse, records=read, columns=(*COLUMNS, text))])
    assert "By the perplexity on zoo_text, of 3 pairs of rows, 3 lie in the printed order." in told


def test_exported_cells_are_numbers_and_no_formula() -> None:
    one = filled(BASE, replace(HALF, label="=1+1"))
    rows = list(csv.DictReader(io.StringIO(csv_text([one]))))
    cell = next(row for row in rows if row["row"] == "'=1+1" and row["column"] == "facts")
    assert (cell["measured"], cell["printed"], cell["measured_minus_printed"]) == ("70", "80", "-10")
    assert (cell["to_base"], cell["printed_to_base"], cell["mark"]) == ("-20", "-10", "first-hand")
    text = latex(sheet(), [one])
    assert text.count("\\begin{tabular}{lrrrr}") == 3 and "=1+1 & 0.0112 & 70.0 & 50.0 & 60.0 \\\\" in text


def test_printed_rows_are_found_or_refused() -> None:
    row = printed("holistic_T3_recipe", {"model": "Mixtral-8x7B", "method": "E2/8+AWQ"})
    assert (row["speedup"], row["arc_challenge"], row["avg"]) == (5.28, 50.7, 64.8)
    share = printed("submoe_T1", {"model": "Mixtral-8x7B", "method": "HC-SMoE", "experts_left": 6})
    assert (share["arc_challenge"], share["wikitext2"]) == (45.0, 5.92), (
        "fractions in percent, perplexities as they are"
    )
    with pytest.raises(ConfigError, match="has 8 rows with model Mixtral-8x7B"):
        printed("holistic_T3_recipe", {"model": "Mixtral-8x7B"})
    with pytest.raises(ConfigError, match="no column 'sort'"):
        printed("holistic_T3_recipe", {"sort": 1})
    with pytest.raises(UnknownNameError, match="holistic_T3_recipe"):
        printed("holistic_T3_recip", {})
