"""The page of a study: who is separated from whom, and what it says about planted results."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from analysis.study import StudyPage, study_page
from analysis.study_cells import Cell, contrast, leaders
from analysis.study_domains import matrices
from analysis.study_layout import lay_out
from analysis.study_text import rank_block, steady, twins, winner
from bench.records.record import CorpusInfo, Record, write_record
from methods.framework.errors import RecordError
from tests.support.records import paired, record, refused, score

DOMAINS = ("facts", "sums", "stories")
Z = 1.959963984540054


def run(method: str, keep: float, values: dict[str, float], seed: int, **changes: Any) -> Record:
    """Return a run on three domains and one generative task, with an error of half a point on each difference."""
    text = changes.pop("text", "zoo")
    model = changes.pop("model", "synthetic-coarse")
    scores = tuple(
        score(
            f"zoo_{name}",
            value,
            paired=paired(value - 0.95, Z * 0.005, 0.5),
            metric="exact_match" if name.endswith("_gen") else "acc",
        )
        for name, value in values.items()
    )
    corpus = CorpusInfo(name=text, digest=f"{text} {seed}", tokens=64, sequences=2, propagation="one_shot")
    fields: dict[str, Any] = {"corpus": corpus, "seeds": {"calibration": seed}, "scores": scores, **changes}
    fields.setdefault("plan", f"{method} {keep} {seed} {text}")
    name = hashlib.sha256(repr((method, keep, seed, text, model, changes.get("knobs"))).encode()).hexdigest()[:16]
    return record(method, model, **{"id": name, "knobs": {"keep": keep}, **fields})


def level(value: float, seed: int = 0) -> dict[str, float]:
    """Return the same score on every task, a little apart by seed."""
    return {name: value + 0.002 * seed for name in (*DOMAINS, "sums_gen")}


def base(model: str = "synthetic-coarse") -> Record:
    names = (*DOMAINS, "sums_gen")
    kinds = ["exact_match" if name.endswith("_gen") else "acc" for name in names]
    return record(
        None, model, scores=tuple(score(f"zoo_{n}", 0.95, metric=k) for n, k in zip(names, kinds, strict=True))
    )


def planted() -> list[Record]:
    """Return a study in which alpha wins at 0.5, alpha and beta are alike at 0.25, and facts alone destroy sums."""
    records = [base()]
    for seed in range(3):
        for method, half, quarter in (("alpha", 0.9, 0.6), ("beta", 0.8, 0.6), ("random", 0.7, 0.3)):
            records.append(run(method, 0.5, level(half, seed), seed))
            records.append(run(method, 0.25, level(quarter, seed), seed))
        for method, loss in (("alpha", 0.4), ("beta", 0.6)):
            hurt = {**level(0.9 if method == "alpha" else 0.8, seed)}
            hurt |= {"sums": hurt["sums"] - loss, "facts": hurt["facts"] + 0.03}
            records.append(run(method, 0.5, hurt, seed, text="zoo:facts"))
    return [*records, refused()]


def test_contrast_goes_seed_by_seed() -> None:
    first = Cell({(0,): 0.70, (1,): 0.80, (2,): 0.93}, 0.01)
    second = Cell({(0,): 0.68, (1,): 0.79, (2,): 0.90}, 0.02)
    gaps = [0.02, 0.01, 0.03]
    half = t.ppf(0.975, 2) * np.std(gaps, ddof=1) / math.sqrt(3)
    found = contrast(first, second)
    assert found.value == pytest.approx(0.02)
    assert found.high - found.value == pytest.approx(math.hypot(half, Z * math.hypot(0.01, 0.02)))
    other = contrast(first, Cell({(0,): 0.68, (1,): 0.79}, 0.02))
    wide = math.hypot(first.mean.half or 0, over := Cell({(0,): 0.68, (1,): 0.79}, 0.0).mean.half or 0)
    assert over > 0 and other.high - other.value == pytest.approx(math.hypot(wide, Z * math.hypot(0.01, 0.02)))
    fixed = Cell({(): 0.5}, 0.0)
    assert fixed.seedless and contrast(fixed, fixed).high == 0


def test_contrast_separates_equal_methods_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    wrong, trials = 0, 1000
    for _ in range(trials):
        shared = rng.normal(0, 0.05, 3)  # a text that is bad for all
        cells = [
            Cell({(s,): shared[s] + item + rng.normal(0, 0.01) for s in range(3)}, 0.01)
            for item in rng.normal(0, 0.01, 2)
        ]
        found = contrast(*cells)
        wrong += found.low > 0 or found.high < 0
    assert 0.001 <= wrong / trials <= 0.06


def test_leaders_are_the_best_and_all_not_separated_from_it() -> None:
    cells = [Cell({(): value}, 0.01) for value in (0.50, 0.60, 0.59, 0.40)]
    assert leaders([*cells, None]) == {1, 2}
    assert leaders([cells[1], cells[3]]) == {0}
    assert leaders([None]) == set()


def test_tables_hold_the_planted_results() -> None:
    study = lay_out(planted())
    assert study.corpus == "zoo" and study.models == ["synthetic-coarse"]
    assert [(table.keep, [entry.method for entry in table.entries]) for table in study.tables] == [
        ("0.5", ["alpha", "beta", "random"]),
        ("0.25", ["alpha", "beta", "random"]),
    ]
    half, quarter = study.tables
    assert [study.short.get(column, column) for column in half.columns] == ["", "facts", "stories", "sums", "sums_gen"]
    assert half.leading[""] == {0} and quarter.leading[""] == {0, 1}
    mean = half.entries[0].cells[""]
    assert mean is not None and (mean.mean.value, mean.mean.n) == (pytest.approx(0.902), 3)
    assert "**Alpha** has the highest average, 90.2 ± 0.5 %, and is separated from every other: +10.0" in winner(half)
    assert winner(quarter).endswith("not separated from it: Beta (2 of 3 methods lead).")


def test_nothing_separated_is_said_so() -> None:
    alike = [base(), *(run(method, 0.5, level(0.8, seed), seed) for method in ("alpha", "beta") for seed in range(3))]
    table = lay_out(alike).tables[0]
    assert "nothing is separated from it: none of 2 methods can be called the best" in winner(table)


def test_mean_ranks_share_places_and_count_what_is_separated() -> None:
    text, told = rank_block(lay_out(planted()))
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    assert lines == [
        ["Alpha", "1.2", "1 to 1.5", "2", "2", "2", "0"],
        ["Beta", "1.8", "1.5 to 2", "2", "1", "2", "0"],
        ["random", "3.0", "3 to 3", "2", "0", "0", "0"],
    ]
    assert told[0].startswith("Of 2 cells (model and share), 1 have a winner that is separated from all others; in 0")
    assert told[1].startswith("Of 6 pairs of methods in the same cell, 5 (83 %) are separated")


def test_who_is_steady_and_who_decides_the_same() -> None:
    study = lay_out(planted())
    assert steady(study) == [
        "Most often among the best: Alpha, in 2 of 2 cells.",
        "Most often separated from the random control for the better: Alpha and Beta, in 2 of 2 cells.",
    ]
    assert twins(study.tables[0]) == ""
    same = [base(), *(run(m, 0.5, level(0.8, s), s, plan=f"plan {s}") for m in ("alpha", "beta") for s in range(2))]
    assert twins(lay_out(same).tables[0]) == "The same decisions with every seed: Alpha = Beta."
    swapped = [
        one.model_copy(update={"plan": "plan 5"}) if one.seeds == {"calibration": 1} else one for one in same[:3]
    ]
    assert twins(lay_out([*swapped, *same[3:]]).tables[0]) == ""


def test_one_domain_against_all() -> None:
    (matrix,) = matrices(lay_out(planted()))
    assert (matrix.model, matrix.keep, matrix.domains, matrix.methods) == (
        "synthetic-coarse",
        "0.5",
        ("facts",),
        ("Alpha", "Beta"),
    )
    assert matrix.change("facts", "zoo_sums") == pytest.approx(-0.5)
    assert matrix.of("Alpha").change("facts", "zoo_sums") == pytest.approx(-0.4)
    assert matrix.home("facts") == pytest.approx(0.03)
    assert matrix.away("facts") == pytest.approx(-0.5 / 3)
    assert matrix.is_home("sums", "zoo_sums_gen") and not matrix.is_home("sums", "zoo_stories")


def _write(folder: Path, records: list[Record]) -> Path:
    for one in records:
        write_record(one, folder)
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> StudyPage:
    """The page of what was planted."""
    folder = tmp_path_factory.mktemp("planted")
    return study_page(_write(folder / "records", planted()), folder / "out")


def test_the_page_says_what_was_planted(written: StudyPage) -> None:
    text = written.page.read_text()
    assert "| Alpha | 3 | **90.2 ± 0.5** |" in text and "| Beta | 3 | 80.2 ± 0.5 |" in text
    assert "| uncompressed | – | 95.0 |" in text
    assert "the worst harm is that of facts to sums, −50.0 points over 2 methods" in text
    assert "it destroys sums (−50.0)" in text and "Beta suffers most (−20.0 points) and Alpha least (−13.3)" in text
    assert "Separated from the random control: 2 of 2 methods for the better, 0 for the worse." in text
    assert "| 1 | synthetic-coarse | Gamma | refused | needs \\<two\\> shared experts |" in text
    for link in [part.split(")")[0] for part in text.split("](")[1:]]:
        assert (written.page.parent / link).is_file(), link
    assert {path.suffix for path in written.figures} == {".svg", ".png"} and len(written.figures) == 2 * 4
    scores = list(csv.DictReader(written.scores.open()))
    row = next(r for r in scores if (r["keep"], r["method"], r["task"]) == ("0.5", "alpha", "average"))
    assert (float(row["mean"]), row["seeds"], row["leads"]) == (pytest.approx(0.902), "3", "True")
    pairs = {(r["keep"], r["first"], r["second"]): r for r in csv.DictReader(written.pairs.open())}
    assert len(pairs) == 2 * 3, "three methods, two shares"
    far, near = pairs["0.5", "Alpha", "Beta"], pairs["0.25", "Alpha", "Beta"]
    assert float(far["difference"]) == pytest.approx(0.1) and far["separated"] == "True"
    assert float(near["low"]) < 0 < float(near["high"]) and near["separated"] == "False"
    assert written.domains is not None
    changes = {(r["method"], r["task"]): float(r["change"]) for r in csv.DictReader(written.domains.open())}
    assert changes["beta", "zoo_sums"] == pytest.approx(-0.6)


def test_the_same_records_give_the_same_bytes(written: StudyPage, tmp_path: Path) -> None:
    again = study_page(written.page.parent.parent / "records", tmp_path)
    files = ((one.page, one.scores, *one.figures) for one in (written, again))
    for first, second in zip(*files, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_methods_with_and_without_seeds_stand_side_by_side(tmp_path: Path) -> None:
    free = run("beta", 0.5, level(0.8), 0, corpus=None)
    runs = [run("alpha", 0.5, level(0.9, seed), seed) for seed in range(3)]
    text = study_page(_write(tmp_path / "r", [base(), free, *runs]), tmp_path / "o", figures=False).page.read_text()
    assert "| Beta | – | 80.0 | 80.0 |" in text and "Rows by their seeds: 0, 1, 2 in 1; none that matters in 1." in text


def test_knobs_are_named_only_where_runs_differ_in_them() -> None:
    def one(scope: str) -> Record:
        return run("alpha", 0.5, level(0.8), 0, knobs={"keep": 0.5, "scope": scope, "score": "full"})

    labels = {entry.label for entry in lay_out([base(), one("layerwise"), one("global")]).tables[0].entries}
    assert labels == {"Alpha, scope layerwise", "Alpha, scope global"}


@pytest.mark.parametrize("records", [list, lambda: [base()], lambda: [refused()]], ids=["none", "base", "refused"])
def test_without_a_compressed_run_there_is_no_page(tmp_path: Path, records: Callable[[], list[Record]]) -> None:
    (tmp_path / "r").mkdir()
    with pytest.raises(RecordError, match="run `moebench grid` first"):
        study_page(_write(tmp_path / "r", records()), tmp_path / "o")
