"""``moebench paper``: a table or figure of a paper, ours beside the printed numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.checkpoint.source import at_revision
from bench.commands.options import DEFAULT_STORE, RevisionOption, TrackOption
from bench.commands.printing import console
from bench.commands.setting_options import Given, Part, with_settings
from bench.settings.stage_settings import CalibrationConfig, EvaluationConfig

if TYPE_CHECKING:
    from sweeps.grid_config import GridConfig
    from sweeps.grid_progress import GridResult
    from sweeps.papers.fitted import Shape

KEPT = (
    "records of finished runs and the stages of unfinished ones are kept in the store; "
    "the same command goes on from there"
)
"""Said on Ctrl-C."""
ALL = "all"
"""Name that stands for every table and figure of a paper, and for their page."""


@with_settings(
    Part(CalibrationConfig, ("corpus", "sequences", "length", "seed"), key="calibration", panel="Calibration"),
    Part(
        EvaluationConfig,
        ("tasks", "include_path", "limit", "dtype", "max_length"),
        key="evaluation",
        panel="Evaluation",
    ),
)
def paper(
    given: Given,
    name: Annotated[str, typer.Argument(help="of the paper; `moebench papers` lists them")],
    exhibit: Annotated[str, typer.Argument(help=f"table-N, figure-N, or {ALL} for the whole page")],
    model: Annotated[
        str, typer.Option(help="folder or hub id; pocket: small models in place of the paper's")
    ] = "pocket",
    revision: RevisionOption = None,
    place: Annotated[
        str | None, typer.Option(help="the paper's model that it stands for, or several in order; else by its family")
    ] = None,
    texts: Annotated[
        str | None, typer.Option(help="LABEL=CORPUS,... for lines of a figure that have texts of their own")
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(help="what the model is; writes sections that the page of the pocket models takes up"),
    ] = None,
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
    from sweeps.papers.beside import read_beside, spelled, write_beside
    from sweeps.papers.making import Made, Order, make, page, whole, write
    from sweeps.papers.shelf import read_paper
    from sweeps.papers.stand_in import POCKET

    known, model = read_paper(name), at_revision(model, revision)
    names = list(known.exhibits) if exhibit == ALL else [exhibit]
    family, shape = (None, None) if model == POCKET else _form(model)
    show: Callable[[GridConfig], GridResult] | None = None
    results: list[GridResult] = []
    if taken_from is None:
        from sweeps.grid_terminal import show_grid

        def shown(config: GridConfig) -> GridResult:
            results.append(show_grid(config, track, console()))
            return results[-1]

        show = shown

    timing = TimingConfig(enabled=time)
    order = Order(
        model,
        place,
        family,
        taken_from or store,
        show,
        timing,
        given,
        {"workers": workers},
        shape=shape,
        texts=_by_label(texts),
        beside=beside,
    )
    for one in names:
        known.exhibit(one)
    if beside is not None:
        names = [one for one in names if known.exhibit(one).kind != "told"]
    paragraphs: list[str] = []
    if exhibit == ALL and beside is None:
        order, paragraphs = whole(known, order)
    sections: dict[str, Made] = {}
    for one in names:
        made = sections[one] = make(known, one, order)
        if beside is None:
            paths = write(made, one, out / name, alone=exhibit != ALL)
        else:
            command = spelled(name, one, model, place, texts, given)
            section = f"{made.section}\nMeasured with `{command}`.\n"
            paths = write_beside(section, made.files, one, out / name / Path(model).name, beside)
        for path in paths:
            console().print(path, soft_wrap=True, highlight=False)
        for text in made.missing:
            console().print(f"not here: {text}", soft_wrap=True, highlight=False, markup=False)
    if exhibit == ALL and beside is None:
        text = page(known, sections, paragraphs, read_beside(out / name))
        written = write_derived(out / f"{name}.md", text.encode())
        console().print(written, soft_wrap=True, highlight=False)
    if any(result.counts["failed"] or result.counts["cancelled"] for result in results):
        raise typer.Exit(1)


def _form(model: str) -> tuple[str, Shape]:
    """Return family and shape of a model."""
    from bench.library.opening import open_checkpoint
    from sweeps.papers.fitted import Shape

    inventory = open_checkpoint(model).inventory
    return inventory.family, Shape.of(inventory)


def _by_label(texts: str | None) -> dict[str, str]:
    """Return texts by the label of their line."""
    from methods.framework.errors import ConfigError

    pairs = [text.partition("=") for text in filter(None, (texts or "").split(","))]
    if wrong := [label for label, equal, corpus in pairs if not (label and equal and corpus)]:
        raise ConfigError(f"--texts: {wrong[0]!r} names no text; spell each as LABEL=CORPUS, with commas between")
    return {label: corpus for label, _, corpus in pairs}
