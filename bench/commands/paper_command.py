"""``moebench paper``: a table or figure of a paper, ours beside the printed numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.commands.options import DEFAULT_STORE, TrackOption
from bench.commands.printing import console
from bench.commands.setting_options import Given, Part, with_settings
from bench.settings.stage_settings import CalibrationConfig, EvaluationConfig

if TYPE_CHECKING:
    from sweeps.grid_config import GridConfig
    from sweeps.grid_progress import GridResult

KEPT = (
    "records of finished runs and the stages of unfinished ones are kept in the store; "
    "the same command goes on from there"
)
"""Said on Ctrl-C."""
ALL = "all"
"""Name that stands for every table and figure of a paper, and for their page."""


@with_settings(
    Part(CalibrationConfig, ("corpus", "sequences", "length", "seed"), key="calibration", panel="Calibration"),
    Part(EvaluationConfig, ("tasks", "include_path", "limit", "dtype"), key="evaluation", panel="Evaluation"),
)
def paper(
    given: Given,
    name: Annotated[str, typer.Argument(help="of the paper; `moebench papers` lists them")],
    exhibit: Annotated[str, typer.Argument(help=f"table-N, figure-N, or {ALL} for the whole page")],
    model: Annotated[
        str, typer.Option(help="folder or hub id; pocket: small models in place of the paper's")
    ] = "pocket",
    place: Annotated[str | None, typer.Option(help="the paper's model that it stands for; else by its family")] = None,
    store: Annotated[Path, typer.Option(help="folder of records and cached artefacts")] = DEFAULT_STORE,
    taken_from: Annotated[
        Path | None, typer.Option("--from", help="draw from this store alone and run nothing")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("papers"),
    time: Annotated[bool, typer.Option(help="measure speed, too")] = False,
    workers: Annotated[int, typer.Option(help="processes")] = 1,
    track: TrackOption = None,
) -> None:
    """Run or resume the rows of a table, or the points of a figure, and write it as printed; exit with 1 where a run failed."""
    from bench.records.derived import write_derived
    from bench.settings.timing_settings import TimingConfig
    from sweeps.papers.making import Made, Order, make, page, whole, write
    from sweeps.papers.shelf import read_paper
    from sweeps.papers.stand_in import POCKET

    known = read_paper(name)
    names = list(known.exhibits) if exhibit == ALL else [exhibit]
    family = None if model == POCKET else _family(model)
    show: Callable[[GridConfig], GridResult] | None = None
    results: list[GridResult] = []
    if taken_from is None:
        from sweeps.grid_terminal import show_grid

        def shown(config: GridConfig) -> GridResult:
            results.append(show_grid(config, track, console()))
            return results[-1]

        show = shown

    timing = TimingConfig(enabled=time)
    order = Order(model, place, family, taken_from or store, show, timing, given, {"workers": workers})
    for one in names:
        known.exhibit(one)
    paragraphs: list[str] = []
    if exhibit == ALL:
        order, paragraphs = whole(known, order)
    sections: dict[str, Made] = {}
    for one in names:
        made = sections[one] = make(known, one, order)
        for path in write(made, one, out / name, alone=exhibit != ALL):
            console().print(path, soft_wrap=True, highlight=False)
        for text in made.missing:
            console().print(f"not here: {text}", soft_wrap=True, highlight=False, markup=False)
    if exhibit == ALL:
        written = write_derived(out / f"{name}.md", page(known, sections, paragraphs).encode())
        console().print(written, soft_wrap=True, highlight=False)
    if any(result.counts["failed"] or result.counts["cancelled"] for result in results):
        raise typer.Exit(1)


def _family(model: str) -> str:
    from bench.library.opening import open_checkpoint

    return open_checkpoint(model).inventory.family
