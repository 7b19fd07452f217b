"""Statistics that a figure shows as they are: a number of each layer, or a matrix of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.settings.stage_settings import CalibrationConfig
from bench.settings.strict import validated
from methods.framework.catalogue import CATALOGUE
from methods.framework.errors import ConfigError
from methods.framework.stats import Stats
from sweeps.papers.paper_file import StatisticFile
from sweeps.papers.shown import Question, answer
from sweeps.papers.stand_in import Conditions, StandIn

if TYPE_CHECKING:
    from bench.checkpoint.checkpoint import Checkpoint

_SHOWN: tuple[tuple[str, ...], ...] = ((), ("B", "B"))
"""Axes of the statistics that can be shown."""
Numbers = list[float | None] | list[list[float]]
"""A number of each layer, None where a layer has none, or a matrix of the model."""


@dataclass(frozen=True)
class Values:
    """One statistic of one model on one text.

    Args:
        numbers: its values.
        tokens: that it is a mean over.
        seed: of the text.
    """

    numbers: Numbers
    tokens: int
    seed: int


def text_of(place: StatisticFile, one: StandIn, settings: Conditions) -> CalibrationConfig:
    """Return the text that a statistic is measured on.

    Args:
        place: the statistic.
        one: the model.
        settings: of the figure.
    """
    own = dict(place.pocket_calibration if one.pocket else place.calibration)
    if not one.pocket and place.label in settings.texts:
        own |= {"corpus": settings.texts[place.label], "sequences": settings.calibration.sequences}
    return validated({**settings.calibration.model_dump(), **own}, CalibrationConfig, place.label)


def measured(
    places: Sequence[StatisticFile], one: StandIn, settings: Conditions, store: Path, *, run: bool
) -> list[Values | None]:
    """Return the values of each statistic of a figure; None where they are not kept and nothing may be run.

    Args:
        places: the statistics.
        one: the model.
        settings: of the figure.
        store: folder of what is kept.
        run: whether to measure; without it, the latest that was kept for a model and text of these names is taken.

    Raises:
        MoebenchError: the model or the text cannot be read, or a statistic is not defined for the model.
    """
    texts = [text_of(place, one, settings) for place in places]
    found: list[Values | None] = []
    for place, text in zip(places, texts, strict=True):
        together = frozenset(other.name for other, its in zip(places, texts, strict=True) if its == text)
        got = answer(_question(place.name, together), one, text, store, run=run)
        found.append(None if got is None else Values(got.values, got.tokens, text.seed))
    return found


def _question(name: str, together: frozenset[str]) -> Question:
    if name not in (shown := [one for one in CATALOGUE if CATALOGUE[one].dims in _SHOWN]):
        raise ConfigError(
            f"a figure cannot show statistic {name!r}: it is no number of each layer and no matrix of two places in the "
            f"depth; these are: {', '.join(sorted(shown))}"
        )

    def values(_: Checkpoint, stats: Stats) -> Numbers:
        if CATALOGUE[name].scope == "model":
            return [[float(value) for value in row] for row in np.asarray(stats.model(name))]
        return [None if value is None else float(np.asarray(value).item()) for value in stats.values[name]]

    return Question({"statistic of the model": name}, frozenset({name}), values, together=together)
