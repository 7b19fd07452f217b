"""Similarity of experts in tables and figures, and merging against selection: planted numbers come out as they went in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.drawing import style
from analysis.inference import Z95
from analysis.report import report
from analysis.similarity import Likeness, drawn_ones, grouping, likenesses, matrix, similarity_block
from analysis.similarity_figures import similarity_figure, similarity_figures
from analysis.study import study_page
from analysis.study_layout import lay_out
from analysis.study_merging import MEASURES, merging, merging_figure, merging_tables
from bench.records.record import CorpusInfo, Record, Score, SimilarityInfo, write_record
from tests.support.records import paired, record, score


def layer(place: int, mean: float, pairs: str | None = "30 20 10", name: str = "output_cka") -> SimilarityInfo:
    """Return the comparison of three experts in one layer."""
    return SimilarityInfo(statistic=name, layer=place, experts=3, mean=mean, pairs=pairs)


def run(method: str, value: float, seed: int = 0, model: str = "coarse", **changes: Any) -> Record:
    """Return a run at half of the experts, a little apart by seed, with an error of half a point."""
    corpus = CorpusInfo(name="zoo", digest=f"zoo {seed}", tokens=64, sequences=2, propagation="one_shot")
    value += 0.002 * seed
    changes.setdefault("scores", (score("zoo_facts", value, paired=paired(value - 0.95, 1.96 * 0.005, 0.5)),))
    return record(
        method,
        model,
        id=f"{method}-{model}-{seed}",
        knobs={"keep": 0.5},
        corpus=corpus,
        seeds={"calibration": seed},
        plan=f"{method} {seed}",
        **changes,
    )


def compared(mean: float, seed: int = 0, model: str = "coarse", value: float = 0.7) -> Record:
    """Return a run of a merging method that compared experts in two layers: means ``mean`` and 0.1 above it."""
    layers = (layer(1, mean), layer(2, mean + 0.1, "50 40 30"), layer(1, 0.01, "1 1 1", "output_cosine"))
    return run("merger", value, seed, model, similarity=layers, groups={1: (2, 1), 2: (2, 1)})


def study_records() -> list[Record]:
    """Return two models: on the coarse one merging loses ten points to the better selection, on the alike one it is level."""
    records = []
    for model, similarity, merged in (("coarse", 0.2, 0.7), ("alike", 0.6, 0.8)):
        records.append(record(None, model, id=f"base-{model}", scores=(score("zoo_facts", 0.95),)))
        for seed in range(3):
            records += [run("alpha", 0.8, seed, model), run("beta", 0.75, seed, model)]
            records.append(run("gamma", 0.805, seed, model, replaced=4))
            records.append(compared(similarity + 0.01 * seed, seed, model, merged))
    return records


def write(folder: Path, records: list[Record]) -> Path:
    folder.mkdir()
    for one in records:
        write_record(one, folder)
    return folder


def test_pairs_become_a_symmetric_matrix() -> None:
    expected = [[1.0, 0.3, 0.2], [0.3, 1.0, 0.1], [0.2, 0.1, 1.0]]
    np.testing.assert_allclose(matrix(layer(0, 0.2)), expected)
    assert matrix(layer(0, -0.1, "-30 0 0", "output_cosine"))[0, 1] == -0.3


def test_texts_are_averaged_and_the_same_text_counts_once() -> None:
    twice = compared(0.2).model_copy(update={"id": "another row that read it"})
    failed = compared(0.9, 2).model_copy(update={"status": "failed"})
    cka, cosine = likenesses([compared(0.2), twice, compared(0.3, 1), failed, run("alpha", 0.8)])
    assert (cka.model, cka.statistic, cka.corpus, len(cka.texts)) == ("coarse", "output_cka", "zoo", 2)
    assert cka.layers == {1: pytest.approx(0.25), 2: pytest.approx(0.35)}
    assert cka.overall.value == pytest.approx(0.3) and cka.overall.half == pytest.approx(0.05 * 12.7062, rel=1e-4)
    np.testing.assert_allclose(cka.matrices[2][0], [1.0, 0.5, 0.4])
    assert cosine.statistic == "output_cosine" and list(cosine.layers) == [1]
    assert drawn_ones([cka, cosine]) == [cka], "one figure for a model and text"
    assert similarity_block([cka]).rows == (
        ("coarse", "3", "linear CKA of outputs", "zoo", "0.300 ± 0.635", "0.250 to 0.350", "2"),
    )


def test_a_layer_without_pairs_counts_in_the_mean_and_is_not_drawn() -> None:
    wide = run("merger", 0.7, similarity=(layer(0, 0.4, None), layer(1, 0.2)))
    (one,) = likenesses([wide])
    assert one.overall.value == pytest.approx(0.3) and list(one.matrices) == [1]
    (bare,) = likenesses([run("merger", 0.7, similarity=(layer(0, 0.4, None),))])
    with style():
        assert similarity_figures([bare]) == {}


def test_all_panels_have_one_scale() -> None:
    (one, _) = likenesses([compared(0.2)])
    with style():
        figure = similarity_figure(one)
    images = [image for axes in figure.axes for image in axes.get_images()]
    assert [image.get_clim() for image in images] == [(0.0, 1.0)] * 2
    assert np.isnan(np.diag(images[0].get_array().filled(np.nan))).all(), "an expert is not compared with itself"
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["layer 1: 0.20", "layer 2: 0.30"]


def test_figures_of_two_texts_have_names_of_their_own() -> None:
    other = CorpusInfo(name="zoo:facts", digest="f", tokens=64, sequences=2, propagation="one_shot")
    second = compared(0.2, 1).model_copy(update={"corpus": other})
    with style():
        assert set(similarity_figures(likenesses([compared(0.2)]))) == {"similarity_coarse"}
        names = set(similarity_figures(likenesses([compared(0.2), second])))
    assert names == {"similarity_coarse_zoo_content-", "similarity_coarse_zoo_facts_content-"}


def test_sizes_of_groups_are_told_over_layers_and_runs() -> None:
    found = grouping(
        [run("m", 0.7, groups={0: (5, 1, 1, 1), 1: (3, 3, 1, 1)}), run("m", 0.7, groups={0: (4, 2, 1, 1)})]
    )
    assert found is not None
    assert found.told == "largest 4.0 (3 to 5), 2.3 of 4.0 alone"
    assert grouping([run("alpha", 0.8)]) is None


def test_merging_is_held_against_the_best_that_only_selects() -> None:
    found = merging(lay_out(study_records()))
    assert [(one.model, one.label) for one in found] == [
        ("alike", "Gamma"),
        ("alike", "merger"),
        ("coarse", "Gamma"),
        ("coarse", "merger"),
    ]
    assert all(list(one.by) == ["average"] for one in found), "no run has a perplexity"
    gaps = [one.by["average"] for one in found]
    assert [gap.rival for gap in gaps] == ["Alpha"] * 4
    assert [round(gap.against.value, 3) for gap in gaps] == [0.5, 0.0, 0.5, -10.0]
    assert [gap.separated for gap in gaps] == [False, False, False, True]
    assert [one.groups is None for one in found] == [True, False, True, False], "who replaces makes no groups"


def test_perplexity_has_a_best_selection_of_its_own() -> None:
    def both(accuracy: float, perplexity: float) -> tuple[Score, Score]:
        text: dict[str, Any] = {"metric": "word_perplexity", "higher_is_better": False, "stderr": 0.01}
        gap = paired(perplexity - 2.0, 1.96 * 0.01, 0.5, "bootstrap")
        return score("zoo_facts", accuracy), score("zoo_ppl", perplexity, paired=gap, **text)

    scores = {"alpha": both(0.9, 5.0), "beta": both(0.8, 4.0), "merger": both(0.7, 3.0), "poor": both(0.6, 8.0)}
    bare = tuple(one.model_copy(update={"paired": None}) for one in both(0.95, 2.0))
    records = [record(None, "coarse", id="base", scores=bare)]
    for method, own in scores.items():
        merged = {1: (2, 1)} if method in ("merger", "poor") else {}
        records += [run(method, 0.0, seed, scores=own, groups=merged) for seed in range(2)]
    by = {one.label: one.by for one in merging(lay_out(records))}
    assert [(by["merger"][measure].rival) for measure in MEASURES] == ["Alpha", "Beta"]
    lower = by["merger"]["perplexity"].against
    assert lower.value == pytest.approx(25.0) and by["poor"]["perplexity"].against.value == pytest.approx(-100.0)
    half = Z95 * math.hypot(0.01 / 3, 0.01 / 4)
    assert lower.low == pytest.approx(100 * (1 - 0.75 * math.exp(half))) and by["merger"]["perplexity"].separated


def test_the_table_goes_by_similarity_and_what_is_separated_is_bold() -> None:
    records = study_records()
    heading, text = merging_tables(merging(lay_out(records)), likenesses(records))
    lines = text.splitlines()[2:]
    assert heading == "### keep 0.5"
    assert [line.split(" | ")[0] for line in lines] == ["| coarse", "| coarse", "| alike", "| alike"]
    assert (
        "| 0.26 | merger | largest 2.0 (2 to 2), 1.0 of 2.0 alone | **−10.0 [−11.4, −8.6]** | Alpha | – | – |" in text
    )
    assert "| 0.66 | Gamma | replaced, not merged | +0.5 [" in text


def test_the_figure_needs_two_models_that_were_compared() -> None:
    records = study_records()
    found, alike = merging(lay_out(records)), likenesses(records)
    with style():
        figure = merging_figure(found, alike)
        assert merging_figure(found, [one for one in alike if one.model == "alike"]) is None
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["coarse\nsimilarity 0.26", "alike\nsimilarity 0.66"]
    heights = sorted(line.get_ydata()[0] for line in axes.lines if line.get_marker() not in ("None", "_", "|", ""))
    assert heights == pytest.approx([-10.0, 0.0, 0.5, 0.5])


def test_report_and_study_show_it_where_a_run_measured_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "records", study_records())
    page = study_page(folder, tmp_path / "study")
    text, names = page.page.read_text(), {path.name for path in page.figures}
    assert "## Similarity of experts" in text and "## Merging against selection" in text
    assert {"similarity_coarse.svg", "similarity_alike.svg", "merging.svg", "merging.png"} <= names
    for link in [part.split(")")[0] for part in text.split("](")[1:]]:
        assert (page.page.parent / link).is_file(), link
    written = report(folder, tmp_path / "report")
    assert "| alike | 3 | linear CKA of outputs | zoo | 0.660 ± 0.025 |" in written.markdown.read_text()
    assert "similarity_alike.pdf" in {path.name for path in written.figures}
    bare = report(write(tmp_path / "bare", [run("alpha", 0.8)]), tmp_path / "bare report")
    assert "Similarity of experts" not in bare.markdown.read_text()
    assert not any("similarity" in path.name for path in bare.figures)


def test_a_likeness_of_weights_has_no_text() -> None:
    weights = run("merger", 0.7, similarity=(layer(0, 0.5, name="weight_cka"),)).model_copy(update={"corpus": None})
    (one,) = likenesses([weights])
    assert isinstance(one, Likeness) and one.corpus == ""
    assert similarity_block([one]).rows[0][2:5] == ("linear CKA of weights", "–", "0.500")
