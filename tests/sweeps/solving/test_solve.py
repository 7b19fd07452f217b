"""Solutions of a table within budgets."""

from __future__ import annotations

from itertools import product

import pytest

from methods.framework.errors import RefusedError
from sweeps.solving.limits import parse_limit
from sweeps.solving.shown import heading, line, rows_as_csv
from sweeps.solving.solve import frontier, solve
from sweeps.solving.table import Table
from tests.support.solving import expert_table


def solved(table: Table, *budgets: str, count: int = 20) -> list[tuple[tuple[int, ...], float]]:
    found = solve(table, [parse_limit(text, table.source) for text in budgets], count)
    assert found.gap == 0.0
    assert all(one.sizes == table.sizes(one.levels) for one in found.solutions)
    return [(one.levels, one.damage) for one in found.solutions]


def test_budgets_count_the_whole_model() -> None:
    table = expert_table()
    for levels in product(range(3), repeat=2):
        amount = table.sizes(levels)["bytes"]
        found = solved(table, f"bytes={amount}")
        fits = [one for one in product(range(3), repeat=2) if table.sizes(one)["bytes"] <= amount]
        assert {one for one, _ in found} == set(fits)
        damages = {1: (4.0, 1.0, 0.0), 2: (2.0, 1.5, 0.0)}
        assert found[0][1] == min(damages[1][a] + damages[2][b] for a, b in fits)


def test_two_budgets() -> None:
    table = expert_table()
    assert solved(table, "bytes=1", "experts=6", count=1) == [((2, 0), 2.0)]
    assert solved(table, "experts=8", "experts=7", count=1) == [((1, 2), 1.0)]


def test_options_that_are_not_measured_are_left_out() -> None:
    table = expert_table({1: (4.0, None, 0.0), 2: (2.0, 1.5, None)})
    assert {one for one, _ in solved(table, "bytes=1")} == {(0, 0), (0, 1), (2, 0), (2, 1)}
    assert [one.levels for one in frontier(table, "bytes").solutions] == [(0, 0), (0, 1), (2, 0), (2, 1)]
    with pytest.raises(RefusedError, match="no option of layer 2 has been measured"):
        solve(expert_table({1: (1.0, 1.0, 1.0), 2: (None, None, None)}), [parse_limit("bytes=1", table.source)])


def test_a_budget_below_the_smallest_says_what_would_do() -> None:
    table = expert_table()
    with pytest.raises(RefusedError, match=r"budget bytes=0.1 allows .* allow bytes=(0\.\d+) or more") as caught:
        solved(table, "bytes=0.1")
    enough = str(caught.value).split("allow bytes=")[1].split()[0]
    assert solved(table, f"bytes={enough}")
    with pytest.raises(RefusedError):
        solved(table, f"bytes={float(enough) - 0.001:.3f}")


def test_budgets_that_no_plan_meets_together() -> None:
    table = expert_table()
    document = table.document()
    for unit in document["units"]:  # fewer experts, more active parameters
        for level, option in enumerate(unit["options"]):
            option["sizes"]["active_parameters"] = 10 - level
    odd = Table.model_validate(document)
    smallest = odd.sizes((2, 2))["active_parameters"]
    with pytest.raises(RefusedError, match=r"no plan of this table meets experts=4 and active_parameters=.* together"):
        solved(odd, "experts=4", f"active_parameters={smallest}")


def test_the_frontier_may_be_thinned() -> None:
    table = expert_table()
    whole = frontier(table, "experts")
    assert [(one.levels, one.damage) for one in whole.solutions] == [
        ((0, 0), 6.0), ((1, 0), 3.0), ((2, 0), 2.0), ((1, 2), 1.0), ((2, 2), 0.0)
    ]  # fmt: skip
    thinned = frontier(table, "experts", points=3).solutions
    assert [one.sizes["experts"] for one in thinned] == [4, 6, 8]
    assert set(one.levels for one in thinned) <= {one.levels for one in whole.solutions}


def test_text() -> None:
    table = expert_table()
    assert heading(table) == "experts"
    assert (line(table, (0, 1)), line(table, (1, 1))) == ("2 3", "3x2")
    rows = rows_as_csv(table, frontier(table, "experts")).splitlines()
    assert rows[0] == "experts_kept,experts,predicted_damage,predicted_nll,layer 1,layer 2"
    assert rows[1] == "0.5,4,6.0,8.5,2,2" and rows[-1] == "1,8,0.0,2.5,4,4"
