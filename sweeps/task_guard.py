"""Keep benchmark tasks out of the objective, or say loudly that they are in it."""

from __future__ import annotations

from pathlib import Path

import yaml

from methods.framework.errors import ConfigError
from sweeps.sweep_config import SweepConfig


def check_objectives(config: SweepConfig) -> None:
    """Refuse objectives that look at what will be reported, or at the text that the statistics were measured on.

    A task may be optimised without further words when it is the user's own (a YAML file under ``include_path``) and is
    not in ``report`` or scored by ``promote``; lm-eval's own tasks are benchmarks.

    Raises:
        ConfigError: with what to do instead.
    """
    calibration = config.calibration
    for label, objective in config.labelled.items():
        text = objective.held_out
        if text is not None and (text.corpus, text.seed) == (calibration.corpus, calibration.seed):
            raise ConfigError(
                f"objective {label} measures the windows that the statistics are measured on (corpus "
                f"{text.corpus!r}, seed {text.seed}); give it another seed or corpus"
            )
    if config.allow_test_objective:
        return
    tasks = [task for objective in config.objectives for task in objective.tasks]
    local = _local_tasks(config.include_path) if tasks else set()
    reported = {*config.report, *(config.promote.evaluation.tasks if config.promote else ())}
    for task in tasks:
        if task in reported or task not in local:
            own = "it is in `report`" if task in config.report else "`promote` scores it"
            why = own if task in reported else "it is one of lm-eval's benchmark tasks"
            raise ConfigError(
                f"objective {task!r} is a test set ({why}). A sweep that looks at its answers hundreds of times fits "
                "it, and the winner's score on it says nothing any more. Use held-out text (kind: nll or kl) or a "
                "development task of your own under `include_path`; to do it all the same, set `allow_test_objective: "
                "true`, and do not report that score as a result"
            )


def _local_tasks(include_path: str | None) -> set[str]:
    """Return the names of the tasks defined under ``include_path``."""
    if include_path is None:
        return set()
    found: set[str] = set()
    for path in sorted((*Path(include_path).rglob("*.yaml"), *Path(include_path).rglob("*.yml"))):
        for line in path.read_text().splitlines():
            # Task files hold tags of lm-eval's own (!function), so only this one line is read as YAML.
            if line.startswith("task:") and isinstance(name := yaml.safe_load(line)["task"], str):
                found.add(name)
    return found
