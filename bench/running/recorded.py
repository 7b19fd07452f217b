"""The record of a row, made from what its stages left."""

from __future__ import annotations

import datetime
import traceback
from pathlib import Path

from bench.checkpoint.checkpoint import Checkpoint
from bench.evaluation.paired import pair_scores
from bench.records.environment import environment
from bench.records.record import ModelInfo, Record, Score
from bench.running.planned import Planned
from bench.running.record_parts import cost_info, group_sizes, ratio_info, realisation, recovery_info
from bench.running.stages import evaluation_info
from bench.running.subject import Subject
from bench.settings.run_settings import RunConfig
from methods.framework.cost import cost
from methods.framework.layer_plan import STAGES
from methods.framework.plan import Plan


def record_of(subject: Subject, base: Subject, config: RunConfig, checkpoint: Checkpoint) -> Record:
    """Return the record of ``subject`` as it stands.

    Args:
        subject: the row; whatever stage ended it.
        base: the row of the uncompressed model, which scores are compared with.
        config: of the run.
        checkpoint: its source.
    """
    plan = subject.plan or (Plan.identity(checkpoint.inventory) if subject.method is None else None)
    after = cost(plan, checkpoint.inventory) if plan else None
    scores: tuple[Score, ...] = ()
    own, whole = subject.evaluation, base.evaluation
    if own is not None and whole is not None:
        scores = own.scores if own is whole else pair_scores(own.scores, own.items, whole.items)
    method = subject.method
    return Record(
        id=subject.id,
        group=config.group,
        status=subject.status,
        reason=subject.reason,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        model=ModelInfo(
            name=checkpoint.name,
            family=checkpoint.inventory.family,
            revision=checkpoint.revision,
            content=checkpoint.content,
            trust_remote_code=checkpoint.trust_remote_code,
        ),
        corpus=subject.corpus,
        method=method.name if method else None,
        title=subject.title,
        knobs=subject.knobs,
        stages=tuple(stage for stage in STAGES if method and stage in method.stages),
        plan=plan.digest if plan else None,
        found_by=method.found_by if isinstance(method, Planned) else None,
        cost=cost_info(after) if after else None,
        ratios=ratio_info(plan, checkpoint.inventory) if plan else None,
        cold_experts=subject.cold,
        similarity=subject.similarity,
        groups=group_sizes(plan) if plan else {},
        replaced=sum(len(layer.constants) for layer in plan.layers) if plan else 0,
        target=subject.target,
        recovery=recovery_info(subject.recovery, subject.recovered),
        realisation=realisation(plan) if subject.evaluation else None,
        evaluation=evaluation_info(config.evaluation, checkpoint) if subject.evaluation else None,
        scores=scores,
        timing=subject.timing,
        seconds=subject.clock.seconds,
        seeds={"calibration": config.calibration.seed, "evaluation": config.evaluation.seed, "timing": 0},
        environment=environment(),
    )


def told(error: Exception) -> str:
    """Return kind, place and words of an error that is no message of this project."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {error}"
