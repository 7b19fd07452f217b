"""``moebench plan``: let a method decide, and write its plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.library_log import library_log
from bench.commands.options import (
    CORPUS_OPTIONS,
    DEFAULT_STORE,
    TALK_OPTIONS,
    Model,
    RevisionOption,
    StoreOption,
    TrustOption,
    method_names,
)
from bench.commands.printing import bar, console, print_cost, print_ending
from bench.commands.setting_options import Given, Part, with_settings
from bench.settings.method_settings import parse_method
from bench.settings.stage_settings import CalibrationConfig


@with_settings(Part(CalibrationConfig, (*CORPUS_OPTIONS, *TALK_OPTIONS, "propagation"), panel="Calibration"))
def plan(
    given: Given,
    model: Model,
    method: Annotated[
        str, typer.Argument(help="name of a method; see `moebench methods`", autocompletion=method_names)
    ],
    out: Annotated[Path, typer.Option(help="file to write the plan to")] = Path("plan.json"),
    knobs: Annotated[list[str], typer.Option("--set", help="knob=value of the method; may be repeated")] = [],  # noqa: B006  # typer reads it
    revision: RevisionOption = None,
    store: StoreOption = DEFAULT_STORE,
    trust_remote_code: TrustOption = False,
) -> None:
    """Write the plan of a method with its provenance, and print its cost."""
    from bench.library.compressing import decide
    from bench.library.opening import open_checkpoint
    from bench.store.store import write_json

    configured = parse_method(f"{method}:{','.join(knobs)}").configured()
    with library_log(store, console()), bar("calibrate") as progress:
        opened = open_checkpoint(model, revision, trust_remote_code)
        decision = decide(opened, configured, calibration=given, store=store, progress=progress)
    made = decision.plan
    write_json(out, {**made.document(), "provenance": {**decision.provenance, "model": decision.checkpoint.name}})
    console().print(f"{out}: plan {made.digest[:12]}, stages {', '.join(sorted(made.stages)) or 'none'}")
    print_cost(decision.checkpoint.inventory, made)
    print_ending(
        console(),
        {"plan": out},
        [
            (f"moebench apply {model} {out} FOLDER", "writes its checkpoint; give the same corpus options"),
            (f"moebench run --model {model} --plan {out}", "writes, scores, times and records it"),
        ],
    )
