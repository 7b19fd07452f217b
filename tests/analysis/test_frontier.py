"""The frontier figure: what is drawn, what is named, and that nothing hides anything else."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text

from analysis.drawing import canvas, render, style
from analysis.figures import draw
from analysis.frame import frame, scores_frame
from analysis.frontier import frontier, trained_pairs
from analysis.knobs import shown_knobs, split_training
from analysis.labels import label_points
from analysis.lanes import side_by_side
from analysis.method_families import FAMILIES, family_of
from analysis.palette import LIGHT, marker
from analysis.plain_rows import rows_of
from analysis.table import run_name
from bench.records.record import Record
from tests.support.records import TASKS, paired, ratios, record, recovered, score


def _run(method: str, keep: float, value: float, **changes: Any) -> Record:
    scores = tuple(score(task, value, paired=paired(value - 0.9, 0.02, 0.01)) for task in TASKS)
    return record(method, **{"knobs": {"keep": keep}, "scores": scores, "timing": None} | changes)


RECIPE = {"1.reap.keep": 0.5, "1.reap.recalibrate": False, "2.awq.keep": 0.25, "2.awq.group": None}
BASE = record(None, scores=tuple(score(task, 0.9) for task in TASKS))
ZEROS = ratios(1.0).model_copy(update={"zeros": 0.5})
RUNS = (
    _run("reap", 0.75, 0.85, title="REAP"),
    _run("reap", 0.5, 0.6, title="REAP"),
    _run("frequency", 0.5, 0.5, title="Frequency"),
    _run("heapr", 0.5, 0.7, title="HEAPr", stages=("channels",)),
    _run("wanda", 1.0, 0.92, title="Wanda", ratios=ZEROS, stages=("sparsity",)),
    _run("recipe", 0.5, 0.4, title="REAP, then AWQ", knobs=RECIPE, ratios=ratios(0.4)),
)


def _rows(records: tuple[Record, ...] = (BASE, *RUNS)) -> list[dict[str, Any]]:
    return rows_of(frame(records))


def _svg(rows: list[dict[str, Any]]) -> str:
    with style():
        return render(frontier(rows, "synthetic"), ["svg"])["svg"].decode()


BUILT_IN_FAMILIES = {
    "experts": "random weight_norm criterion frequency soft_count ean reap man msan expert_drop diep naee naee_progressive "
    "naee_greedy moe_i2 lexi cka_merge cka_prune hc_smoe sub_moe stun easy_ep mone m_smoe ream",
    "layers": "layer_drop block_drop",
    "channels": "camera_p heapr",
    "rank": "svd whitened_svd d2_moe mobe",
    "sparsity": "magnitude wanda moe_pruner sparsegpt",
    "bits": "rtn gptq awq",
}
"""How published figures draw the methods that records without stages may name."""


def _families(*runs: Record) -> list[str]:
    rows = {row["id"]: row for row in _rows((BASE, *runs))}
    return [family_of(rows[run.id]) for run in runs]


def test_methods_look_as_in_published_figures_whether_or_not_the_record_tells_stages() -> None:
    from methods.registry import BUILT_IN, method_class

    wanted = {name: family for family, names in BUILT_IN_FAMILIES.items() for name in names.split()}
    told = _families(*(record(name, stages=tuple(method_class(name).stages)) for name in wanted))
    untold = _families(*(record(name, stages=None) for name in wanted))
    assert dict(zip(wanted, told, strict=True)) == dict(zip(wanted, untold, strict=True)) == wanted
    later = [record(name, stages=tuple(method_class(name).stages)) for name in BUILT_IN if name not in wanted]
    assert "other" not in _families(*later)


@pytest.mark.parametrize(
    ("stages", "zeros", "family"),
    [
        (("channels",), 0.0, "channels"),
        (("blocks", "sublayers"), 0.0, "layers"),
        (("sparsity",), 0.0, "sparsity"),
        (("experts", "bits"), 0.5, "recipe"),
        (("stage of a later version",), 0.0, "other"),
        (None, 0.5, "sparsity"),
        (None, 0.0, "other"),
    ],
)
def test_a_method_from_elsewhere_is_drawn_by_its_stages(
    stages: tuple[str, ...] | None, zeros: float, family: str
) -> None:
    size = ratios(0.5).model_copy(update={"zeros": zeros})
    one = record("from_elsewhere", stages=stages, ratios=size)
    assert _families(one) == [family]
    rows = _rows((BASE, *RUNS, one.model_copy(update={"scores": RUNS[0].scores})))
    assert FAMILIES[family].label in _svg(rows)


def test_a_recipe_looks_like_one_whatever_it_writes() -> None:
    runs = [record("recipe", stages=stages, id=name) for name, stages in (("a", ("experts",)), ("b", None))]
    assert _families(*runs) == ["recipe", "recipe"]


def test_stages_are_for_figures_and_in_no_table() -> None:
    from analysis.columns import describe
    from analysis.table import csv

    told, untold = (frame((BASE, record("reap", stages=stages, id="f" * 16))) for stages in (("bits",), None))
    assert csv(told) == csv(untold) and "stages" not in csv(told).splitlines()[0].split(",")
    assert "stages" not in {name for name, _, _ in describe()}


def test_no_two_families_look_alike() -> None:
    looks = [(look.colour, look.marker) for look in FAMILIES.values()]
    assert len(set(looks)) == len({marker for _, marker in looks}) == len(looks)


def test_no_two_of_a_hundred_methods_look_alike() -> None:
    assert len({(LIGHT[place % len(LIGHT)], marker(place)) for place in range(100)}) == 100


def test_front_and_recipes_are_named_and_nothing_else() -> None:
    text = _svg(_rows())
    # by size: the recipe, then HEAPr is the best at one half, REAP at three quarters, Wanda, above the base, at all bytes
    for name in ("REAP, then AWQ", ">HEAPr<", ">REAP<", ">Wanda<"):
        assert name in text, name
    assert ">Frequency<" not in text
    assert "zeros stored" in text and "few bits" not in text and "after training" not in text


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but not turned into files."""
    monkeypatch.setattr("analysis.figures.render", lambda figure: {"svg": b"drawn"})


@pytest.mark.usefixtures("unrendered")
def test_below_three_sizes_there_is_no_frontier() -> None:
    two = (BASE, RUNS[0], RUNS[1], RUNS[2])
    assert frontier(_rows(two), "two") is None
    assert not [name for name in draw(frame(two), scores_frame(two)) if name.startswith("frontier")]
    assert frontier(_rows((*RUNS,)), "no base") is not None


def test_the_same_records_give_the_same_bytes_in_any_order() -> None:
    records = (BASE, *RUNS, recovered(RUNS[1]))
    with style():
        first = render(frontier(_rows(records), "synthetic"), ["svg"])
        again = render(frontier(_rows(records[::-1]), "synthetic"), ["svg"])
    assert first == again


def test_training_joins_the_run_that_it_began_with() -> None:
    other = _run("reap", 0.5, 0.55, title="REAP", knobs={"keep": 0.5, "scope": "layer"})
    after = [recovered(RUNS[1]), recovered(RUNS[1], 0.2, "full"), recovered(_run("ean", 0.5, 0.5))]
    rows = _rows((BASE, *RUNS, other, *after))
    pairs = {(before["id"], late["id"]) for before, late in trained_pairs(rows)}
    assert pairs == {(RUNS[1].id, after[0].id), (RUNS[1].id, after[1].id)}
    with style():
        figure = frontier(rows, "synthetic")
        assert sum(not text.get_text() for text in figure.axes[0].texts) == 2  # an arrow is a note without words
        text = render(figure, ["svg"])["svg"].decode()
    assert "after training" in text and "REAP + fine-tuning" in text


def test_a_logarithmic_axis_where_sizes_differ_much() -> None:
    small = _run("awq", 0.1, 0.5, ratios=ratios(0.1).model_copy(update={"bytes": 0.9}))
    for runs, scale in ((RUNS, "linear"), ((*RUNS, small), "log")):
        with style():
            assert frontier(_rows((BASE, *runs)), "synthetic").axes[0].get_xscale() == scale


def test_lanes_keep_groups_apart_and_the_lone_in_place() -> None:
    rng = np.random.default_rng(3)
    points = {f"{i}": (float(rng.choice([1.0, 1.004, 2.0])), float(rng.uniform(0, 1))) for i in range(60)}
    points |= {"alone": (5.0, 0.5)}
    groups = [["0", "1", "2"], *([f"{i}"] for i in range(3, 60)), ["alone"]]
    points |= {key: (points["0"][0], points[key][1]) for key in ("1", "2")}
    shifts = side_by_side(groups, points, lane=0.01, gap=0.05)
    assert shifts["alone"] == 0.0 and shifts["0"] == shifts["1"] == shifts["2"] == 0.0
    assert any(shifts.values())
    spans = [
        (points[g[0]][0] + shifts[g[0]], min(points[k][1] for k in g), max(points[k][1] for k in g)) for g in groups
    ]
    for (x, low, high), (other, bottom, top) in itertools.combinations(spans, 2):
        beside = abs(x - other) >= 0.0098
        assert beside or low >= top + 0.05 - 1e-9 or bottom >= high + 0.05 - 1e-9


def test_labels_do_not_lie_on_each_other() -> None:
    with style():
        figure = canvas(6.0, 4.0)
        axes = figure.subplots()
        points = [(1.0 + 0.01 * i, 1.0 + 0.01 * (i % 3)) for i in range(9)]
        axes.set_xlim(0, 3)
        axes.set_ylim(0, 2)
        label_points(figure, axes, [(f"method {i}", x, y, "black") for i, (x, y) in enumerate(points)], points)
        figure.draw_without_rendering()
        boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the lines to the points
        inside = axes.get_window_extent()
    assert len(boxes) == 9
    for first, second in itertools.combinations(boxes, 2):
        assert not first.overlaps(second)
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 for box in boxes)


def test_knobs_of_a_training_stand_apart() -> None:
    text = "keep=0.5, scope=model, recovery.kind=lora, recovery.rate=0.01"
    assert split_training(text) == ("keep=0.5, scope=model", "recovery.kind=lora, recovery.rate=0.01")
    assert split_training("recovery.kind=full") == ("", "recovery.kind=full")
    assert split_training("keep=0.5") == ("keep=0.5", "") and split_training(None) == ("", "")
    assert shown_knobs("recipe", "1.reap.keep=0.5, 1.reap.scope=x, 2.awq.keep=0.25") == "reap.keep=0.5, awq.keep=0.25"
    layers = ", ".join(["1", "0.5", "0.75"] * 4)
    assert shown_knobs("reap", f"keep=[{layers}], scope=global") == "keep=0.75 by layer (0.5 to 1), scope=global"
    assert shown_knobs("recipe", f"1.reap.keep=[{layers}], 2.svd.keep=[1, 0.5]") == (
        "reap.keep=0.75 by layer (0.5 to 1), svd.keep=[1, 0.5]"
    )
    after = recovered(_run("reap", 0.5, 0.6, title="REAP"))
    assert [run_name(row) for row in _rows((BASE, after))] == ["Uncompressed", "REAP + LoRA (keep=0.5)"]
    faster = after.model_copy(update={"id": "1" * 16, "knobs": {**after.knobs, "recovery.rate": 0.1}})
    names = {run_name(row) for row in _rows((BASE, after, faster))}
    assert {f"REAP + LoRA (keep=0.5; recovery.rate={rate})" for rate in ("0.01", "0.1")} < names


def test_recipes_of_one_title_and_size_are_told_apart() -> None:
    alike = [
        _run("recipe", 0.5, 0.4, title="A + B", knobs={**RECIPE, "1.reap.recalibrate": again}, id=f"{again}")
        for again in (False, True)
    ]
    names = {run_name(row) for row in _rows((BASE, *alike, RUNS[-1]))}
    shown = "reap.keep=0.5, awq.keep=0.25"
    assert names == {
        "Uncompressed",
        f"REAP, then AWQ ({shown})",
        f"A + B ({shown}; 1.reap.recalibrate=false)",
        f"A + B ({shown}; 1.reap.recalibrate=true)",
    }


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("extra", [0, 30])
def test_a_crowded_panel_is_left_to_the_frontier(extra: int) -> None:
    crowd = [_run("ean", 0.5, 0.3 + 0.01 * i, title=f"EAN {i}", id=f"{i}") for i in range(extra)]
    records = (BASE, *RUNS, *crowd)
    drawn = draw(frame(records), scores_frame(records))
    assert ("quality_vs_size.svg" in drawn) == (extra == 0) and "frontier_synthetic-coarse.svg" in drawn
