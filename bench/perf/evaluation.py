"""What evaluating costs over the forward passes in it: ``python -m bench.perf.evaluation``.

A pocket model is scored on its tasks, in one process with one thread. The clock runs from the tasks' requests, which are built
once for all models, to the scores: requests are tokenised, batched, run and scored. Reported are the CPU seconds of all that over
those of the model's own forward passes, on batches that the evaluation makes, and what the first model costs beside, whose tasks
are loaded.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

BAR = 1.15
"""CPU seconds of an evaluation over those of its forward passes."""
TURNS = 3


class _Forward:
    """Adds up the CPU seconds that a model spends in its forward pass."""

    def __init__(self, model: Any) -> None:
        self.seconds, self._own = 0.0, model.forward
        model.forward = self

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        start = time.process_time()
        try:
            return self._own(*inputs, **options)
        finally:
            self.seconds += time.process_time() - start


def measure(name: str, tasks: Sequence[str], limit: int | None) -> dict[str, list[float]]:
    """Return CPU seconds of evaluations and of the forward passes in them; of the first, tasks are loaded too.

    Args:
        name: of a pocket model.
        tasks: of the pocket language; none for all.
        limit: first items of each task, None for all.
    """
    import torch

    from bench.evaluation import evaluate as module
    from bench.evaluation.evaluate import evaluate
    from bench.models.load import load_model, load_tokenizer
    from bench.pocket import TASKS, pocket_path, write_tasks

    torch.set_num_threads(1)
    tasks = tasks or TASKS
    folder = pocket_path(name)
    model, tokenizer = load_model(folder).eval(), load_tokenizer(folder)
    forward = _Forward(model)
    found: dict[str, list[float]] = {"evaluation": [], "forward": []}
    with tempfile.TemporaryDirectory() as place:
        written = write_tasks(Path(place))
        for turn in range(TURNS + 1):
            module._ENCODINGS.clear()  # each turn tokenises
            forward.seconds = 0.0
            done = evaluate(model, tokenizer, tasks, include_path=written, limit=limit, model_digest=str(turn))
            found["evaluation"].append(done.seconds)
            found["forward"].append(forward.seconds)
    return found


def main() -> int:
    """Measure, print, and say whether the bar is met."""
    parser = argparse.ArgumentParser(prog="python -m bench.perf.evaluation", description=__doc__)
    parser.add_argument("--model", default="pocket-mixtral", help="a pocket model")
    parser.add_argument("--limit", type=int, default=100, help="first items of each task")
    parser.add_argument("--tasks", default="", help="names, separated by commas; all where none is given")
    parser.add_argument("--out", type=Path, help="write the measurements as JSON")
    asked = parser.parse_args()
    found = measure(asked.model, [name for name in asked.tasks.split(",") if name], asked.limit)
    whole, bare = found["evaluation"], found["forward"]
    ratios = sorted(one / own for one, own in zip(whole[1:], bare[1:], strict=True))
    middle = ratios[len(ratios) // 2]
    table = Table("what", "measured", "at most", "")
    table.add_row("evaluation over its forward passes", f"{middle:.3f}", f"{BAR}", "pass" if middle <= BAR else "FAIL")
    table.add_row("range of the turns", f"{ratios[0]:.3f} to {ratios[-1]:.3f}", "", "")
    table.add_row("forward passes, CPU s", f"{min(bare[1:]):.2f}", "", "")
    table.add_row("loading the tasks, CPU s", f"{whole[0] - bare[0] - (whole[1] - bare[1]):.2f}", "", "")
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    if asked.out is not None:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if middle <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
