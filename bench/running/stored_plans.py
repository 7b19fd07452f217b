"""Plans that a store keeps beside its records."""

from __future__ import annotations

from bench.records.record import Record
from bench.store.store import Store
from methods.framework.errors import PlanError
from methods.framework.outside import read_bytes
from methods.framework.plan import Plan


def stored_plan(record: Record, store: Store) -> Plan | None:
    """Return the plan of a record; None where it has none, or the store has not kept it.

    Raises:
        PlanError: the file is damaged.
    """
    path = store.plans / f"{record.plan}.json"
    return Plan.loads(read_bytes(path, PlanError)) if record.plan and path.exists() else None


def plan_text(record: Record, store: Store) -> str | None:
    """Return the plan of a record as canonical JSON; None where there is none."""
    plan = stored_plan(record, store)
    return None if plan is None else plan.dumps()
