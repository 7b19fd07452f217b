"""Figures of statistics and pages: what is measured and kept, what is said once, and where files lie."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.papers.tables import SMALL
from bench.pocket import pocket_path
from methods.framework.errors import ConfigError
from sweeps.grid import run_grid
from sweeps.papers.asked import asked
from sweeps.papers.laid_out import sheet
from sweeps.papers.making import Made, Order, make, page, whole
from sweeps.papers.measured import Values, measured
from sweeps.papers.overview import cost_of
from sweeps.papers.paper_file import StatisticFile
from sweeps.papers.shelf import read_paper, task_sizes
from sweeps.papers.shown import KIND
from sweeps.papers.stand_in import StandIn, conditions, stand_ins

PAPER = read_paper("holistic")
FEW: dict[str, Any] = {"calibration": {"sequences": 2, "length": 64}}
COSINE = StatisticFile(label="c", name="block_cosine")


def order(store: Path, **changes: Any) -> Order:
    return replace(Order("pocket-mixtral", None, "mixtral", store, run_grid, given=FEW), **changes)


def values(model: str, store: Path, place: StatisticFile = COSINE, **given: Any) -> Values | None:
    exhibit = PAPER.exhibit("figure-4")
    run = given.pop("run", True)
    one = StandIn("mixtral", PAPER.file.models["mixtral"], model, True)
    settings = conditions(PAPER, exhibit, True, {"calibration": {**FEW["calibration"], **given}})
    (found,) = measured([place], one, settings, store, run=run)
    return found


def test_a_figure_of_statistics_is_measured_once_and_drawn_from_what_was_kept(tmp_path: Path) -> None:
    made = make(PAPER, "figure-7", order(tmp_path))
    assert set(made.files) == {f"figure-7.{kind}" for kind in ("pdf", "svg", "png", "csv")} and not made.missing
    assert (
        "](./figure-7.svg)" in made.section and "Means over 128 tokens; seeds of the calibration: 21." in made.section
    )
    assert make(PAPER, "figure-7", order(tmp_path, run=None)).files == made.files
    empty = make(PAPER, "figure-7", order(tmp_path / "none", run=None))
    assert empty.files == {} and empty.missing == ("Mixtral-8x7B, cosine: its statistics are not in the store",)


def test_a_statistic_has_a_number_for_each_layer_or_a_matrix(tmp_path: Path) -> None:
    exhibit = PAPER.exhibit("figure-4")
    one = stand_ins(PAPER.file, exhibit, "pocket", None, None)[1]
    turned, alone = measured(exhibit.statistics, one, conditions(PAPER, exhibit, True, FEW), tmp_path, run=True)
    assert turned is not None and alone is not None
    assert turned.numbers[0] is None and len(turned.numbers) == 7, "the first layer of DeepSeek is dense"
    assert all(isinstance(value, float) and -1 <= value <= 1 for value in turned.numbers[1:])
    assert turned.numbers != alone.numbers and turned.tokens == 128
    with pytest.raises(ConfigError, match="cannot show statistic 'counts'"):
        measured(
            [StatisticFile(label="n", name="counts")], one, conditions(PAPER, exhibit, True, FEW), tmp_path, run=True
        )


def test_another_model_of_the_same_name_is_measured_anew(tmp_path: Path) -> None:
    folder, store = tmp_path / "a" / "pocket-mixtral", tmp_path / "store"
    shutil.copytree(pocket_path("pocket-mixtral"), folder)
    first = values(str(folder), store)
    assert values(str(folder), store) == first and len(list((store / "cache" / KIND).iterdir())) == 1
    (weights,) = folder.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-4096:] = bytes(4096)
    weights.write_bytes(content)
    second = values(str(folder), store)
    assert second != first and values(str(folder), store, run=False) == second, "the latest of that name"
    assert values(str(folder), store, sequences=3, run=False) is None, "another text"


def test_a_damaged_number_counts_as_absent(tmp_path: Path) -> None:
    first = values("pocket-mixtral", tmp_path)
    (path,) = (tmp_path / "cache" / KIND).iterdir()
    path.write_text(path.read_text().replace('"tokens": 128', '"tokens": 129'))
    assert values("pocket-mixtral", tmp_path, run=False) is None
    assert values("pocket-mixtral", tmp_path) == first
    (tmp_path / "cache" / KIND / "x.json").write_text("{")
    assert values("pocket-mixtral", tmp_path, run=False) == first


def test_what_a_figure_of_statistics_costs_is_a_pass_for_each_text() -> None:
    assert cost_of(PAPER, PAPER.exhibit("figure-9a")).tokens == (4 + 16 + 64 + 256) * 2048
    assert cost_of(PAPER, PAPER.exhibit("figure-9b")).tokens == 3 * 1024 * 2048


def test_a_line_with_a_text_of_its_own_says_how_it_differs(tmp_path: Path) -> None:
    section = make(PAPER, "figure-9b", order(tmp_path, run=None)).section
    assert "- LIMA: 128 windows of pocket:stories; the paper: 1024 windows of datasets:GAIR/lima::train:conv" in section
    assert "calibration.corpus" not in section and "- calibration.length: 64; the paper: 2048." in section


def test_a_page_says_once_what_holds_for_all_of_it(tmp_path: Path) -> None:
    alone = order(tmp_path, run=None, model="pocket", family=None)
    shared, paragraphs = whole(PAPER, alone)
    assert paragraphs[0] == SMALL and any("calibration.corpus: pocket" in text for text in paragraphs)
    names = ("table-3", "figure-5")
    made: dict[str, Made] = {name: make(PAPER, name, shared) for name in names}
    text = page(PAPER, made, paragraphs)
    assert (
        text.count(SMALL) == text.count("calibration.corpus: pocket") == text.count("The seed of the calibration") == 1
    )
    single = make(PAPER, "table-3", alone).section
    assert single.count(SMALL) == 1 and "- DeepSeek-MoE-16B: no speed was measured; " in single
    assert "- [Figure 5](#figure-5): " in text and "\n## Figure 5\n" in text


def test_a_page_adds_up_its_runs_and_finds_its_files() -> None:
    made = {
        "table-3": Made("## Table 3\n", {}, (), {"a": 2.0, "b": 3.0}),
        "figure-5": Made("![f](./f.svg)", {}, (), {"b": 3.0}),
    }
    text = page(PAPER, made, [])
    assert "from 2 runs, whose own stages took 5 CPU seconds." in text and "![f](./holistic/f.svg)" in text


def test_points_of_the_text_stand_beside_the_mean_at_the_same_share(tmp_path: Path) -> None:
    paper = read_paper("holistic")
    exhibit = paper.exhibit("figure-6")
    models = stand_ins(paper.file, exhibit, "pocket", None, None)
    settings = conditions(paper, exhibit, True, FEW)
    laid = sheet(paper, "figure-6", [(one, asked(paper.file, exhibit, one, settings)) for one in models], settings)
    points = [(one.model, one.series, one.x, one.printed) for one in laid.told]
    assert points == [
        ("Mixtral-8x7B", "one by one", 1, ">90 %"),
        ("DeepSeek-MoE-16B", "one by one", 1, "90 %"),
    ], "5 of 32 and 4 of 28 are one of 6 and one of 7"
    theirs = StandIn("mixtral", paper.file.models["mixtral"], "mine", False)
    (told,) = sheet(paper, "figure-5", [(theirs, [])], settings).told
    assert (told.x, told.words, told.printed) == (8, "Layer Drop 8 of 32: MMLU drop", "about 1 %")
    for name in ("figure-3", "figure-5", "figure-6"):
        lines = {series.label for series in paper.exhibit(name).series}
        assert {point.series for point in paper.exhibit(name).text_points} <= lines
    section = make(paper, "figure-6", order(tmp_path, model="pocket", family=None, run=None)).section
    assert "| DeepSeek-MoE-16B, Block Drop 4 of 28: retained performance | 90 % | 1 | – | – |" in section


def test_guessing_is_one_over_the_number_of_answers() -> None:
    exhibit = PAPER.exhibit("figure-3")
    laid = sheet(
        PAPER,
        "figure-3",
        [(stand_ins(PAPER.file, exhibit, "pocket", None, None)[0], [])],
        conditions(PAPER, exhibit, True, FEW),
    )
    assert laid.blocks[0].chance == pytest.approx((50 + 7 * 25) / 8)
    theirs = StandIn("mixtral", PAPER.file.models["mixtral"], "mine", False)
    laid = sheet(PAPER, "figure-3", [(theirs, [])], conditions(PAPER, exhibit, False, {}))
    assert laid.blocks[0].chance == pytest.approx(37.5) and task_sizes()["wikitext"].chance is None
    unknown = conditions(PAPER, exhibit, False, {"evaluation": {"tasks": ["piqa", "mine"]}})
    assert sheet(PAPER, "figure-3", [(theirs, [])], unknown).blocks[0].chance is None
