"""What becomes of a study's front when the search is over: settings of its ordinary runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from bench.settings.stage_settings import EvaluationConfig
from bench.settings.strict import Strict
from bench.settings.timing_settings import TimingConfig

_OF_THE_STUDY = {"tasks": "report", "include_path": "include_path", "dtype": "dtype", "device": "device"}
"""Settings of the evaluation, each with the setting of the study that it has where it is not given."""


class Promotion(Strict):
    """Plans of a study that become ordinary runs."""

    top: int | None = Field(
        default=None, ge=1, description="best plans of one objective, or plans of the front; None: the front, at most 8"
    )
    evaluation: EvaluationConfig = Field(
        default=EvaluationConfig(), description="what is scored; tasks, include_path, dtype and device as in the study"
    )
    timing: TimingConfig = TimingConfig()


def filled(promotion: Mapping[str, Any], study: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a ``Promotion`` with those of the study where they are silent.

    Args:
        promotion: what was given.
        study: settings of the study, as its file or ``config.json`` holds them.
    """
    given = promotion.get("evaluation", {})
    if not isinstance(given, Mapping):
        return dict(promotion)  # which the settings class refuses in its own words
    known = {name: study[own] for name, own in _OF_THE_STUDY.items() if study.get(own) is not None}
    return {**promotion, "evaluation": {**known, **given}}
