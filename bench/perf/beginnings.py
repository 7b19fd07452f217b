"""Whether a beginning of a sequence changes which experts stay: ``python -m bench.perf.beginnings [MODEL ...]``.

Each method keeps half of the experts, decided on the same text with and without the token at the start of each window, and
with another draw of the text, without it. What is reported: of the experts that stay, the share that differs, over all
layers. A difference below that of the two draws is within the noise of the text.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.checkpoint.checkpoint import Checkpoint
from bench.running.calibrator import Calibrator
from bench.settings.method_settings import parse_method
from bench.settings.stage_settings import Bos, CalibrationConfig
from bench.store.store import Store
from methods.framework.plan import Plan

MODELS = ("pocket-mixtral", "pocket-deepseek", "pocket-qwen2moe")
METHODS = ("frequency", "man", "reap", "easy_ep")
LENGTHS = (32, 128)
TOKENS = 8192


def changed(first: Plan, second: Plan) -> tuple[int, int]:
    """Return how many of the experts that stay by ``first`` do not by ``second``, and how many stay by ``first``."""
    pairs = zip(first.layers, second.layers, strict=True)
    both = [(set(one.experts or ()), set(other.experts or ())) for one, other in pairs]
    return sum(len(one - other) for one, other in both), sum(len(one) for one, _ in both)


def compared(model: str, method: str, length: int, store: Path, corpus: str = "pocket") -> tuple[int, int, int]:
    """Return the experts that change with the token, those that change with the draw, and those that stay.

    Args:
        model: folder, hub id or pocket model.
        method: name of a method that keeps experts.
        length: tokens in a window, with the token.
        store: folder of the cached statistics.
        corpus: text, as a run's ``corpus``.
    """
    checkpoint = Checkpoint.open(model)
    chosen = parse_method(f"{method}:keep=0.5").configured()

    def plan(bos: Bos, seed: int) -> Plan:
        settings = CalibrationConfig(corpus=corpus, sequences=TOKENS // length, length=length, bos=bos, seed=seed)
        calibrator = Calibrator(checkpoint, settings, Store(store), chosen.measured)
        return chosen.plan(checkpoint.inventory, calibrator.stats_for(chosen), calibrator.probe_for(chosen))

    plain = plan("never", 0)
    token, kept = changed(plain, plan("always", 0))
    return token, changed(plain, plan("never", 1))[0], kept


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--store", default="runs", help="folder of the cached statistics")
    parser.add_argument("--corpus", default="pocket", help="text that the statistics are measured on")
    asked = parser.parse_args(arguments)
    table = Table("model", "method", "window", "stay", "change with the token", "change with the draw")
    for model in asked.models:
        for length in LENGTHS:
            for method in METHODS:
                token, draw, kept = compared(model, method, length, Path(asked.store), asked.corpus)
                table.add_row(
                    model,
                    method,
                    str(length),
                    str(kept),
                    f"{token} ({token / kept:.1%})",
                    f"{draw} ({draw / kept:.1%})",
                )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
