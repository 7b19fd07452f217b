"""What computes the trials of a study: it is bound to that, as names of records are made of what computes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.calibration.code_digest import (
    APPLYING,
    EVALUATING,
    PROBING,
    ROOMS,
    ROOT,
    code_digest,
    decision_digest,
    module_digest,
    statistic_digest,
)
from bench.store.store import digest_of
from bench.store.versions import versions
from methods.framework.method import Method, ProbingMethod
from sweeps.opening import union_of_needs
from sweeps.sweep_config import SweepConfig

_LIBRARIES = ("cmaes", "optuna")
"""Those that propose trials."""


def computed_by(config: SweepConfig, root: Path = ROOT) -> dict[str, Any]:
    """Return versions of libraries, and digests of code under names that say what it does.

    Args:
        config: the sweep.
        root: folder of the packages.
    """
    measured = [statistic_digest(name, root) for name in sorted(union_of_needs(config))]
    code = {
        **{f"method {step.method}": _decided_by(step.kind, root) for step in config.steps},
        "statistics": digest_of([code_digest(ROOMS, root), measured]),
        "plans in memory": code_digest(APPLYING, root),
        "trials": module_digest(("sweeps.trials",), root, ("sweeps",)),
    }
    if any(issubclass(step.kind, ProbingMethod) for step in config.steps):
        code["probe"] = code_digest(PROBING, root)
    for label, objective in config.labelled.items():
        own = decision_digest(type(objective), root, ("sweeps",))
        code[f"objective {label}"] = digest_of([own, code_digest(EVALUATING, root)]) if objective.tasks else own
    return {"libraries": versions(*_LIBRARIES), "code": {name: digest[:16] for name, digest in code.items()}}


def _decided_by(kind: type[Method], root: Path) -> str:
    """Return the digest of a step's rule; those of a search's own lie beside it."""
    own = kind.__module__.startswith("sweeps.")
    return decision_digest(kind, root, ("sweeps",)) if own else decision_digest(kind, root)
