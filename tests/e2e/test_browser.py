"""The leaderboard in a real browser: sorting, filters, plot, keyboard, phone, rows that open and rows that are compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.report import Report, report
from analysis.watching import Watched
from bench.evaluation.items import Items, items_from, save_items
from bench.evaluation.paired import binary_interval, compare, mcnemar
from bench.records.record import Record, write_record
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from tests.support.browser import Tab, browser, missing
from tests.support.records import board, record, refused, score

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(missing() is not None, reason=str(missing()))]

METHODS = ("reap", "expert_drop", "wanda")
MANY = 130
"""Runs of one more method, so that the table has more rows than are written at once."""


def _items(run: Record, rng: np.random.Generator) -> list[Items]:
    found = []
    for one in run.scores:
        if one.metric == "acc":
            values = (rng.random(one.n) < one.value).astype(float).tolist()
            ids = tuple(map(str, range(one.n)))
            found.append(Items(one.task, "acc", "none", "mean", ids, tuple(values), (1.0,) * one.n))
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Report:
    store, rng = tmp_path_factory.mktemp("store"), np.random.default_rng(0)
    coarse = board(("synthetic-coarse",), METHODS)
    fine = [
        one.model_copy(update={"model": one.model.model_copy(update={"family": "qwen2_moe"})})
        for one in board(("synthetic-fine",), METHODS, seed=1)
    ]
    many = [
        record("random", knobs={"keep": 0.5, "seed": seed, "place": seed}, scores=(score("synthetic_facts", 0.5),))
        for seed in range(MANY)
    ]
    slim = {"stages": ("sparsity",)}
    coarse = [one.model_copy(update=slim) if one.method == "wanda" else one for one in coarse]
    plan = Plan(family="mixtral", layers=(LayerPlan(experts=(0, 2, 3)), LayerPlan(drop="moe")))
    (store / "plans").mkdir()
    for run in [*coarse, *fine, *many, refused("stun")]:
        write_record(run, store / "records")
        if run.plan and run.method in METHODS:
            (store / "plans" / f"{run.plan}.json").write_text(plan.dumps())
            save_items(_items(run, rng), store / "items" / run.id)
    papers = store / "papers"
    papers.mkdir()
    (papers / "reap.md").write_text("# REAP, its tables\n\narXiv 2510.13999.\n")
    return report(store / "records", store / "report", figures=False, papers=papers)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.fixture
def tab(chromium: Any, made: Report) -> Iterator[Tab]:
    opened = _opened(chromium, made, viewport={"width": 1300, "height": 900})
    yield opened
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith("blob:")] == [made.page.as_uri()]
    opened.close()


def _opened(chromium: Any, made: Report, **context: Any) -> Tab:
    tab = Tab(chromium, made.page.as_uri(), **context)
    tab.page.wait_for_selector("#board[data-ready]")
    tab.page.locator("#plot").scroll_into_view_if_needed()
    tab.page.wait_for_selector("#plot[data-ready]")
    return tab


def _until(page: Any, condition: str) -> None:
    """Wait until a condition holds, which playwright's own way would ask in words that the page forbids itself."""
    for _ in range(1200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"did not come about: {condition}")


def _head(page: Any, name: str) -> Any:
    return page.locator("#board thead th").filter(has_text=name).first


def _column(page: Any, name: str) -> list[str]:
    """Return what stands in a column of the rows that are written."""
    place = page.locator("#board thead th").all_inner_texts().index(name)
    rows = page.locator("#board > tbody > tr:not(.detail)")
    return [text.strip() for text in rows.locator(f"> td:nth-child({place + 1})").all_inner_texts()]


def _number(text: str) -> float:
    return float(text.split()[0].replace("−", "-"))


def _count(page: Any) -> int:
    return int(page.locator("#t-count").inner_text().split()[0])


def test_a_column_sorts_down_up_and_back(tab: Tab) -> None:
    page, head = tab.page, _head(tab.page, "Keep %")
    before = _column(page, "Keep %")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    down = [_number(text) for text in _column(page, "Keep %")]
    assert down == sorted(down, reverse=True) and down[0] > down[-1]
    head.locator("button").click()
    up = [_number(text) for text in _column(page, "Keep %")]
    assert head.get_attribute("aria-sort") == "ascending" and up == sorted(up) and up[0] == 25.0
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "none" and _column(page, "Keep %") == before


def test_rows_are_filtered_by_family_kind_budget_and_words(tab: Tab, made: Report) -> None:
    page = tab.page
    runs = made.frame[made.frame["status"] == "complete"]
    assert _count(page) == len(runs)
    page.select_option("#t-family", "qwen2_moe")
    assert _count(page) == (runs["family"] == "qwen2_moe").sum()
    assert set(_column(page, "Model")) == {"synthetic-fine"}
    page.select_option("#t-family", "")
    bases, kinds = (
        int(runs["is_base"].sum()),
        page.locator("#t-kind option").evaluate_all("all => all.map((one) => one.value)"),
    )
    shown = []
    for kind in filter(None, kinds):
        page.select_option("#t-kind", kind)
        shown.append(_count(page) - bases)
    assert len(shown) == 2 and min(shown) == 3 and sum(shown) == len(runs) - bases
    page.select_option("#t-kind", "")
    page.select_option("#t-family", "qwen2_moe")
    page.select_option("#t-budget", "0.5")
    within = (runs["family"] == "qwen2_moe") & ((runs["keep_bytes"] <= 0.5) | runs["is_base"])
    assert _count(page) == within.sum() > 1
    page.select_option("#t-budget", "")
    page.select_option("#t-family", "")
    page.fill("#t-search", "wanda keep=0.25")
    _until(page, "document.getElementById('t-count').textContent.startsWith('2 of')")
    assert all("keep=0.25" in text for text in _column(page, "Method"))
    page.fill("#t-search", "")
    page.check("#t-floor")
    assert _count(page) == (~runs["below_floor"].fillna(False).astype(bool)).sum() < len(runs)


def test_more_rows_are_written_when_they_are_asked_for(tab: Tab) -> None:
    page = tab.page
    rows = page.locator("#board > tbody")
    assert rows.count() == 100 and _count(page) > 100
    page.click("#t-more")
    assert rows.count() == _count(page) and page.locator("#t-more").is_hidden()


def test_the_plot_follows_filters_and_choices_and_has_no_share_button(tab: Tab) -> None:
    page = tab.page
    points = "[...document.querySelectorAll('#plot .scatterlayer .point')].length"
    every = page.evaluate(points)
    page.select_option("#t-family", "qwen2_moe")
    _until(page, f"{points} < {every}")
    fine = page.evaluate(points)
    assert 9 <= fine < every
    page.select_option("#p-size", "active_parameters")
    _until(page, "document.querySelector('#plot .xtitle').textContent.includes('Active')")
    page.hover("#plot")
    titles = page.locator("#plot .modebar-btn").evaluate_all("all => all.map((one) => one.dataset.title)")
    assert titles and not any("edit" in title.lower() or "cloud" in title.lower() for title in titles)


def test_the_library_of_the_plot_waits_until_it_is_looked_at(chromium: Any, made: Report) -> None:
    tab = Tab(chromium, made.page.as_uri(), viewport={"width": 1300, "height": 120})
    page = tab.page
    page.wait_for_selector("#board[data-ready]")
    assert page.evaluate("typeof Plotly") == "undefined" and page.locator("#board > tbody").count() == 100
    page.locator("#plot").scroll_into_view_if_needed()
    page.wait_for_selector("#plot[data-ready]")
    times = page.evaluate("performance.getEntriesByType('mark').map((one) => one.name)")
    assert times == ["table", "library", "drawing", "plot"], "the table is there before the library is read"
    assert tab.complaints == []
    tab.close()


def test_a_row_opens_with_tasks_plan_command_and_the_paper(tab: Tab) -> None:
    page = tab.page
    page.fill("#t-search", "reap")
    _until(page, "document.getElementById('t-count').textContent.startsWith('6 of')")
    page.locator(".fold").first.click()
    sheet = page.locator(".sheet")
    sheet.wait_for()
    told = sheet.inner_text()
    assert all(task in told for task in ("synthetic_facts", "synthetic_sums", "synthetic_text"))
    assert "moebench run --model" in told and "--method reap:keep=0." in told
    assert "0  #.##" in told and "1  the experts' sub-layer is removed" in told
    assert str(sheet.locator("a").first.get_attribute("href")).startswith("https://arxiv.org/abs/2510.")
    assert sheet.locator("a", has_text="REAP, its tables").get_attribute("href") == "../papers/reap.md"
    assert page.locator("main a", has_text="REAP, its tables").count() == 2, "below the table, too"
    page.locator(".fold").first.click()
    assert sheet.is_hidden() and page.locator(".fold").first.get_attribute("aria-expanded") == "false"


def test_two_rows_are_compared_on_their_items_as_records_are(tab: Tab, made: Report) -> None:
    page = tab.page
    page.fill("#t-search", "synthetic-coarse keep=0.5 reap")
    _until(page, "document.getElementById('t-count').textContent.startsWith('1 of')")
    page.locator(".pick").first.check()
    page.fill("#t-search", "synthetic-coarse keep=0.25 wanda")
    page.wait_for_selector(".fold:has-text('wanda')")
    page.locator(".pick").first.check()
    panel = page.locator("#versus")
    panel.locator("table").wait_for()
    store = made.page.parent.parent
    by_setting = {(run.method, run.knobs.get("keep"), run.model.name): run for run in made.records}
    first, second = (by_setting[method, keep, "synthetic-coarse"] for method, keep in (("reap", 0.5), ("wanda", 0.25)))
    lines = [line.split("\t") for line in panel.locator("tbody").inner_text().splitlines()]
    tasks = {line[0]: line for line in lines}
    assert set(tasks) == {"synthetic_facts", "synthetic_sums", "synthetic_stories", "average"}
    for task in ("synthetic_facts", "synthetic_sums", "synthetic_stories"):
        own, other = (_read(store / "items" / run.id / f"{task}.json") for run in (first, second))
        told = compare(other, own)
        value, low, high = (float(part.strip("[],").replace("−", "-")) for part in tasks[task][2].split())
        assert (value, low, high) == pytest.approx((100 * told.difference, 100 * told.low, 100 * told.high), abs=0.051)
        won = sum(a > b for a, b in zip(own.values, other.values, strict=True))
        assert tasks[task][4] == str(won) and int(tasks[task][6]) == len(own.values)


def _read(path: Path) -> Items:
    return items_from(json.loads(path.read_text())[0])


def test_rows_of_two_models_are_not_compared(tab: Tab) -> None:
    page = tab.page
    for model in ("synthetic-coarse", "synthetic-fine"):
        page.fill("#t-search", f"{model} keep=0.5 reap")
        _until(
            page, f"[...document.querySelectorAll('#board tbody')].every((row) => row.innerText.includes('{model}'))"
        )
        page.locator(".pick").first.check()
    _until(page, "document.getElementById('versus').innerText.includes('not measured on the same')")


COUNTS = ((0, 0, 50), (0, 5, 50), (7, 0, 200), (3, 9, 100), (60, 40, 1000), (1, 0, 1), (20, 30, 50))


def test_intervals_and_tests_of_the_page_are_those_of_records(tab: Tab) -> None:
    for won, lost, items in COUNTS:
        ends = tab.page.evaluate(f"pairs.interval({won}, {lost}, {items})")
        assert ends == pytest.approx(binary_interval(won, lost, items), abs=1e-7), (won, lost, items)
        assert tab.page.evaluate(f"pairs.mcnemar({won}, {lost})") == pytest.approx(mcnemar(won, lost), rel=1e-9)


def test_all_is_within_reach_of_the_keyboard(tab: Tab) -> None:
    page = tab.page
    page.locator("#t-search").focus()
    seen = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
        if page.evaluate("document.activeElement.matches('.fold')"):
            break
    assert {"t-family", "t-board", "t-kind", "t-budget", "t-floor", "pick", "fold"} <= seen
    page.keyboard.press("Enter")
    page.locator(".sheet").wait_for()
    _head(page, "Average %").locator("button").focus()
    page.keyboard.press("Enter")
    assert _head(page, "Average %").get_attribute("aria-sort") == "descending"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


def test_a_phone_shows_it_without_scrolling_sideways(chromium: Any, made: Report) -> None:
    tab = _opened(chromium, made, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    page = tab.page
    page.locator(".fold").nth(1).tap()
    page.locator(".sheet").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    controls = page.locator("select, input[type=search], #plot, #theme")
    assert max(controls.evaluate_all("all => all.map((one) => one.getBoundingClientRect().right)")) <= 390
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").tap()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert tab.complaints == []
    tab.close()


def test_a_watched_page_takes_up_new_records_and_keeps_what_is_chosen(
    chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.watching._CALM", 0)
    first, *rest = board(("synthetic-coarse",), METHODS)
    write_record(first, tmp_path / "records")
    watched = Watched([tmp_path], tmp_path / "report", title="live", floor=0.9)
    watched.refresh()
    with watched.served(0) as address:
        tab = Tab(chromium, address, viewport={"width": 1300, "height": 900})
        page = tab.page
        page.wait_for_selector("#board[data-ready]")
        assert _count(page) == 1
        page.fill("#t-search", "keep=0.5")
        page.check("#t-floor")
        for one in rest:
            write_record(one, tmp_path / "records")
        with page.expect_navigation():
            watched.refresh()
        page.wait_for_selector("#board[data-ready]")
        _until(page, "document.getElementById('t-search').value === 'keep=0.5'")
        _until(page, "/^[1-9] of 10 rows$/.test(document.getElementById('t-count').textContent)")
        assert page.is_checked("#t-floor")
        assert 0 < _count(page) < 10
        assert tab.complaints == []
        assert {url.split("?")[0] for url in tab.requests if not url.startswith("blob:")} == {
            address,
            f"{address}version",
        }
        tab.close()
