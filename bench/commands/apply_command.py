"""``moebench apply``: write the compressed checkpoint of a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.library_log import library_log
from bench.commands.options import (
    CORPUS_OPTIONS,
    DEFAULT_STORE,
    ROOM_OPTIONS,
    TALK_OPTIONS,
    Model,
    RevisionOption,
    StoreOption,
    TrustOption,
)
from bench.commands.plan_file import read_plan
from bench.commands.printing import bar, console, print_ending
from bench.commands.setting_options import Given, Part, with_settings
from bench.settings.stage_settings import CalibrationConfig
from bench.settings.strict import validated


@with_settings(Part(CalibrationConfig, (*CORPUS_OPTIONS, *TALK_OPTIONS, *ROOM_OPTIONS), panel="Calibration"))
def apply(
    given: Given,
    model: Model,
    plan_file: Annotated[Path, typer.Argument(help="plan, as `moebench plan` or a sweep wrote it")],
    out: Annotated[Path, typer.Argument(help="folder to write the checkpoint to; it must not be there")],
    revision: RevisionOption = None,
    store: StoreOption = DEFAULT_STORE,
    trust_remote_code: TrustOption = False,
) -> None:
    """Write a checkpoint; what its values depend on is measured first."""
    from bench.applying.apply import apply as write
    from bench.library.opening import open_checkpoint
    from bench.running.calibrator import Calibrator
    from bench.running.planned import Planned
    from bench.store.store import Store

    checkpoint, decided = open_checkpoint(model, revision, trust_remote_code), read_plan(plan_file)
    settings = validated(dict(given), CalibrationConfig, "options")
    calibrator = Calibrator(checkpoint, settings, Store(store), decided.moments)
    moments = None
    with library_log(store, console()):
        if decided.moments:
            planned = Planned(str(plan_file), decided)
            with bar("calibrate") as progress:
                moments = calibrator.moments_for(decided, planned, calibrator.stats_for(planned, progress))
        with bar("apply") as progress:
            path = write(checkpoint, decided, out, progress=progress, moments=moments, device=calibrator.device)
    print_ending(
        console(),
        {"checkpoint": path},
        [
            (f"moebench time {model} {path}", "its speed beside what it was made of"),
            (f"moebench recover {path}", "trains it"),
            (f"moebench serve {path}", "serves it"),
        ],
    )
