"""``moebench track``: the mirror of what a store holds already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.options import TrackOption
from bench.commands.printing import console

KEPT = "what was mirrored is not sent again; the same command goes on"
"""Said on Ctrl-C."""


def track(
    store: Annotated[Path, typer.Argument(help="folder of records")],
    project: Annotated[str, typer.Option(help="W&B project")] = "moebench",
    group: Annotated[str | None, typer.Option(help="W&B group; default: that of each record")] = None,
    mode: TrackOption = None,
) -> None:
    """Mirror every record that was not mirrored yet, and an overview of each model and group."""
    from bench.commands.live import tracker_of
    from bench.records.overview_run import track_overview
    from bench.records.record import read_records
    from bench.running.stored_plans import plan_text
    from bench.store.store import Store
    from methods.framework.errors import RecordError

    kept = Store(store)
    records = list(read_records(kept.records))
    if not records:
        raise RecordError(f"{kept.records} holds no records; name the store of a run, such as `runs`")
    bases = {(record.group, record.model.content): record for record in records if record.method is None}
    sent = 0
    with tracker_of(mode, store) as tracker:
        tracker.project, tracker.group = project, group
        for record in records:
            base = bases.get((record.group, record.model.content))
            sent += tracker.track(record, plan_text(record, kept), base) is not None
        sent += len(track_overview(records, tracker))
        told = f"{sent} runs of W&B, {len(records)} records; those that were mirrored before are left alone"
    console().print(told, soft_wrap=True, highlight=False)
    if tracker.mode == "offline":
        console().print(f"next: `wandb sync {tracker.runs}/offline-run-*` sends them", soft_wrap=True, highlight=False)
