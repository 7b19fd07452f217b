"""``evaluate``: scores of a checkpoint on lm-eval tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.checkpoint.checkpoint import Checkpoint
from bench.library.opening import open_checkpoint
from bench.records.record import Score
from bench.running.stages import evaluate_checkpoint
from bench.settings.stage_settings import EvaluationConfig
from bench.settings.strict import validated
from bench.store.store import Store


def evaluate(
    checkpoint: str | Path | Checkpoint,
    tasks: str | Sequence[str],
    *,
    store: str | Path = "runs",
    progress: Callable[[str, int, int], None] | None = None,
    **settings: Any,
) -> tuple[Score, ...]:
    """Score a checkpoint, compressed or not; finished tasks are found again in the store.

    Args:
        checkpoint: folder, hub id, pocket model, or an open checkpoint.
        tasks: names of tasks, groups or tags of lm-eval; ``pocket`` stands for all tasks of the pocket language.
        store: folder whose cache is read and written.
        progress: called with the task, its requests done and in all.
        settings: further fields of ``EvaluationConfig``: ``limit``, ``num_fewshot``, ``dtype``, ``device``, ``include_path`` ...

    Raises:
        ConfigError: an unknown setting (with the closest match), or a value that is not allowed.
        EvaluationError: a task is unknown or fails, or its data cannot be loaded.
    """
    opened, where = open_checkpoint(checkpoint), Store(Path(store))
    names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    config = validated({**settings, "tasks": names}, EvaluationConfig, "evaluate").expanded(where.root)
    trusted = opened.trust_remote_code
    return evaluate_checkpoint(opened.path, opened.content, config, where, progress, trusted).scores
