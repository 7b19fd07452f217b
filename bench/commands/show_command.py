"""``moebench show``: one record in full, and the command that makes it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.commands.printing import console, print_rows

if TYPE_CHECKING:
    from bench.records.record import Record, Timing


def show(
    record: Annotated[str, typer.Argument(help="id of a record or its beginning, or a record's file")],
    store: Annotated[Path, typer.Option(help="store that the record lies in")] = Path("runs"),
) -> None:
    """Print what was made of which model, how it scored and how fast it is, its plan, and how to make it again."""
    from rich.markup import escape

    from bench.records.again import command, open_ends
    from bench.records.plan_map import LEGEND, drawn_plan
    from bench.records.run_contents import Beginning
    from bench.records.stored import stored_record
    from bench.records.usual import default_knobs, source_of

    found, home = stored_record(record, store)
    out = console()
    out.print(f"[bold]{escape(Beginning.of(found).name)}[/]", highlight=False)
    for name, value in _facts(found, source_of(found.method or "")).items():
        out.print(f"{name:<12} {value}", markup=False, highlight=False, soft_wrap=True)
    _print_scores(found)
    if found.timing is not None:
        _print_timing(found.timing)
    drawn = drawn_plan(home / "plans" / f"{found.plan}.json") if found.plan and found.method else None
    if drawn:
        out.print(f"\nplan ({LEGEND})", markup=False, highlight=False, soft_wrap=True)
        for line in drawn:
            out.print(line, markup=False, highlight=False, soft_wrap=True)
    out.print(f"\nagain: {command(found, default_knobs(found.method))}", markup=False, highlight=False, soft_wrap=True)
    if ends := open_ends(found):
        out.print(f"not told by the record: {'; '.join(ends)}", markup=False, highlight=False, soft_wrap=True)


def _facts(record: Record, source: str) -> dict[str, str]:
    """Return what a reader asks first, by name."""
    facts = {"record": record.id, "status": record.status + (f": {record.reason}" if record.reason else "")}
    facts |= {"made": record.created, "group": record.group, "source": source}
    if record.corpus is not None:
        facts["text"] = f"{record.corpus.name}, {record.corpus.tokens:,} tokens in {record.corpus.sequences} sequences"
    if record.cost is not None:
        facts["size"] = f"{record.cost.bytes / 2**20:,.1f} MiB, {record.cost.parameters:,} parameters"
        facts["size"] += f", {record.cost.active_parameters:,} of them active"
    if record.ratios is not None and record.method:
        facts["removed"] = f"{record.ratios.bytes:.1%} of the bytes, {record.ratios.expert:.1%} of routed parameters"
    if record.recovery is not None:
        facts["training"] = f"{record.recovery.kind}, {record.recovery.tokens:,} tokens of {record.recovery.corpus}"
    if record.found_by is not None:
        facts["found by"] = record.found_by.study
    if record.environment is not None:
        facts["on"] = record.environment.device
    return {name: value for name, value in facts.items() if value}


def _print_scores(record: Record) -> None:
    if not record.scores:
        return
    rows = []
    for score in record.scores:
        pair = score.paired
        against = "" if pair is None else f"{pair.difference:+.4f} [{pair.low:+.4f}, {pair.high:+.4f}]"
        error = "" if score.stderr is None else f"{score.stderr:.4f}"
        cells = (score.task, score.metric, f"{score.value:.4f}", error, str(score.n), against)
        rows.append((*cells, "" if pair is None else f"{pair.p:.3g}"))
    console().print()
    print_rows(("task", "metric", "score", "±", "n", "against the base, 95 %", "p"), rows)


def _print_timing(timing: Timing) -> None:
    if timing.reason:
        console().print(f"\nnot timed: {timing.reason}", markup=False, highlight=False, soft_wrap=True)
    for batch in timing.batches:
        told = f"\nbatch {batch.batch}: decode {batch.decode.median:,.1f} tokens/s"
        if (ratio := batch.decode_ratio) is not None:
            told += f", {ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] times the base's"
        if batch.marks:
            told += f" ({', '.join(batch.marks)})"
        console().print(told, markup=False, highlight=False, soft_wrap=True)
