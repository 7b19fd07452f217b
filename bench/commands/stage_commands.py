"""The verbs of the command line that are one stage of compression each: calibrate, plan, cost, apply."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.parts import (
    DEFAULT_STORE,
    CorpusOption,
    Device,
    Knobs,
    Length,
    Model,
    Sequences,
    StoreOption,
    bar,
    configured_method,
    console,
    open_checkpoint,
    print_cost,
    read_plan,
)
from bench.models.device import AUTO, resolved_device

stages = typer.Typer()


@stages.command()
def calibrate(
    model: Model,
    needs: Annotated[str, typer.Option(help="statistics, separated by commas; 'all' for the whole catalogue")] = "all",
    corpus: CorpusOption = "pocket",
    sequences: Sequences = 128,
    length: Length = 2048,
    seed: int = 0,
    device: Device = AUTO,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Measure statistics in one pass and keep them in the store."""
    from bench.calibration.calibrate import calibrate as measure
    from bench.store.store import Store
    from bench.text.corpus import parse
    from methods.framework.stats import CATALOGUE

    checkpoint = open_checkpoint(model)
    names = set(CATALOGUE) if needs == "all" else set(needs.split(","))
    with bar("calibrate") as progress:
        text = parse(corpus, checkpoint, sequences, length, seed)
        cache = Store(store).cache / "stats"
        stats = measure(checkpoint, text, names, cache=cache, device=resolved_device(device), progress=progress)
    console().print(f"{', '.join(sorted(stats.values))}: measured on {stats.tokens:,} tokens of {text.name}")


@stages.command()
def plan(
    model: Model,
    method: Annotated[str, typer.Argument(help="name of a method; see `moebench methods`")],
    out: Annotated[Path, typer.Option(help="file to write the plan to")] = Path("plan.json"),
    knobs: Knobs = [],  # noqa: B006  # typer reads it, nobody changes it
    corpus: CorpusOption = "pocket",
    sequences: Sequences = 128,
    length: Length = 2048,
    seed: int = 0,
    propagation: str = "one_shot",
    device: Device = AUTO,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Let a method decide, and write its plan."""
    from bench.running.calibrator import Calibrator
    from bench.settings.stage_settings import CalibrationConfig
    from bench.settings.strict import validated
    from bench.store.store import Store, write_json

    configured = configured_method(method, knobs)
    checkpoint = open_checkpoint(model)
    text = {"corpus": corpus, "sequences": sequences, "length": length, "seed": seed}
    settings = {**text, "propagation": propagation, "device": device}
    config = validated(settings, CalibrationConfig, "calibration")
    calibrator = Calibrator(checkpoint, config, Store(store), configured.measured)
    with bar("calibrate") as progress:
        stats = calibrator.stats_for(configured, progress)
    decided = configured.plan(checkpoint.inventory, stats, calibrator.probe_for(configured))
    provenance = {"method": method, "knobs": configured.knobs, "model": checkpoint.name}
    write_json(out, {**decided.document(), "provenance": provenance})
    console().print(f"{out}: plan {decided.digest[:12]}, stages {', '.join(sorted(decided.stages)) or 'none'}")
    print_cost(checkpoint, decided)


@stages.command()
def cost(model: Model, plan_file: Path) -> None:
    """Show what a plan's checkpoint costs, beside the source."""
    print_cost(open_checkpoint(model), read_plan(plan_file))


@stages.command()
def apply(
    model: Model,
    plan_file: Path,
    out: Path,
    corpus: CorpusOption = "pocket",
    sequences: Sequences = 128,
    length: Length = 2048,
    seed: int = 0,
    device: Device = AUTO,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write the compressed checkpoint of a plan.

    The corpus options matter only for plans whose values depend on statistics: constants, and kernels that read moments.
    """
    from bench.applying.apply import apply as write
    from bench.calibration.calibrate import calibrate as measure
    from bench.store.store import Store
    from bench.text.corpus import parse

    checkpoint, decided = open_checkpoint(model), read_plan(plan_file)
    where = resolved_device(device)
    moments = None
    if decided.moments:
        text = parse(corpus, checkpoint, sequences, length, seed)
        with bar("calibrate") as progress:
            cache = Store(store).cache / "stats"
            moments = measure(checkpoint, text, decided.moments, cache=cache, device=where, progress=progress)
    with bar("apply") as progress:
        path = write(checkpoint, decided, out, progress=progress, moments=moments, device=where)
    console().print(f"wrote {path}")
