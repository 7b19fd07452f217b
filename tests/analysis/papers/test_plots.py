"""Plots beside curves of a mean: what they show, and the same bytes from the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from analysis.papers.depth_maps import Gone, depth_maps, dropped_map
from analysis.papers.expert_maps import by_share, drop_maps, grid_of, importance_maps, score_histograms
from analysis.papers.filling import Filled, series_of_column
from analysis.papers.likeness_maps import across_maps, likeness_maps, off_diagonal, shown_layers
from analysis.papers.loss_curves import LossPoint, loss_curves
from analysis.papers.plot_text import interval_words, plot_csv, plot_section
from analysis.papers.sheet import Sheet
from analysis.papers.speed_curves import Ratio, ends_of, speed_curves
from analysis.papers.task_curves import task_curves
from tests.analysis.papers.test_filling import BASE, HALF, filled

PAIRS = [[1.0, 0.25, 0.5], [0.25, 1.0, 0.75], [0.5, 0.75, 1.0]]


def points() -> Filled:
    return filled(replace(BASE, x=0.0), replace(HALF, x=4.0), replace(HALF, x=2.0))


def test_a_series_of_a_task_begins_with_the_uncompressed_model() -> None:
    (line,) = series_of_column(points(), "sums").values()
    assert [(x, cell.ours) for x, cell in line] == [
        (0, pytest.approx(70)),
        (2, pytest.approx(50)),
        (4, pytest.approx(50)),
    ]


def test_every_task_has_a_panel_with_what_guessing_gets_where_that_is_known() -> None:
    drawn = task_curves([points()], "dropped", {"zoo_facts": 25.0})["svg"].decode()
    assert all(text in drawn for text in ("Facts", "Sums", "Zoo-7B", "uncompressed", "guessing"))
    assert "guessing" not in task_curves([points()], "dropped", {})["svg"].decode()
    assert task_curves([filled(BASE, records=[])], "dropped", {}) == {}


def test_scores_are_cut_where_each_share_of_them_ends() -> None:
    assert by_share([4.0, 1.0, 3.0, 2.0], [25.0, 50.0]) == [[1.0], [2.0], [3.0, 4.0]]
    assert by_share([2.0, 1.0], []) == [[1.0, 2.0]]


def test_a_map_is_empty_where_a_layer_has_no_experts_and_fewer_than_others() -> None:
    grid_LE = grid_of([None, [2.0, 4.0, 1.0], [3.0]])
    assert np.isnan(grid_LE[0]).all() and grid_LE[1].tolist() == [2.0, 4.0, 1.0]
    assert grid_LE[2, 0] == 3.0 and np.isnan(grid_LE[2, 1:]).all()
    assert grid_of([[2.0, 4.0]], relative=True).tolist() == [[0.5, 1.0]]
    assert grid_of([[0.0, 0.0]], relative=True).tolist() == [[0.0, 0.0]]


def test_likeness_of_different_experts_alone_counts() -> None:
    assert off_diagonal(PAIRS) == (0.25, 0.5, 0.75)


def test_first_and_last_layers_are_among_those_drawn() -> None:
    assert shown_layers([1, 2, 3, 4, 5, 6, 7]) == [1, 3, 5, 7]
    assert shown_layers([3, 9]) == [3, 9]


def test_what_stays_and_each_share_have_a_name_on_the_scale() -> None:
    drawn = drop_maps({"zoo": [None, [25.0, 101.0]]}, {"zoo": [12.5, 25.0]})["svg"].decode()
    assert all(f">{text}<" in drawn for text in ("12.5", "25", "stays"))


def test_layers_that_go_are_apart_from_those_that_stay_and_those_without_anything_to_drop() -> None:
    map_NL = dropped_map(Gone(3, [1, 2], [[2], [1, 2]]))
    assert np.isnan(map_NL[:, 0]).all() and map_NL[:, 1:].tolist() == [[0.0, 1.0], [1.0, 1.0]]
    drawn = depth_maps({"Drop": {"zoo": Gone(3, [1, 2], [[2], [1, 2]])}}, "layer")["svg"].decode()
    assert all(text in drawn for text in ("zoo", "Drop", "goes", "stays", "has nothing to drop"))
    assert "has nothing" not in depth_maps({"Drop": {"zoo": Gone(2, [0, 1], [[1]])}}, "layer")["svg"].decode()


def test_one_wide_interval_does_not_flatten_all_ratios() -> None:
    assert ends_of([Ratio(32, 1.2, 0.2, 9.0, 5)]) == (pytest.approx(0.8), pytest.approx(1.4))
    assert ends_of([Ratio(32, 1.2, 1.1, 1.25, 5)]) == (pytest.approx(0.98), pytest.approx(1.25))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: task_curves([points()], "dropped", {}),
        lambda: drop_maps({"zoo": [None, [25.0, 101.0]]}, {"zoo": [25.0]}),
        lambda: score_histograms({"zoo": [None, [0.5, 1.5, 1.0]]}, {"zoo": [25.0, 50.0]}, "score"),
        lambda: importance_maps({"zoo": [None, [0.5, 1.5], [1.0, 3.0]]}, "change"),
        lambda: likeness_maps({"zoo": {1: PAIRS, 2: PAIRS}, "ark": {0: PAIRS}}, "CKA"),
        lambda: across_maps({"zoo": ([1, 1, 2], PAIRS)}, "CKA"),
        lambda: depth_maps({"Drop": {"zoo": Gone(3, [1, 2], [[2], [1, 2]])}}, "layer"),
        lambda: loss_curves({"zoo": {"merged": [LossPoint(8, 1.0, None), LossPoint(6, 2.0, 0.1)]}}, "left", "nats"),
        lambda: speed_curves({"zoo": {"drop": [Ratio(32, 1.1, 1.0, 1.2, 5), Ratio(64, 1.2, 1.1, 1.3, 5)]}}, "x", "y"),
    ],
)
def test_the_same_numbers_give_the_same_bytes(draw: Callable[[], dict[str, bytes]]) -> None:
    first = draw()
    assert set(first) == {"pdf", "svg", "png"} and draw() == first
    assert b"zoo" in first["svg"].lower()


@pytest.mark.parametrize("draw", [likeness_maps, across_maps, importance_maps])
def test_nothing_measured_is_no_figure(draw: Callable[..., dict[str, bytes]]) -> None:
    assert draw({}, "words") == {}
    assert drop_maps({}, {}) == score_histograms({}, {}, "x") == loss_curves({}, "x", "y") == depth_maps({}, "x") == {}


def test_a_section_tells_what_is_lost_and_missing_and_has_a_caption_with_its_picture_alone() -> None:
    sheet = Sheet("figure-8", "Speed", "a paper", (), ("Shorter.",), ("All values.",), small=True)
    text = plot_section(sheet, ["Five pairs."], ["no run"], "paper/figure-8.svg")
    assert text.startswith("## Figure 8\n") and "![Speed](paper/figure-8.svg)\n\nFive pairs." in text
    for words in ("neither confirm nor refute", "Lost:\n\n- All values.", "differs from the paper:\n\n- Shorter."):
        assert words in text
    assert text.endswith("Not here:\n\n- no run\n")
    assert "Five pairs." not in plot_section(sheet, ["Five pairs."], [], None)


def test_numbers_of_a_plot_have_six_digits_and_empty_cells() -> None:
    assert plot_csv(("a", "b"), [("=zoo", 1 / 3), (7, None)]) == b"a,b\n'=zoo,0.333333\n7,\n"
    assert interval_words(0.1, 0.25) == "0.10 to 0.25" and interval_words(0.1, 0.1) == "0.10"
