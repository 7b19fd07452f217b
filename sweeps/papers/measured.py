"""Statistics that figures show, measured once for each model and text, as plain numbers that analysis can draw."""

from __future__ import annotations

from bench.settings.stage_settings import CalibrationConfig
from bench.settings.strict import validated
from sweeps.papers.paper_file import StatisticFile
from sweeps.papers.stand_in import Conditions, StandIn


def calibration_of(place: StatisticFile, one: StandIn, settings: Conditions) -> CalibrationConfig:
    """Return the text that a statistic is measured on.

    Args:
        place: the statistic.
        one: the model.
        settings: of the figure.
    """
    own = place.pocket_calibration if one.pocket else place.calibration
    return validated({**settings.calibration.model_dump(), **own}, CalibrationConfig, place.label)
