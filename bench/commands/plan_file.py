"""The plan file that a user named."""

from __future__ import annotations

from pathlib import Path

from methods.framework.errors import PlanError
from methods.framework.outside import read_bytes
from methods.framework.plan import Plan


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        PlanError: the file is missing or holds something else.
    """
    return Plan.loads(read_bytes(path, PlanError))
