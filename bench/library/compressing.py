"""``compress``: a method decides what becomes of a checkpoint, and the result is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.applying.apply import apply
from bench.calibration.decide import Progress
from bench.checkpoint.checkpoint import Checkpoint
from bench.library.opening import open_checkpoint
from bench.models.device import resolved_device
from bench.running.calibrator import Calibrator
from bench.running.stages import write_checkpoint
from bench.settings.method_settings import parse_method
from bench.settings.stage_settings import CalibrationConfig
from bench.settings.strict import validated
from bench.store.store import Store
from methods.framework.cost import Cost, cost, cost_of
from methods.framework.method import Keep, Method
from methods.framework.plan import Plan
from methods.framework.stats import Stats


@dataclass(frozen=True)
class Decision:
    """What a method decided.

    Args:
        checkpoint: the source.
        plan: what becomes of it.
        stats: the statistics that the method read or that the plan writes; those that are too big to be kept are measured when
            the plan is written.
        provenance: name and knobs of the method.
        device: torch device of all that is computed.
    """

    checkpoint: Checkpoint
    plan: Plan
    stats: Stats
    provenance: Mapping[str, Any]
    device: str


@dataclass(frozen=True)
class Compressed:
    """A compressed checkpoint.

    Args:
        plan: what was made of the source.
        cost: parameters, bytes and FLOPs of the result.
        source_cost: those of the source.
        folder: where the result lies.
    """

    plan: Plan
    cost: Cost
    source_cost: Cost
    folder: Path


def compress(
    checkpoint: str | Path | Checkpoint,
    method: str | Method,
    *,
    keep: Keep | None = None,
    out: str | Path | None = None,
    calibration: CalibrationConfig | Mapping[str, Any] | None = None,
    store: str | Path = "runs",
    progress: Progress | None = None,
    **knobs: Any,
) -> Compressed:
    """Compress a checkpoint and write the result.

    Args:
        checkpoint: folder, hub id, pocket model, or an open checkpoint.
        method: name of a method, or a method that is configured already (then without ``keep`` and ``knobs``).
        keep: share of the method's unit that remains, in (0, 1], or its knots over the depth; None for the method's default.
        out: folder to write to, new or empty; None for one in the store. A folder that holds this very result is found again.
        calibration: what statistics are measured on, or the fields of ``CalibrationConfig`` that differ from their defaults.
        store: folder whose cache is read and written.
        progress: called while statistics are measured, with layers done and in all.
        knobs: further knobs of the method; ``moebench methods NAME`` lists them.

    Raises:
        ConfigError: an unknown method, knob or setting (with the closest match), or a value that is not allowed.
        RefusedError: the method does not apply to this model.
        CheckpointError: the source cannot be read, or ``out`` holds something else.
    """
    given = knobs if keep is None else {"keep": keep, **knobs}
    if isinstance(method, str):
        parsed = parse_method(method)
        method = parsed.model_copy(update={"knobs": {**parsed.knobs, **given}}).configured()
    elif given:
        method = method.configured({**method.model_dump(), **given})
    made = decide(checkpoint, method, calibration=calibration, store=store, progress=progress)
    source, folder = made.checkpoint, None if out is None else Path(out)
    if folder is None:
        folder = write_checkpoint(source, made.plan, Store(Path(store)), dict(made.provenance), made.stats, made.device)
    else:
        apply(source, made.plan, folder, made.provenance, moments=made.stats, device=made.device)
    inventory = source.inventory
    return Compressed(made.plan, cost(made.plan, inventory), cost_of(inventory), folder)


def decide(
    checkpoint: str | Path | Checkpoint,
    method: Method,
    *,
    calibration: CalibrationConfig | Mapping[str, Any] | None = None,
    store: str | Path = "runs",
    progress: Progress | None = None,
) -> Decision:
    """Measure what ``method`` needs and let it decide; nothing but caches is written.

    Args:
        checkpoint: folder, hub id, pocket model, or an open checkpoint.
        method: a configured method.
        calibration: what statistics are measured on, or the fields of ``CalibrationConfig`` that differ from their defaults.
        store: folder whose cache is read and written.
        progress: called while statistics are measured, with layers done and in all.

    Raises:
        ConfigError: an unknown setting, or a value that is not allowed.
        RefusedError: the method does not apply to this model.
    """
    opened = open_checkpoint(checkpoint)
    if not isinstance(calibration, CalibrationConfig):
        calibration = validated(calibration or {}, CalibrationConfig, "calibration")
    calibrator = Calibrator(opened, calibration, Store(Path(store)), method.measured)
    stats = calibrator.stats_for(method, progress)
    plan = method.plan(opened.inventory, stats, calibrator.probe_for(method))
    stats = calibrator.moments_for(plan, method, stats, progress)
    provenance = {"method": method.name, "knobs": method.knobs}
    return Decision(opened, plan, stats, provenance, resolved_device(calibration.device))
