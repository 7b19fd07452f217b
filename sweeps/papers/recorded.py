"""Runs of a table or figure: launched or resumed where that is asked for, then read from the store and filled in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from analysis.load import load, records_folder
from analysis.papers.filling import Filled, fill
from analysis.papers.sheet import Sheet
from bench.records.record import Record
from bench.settings.timing_settings import TimingConfig
from sweeps.grid_config import GridConfig
from sweeps.grid_progress import GridResult
from sweeps.papers.asked import Asked
from sweeps.papers.launch import grids, measure
from sweeps.papers.stand_in import Conditions, StandIn

RunGrid = Callable[[GridConfig], GridResult]
"""Runs one grid, shown as the caller wishes."""


class Source(Protocol):
    """Where records come from."""

    @property
    def store(self) -> Path:
        """Folder of records."""
        ...

    @property
    def run(self) -> RunGrid | None:
        """Runs a grid; None: what the store holds is all there is."""
        ...

    @property
    def given(self) -> Mapping[str, Any]:
        """``calibration`` and ``evaluation``, each with the fields that a user gave."""
        ...

    @property
    def machine(self) -> Mapping[str, Any]:
        """``workers`` and ``threads`` of the grids, where given."""
        ...


def filled_blocks(
    laid: Sheet,
    asked_for: Sequence[tuple[StandIn, Sequence[Asked]]],
    settings: Conditions,
    source: Source,
    timing: TimingConfig,
    admitted: Callable[[Record], bool] = lambda record: True,
) -> list[Filled]:
    """Run or find what a table or figure asks for, and return its models, filled.

    Args:
        laid: the table or figure.
        asked_for: its models, each with its rows.
        settings: of its evaluation.
        source: where records come from.
        timing: how speed is measured, or that it is not.
        admitted: whether a record may stand in it.
    """
    only: Collection[str] | None = None
    if source.run is not None:
        configs = [
            config
            for one, rows in asked_for
            for config in grids(rows, one, settings, store=source.store, timing=timing, machine=source.machine)
        ]
        only = measure(configs, source.run)
    records = [record for record in records_of(source.store) if admitted(record)]
    return [fill(block, records, only) for block in laid.blocks]


def records_of(store: Path) -> Sequence[Record]:
    """Return the records of a store, or of a folder of records."""
    folder = records_folder(store)
    return load(folder).records if folder.is_dir() else ()


def runs_of(blocks: Sequence[Filled]) -> dict[str, float]:
    """Return the CPU seconds of each record that stands in a table or figure, by its id."""
    records = [row.record for one in blocks for row in one.rows if row.record is not None]
    return {record.id: sum(record.seconds.values()) for record in records}
