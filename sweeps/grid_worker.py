"""One worker of a grid: ``python -m sweeps.grid_worker ADDRESS --worker N``."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.framework.errors import MoebenchError
from sweeps.grid_config import Job
from sweeps.grid_messages import Line
from sweeps.grid_progress import Outcome

if TYPE_CHECKING:
    from bench.records.mirror import Tracker

_EVERY = 1.0
"""Seconds between two messages about the progress of one stage."""


def run_jobs(line: Line, store: Path, track: Any, threads: int) -> None:
    """Execute jobs until there are no more.

    Args:
        line: where jobs come from, and outcomes go.
        store: folder of records and cached artefacts.
        track: W&B mode, None for the default of `moebench run`.
        threads: of torch.
    """
    import logging
    import warnings

    warnings.simplefilter("ignore")  # what matters is in the records
    logging.getLogger("moebench").setLevel(logging.ERROR)
    import torch
    import transformers

    from analysis.mean import average
    from bench.records.mirror import Tracker

    torch.set_num_threads(threads)
    transformers.logging.disable_progress_bar()

    def begun(title: str, count: int) -> None:
        line.tell(kind="begun", title=title, count=count)

    # OSError: the grid is gone, and nobody waits for what is under way.
    with Tracker(track, folder=store, average=average) as tracker, suppress(KeyboardInterrupt, OSError):
        while (document := line.job()) is not None:
            line.tell(**_answer(Job.of(document), store, tracker, begun, partial(line.tell, kind="stage")))


def _answer(
    job: Job, store: Path, tracker: Tracker, begun: Callable[[str, int], None], stages: Callable[..., None]
) -> dict[str, Any]:
    try:
        ended = execute(job, store, tracker, begun, stages)
        return {"kind": "done", "outcomes": [asdict(outcome) for outcome in ended]}
    except MoebenchError as error:
        return {"kind": "failed", "reason": str(error)}
    except Exception as error:  # any code of any method may run here; the others must not suffer
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        return {"kind": "crashed", "reason": f"{type(error).__name__} at {place}: {error}"}


def execute(
    job: Job,
    store: Path,
    tracker: Tracker,
    begun: Callable[[str, int], None],
    stages: Callable[..., None] = lambda **step: None,
) -> list[Outcome]:
    """Execute one job and return how its runs ended.

    Args:
        job: what to run.
        store: folder of records and cached artefacts.
        tracker: the mirror.
        begun: called with the title and the number of each run that begins, from 1.
        stages: called with ``row`` (the place of a run in the job), ``stage``, ``reason`` and ``average``.
    """
    from analysis.mean import average
    from bench.running.run import Run
    from bench.running.subject import Subject
    from bench.store.store import Store

    seen: set[int] = set()
    told: dict[str, Any] = {"word": "", "at": 0.0}

    def report(subject: Subject, stage: str) -> None:
        if (subject.method is None) != job.base:
            return
        if id(subject) not in seen:
            seen.add(id(subject))
            keep = "" if subject.method is None else f" keep={subject.method.knobs.get('keep')}"
            begun(subject.title + keep, len(seen))
        word, now = f"{id(subject)} {stage.partition(' ')[0]}", time.monotonic()
        if word == told["word"] and now < told["at"] + _EVERY:
            return
        told.update(word=word, at=now)
        scores = subject.record.scores if subject.record else subject.evaluation.scores if subject.evaluation else ()
        row = run.subjects.index(subject) - (not job.base)
        stages(row=row, stage=stage, reason=subject.reason or "", average=average(scores))

    run = Run(job.config, Store(store), tracker, report)
    records = run.execute()
    return [
        Outcome(job.config.model, record.method or "base", record.status, record.reason or "", record.id)
        for record in records
        if (record.method is None) == job.base
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Be one worker."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.grid_worker", description="One worker of a grid.")
    parser.add_argument("address", type=Path, help="file that tells where the grid listens")
    parser.add_argument("--worker", type=int, required=True, help="number of this worker")
    options = parser.parse_args(arguments)
    address = json.loads(options.address.read_text())
    with Line(address, options.worker) as line:
        run_jobs(line, Path(address["store"]), address["track"], address["threads"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
