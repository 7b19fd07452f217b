"""Bold, best and fastest are given to what is separated, and to nothing else."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from analysis.console import print_leaderboard
from analysis.frame import frame
from analysis.plain_rows import rows_of
from analysis.report import report
from analysis.separation import best
from analysis.summary import cards, messages
from analysis.table import markdown
from bench.records.record import Interval, Paired, Record, Timing, write_record
from tests.support.pages import held
from tests.support.records import paired, record, score, timing

BASE = record(None, scores=(score("a", 0.9),))


def _run(method: str, fall: float, half: float = 0.02, **changes: Any) -> Record:
    pair = changes.pop("pair", paired(-fall, half, 0.01))
    return record(method, scores=(score("a", 0.9 - fall, paired=pair),), **changes)


def _speed(median: float, low: float, high: float, *marks: str) -> Timing:
    ratio = Interval(median=median, low=low, high=high, n=5)
    return timing().model_copy(update={"prefill_ratio": ratio, "decode_ratio": ratio, "marks": marks})


def _titles(*runs: Record) -> dict[str, str]:
    """Return the title of the best of each column."""
    rows = frame([BASE, *runs])
    titles = dict(zip(rows["id"], rows["title"], strict=True))
    return {name: titles[found] for name, found in best(rows_of(rows)).items()}


@pytest.mark.parametrize(("gap", "separated"), [(0.027, False), (0.03, True)])
def test_the_best_is_separated_from_the_next(gap: float, separated: bool) -> None:
    runs = [_run("alpha", 0.02), _run("beta", 0.02 + gap)]  # the interval of the difference is 0.0283 on either side
    found = _titles(*runs)
    assert [found.get(name) for name in ("average", "retention")] == ["Alpha" if separated else None] * 2
    (card,) = cards(frame([BASE, *runs]), 0.5)
    told = next((value, detail) for name, value, detail in card.facts if name == "Best quality")
    assert told[0] == ("Alpha (keep=0.5)" if separated else "undecided")
    assert separated or told[1].startswith("the first of 2 runs that are not separated retains 97.8 % [")


def test_the_best_is_separated_from_all_not_from_the_next_alone() -> None:
    assert _titles(_run("alpha", 0.02), _run("beta", 0.06), _run("gamma", 0.09, half=0.2)).get("average") is None
    assert _titles(_run("alpha", 0.02)).get("average") is None, "nothing to be better than"


def test_nothing_rests_on_intervals_of_earlier_versions() -> None:
    old = Paired(difference=-0.02, low=-0.02, high=-0.02, p=1.0, test="mcnemar")
    runs = [_run("alpha", 0.02, pair=old), _run("beta", 0.2)]
    rows = frame([BASE, *runs])
    assert old.interval == "percentile" and rows["old_intervals"].tolist() == [False, True, False]
    assert _titles(*runs).get("average") is None
    assert "−2.0 [−2.0, −2.0] †°" in markdown(rows) or "−2.0 [−2.0, −2.0] °" in markdown(rows)
    assert any("1 run of synthetic-coarse has intervals of an earlier version" in told for told in messages(rows))


def test_a_speed_that_may_be_that_of_the_base_is_not_the_fastest(tmp_path: Path) -> None:
    runs = [_run("alpha", 0.02, timing=_speed(1.03, 0.89, 1.11)), _run("beta", 0.03, timing=_speed(0.98, 0.97, 0.99))]
    (card,) = cards(frame([BASE, *runs]), 0.5)
    fastest = [(value, detail) for name, value, detail in card.facts if name.startswith("Fastest")]
    assert fastest == [("undecided", "no unmarked speed is separated from the base's and from all others")]
    for one in (BASE, *runs):
        write_record(one, tmp_path / "records")
    made = report(tmp_path / "records", tmp_path / "out", figures=False)
    page = made.page.read_text()
    speeds = [one for one in held(page, "rows")["cells"] if "1.03" in one["text"]]
    assert speeds and all(one["sub"][one["text"].index("1.03")] == "[0.89, 1.11]" for one in speeds)
    assert not [one for one in speeds if one["text"].index("1.03") in one.get("best", ())]
    assert "**1.03" not in made.markdown.read_text()


@pytest.mark.parametrize(
    ("first", "second", "fastest"),
    [
        (_speed(1.30, 1.25, 1.35), _speed(1.10, 1.05, 1.15), True),
        (_speed(1.30, 1.25, 1.35), _speed(1.28, 1.25, 1.31), False),
        (_speed(1.30, 1.25, 1.35, "noisy"), _speed(1.10, 1.05, 1.15), False),
        (_speed(1.30, 1.25, 1.35, "drifting", "correlated"), _speed(1.10, 1.05, 1.15), False),
        (_speed(1.04, 1.0, 1.05), _speed(0.90, 0.89, 0.91), False),
    ],
    ids=["clear", "alike", "noisy", "drifting", "as the base"],
)
def test_the_fastest_is_separated_and_unmarked(first: Timing, second: Timing, fastest: bool) -> None:
    found = _titles(_run("alpha", 0.02, timing=first), _run("beta", 0.03, timing=second))
    assert [found.get(name) for name in ("prefill_ratio", "decode_ratio")] == ["Alpha" if fastest else None] * 2


def test_marks_of_a_timing_stand_beside_it(tmp_path: Path) -> None:
    speed = _speed(1.2, 1.0, 1.4, "noisy", "correlated")
    for one in (BASE, _run("alpha", 0.02, timing=speed)):
        write_record(one, tmp_path / "records")
    made = report(tmp_path / "records", tmp_path / "out", figures=False)
    speeds = [one for one in held(made.page.read_text(), "rows")["cells"] if "1.20" in one["text"]]
    assert speeds and all("[1.00, 1.40] noisy, correlated" in one["sub"] for one in speeds)
    assert "| 1.20 [1.00, 1.40] noisy, correlated |" in made.markdown.read_text()


def test_a_terminal_shows_the_first_in_green_only_where_it_is_separated() -> None:
    for fall, green in ((0.03, False), (0.2, True)):
        console = Console(width=140, file=StringIO(), force_terminal=True, color_system="standard")
        print_leaderboard(frame([BASE, _run("alpha", 0.02), _run("beta", fall)]), console)
        file = console.file
        assert isinstance(file, StringIO) and ("\x1b[1;32m" in file.getvalue()) is green
