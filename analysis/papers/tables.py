"""A paper's table as Markdown, CSV and LaTeX: ours, the paper's, and what lies between them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence

from analysis.formatting import NONE, fixed, interval
from analysis.inference import Z95
from analysis.papers.filling import Cell, Filled, Row
from analysis.papers.sheet import Column, Sheet
from analysis.papers.text_points import point_lines
from analysis.table import latex_cell, markdown_cell
from bench.records.derived import csv_cell

MARKS = {"quoted": "°", "derived": "‡", "lost": "", "first-hand": ""}
"""Signs behind published numbers that nobody read in the paper itself."""

SMALL = (
    "Small models of an invented language stand for the paper's: they neither confirm nor refute its numbers. "
    "What may be compared is the direction of a change, and the order of the rows."
)
"""Said on every table and figure that pocket models were measured for."""

BESIDE = "./"
"""Beginning of the address of a file that lies beside a table or figure."""

Lines = list[list[str]]


def markdown(sheet: Sheet, blocks: Sequence[Filled]) -> str:
    """Return the table with everything that a reader needs beside it.

    Args:
        sheet: what the table is.
        blocks: its models, filled.
    """
    parts = opening(sheet, f"{sheet.title}. Source of the printed numbers: {sheet.source}.") if not sheet.beside else []
    for filled in blocks:
        parts += _block(filled, printed=not sheet.beside)
    return "\n\n".join([*parts, *_notes(sheet, blocks)]) + "\n"


def opening(sheet: Sheet, words: str) -> list[str]:
    """Return the paragraphs before a table or figure: its heading, and what it is.

    Args:
        sheet: what it is.
        words: a sentence that says so.
    """
    if sheet.beside:
        return [f"### Measured on {markdown_cell(sheet.beside)}"]
    small = [SMALL] if sheet.small and SMALL not in sheet.said else []
    return [f"## {heading(sheet)}", words, *small]


def common(small: bool, departs: Sequence[str], untold: Sequence[str]) -> list[str]:
    """Return the paragraphs that a page says once for all its tables and figures.

    Args:
        small: whether small models of another language stand for the paper's.
        departs: how all of it differs from the paper, in sentences.
        untold: settings that the paper leaves open, in sentences.
    """
    parts = [SMALL] * small
    if departs:
        parts.append("All of it differs from the paper in this:\n\n" + _list(map(markdown_cell, departs)))
    if untold:
        parts.append("Left open by the paper:\n\n" + _list(untold))
    return parts


def _list(texts: Iterable[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)


def _notes(sheet: Sheet, blocks: Sequence[Filled]) -> list[str]:
    """Return what is lost, what differs from the paper, what it leaves open, and what is missing here."""
    parts = []
    if sheet.lost and not sheet.beside:
        parts.append("Lost:\n\n" + _list(sheet.lost))
    notes = dict.fromkeys((*sheet.departs, *(note for filled in blocks for row in filled.rows for note in row.notes)))
    if own := [markdown_cell(note) for note in notes if note not in sheet.said]:
        parts.append("How this differs from the paper:\n\n" + _list(own))
    if untold := [text for text in sheet.untold if text not in sheet.said and not sheet.beside]:
        parts.append("Left open by the paper:\n\n" + _list(untold))
    if missing := dict.fromkeys(text for filled in blocks for text in filled.missing):
        parts.append("Not here:\n\n" + _list(map(markdown_cell, missing)))
    return parts


def figure_text(sheet: Sheet, blocks: Sequence[Filled], picture: str | None, captions: Sequence[str] = ()) -> str:
    """Return the section of a figure: the picture with its caption, and what a reader needs beside it.

    Args:
        sheet: what the figure is.
        blocks: its models, filled.
        picture: address of the figure, beside which lie its values; None where there is none.
        captions: what else the caption says, without the full stop.
    """
    parts = opening(sheet, f"{sheet.title}, after {sheet.source}.")
    if picture is not None:
        parts.append(f"![{sheet.title}]({picture})")
        values = picture.rsplit(".", 1)[0] + ".csv"
        said = dict.fromkeys(about(one) for one in blocks if one.items[1])
        told = [*said, "bars: 95 % intervals over the items (1.96 standard errors)"] if said else []
        caption = ". ".join(text[0].upper() + text[1:] for text in (*captions, *told))
        parts.append(f"{caption}. All values: [{values.removeprefix(BESIDE)}]({values}).")
    if lines := point_lines(sheet.told, blocks):
        head = ["told in the text of the paper", "there", "dropped here", "change of the mean here [95 %]", "left, %"]
        parts.append("Points of the text; means here are over other tasks:\n\n" + _grid(head, lines))
    return "\n\n".join([*parts, *_notes(sheet, blocks)]) + "\n"


def latex(sheet: Sheet, blocks: Sequence[Filled]) -> str:
    """Return one ``table`` (package booktabs) for each model: our rows, then the printed ones.

    Args:
        sheet: what the table is.
        blocks: its models, filled.
    """
    lines = ["% needs \\usepackage{booktabs}"]
    for filled in blocks:
        block = filled.block
        parts = [(f"{block.model}, measured", block.columns, _ours)] if block.model else []
        parts.append((f"{block.title}, printed in {sheet.source}", block.paper_columns, _printed))
        if block.model and block.comparable:
            parts.append(("measured minus printed", block.columns, _between))
        for caption, columns, text in parts:
            heads, rows = _cells(filled, columns, text)
            across = len(heads) - 1
            lines += [
                "\\begin{table}",
                f"\\caption{{{latex_cell(f'{heading(sheet)}: {sheet.title}. {caption}.')}}}",
                f"\\begin{{tabular}}{{l{'r' * across}}}",
                "\\toprule",
                " & ".join(map(latex_cell, heads)) + " \\\\",
                "\\midrule",
                *(" & ".join(map(latex_cell, row)) + " \\\\" for row in rows),
                "\\bottomrule",
                "\\end{tabular}",
                "\\end{table}",
            ]
    lines += [f"% {latex_cell(text)}" for text in (*sheet.departs, *sheet.lost)]
    return "\n".join([*lines, ""])


def csv_text(blocks: Sequence[Filled]) -> str:
    """Return one line a cell: ours with error and difference to the base, printed, and ours minus printed; scores in percent."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        [
            "paper_model",
            "model",
            "row",
            "column",
            "measured",
            "stderr",
            "to_base",
            "to_base_low",
            "to_base_high",
            "printed",
            "printed_to_base",
            "mark",
            "measured_minus_printed",
            "low",
            "high",
            "noise",
        ]
    )
    for filled in blocks:
        block = filled.block
        columns = dict.fromkeys(column.name for column in (*block.columns, *block.paper_columns))
        for row in filled.rows:
            for name in columns:
                cell = row.cells.get(name, Cell())
                gap, theirs = cell.difference, cell.published
                change = (None, None, None) if gap is None else (gap.value, gap.low, gap.high)
                numbers = (cell.ours, cell.error, *change, theirs, cell.published_difference)
                mark = row.line.mark if theirs is not None or row.line.mark == "lost" else ""
                who = [csv_cell(text) for text in (block.title, block.model, row.line.label, name)]
                between = _minus(cell) if block.comparable else None
                ends = cell.ends or (None, None)
                rest = (_number(between), *map(_number, ends), " ".join(cell.noise))
                writer.writerow([*who, *map(_number, numbers), mark, *rest])
    return buffer.getvalue()


def heading(sheet: Sheet) -> str:
    """Return the name of a table or figure as a heading."""
    return sheet.name.replace("-", " ").capitalize()


def about(filled: Filled) -> str:
    """Return how many items were scored and which seeds the calibration had, in words."""
    low, high = filled.items
    items = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    tasks = sum(column.kind == "task" for column in filled.block.columns)
    each = f"each of {tasks} tasks" if tasks > 1 else "the task"
    seeds = ", ".join(map(str, filled.seeds)) or "none"
    return f"{items} items of {each}; seeds of the calibration: {seeds}" if high else "nothing scored"


def _block(filled: Filled, printed: bool) -> list[str]:
    block = filled.block
    parts = []
    if block.model and any(row.record is not None for row in filled.rows):
        parts.append(f"### {block.title}, measured on {markdown_cell(block.model)}\n\n{about(filled)}.")
        parts.append(_grid(*_cells(filled, block.columns, _ours)))
    else:
        parts.append(f"### {block.title}")
    if printed and any(row.line.published for row in filled.rows):
        parts.append(f"Printed, {block.title}:\n\n" + _grid(*_cells(filled, block.paper_columns, _printed)))
        signs = {row.line.mark for row in filled.rows if row.line.published} & {"quoted", "derived"}
        told = {"quoted": "° quoted by another paper", "derived": "‡ derived by arithmetic"}
        if signs:
            parts.append(", ".join(told[sign] for sign in sorted(signs, reverse=True)) + ".")
    if block.model and block.comparable and any(row.record is not None for row in filled.rows):
        parts.append(
            "Measured minus printed, in points ± 1.96 standard errors of ours:\n\n"
            + _grid(*_cells(filled, block.columns, _between))
        )
    if changes := _changes(filled):
        parts.append(changes)
    return parts


def _changes(filled: Filled) -> str:
    """Return the change of the mean against the uncompressed model, the paper's beside ours."""
    ours, theirs = filled.block.mean(paper=False), filled.block.mean(paper=True)
    if ours is None or theirs is None:
        return ""
    lines: Lines = []
    for row in filled.rows:
        own, printed = row.cells.get(ours.name, Cell()), row.cells.get(theirs.name, Cell())
        if row.line.method is None or (own.difference is None and printed.published_difference is None):
            continue
        gap = own.difference
        text = "" if gap is None else f"{fixed(gap.value, 1, True)} {interval(gap.low, gap.high, signed=True)}"
        lines.append([row.line.both, fixed(printed.published_difference, 1, True), text or NONE])
    if not lines:
        return ""
    head = ["", "printed", "measured [95 %]"]
    told = "Change of the mean against the uncompressed model, points:\n\n" + _grid(head, lines)
    read = [column for column in filled.block.columns if column.kind == "perplexity"]
    return told + "".join(_order(filled, column, theirs) for column in (ours, *read))


def _order(filled: Filled, ours: Column, theirs: Column) -> str:
    """Return how many pairs of rows lie in the printed order, where two rows print unlike means.

    Args:
        filled: the rows.
        ours: column that orders them here: the mean, or a perplexity, of which less is better.
        theirs: the paper's mean.
    """
    reads = ours.kind == "perplexity"
    values = [
        (-measured if reads else measured, printed)
        for row in filled.rows
        if (measured := row.cells.get(ours.name, Cell()).ours) is not None
        and (printed := row.cells.get(theirs.name, Cell()).published) is not None
    ]
    pairs = [(a, b) for place, a in enumerate(values) for b in values[:place] if a[1] != b[1]]
    same = sum((a[0] - b[0]) * (a[1] - b[1]) > 0 for a, b in pairs)
    tied = sum(a[0] == b[0] for a, b in pairs)
    if len(pairs) < 2:
        return ""
    by = f"By the perplexity on {ours.task}, of" if reads else "Of"
    level = f", {tied} are level here." if tied else "."
    return f"\n\n{by} {len(pairs)} pairs of rows, {same} lie in the printed order{level}"


def _cells(filled: Filled, columns: Sequence[Column], text: Callable[[Row, Column], str]) -> tuple[list[str], Lines]:
    if text is _ours:
        columns = [column for column in columns if column.kind != "speedup" or _is_timed(filled, column)]
    heads = ["", *(column.title for column in columns)]
    rows = [
        [
            row.line.printed_label or row.line.label if text is _printed else row.line.label,
            *(text(row, column) for column in columns),
        ]
        for row in filled.rows
    ]
    return heads, rows


def _is_timed(filled: Filled, column: Column) -> bool:
    """Return whether any compressed model has a ratio; that of the uncompressed one is 1 by definition."""
    return any(row.cells.get(column.name, Cell()).ends is not None for row in filled.rows)


def _ours(row: Row, column: Column) -> str:
    cell = row.cells.get(column.name, Cell())
    text = fixed(cell.ours, _digits(row, column))
    if column.kind == "perplexity" and cell.error:
        return f"{text} ± {fixed(Z95 * cell.error, column.digits)}"
    if cell.ends is None:
        return text
    return f"{text} {interval(*cell.ends, digits=column.digits)}{'~' if cell.noise else ''}"


def _digits(row: Row, column: Column) -> int:
    """Return decimals: those of the paper, more where the number is too small for them."""
    value = row.cells.get(column.name, Cell()).ours
    if column.kind in ("gib", "tflops") and value is not None and value < 1:
        return 4
    return column.digits


def _printed(row: Row, column: Column) -> str:
    value = row.cells.get(column.name, Cell()).published
    if value is None:
        return "lost" if row.line.mark == "lost" else NONE
    return fixed(value, column.digits) + MARKS[row.line.mark]


def _between(row: Row, column: Column) -> str:
    cell = row.cells.get(column.name, Cell())
    between = _minus(cell)
    if between is None:
        return NONE
    text = fixed(between, column.digits, signed=True)
    return text if cell.error is None else f"{text} ± {fixed(Z95 * cell.error, column.digits)}"


def _minus(cell: Cell) -> float | None:
    """Return our number minus the printed one."""
    return None if cell.ours is None or cell.published is None else cell.ours - cell.published


def _grid(heads: Sequence[str], lines: Lines) -> str:
    rows = [[markdown_cell(text) for text in line] for line in (heads, *lines)]
    ruler = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (rows[0], ruler, *rows[1:]))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
