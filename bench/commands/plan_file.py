"""The plan file that a user named."""

from __future__ import annotations

from pathlib import Path

from methods.framework.errors import PlanError
from methods.framework.plan import Plan


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        PlanError: the file is missing or holds something else.
    """
    try:
        return Plan.loads(path.read_bytes())
    except OSError as error:
        raise PlanError(f"cannot read {path}: {error.strerror}") from error
