"""Scores by vLLM beside those by transformers, on the same items: ``python -m bench.laws.backends MODEL``.

Prints, for each metric, both scores and the share of items on which they agree; with few bits or bfloat16 a near tie may fall
either way, so that share tells more than the difference of two means.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.checkpoint.checkpoint import Checkpoint
from bench.evaluation.parity import Parity, parity
from bench.running.stages import evaluate_checkpoint
from bench.settings.stage_settings import EvaluationConfig
from bench.store.store import Store


def compared(path: Path, config: EvaluationConfig) -> list[Parity]:
    """Return what both backends make of the checkpoint in ``path``; neither keeps anything.

    Args:
        path: folder of the checkpoint.
        config: tasks and how they are scored, whatever its backend.

    Raises:
        EvaluationError: a task is unknown or fails, or vLLM cannot run the checkpoint.
    """
    checkpoint = Checkpoint.open(path)
    with tempfile.TemporaryDirectory() as place:
        found = [
            evaluate_checkpoint(
                checkpoint.path,
                checkpoint.content,
                config.model_copy(update={"backend": name}).expanded(Path(place)),
                Store(Path(place) / name),
            )
            for name in ("transformers", "vllm")
        ]
    return parity(*found)


def main() -> int:
    """Compare, print, and say whether the least agreement is met."""
    parser = argparse.ArgumentParser(prog="python -m bench.laws.backends", description=__doc__)
    parser.add_argument("model", help="a pocket model, or the folder of a checkpoint")
    parser.add_argument("--tasks", default="pocket", help="names, separated by commas")
    parser.add_argument("--limit", type=int, default=50, help="first items of each task")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--least", type=float, default=0.99, help="least share of items that agree")
    asked = parser.parse_args()
    config = EvaluationConfig(tasks=tuple(asked.tasks.split(",")), limit=asked.limit, dtype=asked.dtype)
    rows = compared(Path(asked.model), config)
    table = Table("task", "metric", "items", "transformers", "vLLM", "agree", "widest")
    for row in rows:
        shown = (f"{row.first:.4f}", f"{row.second:.4f}", f"{row.agree:.3f}", f"{row.widest:.2g}")
        table.add_row(row.task, row.metric, str(row.n), *shown)
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    return 0 if min(row.agree for row in rows) >= asked.least else 1


if __name__ == "__main__":
    sys.exit(main())
