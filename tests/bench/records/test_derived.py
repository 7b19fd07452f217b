"""Cells of exported tables hold text, never something that a spreadsheet or a page would run."""

from __future__ import annotations

import io
from typing import Any

import pandas as pd
import pytest

from analysis.table import csv, markdown_cell
from bench.records.derived import csv_cell
from sweeps.outcome import TrialRow, _csv

HOSTILE = ["=1+1", "+cmd|' /C calc'!A0", "-2+3+cmd", "@SUM(A1)", "\t=1", "\r=1", " =1"]


@pytest.mark.parametrize("text", HOSTILE)
def test_formulas_are_text(text: str) -> None:
    neutral = "'" + text.replace("\r", "\n")
    assert csv_cell(text) == neutral
    read = pd.read_csv(io.StringIO(csv(pd.DataFrame({text: [text], "keep": [-0.5]}))))
    assert [cell for cell in (*read.columns, *read.iloc[0]) if str(cell).lstrip().startswith(tuple("=+@"))] == []
    assert read["keep"][0] == -0.5
    assert neutral in _csv([TrialRow(0, "failed", reason=text)]).replace('"', "")


@pytest.mark.parametrize("value", [-1.5, "-1.5", "+3", "-inf", None, "plain", "a=1", ""])
def test_numbers_and_plain_text_stay(value: Any) -> None:
    assert csv_cell(value) == value


def test_markdown_cells_hold_no_markup() -> None:
    assert markdown_cell("a|b`c`<script>") == r"a\|b\`c\`\<script\>"
    assert "](" not in markdown_cell("[click](javascript:alert(1))")
    assert not markdown_cell("![x](http://host/pixel.png)").startswith("![")
    assert markdown_cell("1.2 [0.9, 1.5]") == "1.2 [0.9, 1.5]"
