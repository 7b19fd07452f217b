"""The report as files: stable bytes, true numbers, a page that loads nothing and runs no one's markup."""

from __future__ import annotations

import csv
import hashlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from analysis.console import LiveRow, live_table, print_leaderboard
from analysis.drawing import render, spread
from analysis.frame import frame
from analysis.load import load
from analysis.page_rows import packed, unpacked
from analysis.published import beside, cells, names, published
from analysis.report import Report, report
from analysis.table import latex, markdown
from bench.records.record import FoundBy, Record, write_record
from methods.framework.errors import ConfigError, RecordError, UnknownNameError
from tests.support.pages import held
from tests.support.records import board, paired, record, refused, score


def _store(folder: Path, records: list[Record]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for one in records:
        write_record(one, folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of a model with all kinds of figures, and of one with too few sizes for a frontier."""
    folder = tmp_path_factory.mktemp("made")
    records = [*board(("synthetic-coarse",)), *board(("synthetic-fine",), methods=("gamma",), keeps=(0.5,), seed=1)]
    return report(_store(folder / "records", records), folder / "out")


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


_AGAIN = """
import sys
from pathlib import Path
import matplotlib
import analysis.console
from analysis.report import report

own = {"font.size": 20, "svg.hashsalt": "other", "axes.grid": False}
matplotlib.rcParams.update(own)
report(Path(sys.argv[1]), Path(sys.argv[2]))
assert {name: matplotlib.rcParams[name] for name in own} == own, "the user's settings are left as they are"
assert not {"torch", "vllm", "transformers", "wandb"} & set(sys.modules)
"""


def test_another_process_with_settings_of_its_own_gives_the_same_bytes_without_torch_or_vllm(
    made: Report, tmp_path: Path
) -> None:
    records = made.page.parent.parent / "records"
    subprocess.run([sys.executable, "-c", _AGAIN, str(records), str(tmp_path / "again")], check=True)
    first = _digests(made.page.parent)
    assert len(first) == 5 + 1 + 3 * 5
    assert _digests(tmp_path / "again") == first


def test_csv_holds_the_numbers_of_the_records(made: Report) -> None:
    records = {one.id: one for one in load(made.page.parent.parent / "records").records}
    rows = list(csv.DictReader(StringIO(made.csv.read_text())))
    assert {row["id"] for row in rows} == set(records)
    for row in rows:
        one = records[row["id"]]
        values = [s.value for s in one.scores if s.metric == "acc"]
        if values:
            assert float(row["average"]) == pytest.approx(sum(values) / len(values), rel=1e-12)
            assert one.cost is not None and int(row["bytes"]) == one.cost.bytes
        else:
            assert row["average"] == "" and row["reason"] == one.reason
    scores = list(csv.DictReader(StringIO(made.scores.read_text())))
    assert len(scores) == sum(len(one.scores) for one in records.values())
    assert {(s["id"], s["task"], float(s["value"])) for s in scores} == {
        (one.id, s.task, s.value) for one in records.values() for s in one.scores
    }


class _Loads(HTMLParser):
    """Collects every attribute that makes a browser load something, and the text of the table's cells."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        loading = ("src", "href", "srcset", "action", "data", "poster")
        self.loads += [value for name, value in attrs if name in loading and value and not value.startswith("data:")]


def test_page_is_self_contained(made: Report) -> None:
    text = made.page.read_text(encoding="utf-8")
    parser = _Loads()
    parser.feed(text)
    assert parser.loads == []
    assert parser.scripts == 8
    assert "default-src 'none'" in text
    styles = "".join(re.findall(r"<style>(.*?)</style>", text, re.S))
    assert styles and "url(" not in styles and "@import" not in styles


def test_page_escapes_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.figures.render", lambda figure: render(figure, ["svg"]))
    evil = "</script><img src=x onerror=alert(1)>"
    records = [
        record(None, model=evil, scores=(score("a", 0.9), score(evil, 0.8))),
        record(
            "alpha",
            model=evil,
            title=evil,
            knobs={"keep": 0.5, "mode": evil},
            scores=(score("a", 0.8), score(evil, 0.7)),
        ),
        refused("beta", model=evil, reason=evil),
    ]
    made = report(_store(tmp_path / "records", records), tmp_path / "out", title=evil)
    text = made.page.read_text(encoding="utf-8")
    assert "<img" not in text
    parser = _Loads()
    parser.feed(text)
    assert parser.scripts == 8 and parser.loads == []
    assert "<img" not in re.sub(r"\\<", "", made.markdown.read_text())
    assert held(text, "data")["boards"][0]["name"] == evil


def test_the_study_that_found_a_plan_is_shown_where_one_did(made: Report, tmp_path: Path) -> None:
    found = FoundBy(study="coarse", trial=17, scores={"nll": 1.25}, budget={"bytes": 0.5})
    records = [record(None), record("alpha", found_by=found, knobs={"knots": [0.12345678, 0.5]}), record("beta")]
    told = report(_store(tmp_path / "records", records), tmp_path / "out")
    lines = {line["title"]: line["found_by"] for line in csv.DictReader(StringIO(told.csv.read_text()))}
    assert lines == {"Uncompressed": "", "Alpha": "coarse #17: nll=1.25, bytes<=0.5", "Beta": ""}
    assert "| found by |" in told.markdown.read_text() and "| coarse \\#17 |" in told.markdown.read_text()
    assert "knots=[0.123457, 0.5]" in told.markdown.read_text()
    page = told.page.read_text()
    hints = [one["hint"] for one in held(page, "rows")["cells"] if "coarse #17" in one["text"]]
    assert "Found by</" in page and any("bytes<=0.5" in text for text in hints[0])
    assert "found by" not in made.markdown.read_text() and "Found by</" not in made.page.read_text()


def test_packed_data_survive_any_text() -> None:
    value = {"a": "</script>&<!--\u2028'\"\\", "b": [1, 2.5, None]}
    assert unpacked(packed(value)) == value
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", packed(value))


def test_page_sorts_by_full_numbers_and_shows_reasons(made: Report) -> None:
    text = made.page.read_text(encoding="utf-8")
    rows = held(text, "rows")
    average = next(one for one in rows["cells"] if any("±" in cell for cell in one["text"]))
    complete = made.frame[made.frame["status"] == "complete"].set_index("id")["average"]
    by_place = sorted(range(len(rows["id"])), key=lambda place: average["place"][place])
    values = [complete[rows["id"][place]] for place in by_place]
    assert values == sorted(values) and len(set(average["place"])) == len(set(values))
    assert any("experts differ per layer" in one.get("hint", ()) for one in rows["cells"])
    assert "needs &lt;two&gt; shared experts" in text


def test_empty_folder_and_foreign_files(tmp_path: Path) -> None:
    folder = tmp_path / "records"
    folder.mkdir()
    (folder / "old.json").write_text('{"schema": 7, "id": "x"}')
    (folder / "cut.json").write_text('{"schema": 1, "id"')
    made = report(folder, tmp_path / "out")
    assert len(made.frame) == 0 and made.figures == ()
    assert [name for name in ("cut.json", "old.json") if any(name in text for text in made.messages)] == [
        "cut.json",
        "old.json",
    ]
    assert any("No records here yet" in text for text in made.messages)
    assert "No records here yet" in made.page.read_text() and "No records here yet" in made.markdown.read_text()


def test_missing_folder_and_bad_floor_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no folder"):
        report(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(ConfigError, match="between 0 and 1"):
        report(tmp_path, tmp_path / "out", floor=90)
    assert not (tmp_path / "out").exists()


def test_only_base_and_only_failures(tmp_path: Path) -> None:
    base = report(_store(tmp_path / "base", [record(None)]), tmp_path / "out1")
    assert any("Only the uncompressed model" in text for text in base.messages) and base.figures == ()
    bad = report(
        _store(tmp_path / "bad", [refused(), record("beta", status="failed", reason="out of memory", scores=())]),
        tmp_path / "out2",
    )
    assert any("No run completed" in text for text in bad.messages)
    assert "out of memory" in bad.markdown.read_text() and "out of memory" in bad.page.read_text()


def test_several_folders_count_a_run_once(tmp_path: Path) -> None:
    first = _store(tmp_path / "one", [record(None), record()])
    second = _store(tmp_path / "two", [record(), record("beta")])
    assert len(load([first, second]).records) == 3
    third = _store(tmp_path / "three", [record(group="elsewhere", id=record().id)])
    loaded = load([first, third])
    assert len(loaded.records) == 2 and "same id" in loaded.problems[0]


def test_stores_of_several_people_are_told_apart(tmp_path: Path) -> None:
    names = ("anna/runs", "ben/runs")
    for name, one in zip(names, (record(None), record("reap")), strict=True):
        write_record(one, tmp_path / name / "records")
    merged = report([tmp_path / name / "records" for name in names], tmp_path / "out", figures=False)
    page, text = merged.page.read_text(), merged.markdown.read_text()
    facts = {row["run"]: dict(row["facts"]) for row in held(page, "details")["rows"]}
    assert sorted(one["From"] for one in facts.values()) == list(names)
    assert "### Stores" in text and all(name in text and name in page for name in names)
    alone = report(tmp_path / "anna" / "runs" / "records", tmp_path / "out", figures=False)
    assert "### Stores" not in alone.markdown.read_text() and "anna" not in alone.page.read_text()


def test_run_without_its_base_is_told(tmp_path: Path) -> None:
    made = report(_store(tmp_path / "records", [record()]), tmp_path / "out")
    assert any("cannot be compared with its base" in text for text in made.messages)


def test_figures_hold_ink_and_are_of_their_kind(made: Report) -> None:
    from PIL import Image

    drawn = {path.name: path.read_bytes() for path in made.figures}
    models = ("synthetic-coarse", "synthetic-fine")
    stems = {"quality_vs_size", "speed_vs_flops", "frontier_synthetic-coarse", *(f"damage_{one}" for one in models)}
    assert set(drawn) == {f"{stem}.{kind}" for stem in stems for kind in ("pdf", "svg", "png")}
    for name, content in drawn.items():
        if name.endswith("pdf"):
            assert content.startswith(b"%PDF") and b"CreationDate" not in content
        elif name.endswith("svg"):
            assert b"<svg" in content and b"dc:date" not in content
        else:
            image = Image.open(BytesIO(content)).convert("RGB")
            assert 0.01 < (np.asarray(image) < 250).any(axis=2).mean() < 0.9
            assert len(image.getcolors(1 << 24) or ()) > 50
    assert b"synthetic_stories" in drawn["damage_synthetic-coarse.svg"]
    assert b"Gamma" in drawn["quality_vs_size.svg"]


def test_labels_are_spread_without_changing_order() -> None:
    rng = np.random.default_rng(5)
    for count in (1, 2, 9):
        wanted = rng.uniform(0, 1, count).tolist()
        placed = spread(wanted, 0.1)
        order = np.argsort(wanted)
        gaps = np.diff(np.asarray(placed)[order])
        assert (gaps >= 0.1 - 1e-12).all()
    assert spread([0.0, 0.5, 0.9], 0.1) == [0.0, 0.5, 0.9]
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])


def test_markdown_and_latex_mark_the_best_of_each_model() -> None:
    """The first of the coarse model is far ahead; those of the fine one are alike, so that none of them is the best."""
    made = []
    for model, loss in (
        ("synthetic-coarse", {"alpha": 0.01, "beta": 0.2}),
        ("synthetic-fine", {"alpha": 0.1, "beta": 0.11}),
    ):
        made += [record(None, model, scores=(score("a", 0.9),))]
        made += [
            record(method, model, timing=None, scores=(score("a", 0.9 - fall, paired=paired(-fall, 0.02, 0.01)),))
            for method, fall in loss.items()
        ]
    rows = frame(made)
    for text, mark in ((markdown(rows), "**"), (latex(rows), r"\textbf{")):
        coarse, fine = text.split("synthetic-coarse")[1].split("synthetic-fine")
        assert f"{mark}89.0" in next(line for line in coarse.splitlines() if "Alpha" in line)
        assert mark not in fine and "79.0" in fine
    rows = frame(board())
    tabular = [line for line in latex(rows).splitlines() if line.endswith("\\\\") and "multicolumn" not in line]
    assert len({line.count("&") for line in tabular}) == 1


def test_published_tables_carry_source_and_unit() -> None:
    assert len(names()) == 34
    for name in names():
        table = published(name)
        assert len(table) and table[["source", "model", "unit"]].notna().all().all()
        head, lines = cells(table)
        assert all(len(line) == len(head) for line in lines)
    found = published("reap_T2").set_index(["model", "ratio", "method"])
    assert found.loc[("Qwen3-30B-A3B", 50, "REAP"), "code_avg"] == 0.541
    with pytest.raises(UnknownNameError, match="reap_T2"):
        published("reap_t2")


def test_published_numbers_stand_beside_the_same_model_only(tmp_path: Path) -> None:
    assert set(beside("deepseek-ai/deepseek-moe-16b-base")) >= {"d2moe_T2", "heapr_readme", "holistic_T3_recipe"}
    assert beside("pocket-coarse") == {}
    of_diep = {"diep_T1_mixtral", "diep_T3_T4", "diep_T1_additions"}
    others = {"grape_T1", "diversifying_rows_quoted", "moe_pruner_T2_wikitext"}
    assert beside("Mixtral-8x22B").keys() == of_diep | others
    ours = [record(None, model="Mixtral-8x7B-v0.1"), record(model="Mixtral-8x7B-v0.1")]
    made = report(_store(tmp_path / "records", ours), tmp_path / "out", figures=False)
    assert "Printed elsewhere" in made.page.read_text()
    assert len(made.frame) == 2 and "D2-MoE" not in made.csv.read_text()


def test_console_prints_every_run_and_reason() -> None:
    records = [*board(), record("alpha", id="f" * 16, status="failed", reason="[bold]not markup", scores=())]
    for width in (60, 140):
        console = Console(width=width, record=True, file=StringIO())
        print_leaderboard(frame(records), console)
        text = console.export_text()
        assert text.count("Gamma") == 6 and "needs <two>" in text and "[bold]not" in text
    console = Console(width=80, record=True, file=StringIO())
    print_leaderboard(frame([]), console)
    assert "No records here yet" in console.export_text()


def test_live_table_keeps_what_runs() -> None:
    rows = [
        *(LiveRow("m", f"done{i}", "complete", 0.5, 0.9, 1.0) for i in range(9)),
        LiveRow("m", "[now]", "evaluate"),
        *(LiveRow("m", f"later{i}", "waiting") for i in range(9)),
    ]
    console = Console(width=100, record=True, file=StringIO())
    console.print(live_table(rows, height=6))
    text = console.export_text()
    assert "[now]" in text and "done8" in text and "done0" not in text and "later0" not in text
    assert "9 of 19 runs ended, 13 not shown" in text
