"""The demo: pruning and dropping methods on three embedded models, one of each architecture, from checkpoint to leaderboard."""

from __future__ import annotations

from pathlib import Path

from bench.settings.method_settings import expand, parse_method
from bench.settings.run_settings import RunConfig
from bench.settings.stage_settings import CalibrationConfig, EvaluationConfig
from bench.settings.timing_settings import TimingConfig

MODELS = ("pocket-mixtral", "pocket-qwen2moe", "pocket-deepseek")
EXPERT_METHODS = ("random", "frequency", "reap", "expert_drop:scope=global")
EXPERT_KEEPS = (0.75, 0.5)
DROP_METHODS = ("layer_drop", "block_drop")
DROP_KEEPS = (0.83, 0.67)  # five and four of the six MoE layers


def demo_configs(store: Path) -> list[RunConfig]:
    """Return one run per model: all tasks of the pocket language, timing under vLLM."""
    from bench.pocket import TASKS, write_tasks

    methods = (
        *expand([parse_method(text) for text in EXPERT_METHODS], EXPERT_KEEPS),
        *expand([parse_method(text) for text in DROP_METHODS], DROP_KEEPS),
    )
    return [
        RunConfig(
            model=model,
            methods=methods,
            calibration=CalibrationConfig(corpus="pocket", sequences=128, length=128),
            evaluation=EvaluationConfig(tasks=TASKS, include_path=write_tasks(store / "tasks")),
            timing=TimingConfig(extra=5, batch=8, prompt=64, generate=32, threads=1),
            group="demo",
        )
        for model in MODELS
    ]


def run_demo(store: Path, track: str | None) -> None:
    """Run the demo, write the report, and print the leaderboard and where everything lies."""
    from rich.console import Console

    from analysis.report import report
    from bench.commands.live import run_with_table
    from bench.commands.printing import print_ending
    from bench.records.mirror import Tracker

    def told(tracker: Tracker) -> None:
        written = report(store / "records", store / "report", title="moebench demo: three pocket models")
        print_ending(Console(), {"page": written.page, "figures": store / "report" / "figures"}, [])

    run_with_table(demo_configs(store), store, track, then=told)
