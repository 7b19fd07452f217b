"""Pages of methods: every method has a formula and a page, whose numbers are those of the committed tables."""

from __future__ import annotations

import csv
import re
import tomllib

import pytest

from bench.site.committed_results import CommittedResults, markdown, told_knobs, told_training
from bench.site.method_page import FORMULAS, method_page, methods_index
from methods.framework.errors import ConfigError
from methods.registry import BUILT_IN, method_class
from tests.support.places import ROOT

RESULTS = ROOT / "docs" / "results"


@pytest.fixture(scope="module")
def results() -> CommittedResults:
    return CommittedResults(RESULTS)


def test_every_method_has_a_formula_and_every_formula_a_method() -> None:
    assert sorted(FORMULAS) == sorted(BUILT_IN)
    assert all(one["formula"].strip() and set(one) <= {"formula", "where"} for one in FORMULAS.values())


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_page_has_all_its_parts(name: str, results: CommittedResults) -> None:
    page = method_page(method_class(name), results)
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert [one for one in headings if one not in ("What it does", "Differs from the source")] == [
        "Formula",
        "Source",
        "Knobs",
        "Cost",
        "What it did on the models here",
    ]
    assert "*Differs*" not in page and "*Source*" not in page and page.count("$$") % 2 == 0
    for knob in method_class(name).model_fields:
        assert f"| `{knob}` |" in page or knob in ("b", "alpha", "beta", "scope"), knob


def test_numbers_of_a_page_are_those_of_the_table(results: CommittedResults) -> None:
    with (RESULTS / "expert-selection" / "scores.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "reap" and row["task"] == "average"]
    found = results.in_selection(method_class("reap"))
    assert [row[0] for row in found[1:]] == ["0.75", "0.5", "0.25"]
    for row in rows:
        shown = next(line for line in found if line[0] == f"{float(row['keep']):g}")
        place = next(at for at, head in enumerate(found[0]) if head.startswith(row["model"]))
        assert shown[place].split(" ± ")[0] == f"{100 * float(row['mean']):.1f}"


def test_rows_that_were_measured_again_replace_the_earlier_ones(results: CommittedResults) -> None:
    """Pocket-mixtral at half of the experts: 82.6 with the earlier EASY-EP, 79.1 with today's (docs/expert-selection.md)."""
    found = results.in_selection(method_class("easy_ep"))
    half = next(row for row in found if row[0] == "0.5")
    assert half[1].startswith("79.1") and not any("82.6" in cell for cell in half)
    assert any("weights=expert" in row[0] for row in results.on_frontier(method_class("d2_moe")))
    assert results.in_language(method_class("d2_moe")) == [] != results.in_language(method_class("gptq"))


def test_a_method_that_no_table_has_says_so(results: CommittedResults) -> None:
    class Unseen(method_class("lexi")):  # type: ignore[misc]
        name = "lexi"

    results_of = [*results.in_selection(Unseen), *results.in_demo(Unseen), *results.on_frontier(Unseen)]
    told = "No table of `docs/results` has it yet." in method_page(Unseen, results)
    assert told == (not results_of)


def test_a_method_without_formula_is_refused(results: CommittedResults) -> None:
    class Unnamed(method_class("reap")):  # type: ignore[misc]
        name = "unnamed"

    with pytest.raises(ConfigError, match="no formula in bench/site/formulas"):
        method_page(Unnamed, results)


def test_knobs_at_their_default_are_left_out() -> None:
    cls = method_class("svd")
    assert told_knobs("alpha=0.15, importance=frequency, keep=0.5, ranks=importance, recovery.kind=lora", cls) == (
        "keep=0.5, importance=frequency"
    )


def test_training_is_told_with_what_differs() -> None:
    row = {"title": "REAP + LoRA", "knobs": "keep=0.5, recovery.kind=lora, recovery.rate=0.001, recovery.experts=true"}
    assert told_training(row) == "LoRA, rate 0.001, experts too"
    assert told_training({"title": "REAP", "knobs": "keep=0.5"}) == "–"


def test_columns_of_numbers_stand_right() -> None:
    lines = [*markdown([["a", "b"], ["1.0", "x|y"], ["–", ""]])]
    assert lines == ["| a | b |", "| ---: | --- |", "| 1.0 | x\\|y |", "| – |  |"]


def test_the_index_leads_to_every_page() -> None:
    classes = {name: method_class(name) for name in BUILT_IN}
    page = (ROOT / "docs" / "methods" / "index.md").read_text()
    linked = methods_index(classes, page)
    assert all(f"[`{name}`]({name}.md)" in linked for name in BUILT_IN)
    with pytest.raises(ConfigError, match="leaves out reap; add"):
        methods_index(classes, page.replace("`reap`", "`rest`"))


def test_the_extra_and_the_pinned_file_agree() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        extra = tomllib.load(file)["project"]["optional-dependencies"]["docs"]
    lines = (ROOT / "requirements" / "docs.txt").read_text().lower().splitlines()
    assert [one for one in extra if one not in lines] == []
