"""A figure of statistics from settings to files: what is measured or found in the store, and how it is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.papers.profiles import Map, Panel, Profile, maps, profiles, scaled, values_text
from analysis.papers.sheet import Sheet
from analysis.papers.tables import BESIDE, figure_text
from sweeps.papers.measured import Values, measured, text_of
from sweeps.papers.paper_file import Exhibit
from sweeps.papers.shelf import Paper
from sweeps.papers.stand_in import Conditions, StandIn
from sweeps.papers.wanted import Wanted


@dataclass(frozen=True)
class Profiled:
    """What was made of a figure: its part of a page, its files, and what is missing, in sentences."""

    section: str
    files: Mapping[str, bytes]
    missing: tuple[str, ...]


def profiled(wanted: Wanted) -> Profiled:
    """Measure or find what a figure of statistics shows, and draw it.

    Raises:
        MoebenchError: a model or text cannot be read, or a statistic is not defined for a model.
    """
    paper, name, models, settings = wanted.paper, wanted.name, wanted.models, wanted.settings
    exhibit, source = wanted.exhibit, wanted.source
    run = source.run is not None
    found = {one.key: measured(exhibit.statistics, one, settings, source.store, run=run) for one in models}
    panels = [panel for one in models for panel in _panels(exhibit, one, found[one.key], settings)]
    drawn: Mapping[str, bytes] = {}
    if panels:
        drawn = (maps if exhibit.kind == "matrix" else profiles)(panels, exhibit.x, exhibit.y)
    missing = tuple(
        f"{one.paper.title}, {place.label}: "
        + ("its statistics are not in the store" if one.model else "no model stands for it here")
        for one in models
        for place, values in zip(exhibit.statistics, found[one.key], strict=True)
        if values is None
    )
    files = {f"{name}.{kind}": content for kind, content in drawn.items()}
    files |= {f"{name}.csv": values_text(panels).encode()} if drawn else {}
    told = (*_texts(paper, exhibit, models, settings), *exhibit.departs)
    laid = Sheet(
        name,
        exhibit.title,
        paper.file.source,
        (),
        told,
        exhibit.lost,
        exhibit.untold,
        any(one.pocket for one in models),
        wanted.said,
        wanted.beside,
    )
    section = figure_text(laid, (), f"{BESIDE}{name}.svg" if drawn else None, _caption(found))
    return Profiled(section, files, missing)


def _panels(exhibit: Exhibit, one: StandIn, found: Sequence[Values | None], settings: Conditions) -> list[Panel]:
    """Return the panels of one model: one for each matrix, or for lines that share a panel.

    Args:
        exhibit: the figure.
        one: the model.
        found: values of each of its statistics.
        settings: of its calibration.
    """
    title = f"{one.paper.title} ({one.name})"
    matrices: list[Panel] = []
    lines: dict[str, dict[str, Profile]] = {}
    for place, values in zip(exhibit.statistics, found, strict=True):
        if values is None:
            continue
        if exhibit.kind == "matrix":
            matrix: Map = [row for row in values.numbers if isinstance(row, list)]
            matrices.append(Panel(title, {}, matrix))
            continue
        line = [value for value in values.numbers if not isinstance(value, list)]
        label = place.pocket_label if one.pocket and place.pocket_label else place.label
        if not one.pocket and place.label in settings.texts:
            label = Path(settings.texts[place.label]).stem
        lines.setdefault(place.panel, {})[label] = scaled(line) if place.scaled else line
    return matrices or [Panel(f"{title}: {name}" if name else title, line) for name, line in lines.items()]


def _caption(found: Mapping[str, Sequence[Values | None]]) -> list[str]:
    known = [values for of_model in found.values() for values in of_model if values is not None]
    if not known:
        return []
    counts, seeds = sorted({values.tokens for values in known}), sorted({values.seed for values in known})
    tokens = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return [f"means over {tokens} tokens; seeds of the calibration: {', '.join(map(str, seeds))}"]


def _texts(paper: Paper, exhibit: Exhibit, models: Sequence[StandIn], settings: Conditions) -> list[str]:
    """Return in words how the texts differ from the paper's: of the whole figure, then of single lines."""
    own = {field for place in exhibit.statistics for field in (*place.calibration, *place.pocket_calibration)}
    told = [
        text
        for text in settings.differences
        if text.startswith("calibration.") and text.partition(":")[0].removeprefix("calibration.") not in own
    ]
    for place in exhibit.statistics if own else ():
        for one in models:
            theirs = paper.file.calibration.model_copy(update=dict(place.calibration))
            ours = text_of(place, one, settings)
            here, there = (f"{text.sequences} windows of {text.corpus}" for text in (ours, theirs))
            if here != there:
                told.append(f"{place.label}: {here}; the paper: {there}.")
    return list(dict.fromkeys(told))
