"""Before and after training: which runs are a pair, and the interval of the gain against simulated items."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from analysis.comparison import compare
from analysis.frame import frame
from analysis.inference import Z95
from analysis.report import report
from analysis.table import markdown
from analysis.training import gain, training_frame, training_lines
from bench.records.record import CorpusInfo, Record, write_record
from tests.support.records import paired, record, recovered, score


def _pair(first: float, second: float, base: float, errors: tuple[float, ...]) -> tuple[Record, Record, Record]:
    """Return base, before and after, with one task, its three standard errors and those of two paired differences."""
    own, late, reference, d_before, d_after = errors
    runs = [record(None, scores=(score("a", base, stderr=reference, n=4000),))]
    for value, error, half in ((first, own, d_before), (second, late, d_after)):
        pair = paired(value - base, Z95 * half, 0.5)
        runs.append(record(scores=(score("a", value, stderr=error, n=4000, paired=pair),)))
    after = recovered(runs[2], 0.0)
    return runs[0], runs[1], after


def test_gain_by_hand() -> None:
    # covariances with the base: (9 + 16 - 13) / 2 = 6 and (25 + 16 - 17) / 2 = 12, in units of 1e-4; 6 * 12 / 16 = 4.5
    errors = (0.03, 0.05, 0.04, math.sqrt(13) / 100, math.sqrt(17) / 100)
    base, before, after = _pair(0.5, 0.7, 0.8, errors)
    row = training_frame([after, base, before]).iloc[0]
    half = Z95 * math.sqrt(9 + 25 - 2 * 4.5) / 100
    assert row["gain"] == pytest.approx(0.2)
    assert (row["gain_low"], row["gain_high"]) == (pytest.approx(0.2 - half), pytest.approx(0.2 + half))
    assert (row["before"], row["after"], row["base_average"]) == pytest.approx((0.5, 0.7, 0.8))
    assert (row["before_difference"], row["after_difference"]) == pytest.approx((-0.3, -0.1))
    assert (row["pairing"], row["tokens"], row["seconds"], row["recovery"]) == (
        "through the base",
        65_536,
        90.0,
        "lora",
    )


def _simulated(shared: float, seed: int) -> tuple[float, float]:
    """Return the standard error that ``gain`` gives for simulated items, and that of their true paired differences."""
    rng = np.random.default_rng(seed)
    items = 4000
    base = (rng.uniform(size=items) < 0.8).astype(float)
    luck = rng.uniform(size=items)
    values = []
    for right in (0.6, 0.75):
        own = np.where(rng.uniform(size=items) < shared, luck, rng.uniform(size=items))
        values.append((own < np.where(base == 1, right + 0.15, right - 0.35)).astype(float))
    errors = [float(v.std(ddof=1) / math.sqrt(items)) for v in (*values, base)]
    changes = [float((v - base).std(ddof=1) / math.sqrt(items)) for v in values]
    means = [float(v.mean()) for v in (*values, base)]
    rows = compare(_pair(means[0], means[1], means[2], (*errors, *changes)))
    found, kind = gain(rows[1], rows[2])
    assert found is not None and kind == "through the base"
    return found.error, float((values[1] - values[0]).std(ddof=1) / math.sqrt(items))


def test_interval_is_right_if_nothing_but_the_base_is_shared_and_too_wide_if_more_is() -> None:
    for seed in range(5):
        ours, true = _simulated(0.0, seed)
        assert ours == pytest.approx(true, rel=0.03)
        ours, true = _simulated(0.9, seed)
        assert ours > 1.2 * true


def test_without_comparisons_errors_are_independent() -> None:
    base = record(None, scores=(score("a", 0.8),))
    before = record(scores=(score("a", 0.5, stderr=0.03),))
    row = training_frame([base, before, recovered(before, 0.2)]).iloc[0]
    assert row["pairing"] == "unpaired"
    assert row["gain_high"] - row["gain"] == pytest.approx(Z95 * math.hypot(0.03, 0.03))
    without = record(scores=(score("a", 0.5, stderr=None),))
    row = training_frame([base, without, recovered(without, 0.2)]).iloc[0]
    assert row["gain"] == pytest.approx(0.2) and np.isnan(row["gain_low"])


def test_only_the_same_compressed_model_is_a_partner() -> None:
    base, before = record(None), record()
    after = recovered(before)
    assert len(training_frame([base, before, after])) == 1
    for other in (
        before.model_copy(update={"plan": "another plan"}),
        before.model_copy(update={"knobs": {"keep": 0.5, "scope": "layer"}}),
        before.model_copy(update={"method": "beta"}),
        before.model_copy(update={"scores": before.scores[:2]}),
        before.model_copy(update={"status": "failed"}),
    ):
        assert len(training_frame([base, other, after])) == 0
    assert len(training_frame([base, after])) == 0 and len(training_frame([])) == 0


def test_of_several_partners_that_of_the_same_group_then_the_latest() -> None:
    base, before = record(None), record()
    after = recovered(before)
    worse = tuple(one.model_copy(update={"value": 0.3}) for one in before.scores)
    newer = before.model_copy(update={"id": "1" * 16, "created": "2027-01-01T00:00:00Z", "scores": worse})
    assert training_frame([base, before, newer, after]).iloc[0]["before"] == pytest.approx(0.3)
    elsewhere = newer.model_copy(update={"group": "another study"})
    assert training_frame([base, before, elsewhere, after]).iloc[0]["before"] == pytest.approx(0.9)


def _seeded(seed: int, value: float) -> Record:
    text = CorpusInfo(name="synthetic text", digest=f"text {seed}", tokens=4096, sequences=8, propagation="one_shot")
    pair = paired(value - 0.9, 0.02, 0.01)
    scores = (score("a", value, stderr=0.01, paired=pair),)
    return record(corpus=text, seeds={"calibration": seed}, scores=scores, id=f"{seed}", plan=f"plan {seed}")


def test_seeds_are_averaged_pair_by_pair() -> None:
    base = record(None, scores=(score("a", 0.9),))
    runs = [_seeded(0, 0.5), _seeded(1, 0.6), _seeded(2, 0.7)]
    late = [recovered(run, extra) for run, extra in zip(runs, (0.1, 0.2, 0.15), strict=True)]
    (row,) = training_frame([base, *runs, *late]).to_dict("records")
    assert row["pairs"] == 3
    assert (row["before"], row["after"], row["gain"]) == pytest.approx((0.6, 0.75, 0.15))
    single = [training_frame([base, run, after]).iloc[0] for run, after in zip(runs, late, strict=True)]
    items = sum(one["gain_high"] - one["gain_low"] for one in single) / 6
    seeds = 4.302652729749464 * 0.05 / math.sqrt(3)  # t(0.975, 2)
    assert row["gain_high"] - row["gain"] == pytest.approx(math.hypot(items, seeds))
    # one seed has no partner: the others are told
    assert training_frame([base, *runs[:2], *late]).iloc[0]["pairs"] == 2


def test_trained_and_untrained_runs_are_rows_of_their_own() -> None:
    base = record(None, scores=(score("a", 0.9),))
    runs = [_seeded(0, 0.5), _seeded(1, 0.6)]
    late = [recovered(run, kind=kind) for run in runs for kind in ("lora", "full")]
    bare = [one.model_copy(update={"knobs": runs[0].knobs}) for one in late]  # even if knobs said nothing
    for trained in (late, bare):
        rows = frame([base, *runs, *trained])
        assert rows["title"].value_counts().to_dict() == {
            "Uncompressed": 1, "Alpha": 1, "Alpha + LoRA": 1, "Alpha + fine-tuning": 1
        }  # fmt: skip
        assert set(rows["recovery"].dropna()) == {"lora", "full"} and set(rows["seeds"]) == {1, 2}
    text = markdown(frame([base, *runs, *late]))
    assert "| Alpha + LoRA (keep=0.5) |" in text and "| Alpha (keep=0.5) |" in text
    assert "recovery." not in text


def test_report_has_the_table_where_there_are_pairs_only(tmp_path: Path) -> None:
    base, before = record(None, timing=None), record(timing=None)
    for place, runs in enumerate(([base, before], [base, before, recovered(before, 0.05)])):
        for one in runs:
            write_record(one, tmp_path / f"records{place}")
        made = report(tmp_path / f"records{place}", tmp_path / f"out{place}", figures=False)
        text = made.markdown.read_text()
        assert ("## Before and after training" in text) == bool(place)
        assert [path.name for path in made.tables] == (["training.csv"] if place else [])
    assert "| lora | synthetic text | 65,536 | 32 | rate=0.01 | 1 |" in text  # how it was trained
    line = next(line for line in text.split("## Before")[1].splitlines() if "Alpha" in line)
    assert "| 90.0 ± 0.9 | 95.0 ± 0.9 |" in line and "+5.0 [" in line and "(unpaired)" in line and "65,536" in line
    assert made.tables[0].read_text().count("\n") == 2
    section = text.split("## Before and after training")[1].split("\n## ")[0]
    assert "1 trained runs are compared with what they were trained from" in section and "up to 0.1 of them" in section


def test_lines_stand_under_their_heads() -> None:
    from analysis.training import HEAD

    base, before = record(None), record()
    lines = training_lines(training_frame([base, before, recovered(before)]))
    assert [len(line) for rows in lines.values() for line in rows] == [len(HEAD)]
