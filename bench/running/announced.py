"""Stages of a run are told to the mirror too, so that a row's run in W&B begins when its work begins."""

from __future__ import annotations

from collections.abc import Callable

from bench.checkpoint.checkpoint import Checkpoint
from bench.records.mirror import Tracker
from bench.records.run_contents import Beginning, stem
from bench.running.subject import Subject
from bench.settings.run_settings import RunConfig

_WORK = ("calibrate", "plan", "apply", "recover", "evaluate", "time")
"""Stages in which a row is worked on; the other words that are reported say how it ended."""


def announced(
    report: Callable[[Subject, str], None], tracker: Tracker, config: RunConfig, checkpoint: Checkpoint
) -> Callable[[Subject, str], None]:
    """Return ``report``, which tells ``tracker`` first.

    Args:
        report: called with a subject and the stage that it enters.
        tracker: the mirror.
        config: of the run.
        checkpoint: its source.
    """

    def tell(subject: Subject, stage: str) -> None:
        if subject.record is None and stage.partition(" ")[0] in _WORK:
            row = stem(subject.id)
            tracker.begin(beginning(subject, config, checkpoint))
            tracker.tell(row, stage)
        report(subject, stage)

    return tell


def beginning(subject: Subject, config: RunConfig, checkpoint: Checkpoint) -> Beginning:
    """Return what is known of a row before its work begins.

    Args:
        subject: the row.
        config: of its run.
        checkpoint: the source.
    """
    return Beginning(
        id=stem(subject.id),
        group=config.group,
        model=checkpoint.name,
        family=checkpoint.inventory.family,
        method=subject.method.name if subject.method else None,
        title=subject.title,
        knobs=subject.knobs,
        seeds={"calibration": config.calibration.seed},
        trained=subject.recovery is not None,
    )
