"""Measured speed beside predictions: ratios, verdicts, sentences, and what is not claimed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.drawing import render, style
from analysis.figures import speed_vs_flops
from analysis.frame import frame
from analysis.plain_rows import rows_of
from analysis.report import report
from analysis.speed import HEAD, sentence, speed_frame, speed_lines, verdict
from analysis.summary import cards
from analysis.table import markdown
from bench.records.record import BatchTiming, Interval, Record, Timing, write_record
from tests.support.records import cost, interval, record, timing, without_speed


def _timed(prefill: float, decode: float, **changes: Any) -> Timing:
    update = {"prefill_ratio": interval(prefill, 0.02), "decode_ratio": interval(decode, 0.03), **changes}
    return timing().model_copy(update=update)


def _run(method: str, speed: Timing | None, **changes: Any) -> Record:
    return record(method, timing=speed, **changes)


BASE = record(None)
HALF = cost(0.5).model_copy(update={"active_parameters": 2_000_000})
"""Of a base with 12 GFLOP, 3 M active parameters and 20 MB: 9.6 GFLOP, 2 M and 12 MB."""


def test_predictions_by_hand() -> None:
    row = speed_frame([BASE, _run("alpha", _timed(1.25, 1.2), cost=HALF)]).iloc[0]
    assert row["flops_ratio"] == pytest.approx(1.25)
    assert row["active_ratio"] == pytest.approx(1.5)
    assert row["bytes_ratio"] == pytest.approx(20 / 12)
    assert row["told"] == "decode is 20 % slower than active parameters predict (1.50 ×)"  # 1.2 / 1.5
    assert row["batch"] == 4


def _row(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"realisation": "compressed", "flops_ratio": 1.2, "active_ratio": 1.0}
    for phase in ("prefill", "decode"):
        row |= {f"{phase}_ratio": 1.0, f"{phase}_ratio_low": 0.95, f"{phase}_ratio_high": 1.05}
    return row | changes


def test_sentence_tells_side_and_distance() -> None:
    assert sentence(_row()) == "prefill is 17 % slower than FLOPs predict (1.20 ×)"  # 1 / 1.2
    assert sentence(_row(flops_ratio=1.04)) is None
    assert sentence(_row(flops_ratio=1.05)) is None  # an end belongs to its interval
    assert sentence(_row(flops_ratio=0.94)) == "prefill is 6.4 % faster than FLOPs predict (0.94 ×)"
    both = sentence(_row(active_ratio=2.0))
    assert both is not None and both.endswith("; decode is 50 % slower than active parameters predict (2.00 ×)")
    assert sentence(_row(realisation="dense")) is None
    assert sentence(_row(flops_ratio=None, active_ratio=None)) is None
    assert sentence(_row(prefill_ratio_low=None, prefill_ratio_high=None)) is None


def test_no_difference_where_the_interval_holds_one() -> None:
    assert verdict(_row(), "prefill") == "1.00 [0.95, 1.05] no difference"
    assert verdict(_row(decode_ratio_low=1.0), "decode").endswith("no difference")
    assert verdict(_row(decode_ratio=1.03, decode_ratio_low=1.01), "decode") == "1.03 [1.01, 1.05]"
    assert verdict(_row(decode_ratio=0.97, decode_ratio_high=0.99), "decode") == "0.97 [0.95, 0.99]"
    assert verdict(_row(decode_ratio=None), "decode") == "–"
    assert verdict(_row(realisation="dense"), "decode") == "dense"


def test_every_batch_size_is_a_row_with_its_own_marks() -> None:
    batches = tuple(
        BatchTiming(
            batch=batch,
            prefill=interval(4000.0),
            decode=interval(100.0),
            prefill_ratio=interval(1.0 + batch / 10),
            decode_ratio=Interval(median=1.0, low=0.9, high=1.1, n=5),
            marks=marks,
        )
        for batch, marks in ((1, ("noisy",)), (8, ("drifting", "uneven")))
    )
    rows = speed_frame([BASE, _run("alpha", _timed(1.1, 1.0, batches=batches))])
    assert rows["batch"].tolist() == [1, 8] and rows["marks"].tolist() == ["noisy", "drifting, uneven"]
    assert rows["prefill_ratio"].tolist() == pytest.approx([1.1, 1.8])


def test_reasons_stand_and_untimed_runs_do_not() -> None:
    runs = [BASE, _run("alpha", without_speed("no kernel")), _run("beta", None), _run("gamma", _timed(1.0, 1.0))]
    rows = speed_frame(runs)
    assert rows["title"].tolist() == ["Alpha", "Gamma"]
    lines = [line for found in speed_lines(rows).values() for line in found]
    assert all(len(line) == len(HEAD) for line in lines)
    assert lines[0][2] == lines[0][4] == "–" and lines[0][-1] == "no kernel"
    assert len(speed_frame([BASE])) == 0


def test_dense_stands_where_a_speed_would() -> None:
    dense = _run("alpha", _timed(9.0, 9.0, realisation="dense"))
    fair = _run("beta", _timed(1.5, 1.5, realisation="compressed"))
    rows = frame([BASE, dense, fair])
    table = markdown(rows)
    line = next(line for line in table.splitlines() if "Alpha" in line)
    assert line.count("| dense ") == 2 and "9.00" not in table and "**dense**" not in table
    assert "**1.50 [1.47, 1.53]**" in table
    (card,) = cards(rows, 0.5)
    assert ("Fastest ≥ 50 %", "Beta (keep=0.5)", "decode 1.50 [1.46, 1.54] × base") in card.facts
    assert rows.set_index("title").loc["Alpha", "decode_ratio"] == 9.0  # the CSV keeps what was measured
    assert rows.set_index("title").loc["Alpha", "timing_realisation"] == "dense"
    with style():
        figure = speed_vs_flops({"board": rows_of(rows)}, {"board": "synthetic"})
        text = render(figure, ["svg"])["svg"]
    assert b"Beta" in text and b"Alpha" not in text


def test_report_has_the_table_where_there_are_timings(tmp_path: Path) -> None:
    runs = [
        BASE,
        _run("alpha", _timed(1.25, 1.2, marks=("noisy",)), cost=HALF),
        _run("beta", without_speed("no kernel")),
    ]
    for one in runs:
        write_record(one, tmp_path / "records")
    made = report(tmp_path / "records", tmp_path / "out", figures=False)
    section = made.markdown.read_text().split("## Speed: measured beside predicted")[1].split("\n## ")[0]
    line = next(line for line in section.splitlines() if "Alpha" in line)
    assert "| 1.25 [1.23, 1.27] | 1.25 | 1.20 [1.16, 1.24] | 1.50 | 1.67 | noisy |" in line
    assert "decode is 20 % slower than active parameters predict (1.50 ×)" in line
    assert "no kernel" in section and [path.name for path in made.tables] == ["speed.csv"]
