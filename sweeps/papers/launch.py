"""What a table or figure runs: its rows as grids over one store, so that nothing is measured twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.pocket import TASKS, write_tasks
from bench.settings.method_settings import MethodConfig, RecipeConfig
from bench.settings.stage_settings import EvaluationConfig
from bench.settings.strict import validated
from bench.settings.timing_settings import TimingConfig
from sweeps.grid_config import GridConfig
from sweeps.grid_progress import GridResult
from sweeps.papers.asked import Asked
from sweeps.papers.stand_in import Conditions, StandIn

GROUP = "papers"
"""Label of the runs: one for all papers, so that tables that ask the same share a run."""


def grids(
    rows: Sequence[Asked],
    one: StandIn,
    settings: Conditions,
    *,
    store: Path,
    timing: TimingConfig,
    machine: Mapping[str, Any],
) -> list[GridConfig]:
    """Return the grids that measure ``rows``: one for each text and training, as few as there can be.

    Args:
        rows: of one model.
        one: the model.
        settings: of its evaluation.
        store: folder of records.
        timing: how speed is measured, or that it is not.
        machine: ``workers``, ``threads`` and ``executor`` of a grid, where given.
    """
    sets: dict[str, list[Asked]] = {}
    for row in rows:
        if row.reason is None:
            alike = (row.calibration.model_dump_json(), row.recovery and row.recovery.model_dump_json())
            sets.setdefault(repr(alike), []).append(row)
    found = []
    for alike_rows in sets.values():
        methods = [row.compression for row in alike_rows if isinstance(row.compression, MethodConfig)]
        recipes = [row.compression for row in alike_rows if isinstance(row.compression, RecipeConfig)]
        if not methods and not recipes:
            continue  # the base is part of every other grid
        first = alike_rows[0]
        text = first.calibration.model_dump()
        document = {
            "models": (one.model,),
            "methods": _once(methods),
            "recipes": _once(recipes),
            "recoveries": (first.recovery,),
            "calibration": {
                "corpora": (text.pop("corpus"),),
                "seeds": (text.pop("seed"),),
                **{name: value for name, value in text.items() if name != "sampled_tokens"},
            },
            "evaluation": _with_local_tasks(settings.evaluation, store),
            "timing": timing,
            "group": GROUP,
            "store": store,
            **machine,
        }
        found.append(validated(document, GridConfig, "the runs of a table"))
    return found


def measure(configs: Sequence[GridConfig], run: Callable[[GridConfig], GridResult]) -> frozenset[str]:
    """Run or resume all grids and return the names of the records that stand for them.

    Args:
        configs: of all models.
        run: one grid, shown as the caller wishes.
    """
    return frozenset(outcome.id for config in configs for outcome in run(config).outcomes if outcome.id)


def _with_local_tasks(evaluation: EvaluationConfig, store: Path) -> EvaluationConfig:
    """Return the settings with the folder of the pocket tasks, written into the store, where some of these are asked for."""
    if evaluation.include_path is not None or not any(name in TASKS for name in evaluation.tasks):
        return evaluation
    return evaluation.model_copy(update={"include_path": write_tasks(store / "tasks")})


def _once(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple({value.model_dump_json(): value for value in values}.values())
