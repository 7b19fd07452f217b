"""Plans as maps of layers and experts."""

from __future__ import annotations

from pathlib import Path

from bench.records.plan_map import ALL, drawn_plan, plan_map
from methods.framework.inside import LowRank, Sparsity
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan


def _lines(*layers: LayerPlan) -> list[str]:
    return list(plan_map(Plan(family="mixtral", layers=layers)))


def test_each_expert_has_the_letter_of_what_becomes_of_it() -> None:
    merge = Merge(into=1, members=(1, 4), weights=(0.5, 0.5))
    layer = LayerPlan(experts=(0, 1), merges=(merge,), constants=(3,), router="map", top_k=1)
    assert _lines(layer) == ["0  #M.cm  top-1"]


def test_layers_that_are_alike_are_one_line_and_numbers_stand_below_each_other() -> None:
    gone = LayerPlan(drop="moe")
    lines = _lines(*(LayerPlan(experts=(0, 2)),) * 10, gone, LayerPlan(drop="block"), LayerPlan())
    assert lines == [
        "0-9  #.#",
        " 10  the experts' sub-layer is removed",
        " 11  the whole layer is removed",
        f" 12  {ALL}",
    ]


def test_what_changes_inside_experts_is_told_in_words() -> None:
    narrow = LayerPlan(channels=((0, 1, 2), (4,)))
    zeros = LayerPlan(sparsity=Sparsity(pattern="2:4", share=0.5, kernel="magnitude"))
    factors = LayerPlan(experts=(0, 1), rank=LowRank(ranks=((3, 3, 0), (3, 0, 3))))
    ends = [line.split("  ")[-1] for line in _lines(narrow, zeros, factors)]
    assert ends == ["channels 1 to 3", "50 % zeros (2:4)", "rank 3"]


def test_a_file_that_is_no_plan_has_no_map(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assert drawn_plan(path) is None
    path.write_text('{"layers": 3}')
    assert drawn_plan(path) is None
    path.write_text(Plan(family="mixtral", layers=(LayerPlan(experts=(1,)),)).dumps())
    assert drawn_plan(path) == ("0  .#",)
