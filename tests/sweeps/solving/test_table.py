"""The table: its file, its checks, and plans of its options."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from methods.framework.errors import ConfigError, PlanError
from methods.framework.inside import Quantisation
from methods.framework.layer_plan import LayerPlan
from sweeps.solving.table import Table, merged, read_table, write_table
from tests.support.inventories import toy_inventory
from tests.support.solving import expert_table, matrix_plan, sizes_of


def test_a_table_is_what_was_written(tmp_path: Path) -> None:
    table = expert_table({1: (4.0, 1.0, 0.0), 2: (2.0, None, -0.5)})
    write_table(tmp_path / "table.json", table)
    read = read_table(tmp_path / "table.json")
    assert read == table and read.digest == table.digest
    assert read.unscored == 1
    assert expert_table().digest != table.digest


def test_sizes_are_those_of_the_plan() -> None:
    inventory, table = toy_inventory(), expert_table()
    for levels in ((0, 0), (0, 2), (1, 2), (2, 2)):
        plan = table.plan(levels, inventory)
        assert table.sizes(levels) == sizes_of(plan, inventory)
        assert [plan.layers[layer].experts for layer in (1, 2)] == [
            ((0, 1), (0, 1, 2), None)[level] for level in levels
        ]


def test_predictions_follow_the_direction() -> None:
    assert expert_table().predicted(0.25) == 2.75
    assert expert_table(direction="maximize").predicted(0.25) == 2.25


def test_levels_that_do_not_fit() -> None:
    for levels in ((0,), (0, 3), (-1, 0), (0, 0, 0)):
        with pytest.raises(ValueError, match="do not fit"):
            expert_table().plan(levels)


def test_matrices_of_a_layer_become_one_plan() -> None:
    gate, up, down = (matrix_plan(column, ranks) for column, ranks in enumerate(([1, 2], [3, 4], [0, 0])))
    assert merged([gate, up, down], 0).rank.ranks == ((1, 3, 0), (2, 4, 0))  # type: ignore[union-attr]  # it has one
    assert merged([gate, LayerPlan(), LayerPlan()], 0) == gate
    assert merged([LayerPlan(), LayerPlan()], 0) == LayerPlan()
    kept = [matrix_plan(column, [1, 2], experts=(0, 3)) for column in (0, 2)]
    assert merged(kept, 0).experts == (0, 3)


@pytest.mark.parametrize(
    ("plans", "message"),
    [
        ([matrix_plan(0, [1]), matrix_plan(0, [2])], "layer 7: two of its units state the rank"),
        ([matrix_plan(0, [1]), LayerPlan(experts=(0,))], "differ in more than ranks"),
        ([LayerPlan(bits=Quantisation(bits=4)), LayerPlan()], "differ in more than ranks"),
        ([matrix_plan(0, [1]), matrix_plan(1, [1, 2])], "different kernels, experts or bases"),
    ],
)
def test_matrices_that_contradict_each_other(plans: list[LayerPlan], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        merged(plans, 7)


def change_size(document: dict[str, Any]) -> None:
    document["units"][0]["options"][0]["sizes"]["bytes"] = 10**6


CHANGES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda d: d.update(schema_version=2), "not a table of schema 1"),
    (lambda d: d.pop("schema_version"), "not a table of schema 1"),
    (lambda d: d.update(unit=[]), "did you mean 'units'"),
    (lambda d: d.update(units=[]), "units"),
    (lambda d: d.update(base="2.5"), "base: should be a number, found '2.5'"),
    (lambda d: d.update(ordered_by="kilos"), "none of the quantities"),
    (lambda d: d["rest"].pop("bytes"), "rest has the quantities"),
    (lambda d: d["units"][0].update(name="layer 2"), "two units are called 'layer 2'"),
    (lambda d: d["units"][0].update(layer=3), "there are 3, counted from 0"),
    (lambda d: d["units"][0]["options"][0]["sizes"].update(bytes=1.5), "sizes.bytes"),
    (lambda d: d["units"][0]["options"][0]["sizes"].pop("bytes"), "an option of 'layer 1' has the quantities"),
    (change_size, "do not ascend in bytes"),
    (lambda d: d["units"][0]["options"][0]["plan"].update(experts=[1, 0]), "ascending and distinct"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_damaged_tables_are_refused(change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    document = json.loads(json.dumps(expert_table().document()))
    change(document)
    (tmp_path / "table.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=message):
        read_table(tmp_path / "table.json")


@pytest.mark.parametrize("text", ["", "[]", '{"schema_version": 1, "base": NaN}', '{"a": 1, "a": 2}'])
def test_what_is_no_table(text: str, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(ConfigError, match=r"table\.json"):
        read_table(tmp_path / "table.json")


def test_damages_are_numbers() -> None:
    with pytest.raises(ValueError, match="finite"):
        expert_table({1: (float("inf"), 1.0, 0.0)})


def test_a_table_is_frozen() -> None:
    table: Table = expert_table()
    with pytest.raises(ValueError, match="frozen"):
        table.base = 3.0  # type: ignore[misc]  # that is the point
