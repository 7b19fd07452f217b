"""Where a grid stands, and what it came to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """How one run ended.

    Args:
        id: of its record; empty where there is none because the code itself failed.
    """

    model: str
    method: str
    status: str
    reason: str = ""
    id: str = ""


@dataclass(frozen=True)
class Step:
    """What became known of a run.

    Args:
        row: names it (``Job.rows``).
        stage: that it enters, as a run reports it, or how it ended.
        slot: of the process that works on it.
        reason: why it ended so.
        average: of its scores, once known.
    """

    row: str
    stage: str
    slot: int = 0
    reason: str = ""
    average: float | None = None


@dataclass
class Progress:
    """Where a grid stands.

    Args:
        begun: runs that were begun or found in the store, bases included.
        total: all runs.
        now: what each process does, by its number.
        ended: outcomes so far.
        steps: what became known since whoever shows them took the last ones.
    """

    total: int
    begun: int = 0
    now: dict[int, str] = field(default_factory=dict)
    ended: list[Outcome] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)


@dataclass(frozen=True)
class GridResult:
    """What a grid came to.

    Args:
        outcomes: of all runs.
        seconds: that it took.
        records: folder of the records.
        logs: folder with what the processes printed; gone where none of them failed.
    """

    outcomes: tuple[Outcome, ...]
    seconds: float
    records: Path
    logs: Path

    @property
    def counts(self) -> Counter[str]:
        """Number of runs by status."""
        return Counter(outcome.status for outcome in self.outcomes)

    @property
    def problems(self) -> Counter[tuple[str, str, str, str]]:
        """Number of runs that did not complete by model, method, status and reason."""
        return Counter((o.model, o.method, o.status, o.reason) for o in self.outcomes if o.status != "complete")
