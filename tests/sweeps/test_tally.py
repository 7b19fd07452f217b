"""How far workers are with the score table, added up from what each notes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.scoring import order
from sweeps.study import run_sweep
from sweeps.tally import Tallies, Tally
from tests.support.sweep_forks import Forking, Nursery
from tests.support.tiny_sweeps import sweep


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_each_worker_begins_with_its_share_and_helps_the_others_from_the_end(workers: int) -> None:
    orders = [order(10, worker, workers) for worker in range(workers)]
    assert all(sorted(one) == list(range(10)) for one in orders)
    shares = [one[: len(range(worker, 10, workers))] for worker, one in enumerate(orders)]
    assert sorted(number for share in shares for number in share) == list(range(10)), "no cell belongs to two"
    for one, share in zip(orders, shares, strict=True):
        rest = one[len(share) :]
        assert share == sorted(share) and rest == sorted(rest, reverse=True)
    assert order(3, 5, 2) == [2, 1, 0], "a worker beyond those that were planned has no share"


def test_what_two_workers_did_counts_once(tmp_path: Path) -> None:
    (tmp_path / "table-0.txt").write_text("9 9\n")  # of an earlier start
    tallies = Tallies(tmp_path, 2)
    assert tallies.read() is None
    first, second = Tally(tmp_path, 0), Tally(tmp_path, 1)
    first(2, 7)
    assert tallies.read() == (2, 7)
    second(3, 7)
    assert tallies.read() == (5, 7)
    second(4, 7)
    assert tallies.read() == (6, 7), "the last one, which is the first worker's"
    first(4, 7)
    assert tallies.read() == (7, 7), "both did the last one"


def test_a_half_written_line_and_a_worker_that_begins_anew_take_nothing_back(tmp_path: Path) -> None:
    tallies, note = Tallies(tmp_path, 1), Tally(tmp_path, 0)
    for done in range(1, 40):
        note(done, 100)
    assert tallies.read() == (39, 100)
    with (tmp_path / "table-0.txt").open("a") as file:
        file.write("40 1")
    assert tallies.read() == (39, 100)
    (tmp_path / "table-0.txt").write_text("1 100\n2 100\n")
    assert tallies.read() == (39, 100)
    (tmp_path / "table-0.txt").write_text("what\n")
    assert tallies.read() == (39, 100)


def test_a_sweep_with_workers_shows_how_far_its_table_is(home: Path, nursery: Nursery, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    knobs = {"method": "reap", "space": {"keep": {"by": "layer", "low": 0.25}}, "starts": {"best": 1}}
    config = sweep(home, **knobs, jobs=2, trials=2, executor=Forking.of(nursery))
    run_sweep(config, store=tmp_path, advance=lambda *now: told.append(now))
    assert told[-1] == (18, 18) and told == sorted(set(told))
