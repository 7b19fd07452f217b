"""``moebench promote``: the front of a study, or its best plans, become ordinary runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bench.commands.options import DEFAULT_STORE, EVALUATION_OPTIONS, StoreOption, TrackOption
from bench.commands.setting_options import Given, Part, with_settings
from bench.settings.run_settings import RunConfig
from bench.settings.stage_settings import CalibrationConfig, EvaluationConfig

KEPT = "finished checkpoints, scores and timings are kept in the store; the same command goes on from there"
"""Said on Ctrl-C."""


@with_settings(
    Part(RunConfig, ("target",)),
    Part(EvaluationConfig, ("device",), "evaluation"),
    Part(CalibrationConfig, ("device",), "calibration"),
    Part(EvaluationConfig, EVALUATION_OPTIONS, "evaluation", panel="Evaluation"),
)
def promote(
    given: Given,
    study: Annotated[str, typer.Argument(help="name of a sweep in the store, or its folder")],
    top: Annotated[
        int | None,
        typer.Option(min=1, help="best trials of one objective, or plans of the front; default: the front, at most 8"),
    ] = None,
    plan: Annotated[list[Path], typer.Option(help="plan file instead of the study's; may be repeated")] = [],  # noqa: B006  # typer reads it
    timing: Annotated[bool | None, typer.Option("--time/--no-time", help="time under vLLM")] = None,
    store: StoreOption = DEFAULT_STORE,
    track: TrackOption = None,
) -> None:
    """Write, score, time and record the plans, with the study's model and calibration."""
    promote_study(study, store, track, top=top, plans=plan, given=_timed(given, timing))


def promote_study(study: str, store: Path, track: str | None, **options: Any) -> None:
    """Run plans of a study under a live table.

    Args:
        study: name of a sweep in the store, or its folder.
        store: folder of the store.
        track: W&B mode, None for the default.
        options: those of ``promoted_run``.
    """
    from bench.commands.live import run_with_table
    from sweeps.promoted_runs import promoted_run

    run_with_table([promoted_run(study, store, **options)], store, track)


def _timed(given: Given, timing: bool | None) -> Given:
    return given if timing is None else {**given, "timing": {"enabled": timing}}
