"""Curves of a paper: what they show, and the same bytes from the same records."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from analysis.papers.curves import curves, panels_of
from analysis.papers.filling import Filled, series_of_column
from analysis.papers.sheet import Column, Line, TextPoint
from analysis.papers.text_points import point_lines
from tests.analysis.papers.test_filling import BASE, COLUMNS, HALF, filled, runs
from tests.support.records import score


def points() -> Filled:
    lines: list[Line] = [
        replace(BASE, x=0.0),
        replace(HALF, x=4.0),
        replace(HALF, x=2.0),
        replace(HALF, method="no", x=1.0),
    ]
    return filled(*lines)


def test_a_series_begins_with_the_uncompressed_model_and_goes_from_left_to_right() -> None:
    (line,) = series_of_column(points(), "avg").values()
    assert [(x, cell.ours) for x, cell in line] == [
        (0.0, pytest.approx(80.0)),
        (2.0, pytest.approx(60.0)),
        (4.0, pytest.approx(60.0)),
    ]


def test_the_same_records_give_the_same_bytes() -> None:
    first: dict[str, Any] = curves([points()], "dropped")
    assert set(first) == {"pdf", "svg", "png"} and curves([points()], "dropped") == first
    assert b"zoo-7b" in first["svg"]
    assert curves([filled(BASE, records=[])], "dropped") == {}


def test_lines_are_labelled_at_their_ends_beside_the_uncompressed_model_and_guessing() -> None:
    text = curves([points()], "dropped")["svg"].decode()
    assert text.count(">half<") == text.count(">uncompressed<") == 1 and ">random guess<" not in text
    assert "mean accuracy of 2 tasks, %" in text
    known = points()
    known = replace(known, block=replace(known.block, chance=28.0))
    assert curves([known], "dropped")["svg"].decode().count(">random guess<") == 1


def test_a_point_of_the_text_has_the_change_and_what_is_left_of_the_mean() -> None:
    told = [
        TextPoint("Zoo-7B", "half", 2.0, "half: drop", "9 %"),
        TextPoint("Ape-7B", "half", 2.0, "half: drop", "8 %"),
    ]
    (line,) = point_lines(told, [points()])
    assert line == ["Zoo-7B, half: drop", "9 %", "2", "−20.0 [−21.4, −18.6]", "75.0"], "60 of 80"
    (absent,) = point_lines([replace(told[0], x=3.0)], [points()])
    assert absent[2:] == ["3", "–", "–"]


def test_running_text_has_a_panel_of_its_own_with_the_logarithm_of_the_perplexity() -> None:
    base, half = runs()
    read = [
        one.model_copy(
            update={"scores": (*one.scores, score("zoo_text", value, metric="word_perplexity", stderr=error))}
        )
        for one, value, error in ((base, 8.0, 0.4), (half, 16.0, 0.8))
    ]
    text = Column("text", "Text", "perplexity", "zoo_text")
    lines = (replace(BASE, x=0.0), replace(HALF, x=2.0))
    mean, loss = panels_of(filled(*lines, records=read, columns=(*COLUMNS, text)))
    assert loss.lines["half"] == [
        (0.0, pytest.approx(math.log(8)), pytest.approx(0.05)),
        (2.0, pytest.approx(math.log(16)), pytest.approx(0.05)),
    ]
    assert loss.levels == {"uncompressed": pytest.approx(math.log(8))} and "nats per word" in loss.y
    assert mean.lines["half"][1][:2] == (2.0, pytest.approx(60.0))
