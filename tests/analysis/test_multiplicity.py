"""Many comparisons at once: Holm within model and share, and what chance alone would make."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.frame import frame
from analysis.inference import holm
from analysis.report import report
from analysis.summary import notes
from bench.records.record import Record, write_record
from tests.support.pages import held
from tests.support.records import paired, record, score


def _run(method: str, fall: float, keep: float = 0.5, model: str = "synthetic-coarse") -> Record:
    pair = paired(-fall, 0.02, 0.01)
    return record(method, model, knobs={"keep": keep}, scores=(score("a", 0.9 - fall, paired=pair),))


def _records() -> list[Record]:
    bases = [record(None, model, scores=(score("a", 0.9),)) for model in ("synthetic-coarse", "synthetic-fine")]
    runs = [_run("alpha", 0.021), _run("beta", 0.022), _run("gamma", 0.2), _run("alpha", 0.021, keep=0.25)]
    return [*bases, *runs, _run("alpha", 0.021, model="synthetic-fine")]


def test_a_family_is_the_runs_of_a_model_at_one_share() -> None:
    rows = frame(_records()).set_index(["model", "keep", "title"]).sort_index()
    half = rows.loc["synthetic-coarse", 0.5]
    assert half["difference_family"].tolist() == [3, 3, 3]
    assert half["difference_p_holm"].tolist() == pytest.approx(holm(half["difference_p"].tolist()))
    assert (half["difference_p"] < 0.05).tolist() == [True] * 3 and half["survives_holm"].tolist() == [
        False,
        False,
        True,
    ]
    alone = [rows.loc[key] for key in (("synthetic-coarse", 0.25, "Alpha"), ("synthetic-fine", 0.5, "Alpha"))]
    assert [(one["difference_family"], one["survives_holm"]) for one in alone] == [(1, True)] * 2
    assert rows[rows["is_base"]]["survives_holm"].isna().all()


def test_every_table_marks_survivors_and_counts_chance(tmp_path: Path) -> None:
    for one in _records():
        write_record(one, tmp_path / "records")
    made = report(tmp_path / "records", tmp_path / "out", figures=False)
    told = (
        "4 runs are compared with the base: were there no difference at all, up to 0.2 of them would differ by chance "
        "(p < 0.05); 4 do, and 2 survive"
    )
    text = made.markdown.read_text()
    assert told in text.replace("\\<", "<") and "4 task scores are compared with the base's" in text
    assert "[−22.0, −18.0] † |" in text and "[−4.2, −0.2] |" in text
    page = made.page.read_text()
    cells = [text for one in held(page, "rows")["cells"] for text in one["text"]]
    assert told.replace("<", "&lt;") in page and "−20.0 †" in cells and "−2.2" in cells
    assert "survives_holm" in made.csv.read_text() and "$\\dagger$" in made.latex.read_text()
    assert "% 4 runs are compared" in made.latex.read_text()


def test_the_page_says_which_interval_and_which_p(tmp_path: Path) -> None:
    facts = score("a", 0.8, paired=paired(-0.1, 0.05, 0.001))
    text = score("b", 0.8, metric="f1", paired=paired(-0.1, 0.05, 0.001, "bootstrap"))
    old = paired(-0.1, 0.05, 0.001).model_copy(update={"interval": "percentile"})
    base = record(None, scores=tuple(one.model_copy(update={"value": 0.9, "paired": None}) for one in (facts, text)))
    runs = (record(scores=(facts, text)), record("beta", scores=(facts.model_copy(update={"paired": old}), text)))
    for one in (base, *runs):
        write_record(one, tmp_path / "records")
    made = report(tmp_path / "records", tmp_path / "out", figures=False)
    page = made.page.read_text()
    for interval, test in (
        ("score, Wald and exact", "mcnemar"),
        ("expanded bootstrap and t without skewness", "bootstrap"),
        ("bootstrap of an earlier version", "mcnemar"),
    ):
        assert any(line[7:9] == [interval, test] for row in held(page, "details")["rows"] for line in row["tasks"])
        assert f",{test},{interval}," in made.scores.read_text().replace('"', "")
    told = " ".join(notes(0.9))
    assert (
        "Tango" in told
        and "McNemar" in told
        and "expanded percentile bootstrap" in told
        and "exactly where p < 0.05" in told
    )
