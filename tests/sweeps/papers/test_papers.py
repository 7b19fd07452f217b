"""Papers as data: printed numbers cell by cell, rows as runs, and one table from the models to its files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from analysis.papers.printed import printed
from analysis.published import published
from bench.settings.method_settings import MethodConfig, RecipeConfig
from bench.settings.timing_settings import TimingConfig
from methods.framework.errors import ConfigError, UnknownNameError
from sweeps.grid import run_grid
from sweeps.grid_config import GridConfig
from sweeps.grid_progress import GridResult
from sweeps.papers.asked import Asked, asked
from sweeps.papers.laid_out import columns_of
from sweeps.papers.launch import GROUP, grids
from sweeps.papers.making import Order, make, write
from sweeps.papers.overview import cost_of, known_numbers, models_of, overview, tasks_of
from sweeps.papers.paper_file import Exhibit
from sweeps.papers.shelf import paper_names, read_folder, read_paper
from sweeps.papers.stand_in import StandIn, conditions, stand_ins
from tests.support.dense import dense_pocket

PAPERS = [read_paper(name) for name in paper_names()]
UNEVEN = {("table-merging", "Baseline", "large")}
"""Printed means that are not those of the printed columns."""


def own(paper: Any, key: str) -> StandIn:
    return StandIn(key, paper.file.models[key], paper.file.models[key].hub, False)


def everything() -> list[tuple[Any, str, Exhibit, StandIn]]:
    return [
        (paper, name, exhibit, own(paper, key))
        for paper in PAPERS
        for name, exhibit in paper.exhibits.items()
        for key in exhibit.models
    ]


def run_quietly(config: GridConfig) -> GridResult:
    return run_grid(config, track="disabled")


def rows_of(paper: Any, exhibit: Exhibit, one: StandIn, **given: Any) -> list[Asked]:
    return asked(paper.file, exhibit, one, conditions(paper, exhibit, one.pocket, given))


@pytest.mark.parametrize(("paper", "name", "exhibit", "one"), everything())
def test_printed_numbers_are_there_and_their_means_are_those_of_the_columns(
    paper: Any, name: str, exhibit: Exhibit, one: StandIn
) -> None:
    columns = columns_of(paper.file, exhibit)
    for row in rows_of(paper, exhibit, one):
        if row.published is None or row.table is None:
            continue
        numbers = printed(row.table, row.published)
        assert set(numbers) & {column.name for column in columns}, (name, row.label)
        for column in columns:
            parts = [numbers[part] for part in column.of if part in numbers]
            if column.kind == "mean" and len(parts) == len(column.of) and column.name in numbers:
                gap = sum(parts) / len(parts) - numbers[column.name]
                half = (
                    1.0 if (published(row.table)["unit"] == "fraction").all() else 0.075
                )  # of the last printed decimal, twice
                assert (abs(gap) < half) != ((name, row.label, one.key) in UNEVEN), (name, row.label, gap)


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_what_a_paper_costs_is_told_in_a_line_each(paper: Any) -> None:
    lines = overview(paper)
    assert [line[0] for line in lines] == list(paper.exhibits)


def test_tables_stand_before_figures_and_by_number() -> None:
    names = list(read_paper("holistic").exhibits)
    assert names[:8] == [f"table-{number}" for number in range(1, 9)]


def test_a_run_that_two_rows_share_is_counted_once() -> None:
    paper = read_paper("holistic")
    cost = cost_of(paper, paper.exhibit("table-8"))
    tokens = sum(size for size in (1172 * 4 * 35, 3270 * 2 * 140, 10042 * 4 * 85, 14042 * 4 * 100, 500 * 4 * 20))
    tokens += 1838 * 2 * 30 + 277 * 2 * 75 + 1267 * 2 * 28
    assert (cost.runs, cost.tokens) == (5, 5 * tokens + 128 * 2048)
    assert cost.bytes == pytest.approx(4 * 2 * 16.4e9)
    assert cost.hours == pytest.approx(cost.tokens * 2 * 2.8e9 / 4e14 / 3600)


def test_words_of_each_model_are_filled_in() -> None:
    paper = read_paper("holistic")
    exhibit = paper.exhibit("table-3")
    labels = {key: [row.label for row in rows_of(paper, exhibit, own(paper, key))] for key in exhibit.models}
    assert labels["mixtral"][2:4] == ["E2/8", "E2/8 w/AWQ"] and labels["deepseek"][6] == "B4/28"
    steps = rows_of(paper, exhibit, own(paper, "deepseek"))[5].compression
    assert isinstance(steps, RecipeConfig)
    assert [(step.name, step.recalibrate) for step in steps.steps] == [("awq", False), ("layer_drop", True)]
    assert steps.steps[0].knobs["group"] == 64 and steps.steps[1].knobs == {"keep": 0.85}
    small = stand_ins(paper.file, exhibit, "pocket", None, None)[1]
    row = rows_of(paper, exhibit, small)[2]
    assert (row.label, row.printed_label, row.knobs["score"]) == ("E8/32", "E16/64", "chosen")


def test_a_method_that_is_not_there_is_told_or_replaced() -> None:
    paper = read_paper("holistic")
    one = own(paper, "mixtral")
    lines: dict[str, Any] = {"label": "later", "method": "wanda:keep=0.5,no_such_knob=1"}
    table: dict[str, Any] = {"kind": "table", "title": "t", "models": ["mixtral"], "columns": ["avg"]}
    (row,) = rows_of(paper, Exhibit.model_validate({**table, "rows": [lines]}), one)
    assert row.compression is None and row.reason is not None
    assert row.reason.startswith("not yet possible: ") and "no_such_knob" in row.reason
    lines["instead"] = {"method": "wanda:keep=0.5", "departs": "experts alone"}
    (row,) = rows_of(paper, Exhibit.model_validate({**table, "rows": [lines]}), one)
    assert row.compression == MethodConfig(name="wanda", knobs={"keep": 0.5})
    assert (row.reason, row.departs) == (None, ("experts alone",))
    (word,) = Exhibit.model_validate({**table, "rows": [{"label": "$width"}]}).rows
    with pytest.raises(ConfigError, match="'width' is no word of the model; known: B, E"):
        rows_of(paper, Exhibit.model_validate({**table, "rows": [word.model_dump()]}), one)


def test_a_model_stands_where_its_family_is() -> None:
    paper = read_paper("holistic")
    exhibit = paper.exhibit("table-3")
    (one,) = stand_ins(paper.file, exhibit, "folder/mine", None, "deepseek_v2")
    assert (one.key, one.name, one.pocket) == ("deepseek", "mine", False)
    with pytest.raises(ConfigError, match="its family is olmoe"):
        stand_ins(paper.file, exhibit, "mine", None, "olmoe")
    with pytest.raises(UnknownNameError, match="mixtral"):
        stand_ins(paper.file, exhibit, "mine", "mixtrl", "olmoe")
    (one,) = stand_ins(paper.file, exhibit, "mine", "mixtral", "olmoe")
    assert one.key == "mixtral"


def test_settings_that_differ_from_the_papers_are_told() -> None:
    paper = read_paper("holistic")
    exhibit = paper.exhibit("table-3")
    assert conditions(paper, exhibit, False, {}).differences == ()
    given = {"calibration": {"sequences": 4}, "evaluation": {"tasks": ["piqa_local"], "limit": 10}}
    settings = conditions(paper, exhibit, False, given)
    assert not settings.own_tasks
    assert settings.differences[0] == "calibration.sequences: 4; the paper: 128."
    assert settings.differences[-1] == "evaluation.limit: 10; the paper: as it is."


def test_rows_are_as_few_grids_as_can_be(tmp_path: Path) -> None:
    paper = read_paper("holistic")
    exhibit = paper.exhibit("table-4")
    (one,) = stand_ins(paper.file, exhibit, "pocket", None, None)
    settings = conditions(paper, exhibit, True, {})
    rows = asked(paper.file, exhibit, one, settings)
    made = grids(rows, one, settings, store=tmp_path, timing=TimingConfig(enabled=False), machine={"workers": 2})
    assert [(len(grid.methods), grid.recoveries[0] is None) for grid in made] == [(3, True), (4, False)]
    assert {(grid.group, grid.workers, grid.models) for grid in made} == {(GROUP, 2, ("pocket-deepseek",))}
    assert made[0].evaluation.include_path is not None and made[0].evaluation.include_path.is_dir()


def test_a_paper_whose_parts_do_not_name_each_other_is_refused(tmp_path: Path) -> None:
    (tmp_path / "paper.yaml").write_text(
        "{title: t, source: s, calibration: {}, columns: {a: {title: A}}, "
        "models: {m: {title: M, hub: h, families: [f], parameters: 1, active: 1}}}"
    )
    (tmp_path / "table-1.yaml").write_text("{kind: table, title: t, models: [m], columns: [b], rows: [{label: l}]}")
    with pytest.raises(ConfigError, match=r"table-1.yaml: unknown column 'b'.*Known: a"):
        read_folder(tmp_path)
    (tmp_path / "table-1.yaml").write_text("{kind: table, title: t, models: [m], columns: [a]}")
    with pytest.raises(ConfigError, match="a table states rows"):
        read_folder(tmp_path)


def test_a_table_end_to_end(tmp_path: Path) -> None:
    paper = read_paper("holistic")
    begun: list[int] = []

    def run(config: GridConfig) -> GridResult:
        begun.append(1)
        return run_grid(config, track="disabled")

    given = {
        "calibration": {"sequences": 4, "length": 64},
        "evaluation": {"tasks": ["pocket_facts", "pocket_brackets"], "limit": 8},
    }
    order = Order("pocket", None, None, tmp_path / "store", run, given=given)
    made = make(paper, "table-2", order)
    assert begun == [1] and made.missing == (
        "Mistral-7B: no pocket model stands for Mistral-7B: it is dense, and all pocket models have experts",
    )
    paths = write(made, "table-2", tmp_path / "out")
    assert [path.name for path in paths] == ["table-2.md", "table-2.csv", "table-2.tex"]
    rows = list(csv.DictReader(paths[1].open()))
    ours = {row["row"]: row for row in rows if row["model"] == "pocket-mixtral" and row["column"] == "mean"}
    assert set(ours) == {"Baseline", "L4/32", "L8/32", "B4/32", "B8/32"}
    assert all(0 < float(row["measured"]) <= 100 for row in ours.values())
    drawn = make(paper, "table-2", Order("pocket", None, None, tmp_path / "store", None, given=given))
    assert drawn.files["table-2.csv"] == made.files["table-2.csv"], "from records alone"
    elsewhere = make(paper, "table-2", Order("pocket", None, None, tmp_path / "none", None, given=given))
    assert "no run of it is in the store" in elsewhere.section


def test_models_and_tasks_of_a_paper_are_told_with_hub_ids_and_items() -> None:
    paper = read_paper("holistic")
    assert "Mistral-7B (mistralai/Mistral-7B-v0.1, 7.2e9 weights, here nothing)" in models_of(paper)
    assert tasks_of(paper).startswith("arc_challenge 1,172, boolq 3,270, ") and "winogrande 1,267" in tasks_of(paper)
    assert known_numbers(paper.exhibit("figure-6")) == "2 points of the text"


@pytest.mark.thorough
def test_a_dense_model_stands_in_its_rows_of_a_table(tmp_path: Path) -> None:
    paper = read_paper("holistic")
    folder = dense_pocket(tmp_path / "dense")
    given = {
        "calibration": {"corpus": "pocket", "sequences": 2, "length": 32},
        "evaluation": {"tasks": ["pocket_facts", "pocket_brackets"], "limit": 4, "dtype": "float32"},
    }
    order = Order(str(folder), None, "mistral", tmp_path / "store", run_quietly, given=given)
    made = make(paper, "table-2", order)
    rows = list(csv.DictReader(made.files["table-2.csv"].decode().splitlines()))
    ours = {row["row"]: row for row in rows if row["column"] == "mean"}
    assert set(ours) == {"Baseline", "L4/32", "L8/32", "B4/32", "B8/32"} and not made.missing
    assert all(row["measured"] and row["paper_model"] == "Mistral-7B" for row in ours.values())


def test_what_is_trained_on_counts_forward_and_backward() -> None:
    paper = read_paper("holistic")
    cost = cost_of(paper, paper.exhibit("table-4"))
    trained = 4 * 52000 * 512 * 3
    assert cost.hours == pytest.approx((cost.tokens + 2 * trained) * 2 * 2.8e9 / 4e14 / 3600)
