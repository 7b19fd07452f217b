"""The rows of a running job: all of them from the start, clocks that stop, time left, and lines where there is no terminal."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from analysis.board import Board

STAGES = ("calibrate", "plan", "evaluate")


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def board(terminal: bool = True, rows: int = 3, width: int = 120) -> tuple[Board, Clock, Console]:
    clock = Clock()
    console = Console(file=StringIO(), width=width, height=20, force_terminal=terminal, record=True)
    made = Board(console, clock)
    made.add("base", "m", "base", ("evaluate",), base=True, parts=2)
    for number in range(1, rows):
        made.add(number, "m", f"REAP keep=.{number}", STAGES, parts=2)
    return made, clock, console


def shown(made: Board, console: Console) -> str:
    console.print(made)
    return console.export_text()


def test_all_rows_are_listed_before_anything_runs() -> None:
    made, _, console = board()
    text = shown(made, console)
    assert text.startswith("0 of 3 rows") and "0% in 0:00" in text
    assert [line.split()[:2] for line in text.splitlines()[2:]] == [["m", "base"], ["m", "REAP"], ["m", "REAP"]]
    assert text.count("waiting") == 3 and "left" not in text.splitlines()[0]


def test_a_row_tells_stage_share_time_and_time_left() -> None:
    made, clock, console = board()
    made.note("base", "evaluate")
    clock.now += 10
    made.note("base", "evaluate a 5/10")
    assert made.left("base") == 30.0, "a quarter of two tasks took ten seconds"
    made.note("base", "evaluate b 5/10")
    clock.now += 20
    row = made.rows()[0]
    assert (row.stage, row.share, row.seconds, row.left, row.note) == ("evaluate", 0.75, 30.0, 10.0, "b")
    assert made.left(1) is None and made.total_left() is None, "nobody knows what the other stages take"
    made.note("base", "complete", average=0.8)
    made.note(1, "calibrate")
    clock.now += 4
    made.note(1, "plan")
    clock.now += 1
    made.note(1, "evaluate a 10/10")
    clock.now += 15
    assert made.left(1) == 15.0 and made.left(2) == 4 + 1 + 30
    assert made.total_left() == 50.0
    made.note(1, "complete", average=0.6)
    clock.now += 1000
    first = made.rows()[1]
    assert (first.seconds, first.left, first.retention) == (20.0, None, 0.6 / 0.8), "a row that ended stops its clock"
    text = shown(made, console)
    assert text.startswith("2 of 3 rows") and "67%" in text.splitlines()[0]
    assert "about 0:28 left" in text, "of a stage that two rows passed, the time in the middle counts"
    assert "0:20" in text and "75.0 %" in text


def test_who_works_on_another_row_has_left_the_one_before() -> None:
    made, clock, _ = board()
    made.note(1, "calibrate", lane=0)
    made.note(2, "calibrate", lane=1)
    clock.now += 5
    assert [row.seconds for row in made.rows()[1:]] == [5.0, 5.0]
    made.note(2, "plan", lane=0)
    clock.now += 5
    first, second = made.rows()[1:]
    assert (first.stage, first.seconds, first.left) == ("waiting", 5.0, None)
    assert (second.stage, second.seconds) == ("plan", 10.0)


def test_without_a_terminal_each_stage_is_one_line() -> None:
    made, clock, console = board(terminal=False)
    for told in ("evaluate", "evaluate a 1/10", "evaluate a 2/10", "complete"):
        made.note("base", told)
        clock.now += 31
    made.note(1, "refused", reason="too [few] experts")
    made.note(2, "complete (earlier)")
    assert console.export_text().splitlines() == [
        "0 of 3 rows, 0:00  m  base: evaluate",
        "1 of 3 rows, 1:33  m  base: complete",
        "2 of 3 rows, 2:04  m  REAP keep=.1: refused: too [few] experts",
        "3 of 3 rows, 2:04  m  REAP keep=.2: complete (earlier)",
    ]


def test_a_small_terminal_cuts_what_waits_and_what_it_has_no_room_for() -> None:
    made, _, console = board(rows=40, width=60)
    made.note(20, "calibrate 1/2")
    text = shown(made, console)
    assert "REAP keep=.20" in text and "50%" in text and "REAP keep=.39" not in text and "24 not shown" in text
    assert len(text.splitlines()) <= 20 and "average" not in text
    assert max(map(len, text.splitlines())) <= 60
