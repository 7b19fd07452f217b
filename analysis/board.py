"""The rows of a job while it runs: which stage each is in, how far it is, and how long the rest may take."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult

from analysis.console import ENDED, LiveRow, live_table, total_line
from analysis.formatting import clock_time

_COUNTED = re.compile(r"(?P<stage>\w+)(?: (?P<what>\S+))? (?P<done>\d+)/(?P<total>\d+)(?: (?P<rest>.+))?")
WAITING = "waiting"
"""What a row is before its first stage, and after work on it was lost."""
_LATEST = 5
"""Rows whose seconds tell what a stage takes; the first of them often measures for all, so the middle counts."""


@dataclass
class _Row:
    """One row.

    Args:
        stages: those that it will pass, in order.
        parts: tasks that its scoring has, as far as known.
    """

    model: str
    method: str
    stages: Sequence[str]
    base: bool
    parts: int
    stage: str = WAITING
    passed: list[str] = field(default_factory=list)
    share: float = 0.0
    seen: list[str] = field(default_factory=list)
    since: float | None = None
    spent: float = 0.0
    average: float | None = None
    note: str = ""
    earlier: bool = False

    @property
    def ended(self) -> bool:
        return self.stage in ENDED

    @property
    def done(self) -> float:
        """Share of its stages that is done."""
        running = self.share if self.since is not None else 0.0
        return 1.0 if self.ended else min((len(self.passed) + running) / max(len(self.stages), 1), 1.0)


class Board:
    """All rows of a job, drawn by rich as they stand; without a terminal each new stage is a line instead."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        """Start without rows.

        Args:
            console: where the job is shown.
            clock: seconds, from anywhere.
        """
        self._console, self._clock = console, clock
        self._rows: dict[Hashable, _Row] = {}
        self._lanes: dict[int, Hashable] = {}
        self._took: dict[str, list[float]] = {}
        self._began = clock()

    def add(
        self, key: Hashable, model: str, method: str, stages: Sequence[str], *, base: bool = False, parts: int = 1
    ) -> None:
        """List a row.

        Args:
            key: names it in what is told later.
            model: name of the source.
            method: with its settings.
            stages: those that it will pass, in order.
            base: whether the rows of the same model are held against it.
            parts: tasks that its scoring has, as far as known.
        """
        self._rows[key] = _Row(model, method, stages, base, parts)

    def note(self, key: Hashable, told: str, *, lane: int = 0, reason: str = "", average: float | None = None) -> None:
        """Note what a run tells of a row: a stage, perhaps a task, done/total and more; or how it ended.

        Args:
            key: of the row.
            told: as a run reports it.
            lane: whoever works on it; another row of the same lane is not worked on any more.
            reason: why it ended so.
            average: of its scores, once known.
        """
        row = self._rows[key]
        if self._lanes.get(lane) != key and self._lanes.get(lane) in self._rows:
            self._stop(self._rows[self._lanes[lane]])
        self._lanes[lane] = key
        found = _COUNTED.fullmatch(told)
        stage, _, rest = told.partition(" ")
        row.average = row.average if average is None else average
        if stage != row.stage or (row.since is None and stage not in ENDED):
            self._stop(row)
            row.stage, row.share, row.seen, row.earlier = stage, 0.0, [], rest == "(earlier)"
            row.passed = [] if stage == WAITING else row.passed
            row.since = None if row.ended or stage == WAITING else self._clock()
            self._say(row, reason)
        row.note = (
            reason
            or ("" if found is None else " ".join(filter(None, (found["what"], found["rest"]))))
            or (rest if found is None else "")
        )
        if found is not None and int(found["total"]):
            if found["what"] and found["what"] not in row.seen:
                row.seen.append(found["what"])
            parts = max(row.parts if found["what"] else 1, len(row.seen))
            row.share = (max(len(row.seen) - 1, 0) + int(found["done"]) / int(found["total"])) / parts

    def _stop(self, row: _Row) -> None:
        """Stop the clock of a row whose stage is over, and learn what the stage took."""
        if row.since is None:
            return
        took, row.since = self._clock() - row.since, None
        row.spent += took
        row.passed.append(row.stage)
        if row.seen:
            for one in self._rows.values():
                one.parts = max(one.parts, len(row.seen)) if one.model == row.model else one.parts
        self._took.setdefault(row.stage, []).append(took)

    def _say(self, row: _Row, reason: str) -> None:
        """Without a terminal, print a line for a new stage."""
        if self._console.is_terminal:
            return
        ended = sum(one.ended for one in self._rows.values())
        told = (
            f"{ended} of {len(self._rows)} rows, {clock_time(self._clock() - self._began)}  {row.model}  {row.method}: "
        )
        told += row.stage + (f": {reason}" if reason else " (earlier)" if row.earlier else "")
        self._console.print(told, markup=False, highlight=False, soft_wrap=True)

    def left(self, key: Hashable) -> float | None:
        """Return the seconds that a row may still take, None where nothing tells them."""
        row = self._rows[key]
        if row.ended:
            return 0.0
        seconds = 0.0
        if row.since is not None:
            elapsed = self._clock() - row.since
            usual = self._usual(row.stage)
            if row.share > 0:
                seconds += elapsed * (1 - row.share) / row.share
            elif usual is not None:
                seconds += max(usual - elapsed, 0.0)
            else:
                return None
        for stage in row.stages:
            if stage in row.passed or (stage == row.stage and row.since is not None):
                continue
            usual = self._usual(stage)
            if usual is None:
                return None
            seconds += usual
        return seconds

    def _usual(self, stage: str) -> float | None:
        return statistics.median(self._took[stage][-_LATEST:]) if stage in self._took else None

    def total_left(self) -> float | None:
        """Return the seconds that all rows may still take, with as many at a time as now; None where nothing tells them."""
        open_rows = [key for key, row in self._rows.items() if not row.ended]
        each = [self.left(key) for key in open_rows]
        lanes = max(sum(row.since is not None for row in self._rows.values()), 1)
        known = [one for one in each if one is not None]
        if len(known) < len(each):
            return None
        return max([sum(known) / lanes, *(known if lanes > 1 else ())], default=0.0)

    def rows(self) -> list[LiveRow]:
        """Return all rows as they stand."""
        shown, whole = [], {row.model: row.average for row in self._rows.values() if row.base}
        for key, row in self._rows.items():
            base = whole.get(row.model)
            running = row.since is not None
            shown.append(
                LiveRow(
                    model=row.model,
                    method=row.method,
                    stage=row.stage if running or row.ended or not row.passed else WAITING,
                    share=row.share if running and row.share else None,
                    average=row.average,
                    retention=row.average / base if row.average is not None and base else None,
                    seconds=row.spent + (self._clock() - row.since if row.since is not None else 0.0)
                    if running or row.passed
                    else None,
                    left=self.left(key) if running else None,
                    note=row.note,
                )
            )
        return shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the total and the rows, as many as the terminal has lines for."""
        rows = list(self._rows.values())
        if not rows:
            return
        fresh = [row for row in rows if not row.earlier]
        share = sum(row.done for row in fresh) / len(fresh) if fresh else 1.0
        ended = sum(row.ended for row in rows)
        yield total_line(ended, len(rows), share, clock_time(self._clock() - self._began), self.total_left())
        yield live_table(self.rows(), height=max((options.height or console.height) - 4, 3), width=options.max_width)
