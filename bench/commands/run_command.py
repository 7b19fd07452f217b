"""``moebench run``: one model by several methods or plan files, each applied, evaluated, timed, recorded and tracked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bench.commands.options import (
    CORPUS_OPTIONS,
    DEFAULT_STORE,
    EVALUATION_OPTIONS,
    ROOM_OPTIONS,
    StoreOption,
    TrackOption,
    method_names,
)
from bench.commands.setting_options import Given, Part, with_settings
from bench.settings.method_settings import expand, parse_method
from bench.settings.run_settings import RunConfig
from bench.settings.stage_settings import CalibrationConfig, EvaluationConfig
from bench.settings.strict import read_settings, validated

_CALIBRATION = (*CORPUS_OPTIONS, "propagation", *ROOM_OPTIONS)

KEPT = "finished statistics, checkpoints, scores and timings are kept in the store; the same command goes on from there"
"""Said on Ctrl-C."""


@with_settings(
    Part(RunConfig, ("model", "revision", "trust_remote_code", "group", "target")),
    Part(EvaluationConfig, ("device",), "evaluation"),  # of both; described by the wider of the two texts
    Part(CalibrationConfig, _CALIBRATION, "calibration", panel="Calibration"),
    Part(EvaluationConfig, EVALUATION_OPTIONS, "evaluation", panel="Evaluation"),
)
def run(
    given: Given,
    method: Annotated[
        list[str], typer.Option(help="name[:knob=value,...]; may be repeated", autocompletion=method_names)
    ] = [],  # noqa: B006  # typer reads it
    keep: Annotated[list[float], typer.Option(help="every method at every share; may be repeated")] = [],  # noqa: B006  # as above
    recipe: Annotated[list[Path], typer.Option(help="YAML file of methods applied as one; may be repeated")] = [],  # noqa: B006  # as above
    plan: Annotated[list[Path], typer.Option(help="plan file, run as a method is; may be repeated")] = [],  # noqa: B006  # as above
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; options given here win")] = None,
    timing: Annotated[bool | None, typer.Option("--time/--no-time", help="time under vLLM")] = None,
    recovery: Annotated[str | None, typer.Option(help="train each result: a kind, or a YAML file of settings")] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="tell what it would take, and run nothing")] = False,
    on: Annotated[str, typer.Option(help="device whose hours --estimate tells: h100, h200 or a100")] = "h100",
    store: StoreOption = DEFAULT_STORE,
    track: TrackOption = None,
) -> None:
    """Read the settings, and run them under a live table, or tell what that would take."""
    document = merged(read_settings(config) if config else {}, given)
    if timing is not None:
        document = merged(document, {"timing": {"enabled": timing}})
    if method:
        document["methods"] = [one.model_dump() for one in expand([parse_method(text) for text in method], keep)]
    if recovery:
        document["recovery"] = read_settings(Path(recovery)) if Path(recovery).exists() else {"kind": recovery}
    if recipe:
        document["recipes"] = [read_settings(path) for path in recipe]
    if plan:
        document["plans"] = plan
    asked = validated(document, RunConfig, str(config or "options"))
    if estimate:
        from bench.commands.estimating import print_estimate

        print_estimate(asked, store, on)
        return
    from bench.commands.live import run_with_table

    run_with_table([asked], store, track)


def merged(document: dict[str, Any], given: Given) -> dict[str, Any]:
    """Return ``document`` with what was given on the command line in its place, field by field within a part."""
    parts = {name: {**document.get(name, {}), **own} for name, own in given.items() if isinstance(own, dict)}
    return {**document, **given, **parts}
