"""Plots of a paper: what they are made of, and from the models to their files."""

from __future__ import annotations

import csv
import io
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.papers.filling import Cell, Filled, Row
from analysis.papers.sheet import Block, Line
from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from bench.pocket import pocket_path
from bench.records.record import Timing, write_record
from bench.store.store import write_json
from bench.text.corpus import parse
from methods.framework.errors import ConfigError
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from sweeps.grid import run_grid
from sweeps.grid_config import GridConfig
from sweeps.grid_progress import GridResult
from sweeps.papers.asked import asked
from sweeps.papers.making import Made, Order, make
from sweeps.papers.overview import cost_of
from sweeps.papers.paper_file import Exhibit
from sweeps.papers.plot_file import PlotFile
from sweeps.papers.plots import KINDS
from sweeps.papers.plots_of_depth import order_of
from sweeps.papers.plots_of_experts import pair_means, smallest_shares, spans_of_layers, to_even_share
from sweeps.papers.plots_of_runs import chances, losses, ratios, timed_as, timings
from sweeps.papers.scored_experts import score_needs
from sweeps.papers.shelf import read_paper
from sweeps.papers.stand_in import stand_ins
from sweeps.papers.wanted import Wanted, plot_conditions
from sweeps.papers.weights_across import weights_across
from tests.support.records import interval, record, timing

GIVEN = {"calibration": {"sequences": 2, "length": 64}}


def run(config: GridConfig) -> GridResult:
    return run_grid(config, track="disabled")


def order(store: Path, **changes: Any) -> Order:
    return replace(Order("pocket-mixtral", None, "mixtral", store, run, given=GIVEN), **changes)


def numbers(made: Made, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(made.files[f"{name}.csv"].decode())))


def wanted(name: str, model: str = "pocket") -> Wanted:
    paper = read_paper("holistic")
    exhibit = paper.exhibit(name)
    models = stand_ins(paper.file, exhibit, model, None, None)
    settings = plot_conditions(paper, exhibit, True, {})
    return Wanted(paper, name, models, settings, Order(model, None, None, Path("none"), None))


def test_an_expert_goes_at_the_smallest_share_whose_plan_leaves_it_out() -> None:
    dense, two = LayerPlan(), LayerPlan(experts=(0, 2))
    plans = {
        25.0: Plan(family="f", layers=(dense, LayerPlan(), LayerPlan(experts=(0, 1, 3)))),
        50.0: Plan(family="f", layers=(dense, two, LayerPlan(experts=(0, 3)))),
    }
    assert smallest_shares(plans, 4) == [None, [101.0, 50.0, 101.0, 50.0], [101.0, 50.0, 25.0, 101.0]]


def test_scores_are_held_against_those_of_even_routing() -> None:
    assert to_even_share([None, [1.0, 3.0], [0.0, 0.0]]) == [None, [0.5, 1.5], [0.0, 0.0]]


def test_pairs_within_a_layer_and_between_layers_are_apart() -> None:
    assert pair_means([0, 0, 1], [[1, 0.5, 0.1], [0.5, 1, 0.3], [0.1, 0.3, 1]]) == (0.5, pytest.approx(0.2))


def test_every_two_layers_have_lowest_mean_and_highest_of_different_experts() -> None:
    matrix = [[1, 0.5, 0.1], [0.5, 1, 0.3], [0.1, 0.3, 1]]
    assert spans_of_layers([2, 2, 4], matrix) == [
        (2, 2, 0.5, 0.5, 0.5),
        (2, 4, 0.1, pytest.approx(0.2), 0.3),
    ], "an expert is not held against itself"


def test_guessing_gets_one_of_the_answers_right() -> None:
    found = chances(wanted("figure-13").settings)
    assert found["pocket_agreement"] == 50.0 and found["pocket_facts"] == 25.0 and len(found) == 8


def test_the_loss_of_a_word_is_the_logarithm_of_its_perplexity() -> None:
    def row(label: str, method: str | None, x: float, perplexity: float) -> Row:
        return Row(Line(label, method, x=x), {"text": Cell(perplexity, 0.2)})

    rows = (row("Baseline", None, 0.0, 4.0), row("merged", "m", 4.0, 16.0), row("merged", "m", 2.0, 8.0))
    line = losses(Filled(Block("Zoo", "zoo", (), (), ()), rows), "text", 8)["merged"]
    assert [(point.x, point.loss) for point in line] == [(8, math.log(4)), (6, math.log(8)), (4, math.log(16))]
    assert [point.error for point in line] == [pytest.approx(0.2 / p) for p in (4, 8, 16)], "by the delta method"
    assert losses(Filled(Block("Zoo", "zoo", (), (), ()), rows[1:]), "text", 8) == {}, "nothing to hold them against"


def test_each_length_is_timed_with_as_many_tokens_generated() -> None:
    found = timings(wanted("figure-8"), True)
    assert [(one.prompt, one.generate, one.batch, one.enabled) for one in found] == [
        (length, length, 4, True) for length in (32, 64, 128, 224)
    ]
    paper = timings(wanted("figure-8"), False)
    assert (paper[-1].prompt, paper[-1].generate, paper[0].batch) == (4096, 4096, 1)


def test_a_row_without_a_ratio_is_told_with_its_reason() -> None:
    told = timings(wanted("figure-8"), True)[0]
    line = Line("drop", "alpha")
    timed = record(timing=timing().model_copy(update={"decode_ratio": interval(1.25)}))
    untimed = record(timing=timing().model_copy(update={"decode_ratio": None, "reason": "no engine"}))
    block = Block("Zoo", "zoo", (), (), ())
    lines: dict[str, Any] = {}
    assert ratios(Filled(block, (Row(line, {}, record=timed),)), told, lines) == []
    assert [(one.length, one.median, one.pairs) for one in lines["drop"]] == [(32, 1.25, 5)]
    assert ratios(Filled(block, (Row(line, {}, record=untimed),)), told, {}) == ["Zoo, drop, length 32: no engine"]


def test_a_run_that_was_timed_otherwise_does_not_stand_in_the_figure() -> None:
    told = timings(wanted("figure-8"), True)[0]
    protocol = {"prompt": 32, "generate": 32, "batch": 4}
    for changes, fits in (({}, True), ({"batch": [4, 8]}, True), ({"batch": 8}, False), ({"generate": 64}, False)):
        timed = record(timing=timing().model_copy(update={"protocol": {**protocol, **changes}}))
        assert timed_as(timed, told) is fits, changes
    assert timed_as(record(timing=Timing(reason="no engine")), told) and not timed_as(record(timing=None), told)


def test_what_a_drawing_cannot_do_without_is_stated() -> None:
    with pytest.raises(ValueError, match="a plot that draws scores states method"):
        PlotFile.model_validate({"draws": "scores"})
    with pytest.raises(ValueError, match="a plot states plot"):
        Exhibit.model_validate({"kind": "plot", "title": "t", "models": ["m"]})
    assert set(KINDS) == set(PlotFile.model_fields["draws"].annotation.__args__)


def test_a_method_without_scores_of_experts_is_refused() -> None:
    from methods.registry import method_class

    with pytest.raises(ConfigError, match="random gives no scores of experts to draw; allowed: expert_drop, moe_i2"):
        score_needs(method_class("random")())
    assert score_needs(method_class("moe_i2")(importance="reap")) == {"gate_norm_moment"}


def test_statistics_of_a_text_cost_its_tokens_and_those_of_weights_none() -> None:
    paper = read_paper("diversifying")
    assert cost_of(paper, paper.exhibit("figure-likeness")).tokens == 2 * 128 * 2048
    assert cost_of(paper, paper.exhibit("figure-likeness-weights")).tokens == 0
    loss = cost_of(paper, paper.exhibit("figure-loss"))
    runs = 1 + 3 * 5 + 1 + 3 * 8
    assert (loss.runs, loss.tokens) == (runs, runs * 62 * 4700 + 2 * 128 * 2048), "running text alone is scored"


def test_scores_are_measured_once_and_drawn_from_what_was_kept(tmp_path: Path) -> None:
    paper = read_paper("holistic")
    made = make(paper, "figure-11", order(tmp_path))
    assert not made.missing and len(numbers(made, "figure-11")) == 6 * 8
    means = [float(line["score_to_even_share"]) for line in numbers(made, "figure-11")]
    assert np.reshape(means, (6, 8)).mean(axis=1) == pytest.approx(np.ones(6), abs=1e-4)
    assert make(paper, "figure-11", order(tmp_path, run=None)).files == made.files
    other = {"calibration": {"sequences": 3, "length": 64}}
    for elsewhere in (order(tmp_path / "none", run=None), order(tmp_path, run=None, given=other)):
        empty = make(paper, "figure-11", elsewhere)
        assert empty.files == {} and empty.missing == ("Mixtral-8x7B: its statistics are not in the store",)


def test_numbers_of_experts_are_drawn_where_the_model_is_not_at_hand(tmp_path: Path) -> None:
    paper, folder = read_paper("diversifying"), tmp_path / "pocket-mixtral"
    shutil.copytree(pocket_path("pocket-mixtral"), folder)
    given = {"calibration": {**GIVEN["calibration"], "corpus": "pocket"}}
    here = order(tmp_path, model=str(folder), given=given)
    for name in ("figure-across", "figure-likeness"):
        made = make(paper, name, here)
        folder.rename(tmp_path / "away")
        assert made.files and make(paper, name, replace(here, run=None)).files == made.files
        (tmp_path / "away").rename(folder)


def test_experts_that_go_are_those_of_the_runs_plans(tmp_path: Path) -> None:
    paper = read_paper("holistic")
    exhibit = paper.exhibit("figure-12")
    (one,) = stand_ins(paper.file, exhibit, "pocket-mixtral", None, "mixtral")
    for row in asked(paper.file, exhibit, one, plot_conditions(paper, exhibit, True, {}))[1:4]:
        kept = tuple(range(8 - int(row.x or 0)))
        plan = Plan(family="mixtral", layers=(LayerPlan(experts=kept),) + (LayerPlan(),) * 5)
        ran = record("expert_drop", "pocket-mixtral", knobs=row.knobs, plan=plan.digest)
        write_record(ran, tmp_path / "records")
        if row.x != 3:
            write_json(tmp_path / "plans" / f"{plan.digest}.json", {**plan.document(), "provenance": {}})
    made = make(paper, "figure-12", order(tmp_path, run=None))
    shares = [line["goes_at_percent"] for line in numbers(made, "figure-12")]
    assert shares == [""] * 6 + ["25", "12.5"], "the dense layers of a plan have no experts"
    assert [text.rpartition(": ")[2] for text in made.missing] == [
        "its plan is not in the store",
        *["no run of it is in the store"] * 4,
    ]


def test_layers_that_go_at_each_number_are_those_of_the_method(tmp_path: Path) -> None:
    paper = read_paper("holistic")
    made = make(paper, "figure-10", order(tmp_path))
    lines = numbers(made, "figure-10")
    assert [line["dropped"] for line in lines] == [*"12345"] * 2
    checkpoint = Checkpoint.open("pocket-mixtral")
    settings = plot_conditions(paper, paper.exhibit("figure-10"), True, GIVEN).calibration
    text = parse(settings.corpus, checkpoint, settings.sequences, settings.length, settings.seed)
    stats = calibrate(checkpoint, text, {"block_cosine", "moe_residual_cosine"})
    for name, found in (("moe_residual_cosine", lines[2]), ("block_cosine", lines[7])):
        alike = sorted(range(6), key=lambda layer: -float(stats.layer(name, layer)))
        assert found["layers"] == " ".join(map(str, sorted(alike[:3])))
        assert f"Drop: {', '.join(map(str, alike[:5]))}" in made.section
    assert make(paper, "figure-10", order(tmp_path, run=None)).files == made.files
    assert cost_of(paper, paper.exhibit("figure-10")).runs == 0, "it is decided from statistics alone"


def test_an_order_is_told_where_what_went_stays_away() -> None:
    assert order_of([[2], [1, 2], [0, 1, 2]]) == [2, 1, 0]
    assert order_of([[2], [0, 1]]) is None


def test_weights_across_layers_are_those_within_where_layers_are_the_same() -> None:
    checkpoint = Checkpoint.open("pocket-mixtral")
    layers, matrix = weights_across(checkpoint, "cpu")
    assert layers == [layer for layer in range(6) for _ in range(8)]
    within = calibrate(checkpoint, None, {"weight_cka"})
    for layer in range(6):
        own = slice(8 * layer, 8 * layer + 8)
        assert matrix[own, own] == pytest.approx(within.layer("weight_cka", layer), abs=1e-5)
    assert matrix.min() >= 0 and matrix.max() <= 1 and matrix == pytest.approx(matrix.T)
