"""The leaderboard as text: Markdown, LaTeX and CSV."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.columns import COLUMNS
from analysis.formatting import NONE, fixed, interval, known, p_value, percent, significant, size
from analysis.knobs import shown_knobs
from analysis.multiplicity import runs_by_chance
from analysis.plain_rows import rows_of
from analysis.separation import best
from bench.records.derived import csv_cell

Row = Mapping[str, Any]
DENSE = "dense"
"""What stands where a speed would, if the engine held values or zeros in the place of the compressed form."""


@dataclass(frozen=True)
class Field:
    """A column of the text tables.

    Args:
        value: what the best of a model is chosen by, the largest, if it is separated from the others; None: no best.
    """

    head: str
    text: Callable[[Row], str]
    value: str | None = None


def run_name(row: Row) -> str:
    """Return the method with its knobs, and with its calibration text where runs differ in it."""
    settings = settings_text(row)
    return f"{row['title']} ({settings})" if settings else str(row["title"])


def settings_text(row: Row) -> str:
    """Return the knobs of a run, with what else tells it from others of its board.

    Of a recipe what its steps keep is shown, and nothing of a training, since titles name its kind.
    """
    shown = shown_knobs(text_of(row["method"]), text_of(row["knobs"]))
    return "; ".join(text for text in (shown, text_of(row["variant"])) if text)


def average_text(row: Row) -> str:
    """Return the average in percent with its standard error, or with its interval over seeds where it is such a mean."""
    if known(row["seeds"]) and row["seeds"] > 1 and known(row["average"]):
        return f"{percent(row['average'], row['average_seeds'])} ({row['seeds']} seeds)"
    return percent(row["average"], row["average_error"])


def text_of(value: object) -> str:
    """Return a text cell, empty where it is missing."""
    return value if isinstance(value, str) else ""


def rank_text(row: Row) -> str:
    """Return the rank, with ``≈`` where the next rank is within noise, ``?`` where it was measured with other seeds."""
    if bool(row["is_base"]):
        return "base"
    if not known(row["rank"]):
        return NONE
    mark = " ?" if row["next_other_seeds"] is True else " ≈" if row["tie_next"] is True else ""
    return f"{row['rank']}{mark}"


def speed_text(row: Row, name: str) -> str:
    """Return a speed ratio with its interval and marks, ``dense`` where no speed is claimed, or a dash where there is none."""
    if is_dense(row):
        return DENSE
    if not known(row[f"{name}_ratio"]):
        return NONE
    text = fixed(row[f"{name}_ratio"], 2)
    ends = interval(row[f"{name}_ratio_low"], row[f"{name}_ratio_high"], 1.0, 2)
    return " ".join(part for part in (text, ends, text_of(row["timing_marks"])) if part)


def is_dense(row: Row) -> bool:
    """Tell whether a run was timed with values or zeros in the place of its compressed form, so that its speed says nothing."""
    return bool(row["timing_realisation"] == DENSE)


def found_text(row: Row) -> str:
    """Return study and trial that found a run's plan, a dash where none did."""
    return text_of(row["found_by"]).partition(": ")[0] or NONE


def difference_text(row: Row) -> str:
    """Return the difference to the base in points with its interval and ``difference_marks``."""
    text = percent(row["difference"], signed=True)
    ends = interval(row["difference_low"], row["difference_high"], 100.0, 1, True)
    return " ".join(part for part in (text, ends, difference_marks(row)) if part)


def difference_marks(row: Row) -> str:
    """Return ``†`` where the difference survives Holm within model and share, ``°`` where an interval is an earlier version's."""
    return ("†" if row["survives_holm"] is True else "") + ("°" if row["old_intervals"] is True else "")


FIELDS: tuple[Field, ...] = (
    Field("rank", rank_text),
    Field("method", run_name),
    Field("found by", found_text),
    Field("keep %", lambda r: percent(r["keep"])),
    Field("size", lambda r: size(r["bytes"])),
    Field("average %", average_text, "average"),
    Field("retention %", lambda r: percent(r["retention"]) + (" ▼" if r["below_floor"] is True else ""), "retention"),
    Field("Δ to base, points", difference_text),
    Field("p", lambda r: p_value(r["difference_p"])),
    Field("tasks worse", lambda r: str(r["worse"]) if known(r["worse"]) else NONE),
    Field("perplexity, base/run", lambda r: fixed(r["perplexity_retention"], 3), "perplexity_retention"),
    Field("prefill ×", lambda r: speed_text(r, "prefill"), "prefill_ratio"),
    Field("decode ×", lambda r: speed_text(r, "decode"), "decode_ratio"),
)


def boards(frame: pd.DataFrame) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield a heading and the complete runs of each board, in the order of ``frame``."""
    complete = frame[(frame["status"] == "complete").astype(bool)]
    headings = board_names(frame)
    by_board: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of(complete):
        by_board.setdefault(row["board"], []).append(row)
    for board, rows in by_board.items():
        yield headings[board], rows


def board_names(frame: pd.DataFrame) -> dict[str, str]:
    """Return a heading for each board of complete runs: the model's name, with what tells it from its namesakes."""
    complete = frame[(frame["status"] == "complete").astype(bool)][["board", "model", "content"]]
    complete = complete.drop_duplicates("board")
    headings = {}
    for row in complete.to_dict("records"):
        same = complete[complete["model"] == row["model"]]
        name = str(row["model"])
        if same["content"].nunique() > 1:
            name += f" [{str(row['content'])[:8]}]"
        if (same["content"] == row["content"]).sum() > 1:
            name += f" (tasks {str(row['board']).rsplit(':', 1)[-1]})"
        headings[str(row["board"])] = name
    return headings


def fields_of(rows: list[dict[str, Any]]) -> list[Field]:
    """Return the fields that hold something in at least one of ``rows``."""
    return [field for field in FIELDS if any(field.text(row).strip() not in ("", NONE) for row in rows)]


def _is_best(field: Field, row: Row, bests: Mapping[str, str]) -> bool:
    return field.value is not None and bests.get(field.value) == row["id"]


def markdown(frame: pd.DataFrame) -> str:
    """Return one Markdown table a board, in bold what is separated as the best of its column, with what chance would do."""
    parts = []
    for heading, rows in boards(frame):
        fields, bests = fields_of(rows), best(rows)
        lines = [[field.head for field in fields]]
        for row in rows:
            texts = [(field, markdown_cell(field.text(row))) for field in fields]
            lines.append([f"**{text}**" if _is_best(field, row, bests) else text for field, text in texts])
        rule = ["---" if field.head == "method" else "---:" for field in fields]
        body = "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])
        told = runs_by_chance(rows)
        parts.append(f"### {markdown_cell(heading)}\n\n{body}\n" + (f"\n{markdown_cell(told)}\n" if told else ""))
    return "\n".join(parts)


def markdown_cell(text: str) -> str:
    """Return ``text`` in one line, with what Markdown or a table would read as markup escaped."""
    escaped = "".join("\\" + letter if letter in "\\`*_[]<>|#" else letter for letter in text)
    # Brackets of intervals stay, but none may become a link or a picture.
    plain = escaped.replace("\\[", "[").replace("\\]", "]").replace("](", "]\\(").replace("![", "\\![")
    return " ".join(plain.split())


def latex(frame: pd.DataFrame) -> str:
    """Return one ``tabular`` (package booktabs) over all boards, in bold what is separated as the best of its column."""
    fields = fields_of([row for _, rows in boards(frame) for row in rows])
    if not fields:
        return "% no complete run\n"
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{{''.join('l' if field.head == 'method' else 'r' for field in fields)}}}",
        "\\toprule",
        " & ".join(latex_cell(field.head) for field in fields) + " \\\\",
    ]
    for heading, rows in boards(frame):
        bests = best(rows)
        lines += ["\\midrule", f"\\multicolumn{{{len(fields)}}}{{l}}{{\\textit{{{latex_cell(heading)}}}}} \\\\"]
        for row in rows:
            texts = [(field, latex_cell(field.text(row))) for field in fields]
            shown = [f"\\textbf{{{text}}}" if _is_best(field, row, bests) else text for field, text in texts]
            lines.append(" & ".join(shown) + " \\\\")
        lines += [f"% {latex_cell(told)}" for told in (runs_by_chance(rows),) if told]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


_LATEX = {
    **{letter: "\\" + letter for letter in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "−": "$-$",
    "±": "$\\pm$",
    "≈": "$\\approx$",
    "▼": "$\\downarrow$",
    "†": "$\\dagger$",
    "°": "$^\\circ$",
    "Δ": "$\\Delta$",
    "×": "$\\times$",
    "–": "--",
    "<": "$<$",
    ">": "$>$",
}


def latex_cell(text: str) -> str:
    """Return ``text`` in one line, with what LaTeX would read as markup escaped."""
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def csv(frame: pd.DataFrame) -> str:
    """Return all columns of ``frame`` but those for figures as CSV: full precision, fractions of 1, empty where missing."""
    buffer = io.StringIO()
    hidden = [column.name for column in COLUMNS if not column.in_tables]
    shown = frame.drop(columns=hidden, errors="ignore")
    neutral(shown).to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue()


def neutral(frame: pd.DataFrame) -> pd.DataFrame:
    """Return ``frame`` without text, in cells or heads, that a spreadsheet would run."""
    texts = frame.select_dtypes(exclude=["number", "bool"]).columns
    cells = {name: frame[name].map(csv_cell, na_action="ignore") for name in texts}
    return frame.assign(**cells).rename(columns=csv_cell)


def task_error(score: Row) -> Any:
    """Return what stands behind ±: a score's standard error, or half of its interval over seeds where it is such a mean."""
    return score["seed_half"] if score["seeds"] > 1 else score["stderr"]


def task_text(value: float | None, error: float | None, accuracy: bool) -> str:
    """Return the score of one task: percent with its error, or a perplexity in three digits.

    Args:
        value: score of the task.
        error: what stands behind ± (see ``task_error``), in the unit of the score.
        accuracy: whether the score is a fraction of 1.
    """
    if accuracy:
        return percent(value, error)
    text = significant(value)
    return f"{text} ± {significant(error, 2)}" if known(error) and error else text
