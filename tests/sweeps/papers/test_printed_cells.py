"""What stands in the tables as printed, against the published files read anew: every cell, every row, in the paper's order."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path

import pytest

from analysis import published as published_module
from sweeps.papers.asked import Asked, asked
from sweeps.papers.making import Order, make
from sweeps.papers.paper_file import Exhibit
from sweeps.papers.shelf import Paper, paper_names, read_paper
from sweeps.papers.stand_in import StandIn, conditions

FOLDER = Path(published_module.__file__).parent / "published"
PAPERS = [read_paper(name) for name in paper_names()]
TABLES = [
    (paper, name, key)
    for paper in PAPERS
    for name, exhibit in paper.exhibits.items()
    if exhibit.kind == "table"
    for key in exhibit.models
]
HOLISTIC = read_paper("holistic")
OTHER_UNITS = {"speedup", "tflops", "mem_gb"}
NOT_SHOWN = {
    "c4", "code_avg", "evalplus", "gsm8k", "hours", "lcb", "math500", "math_avg", "ptb", "wikitext2", "wildbench",
    "avg7_headline", "ratio", "removed", "experts_left", "mmlu",
}  # fmt: skip
"""Columns of published files that no exhibit of a paper has: other tasks, and what tells a row from others."""


def raw(table: str) -> list[dict[str, str]]:
    with (FOLDER / f"{table}.csv").open() as file:
        return list(csv.DictReader(file))


def rows_of(paper: Paper, exhibit: Exhibit, key: str) -> list[Asked]:
    one = StandIn(key, paper.file.models[key], "theirs", False)
    return asked(paper.file, exhibit, one, conditions(paper, exhibit, False, {}))


def chosen(row: Asked) -> dict[str, str]:
    """Return the line of the published file that a row stands for."""
    assert row.table is not None and row.published is not None
    wanted = {name: str(value) for name, value in row.published.items()}
    (found,) = [
        line
        for line in raw(row.table)
        if all(
            line[name] == value or _number(line[name]) == _number(value) is not None for name, value in wanted.items()
        )
    ]
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@pytest.mark.parametrize(("paper", "name", "key"), TABLES, ids=lambda value: getattr(value, "name", value))
def test_every_printed_cell_is_that_of_the_published_file(paper: Paper, name: str, key: str, tmp_path: Path) -> None:
    exhibit = paper.exhibit(name)
    made = make(paper, name, Order("theirs", key, None, tmp_path, None))
    shown: dict[tuple[str, str], float] = {}
    for line in csv.DictReader(io.StringIO(made.files[f"{name}.csv"].decode())):
        if line["printed"]:
            shown[line["row"], line["column"]] = float(line["printed"])
    expected: dict[tuple[str, str], float] = {}
    for row in rows_of(paper, exhibit, key):
        if row.published is None or row.table is None:
            continue
        line = chosen(row)
        names = {paper.file.columns[column].published or column: column for column in exhibit.columns}
        for theirs, text in line.items():
            value = _number(text)
            if value is None:
                continue
            if theirs not in names:
                assert theirs in NOT_SHOWN or row.table != exhibit.published or theirs.startswith(("mem", "speed")), (
                    theirs
                )
                continue
            percent = 100 if line["unit"] == "fraction" and theirs not in OTHER_UNITS else 1
            expected[row.label, names[theirs]] = percent * value
    assert shown.keys() == expected.keys()
    assert all(abs(shown[cell] - value) < 1e-9 * max(1, value) + 1e-4 for cell, value in expected.items())
    assert not expected or len(expected) >= len({row for row, _ in expected})


def test_every_row_of_the_holistic_study_is_shown_once_in_its_table_and_in_its_order() -> None:
    places: Counter[tuple[str, str, str]] = Counter()
    for name, exhibit in HOLISTIC.exhibits.items():
        if exhibit.kind != "table" or exhibit.published is None:
            continue
        table = raw(exhibit.published)
        for key in exhibit.models:
            own = [row for row in rows_of(HOLISTIC, exhibit, key) if row.table == exhibit.published and row.published]
            order = [table.index(chosen(row)) for row in own]
            assert order == sorted(order), (name, key)
            places.update((exhibit.published, table[place]["model"], table[place]["method"]) for place in order)
            names = [name for name in exhibit.columns if name in table[0]]
            assert names == [name for name in table[0] if name in names], (name, "columns as printed")
    printed = {
        (path.stem, line["model"], line["method"])
        for path in FOLDER.glob("holistic_T[2-8]*.csv")
        for line in raw(path.stem)
    }
    assert set(places) == printed and set(places.values()) == {1}


def test_rows_of_other_tables_stand_beside_those_that_the_paper_prints_again() -> None:
    rows = {row.label: row for row in rows_of(HOLISTIC, HOLISTIC.exhibit("table-7"), "deepseek")}
    assert chosen(rows["B4/28 S+T"])["avg"] == "56.0" and rows["B4/28 S+T"].table == "holistic_T3_recipe"
    assert rows["B4/28 T+S"].mark == "lost" and rows["B4/28 T+S"].published is None
    assert {row.mark for row in rows_of(HOLISTIC, HOLISTIC.exhibit("table-6"), "deepseek") if row.label == "GPTQ"} == {
        "lost"
    }


def test_a_model_of_a_paper_is_one_of_the_published_file() -> None:
    for paper, name, key in TABLES:
        table = paper.exhibit(name).published
        if table is not None:
            assert paper.file.models[key].title in {line["model"] for line in raw(table)}, (paper.name, name, key)
