"""What determines the result of a row: the names of records are digests of it, so that none outlives what made it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.calibration.code_digest import (
    APPLYING,
    EVALUATING,
    PROBING,
    ROOMS,
    ROOT,
    TRAINING,
    code_digest,
    decision_digest,
    statistic_digest,
)
from bench.models.device import resolved_device
from bench.records.record import CorpusInfo
from bench.running.planned import Compression, Planned
from bench.running.recipe import Recipe
from bench.running.stages import timing_conditions
from bench.serving.engine import engine_here, engine_named
from bench.settings.recovery import RecoverySettings
from bench.settings.run_settings import RunConfig
from bench.store.versions import versions
from methods.framework.method import Method
from methods.framework.stats import CATALOGUE

SCHEMA = 2


_SAID = {"name", "opening", "sources", "counted", "system_instruction", "enable_thinking", "template_arguments"}
"""Fields of a corpus that say how it came to be; the digest of its tokens, and of which of them count, says what it is."""


def shared_key(config: RunConfig, content: str, tasks: Mapping[str, str], root: Path = ROOT) -> dict[str, Any]:
    """Return what determines every row of a run, as JSON values.

    Args:
        config: the run.
        content: digest of the model, its tokenizer and settings of generation included.
        tasks: digest of each task, its items included.
        root: folder of the packages.
    """
    evaluation = config.evaluation
    key: dict[str, Any] = {
        "schema": SCHEMA,
        "group": config.group,
        "model": content,
        "tasks": dict(tasks),
        "evaluation": evaluation.model_dump(mode="json", include={"max_length", "dtype", "seed"}),
        "device": _kind(evaluation.device),
        "timing": config.timing.model_dump(mode="json"),
        "versions": versions(),
        "code": code_digest(EVALUATING, root),
    }
    if evaluation.think_end_token is not None:
        key["think_end_token"] = evaluation.think_end_token
    if evaluation.shipped_generation or evaluation.generation:
        key["batch_size"] = evaluation.batch_size  # draws of one batch follow each other
    if config.trust_remote_code:
        key["trust_remote_code"] = True  # the code itself is part of the content
    if config.timing.enabled:
        timed = engine_named(config.timing.engine) if config.timing.engine else engine_here()
        key["timed by"] = timing_conditions(timed.distributions)
    if config.target is not None:
        engine = engine_named(config.target)
        key["target"] = [config.target, versions(*engine.distributions), code_digest(("bench.serving",), root)]
    return key


def own_key(
    config: RunConfig,
    method: Compression | None,
    recovery: RecoverySettings | None,
    corpus: CorpusInfo | None,
    root: Path = ROOT,
) -> dict[str, Any]:
    """Return what determines one row beside that, as JSON values.

    Args:
        config: the run.
        method: None for the base.
        recovery: training of the result.
        corpus: that its statistics are measured on.
        root: folder of the packages.
    """
    if method is None:
        return {"method": None}
    key: dict[str, Any] = {
        "method": method.name,
        **(_stated(method) if isinstance(method, Planned) else _decided(method, root)),
        "corpus": corpus.model_dump(mode="json", exclude=_SAID) if corpus else None,
        "compressed on": _kind(config.calibration.device),
        "measured by": [
            code_digest(ROOMS, root),
            {name: statistic_digest(name, root) for name in sorted(method.measured)},
        ],
        "applied by": code_digest(APPLYING, root),
    }
    if method.probing:
        key["probed by"] = code_digest(PROBING, root)
    if method.probing or any(CATALOGUE[name].cost == "sampled" for name in method.measured):
        key["sampled_tokens"] = config.calibration.sampled_tokens
    if corpus is not None and config.calibration.states != "computed":
        key["states"] = config.calibration.states
    if recovery is not None:
        key["recovery"] = recovery.resolved()
        key["trained by"] = [_kind(recovery.device), versions("peft"), code_digest(TRAINING, root)]
    return key


def _decided(method: Method | Recipe, root: Path) -> dict[str, Any]:
    """Return the knobs and the digests of the rules, those of a recipe's steps among them."""
    kinds: list[type] = [type(method)]
    if isinstance(method, Recipe):
        kinds += [type(step.method) for step in method.steps]
    return {"knobs": method.knobs, "decided by": [decision_digest(kind, root) for kind in kinds]}


def _stated(method: Planned) -> dict[str, Any]:
    """Return the plan and what its file says about it, which is in the row."""
    found = method.found_by.model_dump(mode="json") if method.found_by else None
    return {"plan": method.decided.digest, "knobs": dict(method.knobs), "found by": found}


def _kind(device: str) -> str:
    """Return the kind of device that a setting stands for: others of that kind compute the same."""
    return resolved_device(device).partition(":")[0]
