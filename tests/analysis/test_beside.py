"""Plans and items that lie beside records in a store."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest

from analysis import beside as module
from analysis.beside import beside
from bench.evaluation.items import Items, save_items
from bench.records.record import Record
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from tests.support.records import record, score

RIGHT = (1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0)


def _items(task: str, values: tuple[float, ...], weights: tuple[float, ...] | None = None) -> Items:
    ids = tuple(map(str, range(len(values))))
    return Items(task, "acc", "none", "mean", ids, values, weights or (1.0,) * len(values))


def _run(name: str, *tasks: str, **changes: object) -> Record:
    return record(name, scores=tuple(score(task, 0.5, n=10) for task in tasks), id=name, **changes)


def test_right_and_wrong_items_are_bits_and_plans_are_maps(tmp_path: Path) -> None:
    save_items([_items("a/b", RIGHT), _items("c", RIGHT[::-1])], tmp_path / "items" / "one")
    save_items([_items("c", RIGHT)], tmp_path / "items" / "two")
    plan = Plan(family="mixtral", layers=(LayerPlan(experts=(0, 2)),))
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "p.json").write_text(plan.dumps())
    (tmp_path / "plans" / "broken.json").write_text("{")
    rows = [_run("one", "a/b", "c", plan="p"), _run("two", "c", plan="broken"), _run("three", "c")]
    found = beside(rows, dict.fromkeys(("one", "two", "three"), tmp_path / "records"))
    assert [one[0] for one in found.protocols] == ["a/b", "c"]
    assert set(found.items) == {"one", "two"} and set(found.items["one"]) == {0, 1} and set(found.items["two"]) == {1}
    count, text = found.items["one"][1]
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8))
    assert count == 10 and bits[:count].tolist() == list(RIGHT[::-1]) and not bits[count:].any()
    assert found.items["two"][1] != found.items["one"][1]
    assert set(found.plans) == {"one"} and found.plans["one"][0].split()[1] == "#.#"


@pytest.mark.parametrize(
    "values, weights",
    [((0.5, *RIGHT[1:]), None), (RIGHT[:-1], None), (RIGHT, (2.0, *(1.0,) * 9))],
    ids=["not right or wrong", "fewer than scored", "weighted"],
)
def test_items_that_no_two_rows_can_be_paired_by_are_left_out(
    values: tuple[float, ...], weights: tuple[float, ...] | None, tmp_path: Path
) -> None:
    save_items([_items("c", values, weights)], tmp_path / "items" / "one")
    assert beside([_run("one", "c")], {"one": tmp_path / "records"}).items == {}


def test_a_page_has_room_for_so_many_items_and_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "p.json").write_text(Plan(family="mixtral", layers=(LayerPlan(experts=(0,)),)).dumps())
    runs = [_run(name, "c", plan="p") for name in ("one", "two", "three")]
    for run in runs:
        save_items([_items("c", RIGHT)], tmp_path / "items" / run.id)
    places = {run.id: tmp_path / "records" for run in runs}
    monkeypatch.setattr(module, "ITEMS", 20)
    monkeypatch.setattr(module, "PLANS", 1)
    found = beside(runs, places)
    assert list(found.items) == ["one", "two"] and list(found.plans) == ["one"]
    monkeypatch.setattr(module, "ITEM_ROWS", 1)
    assert list(beside(runs, places).items) == ["one"]
