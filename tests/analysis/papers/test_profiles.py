"""Figures of statistics: what is drawn, what is written beside it, and the same bytes from the same numbers."""

from __future__ import annotations

import csv
import io

from analysis.papers.profiles import Panel, maps, profiles, scaled, values_text

LINES = Panel("zoo-7b", {"tall": [None, 0.5, 0.9], "small": [0.1, 0.2, 0.3]})
SQUARE = Panel("zoo-7b", {}, [[1.0, 0.25], [0.25, 1.0]])


def test_a_line_is_scaled_from_its_smallest_to_its_largest_value() -> None:
    assert scaled([3.0, None, 1.0, 2.0]) == [1.0, None, 0.0, 0.5]
    assert scaled([2.0, 2.0]) == [0.0, 0.0] and scaled([None]) == [None]


def test_every_number_stands_in_the_file_of_values() -> None:
    rows = list(csv.DictReader(io.StringIO(values_text([LINES, SQUARE]))))
    assert [row["value"] for row in rows] == ["", "0.5", "0.9", "0.1", "0.2", "0.3", "1", "0.25", "0.25", "1"]
    assert rows[7] == {"panel": "zoo-7b", "line": "0", "layer": "1", "value": "0.25"}


def test_the_same_numbers_give_the_same_bytes_with_a_label_at_each_line() -> None:
    drawn = profiles([LINES] * 3, "layer", "mean cosine")
    assert drawn == profiles([LINES] * 3, "layer", "mean cosine") and set(drawn) == {"pdf", "svg", "png"}
    text = drawn["svg"].decode()
    assert text.count(">tall<") == text.count(">small<") == 3 and text.count(">mean cosine<") == 3
    shown = maps([SQUARE], "boundary", "cosine")
    assert shown == maps([SQUARE], "boundary", "cosine") and shown["svg"].decode().count(">boundary<") == 2


def test_all_letters_of_a_figure_have_one_size() -> None:
    for figure in (profiles([LINES], "layer", "y"), maps([SQUARE], "layer", "y")):
        assert {part.partition("px")[0] for part in figure["svg"].decode().split("font-size: ")[1:]} == {"8"}
