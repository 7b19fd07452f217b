"""Settings of a run, strict: an unknown key is an error with the closest match."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from bench.settings.method_settings import MethodConfig, RecipeConfig
from bench.settings.recovery import RecoverySettings
from bench.settings.stage_settings import TRUST, CalibrationConfig, EvaluationConfig
from bench.settings.strict import Extended
from bench.settings.timing_settings import TimingConfig


class RunConfig(Extended):
    """Everything that determines the results of ``moebench run``."""

    later: ClassVar[tuple[str, ...]] = ("trust_remote_code",)

    model: str = Field(description="folder, hub id[@revision] or pocket model")
    revision: str | None = Field(default=None, description="hub branch, tag or commit")
    trust_remote_code: bool = Field(default=False, description=TRUST)
    methods: tuple[MethodConfig, ...] = ()
    recipes: tuple[RecipeConfig, ...] = ()
    plans: tuple[Path, ...] = Field(
        default=(), description="plan files, each written and measured as a method's plan is"
    )
    calibration: CalibrationConfig = CalibrationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    timing: TimingConfig = TimingConfig()
    recovery: RecoverySettings | None = Field(
        default=None, description="training of every compressed model; None: none"
    )
    target: str | None = Field(
        default=None,
        description="engine that must run the results: a plan that it cannot is refused before work is spent",
    )
    group: str = Field(default="run", description="label of runs that belong together")
