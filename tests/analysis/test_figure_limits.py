"""What figures leave out of many models and runs, and that they say so."""

from __future__ import annotations

from analysis.figure_limits import BOARDS, RUNS, shown_boards, shown_runs, too_many
from analysis.frame import frame
from tests.support.records import board, record, score


def _row(place: int, **changes: object) -> dict[str, object]:
    return {"is_base": False, "pareto": False, "rank": place, "name": place} | changes


def test_of_many_models_those_with_the_most_runs_are_drawn_in_their_order() -> None:
    boards = {f"m{place}": [_row(one) for one in range(1 + place % 5)] for place in range(BOARDS + 3)}
    shown = shown_boards(boards)
    assert len(shown) == BOARDS and list(shown) == [name for name in boards if name in shown]
    fewest = max(len(rows) for name, rows in boards.items() if name not in shown)
    assert all(len(rows) >= fewest for rows in shown.values())


def test_of_many_runs_bases_the_front_and_the_first_stay() -> None:
    rows = [_row(0, is_base=True, rank=None), *(_row(place) for place in range(1, RUNS + 30))]
    rows[-1]["pareto"] = True
    rows[-2]["rank"] = None
    names = [row["name"] for row in shown_runs(rows)]
    assert names == [0, *range(1, RUNS + 1), RUNS + 29]
    few = rows[: RUNS + 1]
    assert shown_runs(few) == few


def test_what_is_left_out_is_said_once_a_kind() -> None:
    assert too_many(frame([])) == [] and too_many(frame(board())) == []
    many = [one for place in range(BOARDS + 1) for one in board((f"model-{place}",), ("alpha",), (0.5,))]
    assert [text.split(",")[0] for text in too_many(frame(many))] == [
        f"Figures show the {BOARDS} models with the most runs"
    ]
    crowd = [record(None, scores=(score("a", 0.9),))]
    crowd += [
        record("alpha", knobs={"keep": 0.5, "place": place}, scores=(score("a", 0.5),)) for place in range(RUNS + 1)
    ]
    assert len({one.id for one in crowd}) == len(crowd)
    told = too_many(frame(crowd))
    assert len(told) == 1 and "synthetic-coarse" in told[0] and str(RUNS) in told[0]
