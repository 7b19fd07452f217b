"""What a table or figure costs before it is run: runs, tokens, disk, and hours of a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.settings.method_settings import RecipeConfig
from bench.settings.stage_settings import CalibrationConfig
from sweeps.papers.asked import Asked
from sweeps.papers.shelf import task_sizes
from sweeps.papers.stand_in import Conditions, StandIn

FLOPS = 4e14
"""FLOPs of a second that are reckoned with: two fifths of what an H100 states for bfloat16 (989e12)."""
_TRAINING = 3
"""Forward passes that a forward and a backward pass together count as."""


@dataclass(frozen=True)
class Estimate:
    """What it takes; tokens and what follows from them are rough.

    Args:
        runs: models that are scored, the uncompressed one among them.
        tokens: that pass a model.
        bytes: of compressed checkpoints, at most.
        hours: of a GPU, from FLOPs alone.
    """

    runs: int = 0
    tokens: float = 0.0
    bytes: float = 0.0
    hours: float = 0.0

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            self.runs + other.runs, self.tokens + other.tokens, self.bytes + other.bytes, self.hours + other.hours
        )


def of_rows(rows: Sequence[Asked], one: StandIn, settings: Conditions) -> Estimate:
    """Return what the rows of one model cost at the size of the paper's model.

    Statistics are measured once for each text, and once more for each step of a recipe that measures anew.

    Args:
        rows: what is asked.
        one: whose paper's model is reckoned with.
        settings: of the evaluation.
    """
    todo = [row for row in rows if row.reason is None]
    compressed = {repr((row.compression, row.recovery, row.calibration)): row for row in todo if row.compression}
    runs = len(compressed) + 1 if todo else 0
    anew = [
        row.calibration
        for row in compressed.values()
        if isinstance(row.compression, RecipeConfig)
        for step in row.compression.steps
        if step.recalibrate
    ]
    passes = runs * _scored(settings) + _passed(row.calibration for row in compressed.values())
    passes += sum(text.sequences * text.length for text in anew)
    trainings = [row.recovery for row in compressed.values() if row.recovery is not None]
    trained = sum(training.sequences * training.length * training.epochs for training in trainings)
    disk = 2e9 * one.paper.parameters * len(compressed)
    return Estimate(runs, passes + trained, disk, _hours(passes + _TRAINING * trained, one))


def of_statistics(texts: Iterable[CalibrationConfig], one: StandIn) -> Estimate:
    """Return what it costs to measure statistics on each of ``texts`` once, at the size of the paper's model."""
    tokens = _passed(texts)
    return Estimate(tokens=tokens, hours=_hours(tokens, one))


def _scored(settings: Conditions) -> int:
    """Return the tokens of one evaluation; a task of unknown size counts nothing."""
    limit, total = settings.evaluation.limit, 0
    for name in settings.evaluation.tasks:
        size = task_sizes().get(name.removesuffix("_local"))
        if size is not None:
            items = size.items if limit is None else min(limit, size.items)
            total += items * size.requests * size.tokens
    return total


def _passed(texts: Iterable[CalibrationConfig]) -> float:
    different = {text.model_dump_json(): text.sequences * text.length for text in texts}
    return sum(different.values())


def _hours(tokens: float, one: StandIn) -> float:
    return 2e9 * one.paper.active * tokens / FLOPS / 3600
