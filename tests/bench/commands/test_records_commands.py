"""``moebench status``, ``show`` and ``compare`` on a store of synthetic records."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.cli import main
from bench.evaluation.items import Items, save_items
from bench.evaluation.paired import mcnemar
from bench.records.record import Record, write_record
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from tests.support.records import record, score

TASK = "synthetic_facts"


def items_of(values: list[float]) -> Items:
    ids = tuple(map(str, range(len(values))))
    return Items(TASK, "acc", "none", "mean", ids, tuple(values), (1.0,) * len(values))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    plan = Plan(family="mixtral", layers=(LayerPlan(experts=(0, 2)), LayerPlan()))
    first = record("reap", scores=(score(TASK, 0.5, n=4),), plan=plan.digest, knobs={"keep": 0.5})
    second = record("random", scores=(score(TASK, 0.25, n=4),))
    failed = record("ean", status="failed", reason="the disk is full", scores=())
    for one in (first, second, failed):
        write_record(one, tmp_path / "records")
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / f"{plan.digest}.json").write_text(plan.dumps())
    save_items([items_of([1, 1, 0, 0])], tmp_path / "items" / first.id)
    save_items([items_of([0, 1, 0, 0])], tmp_path / "items" / second.id)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["moebench", *words])
        with pytest.raises(SystemExit) as ended:
            main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out + printed.err


def named(store: Path, method: str) -> Record:
    found = (Record.model_validate_json(path.read_bytes()) for path in (store / "records").glob("*.json"))
    return next(one for one in found if one.method == method)


def test_status_lists_every_record_and_why_one_failed(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (store / "sweeps" / "first").mkdir(parents=True)
    code, text = said(capsys, "status", str(store))
    assert code == 0
    for path in (store / "records").glob("*.json"):
        assert path.stem in text
    assert "3 records: 2 complete, 1 failed" in text
    assert f"{named(store, 'ean').id} failed: the disk is full" in text
    assert "sweeps: first" in text and "moebench show" in text


def test_show_tells_scores_plan_and_the_command(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = named(store, "reap")
    code, text = said(capsys, "show", shown.id, "--store", str(store))
    assert code == 0 and shown.id in text
    assert "#.#" in text and "all experts stay" in text
    assert "0.5000" in text and TASK in text
    assert "again: moebench run" in text and "--method reap:keep=0.5" in text
    by_file = said(capsys, "show", str(store / "records" / f"{shown.id}.json"))
    assert by_file == (code, text)


def test_compare_pairs_the_items(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = named(store, "reap").id, named(store, "random").id
    code, text = said(capsys, "compare", first, second, "--store", str(store))
    line = next(line for line in text.splitlines() if line.startswith(TASK))
    assert code == 0
    assert line.split()[1:5] == ["acc", "0.5000", "0.2500", "-0.2500"]
    assert f"{mcnemar(0, 1):.3g}" in line.split()
    code, text = said(capsys, "compare", first, named(store, "ean").id, "--store", str(store))
    assert code == 1 and "no score of both" in text


def test_other_items_are_not_compared(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = record("man", scores=(score(TASK, 0.75, n=4, digest="other items"),))
    write_record(other, store / "records")
    code, text = said(capsys, "compare", named(store, "reap").id, other.id, "--store", str(store))
    assert code == 1 and "scored on other items" in text


def test_what_is_not_there_is_one_message_with_the_remedy(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, "show", "nothing", "--store", str(store))
    assert code == 1 and "unknown record 'nothing'" in text and "moebench status" in text
    code, text = said(capsys, "show", "", "--store", str(store))
    assert code == 1 and "give more letters" in text
    code, text = said(capsys, "status", str(store / "nowhere"))
    assert code == 1 and "no record lies in" in text


def test_suggestions_are_five_at_most(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, "methods", "reep")
    assert code == 1 and "did you mean 'reap'?" in text
    listed = text.split("Known: ")[1].split(" and ")[0]
    assert listed.count(",") == 4 and "reap" in listed
