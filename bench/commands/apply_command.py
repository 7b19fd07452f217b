"""``moebench apply``: write the compressed checkpoint of a plan."""

from __future__ import annotations

from pathlib import Path

from bench.commands.options import CORPUS_OPTIONS, DEFAULT_STORE, Model, StoreOption, TrustOption
from bench.commands.plan_file import read_plan
from bench.commands.printing import bar, console
from bench.commands.setting_options import Given, Part, with_settings
from bench.settings.stage_settings import CalibrationConfig


@with_settings(Part(CalibrationConfig, CORPUS_OPTIONS, panel="Calibration"))
def apply(
    given: Given,
    model: Model,
    plan_file: Path,
    out: Path,
    store: StoreOption = DEFAULT_STORE,
    trust_remote_code: TrustOption = False,
) -> None:
    """Write a checkpoint; what its values depend on is measured first."""
    from bench.applying.apply import apply as write
    from bench.library.measuring import calibrate
    from bench.library.opening import open_checkpoint
    from bench.models.device import resolved_device

    checkpoint, decided = open_checkpoint(model, trust_remote_code=trust_remote_code), read_plan(plan_file)
    device = resolved_device(given.get("device", CalibrationConfig().device))
    moments = None
    if decided.moments:
        with bar("calibrate") as progress:
            moments = calibrate(checkpoint, needs=decided.moments, store=store, progress=progress, **given)
    with bar("apply") as progress:
        path = write(checkpoint, decided, out, progress=progress, moments=moments, device=device)
    console().print(f"wrote {path}")
