"""A figure that is to be drawn, and what a kind of drawing makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.settings.stage_settings import CalibrationConfig
from sweeps.papers.paper_file import Exhibit
from sweeps.papers.plot_file import PlotFile
from sweeps.papers.recorded import Source
from sweeps.papers.shelf import Paper
from sweeps.papers.stand_in import Conditions, StandIn, conditions

NOWHERE = "its statistics are not in the store"
"""Said of a model whose numbers were never measured."""


@dataclass(frozen=True)
class Wanted:
    """A figure and what it is to be drawn of.

    Args:
        paper: the paper.
        name: of the figure.
        models: that it shows.
        settings: of its runs.
        source: where records come from.
        said: sentences that stand elsewhere on the page.
        beside: the model, where the same figure of other models stands above.
    """

    paper: Paper
    name: str
    models: Sequence[StandIn]
    settings: Conditions
    source: Source
    said: frozenset[str] = frozenset()
    beside: str = ""

    @property
    def exhibit(self) -> Exhibit:
        """What the figure's file says."""
        return self.paper.exhibit(self.name)

    @property
    def plot(self) -> PlotFile:
        """What it says about the drawing."""
        assert self.exhibit.plot is not None
        return self.exhibit.plot

    @property
    def measured(self) -> list[StandIn]:
        """The models that there is something to measure of."""
        return [one for one in self.models if one.model]

    @property
    def without(self) -> tuple[str, ...]:
        """One sentence for each of the paper's models that nothing stands for."""
        return tuple(f"{one.paper.title}: no model stands for it here" for one in self.models if not one.model)


class Drawn(NamedTuple):
    """What a kind of drawing gives.

    Args:
        pictures: by kind of file; empty where nothing was measured.
        numbers: the same as CSV.
        caption: sentences about what was measured.
        departs: how it differs from the paper, beside what the figure's file says.
        missing: one sentence for each thing that is not there.
        runs: CPU seconds of each record that stands in it, by its id.
    """

    pictures: Mapping[str, bytes]
    numbers: bytes
    caption: Sequence[str]
    departs: Sequence[str] = ()
    missing: Sequence[str] = ()
    runs: Mapping[str, float] = {}


def plot_conditions(paper: Paper, exhibit: Exhibit, pocket: bool, given: Mapping[str, Any]) -> Conditions:
    """Return the settings of what a figure runs: those of the paper, but for the tasks where a plot scores others, or none.

    Args:
        paper: the paper.
        exhibit: its figure.
        pocket: whether pocket models are measured.
        given: ``calibration`` and ``evaluation``, each with the fields that a user gave.
    """
    plot = exhibit.plot
    own: dict[str, Any] = {}
    if plot is not None and plot.draws == "loss":
        own = {"tasks": (plot.pocket_task if pocket else plot.task,), "limit": None}
    elif plot is not None and plot.draws != "tasks":
        own = {"tasks": (), "limit": None}
    return conditions(paper, exhibit, pocket, {**given, "evaluation": {**given.get("evaluation", {}), **own}})


def named(one: StandIn) -> str:
    """Return the paper's model with the one that is measured."""
    return f"{one.paper.title} ({one.name})"


def words_of_text(calibration: CalibrationConfig) -> str:
    """Return in words which text statistics are measured on."""
    return (
        f"Measured on {calibration.sequences} windows of {calibration.length} tokens of {calibration.corpus}, "
        f"seed {calibration.seed}."
    )


def differences_of_text(wanted: Wanted) -> list[str]:
    """Return how the text differs from the paper's, in sentences."""
    return [text for text in wanted.settings.differences if text.startswith("calibration.")]
