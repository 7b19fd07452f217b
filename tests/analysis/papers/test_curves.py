"""Curves of a paper: what they show, and the same bytes from the same records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from analysis.papers.curves import curves, series_of
from analysis.papers.filling import Filled
from analysis.papers.sheet import Line
from tests.analysis.papers.test_filling import BASE, HALF, filled


def points() -> Filled:
    lines: list[Line] = [
        replace(BASE, x=0.0),
        replace(HALF, x=4.0),
        replace(HALF, x=2.0),
        replace(HALF, method="no", x=1.0),
    ]
    return filled(*lines)


def test_a_series_begins_with_the_uncompressed_model_and_goes_from_left_to_right() -> None:
    (line,) = series_of(points()).values()
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
