"""Each run beside the base that was measured in the same protocol.

Base and run are compared on the scores they share: same task, metric, filter and digest (which covers the task's
definition, items and settings). Runs of one model that share the same such set form a board, within which they rank.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from analysis.inference import Difference, SeedMean, average_difference, difference, holm, mean_with_error
from analysis.protocol import Key, error_of, headline, is_accuracy, is_perplexity, key
from bench.records.record import Record, Score


@dataclass(frozen=True)
class Comparison:
    """A run, its base, and the headline score of each task that both have.

    Args:
        base: None where no base of the model was measured on a shared task; the base is its own base.
        scores: headline scores of the run by task, on the board's tasks.
        base_scores: those of the base, same tasks.
        board: model content and digest of the shared protocol.
    """

    record: Record
    base: Record | None
    scores: dict[str, Score]
    base_scores: dict[str, Score]
    board: str

    @property
    def is_base(self) -> bool:
        """Whether the run is an uncompressed model."""
        return self.record.method is None

    @cached_property
    def accuracies(self) -> tuple[str, ...]:
        """Tasks that enter the average."""
        return tuple(task for task, score in self.scores.items() if is_accuracy(score))

    @cached_property
    def average(self) -> tuple[float | None, float | None]:
        """Average of the run over ``accuracies`` and its standard error."""
        return _average([self.scores[task] for task in self.accuracies])

    @cached_property
    def base_average(self) -> tuple[float | None, float | None]:
        """Average of the base over the same tasks and its standard error."""
        return _average([self.base_scores[task] for task in self.accuracies]) if self.base else (None, None)

    @cached_property
    def difference(self) -> Difference | None:
        """Difference of the averages, task by task paired where the record has it, else with independent errors."""
        if self.base is None or self.is_base or not self.accuracies:
            return None
        parts = [self.task_difference(task) for task in self.accuracies]
        known = [part for part in parts if part is not None]
        return average_difference(known) if len(known) == len(parts) else None

    @property
    def pairing(self) -> str | None:
        """How ``difference`` was made: ``paired``, ``unpaired``, or ``mixed`` over the tasks."""
        if self.difference is None:
            return None
        kinds = {"unpaired" if self.pair(self.scores[task]) is None else "paired" for task in self.accuracies}
        return kinds.pop() if len(kinds) == 1 else "mixed"

    @property
    def old_intervals(self) -> bool:
        """Whether an interval is the percentile bootstrap of earlier versions, too short where few items changed."""
        return any(one.paired is not None and one.paired.interval == "percentile" for one in self.scores.values())

    @cached_property
    def perplexity_retention(self) -> tuple[float | None, float | None]:
        """Geometric mean over perplexity tasks of base over run, and its standard error."""
        tasks = [task for task, score in self.scores.items() if is_perplexity(score) and self.base]
        if not tasks:
            return (None, None)
        logs = [math.log(self.base_scores[task].value / self.scores[task].value) for task in tasks]
        if self.is_base:
            return (1.0, 0.0)
        errors = [self._relative_error(task) for task in tasks]
        mean, error = mean_with_error(logs, errors)
        return (math.exp(mean), None if error is None else math.exp(mean) * error)

    @cached_property
    def holm(self) -> dict[str, float]:
        """Holm's p-value of each headline task with a paired comparison; the family is the tasks of this run."""
        paired = {task: pair.p for task, score in self.scores.items() if (pair := self.pair(score)) is not None}
        return dict(zip(paired, holm(list(paired.values())), strict=True))

    def worse(self, level: float = 0.05, adjusted: bool = True) -> int | None:
        """Return the number of tasks significantly worse than the base; None where nothing is paired."""
        if not self.holm:
            return None
        count = 0
        for task, corrected in self.holm.items():
            score = self.scores[task]
            pair = self.pair(score)
            assert pair is not None
            below = pair.value < 0 if score.higher_is_better else pair.value > 0
            count += below and (corrected if adjusted else pair.p) < level
        return count

    def pair(self, score: Score) -> Difference | None:
        """Return the paired comparison of one of the run's scores with the base; None where there is none."""
        pair = score.paired
        return None if pair is None else Difference(pair.difference, pair.low, pair.high, pair.p)

    def task_difference(self, task: str) -> Difference | None:
        """Return score minus base of a task: paired where it is, else from two independent errors; None without these."""
        score, base = self.scores[task], self.base_scores[task]
        if (pair := self.pair(score)) is not None:
            return pair
        own, other = error_of(score), error_of(base)
        if own is None or other is None:
            return None
        return difference(score.value - base.value, math.hypot(own, other))

    def _relative_error(self, task: str) -> float | None:
        """Return the standard error of log(base / score) of a perplexity, to first order in the difference."""
        score, base = self.scores[task], self.base_scores[task]
        if (pair := self.pair(score)) is not None:
            return pair.error / score.value
        if score.stderr is None or base.stderr is None:
            return None
        return math.hypot(score.stderr / score.value, base.stderr / base.value)

    @property
    def average_over_seeds(self) -> SeedMean | None:
        """Average over ``accuracies`` with its interval over seeds; None for a single run."""
        return None

    def over_seeds(self, score: Score) -> SeedMean | None:
        """Return one of the run's scores with its interval over seeds; None for a single run."""
        return None

    @property
    def runs(self) -> int:
        """Number of runs that this row speaks for."""
        return 1

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the calibration text, else of the method's own draws; empty where no seed could change the result."""
        return seeds_of(self.record)[:1]


def seeds_of(record: Record) -> tuple[int, ...]:
    """Return the seeds that could change a run's result: of its calibration text, then the method's own."""
    own = record.knobs.get("seed")
    text = (record.seeds.get("calibration", 0),) if record.corpus is not None else ()
    return text + ((own,) if isinstance(own, int) else ())


def compare(records: Iterable[Record]) -> list[Comparison]:
    """Return one comparison for each record, in the order of the records."""
    rows = list(records)
    bases: dict[str, list[Record]] = defaultdict(list)
    for record in rows:
        if record.method is None and record.status == "complete" and record.scores:
            bases[record.model.content].append(record)
    compared = [_with_base(record, bases[record.model.content]) for record in rows if record.method is not None]
    boards: dict[str, Counter[tuple[Key, ...]]] = defaultdict(Counter)
    for row in compared:
        if row.base is not None and row.scores:
            boards[row.base.id][tuple(key(score) for score in row.scores.values())] += 1
    by_id = {row.record.id: row for row in compared}
    by_id |= {record.id: _base_row(record, boards[record.id]) for record in rows if record.method is None}
    return [by_id[record.id] for record in rows]


def _with_base(record: Record, bases: Sequence[Record]) -> Comparison:
    mine = {key(score): score for score in record.scores}
    shared = {base.id: [k for k in (key(score) for score in base.scores) if k in mine] for base in bases}
    usable = [base for base in bases if shared[base.id]]
    if not usable or record.status != "complete":
        scores = headline(record.scores)
        return Comparison(record, None, scores, {}, _board(record, scores))
    base = min(usable, key=lambda b: (-len(shared[b.id]), _reversed(b.created), b.id))
    scores = headline(mine[k] for k in shared[base.id])
    theirs = {key(score): score for score in base.scores}
    return Comparison(
        record, base, scores, {task: theirs[key(score)] for task, score in scores.items()}, _board(record, scores)
    )


def _base_row(record: Record, boards: Counter[tuple[Key, ...]]) -> Comparison:
    """Place a base on the board where most of its runs are, with that board's tasks."""
    scores = headline(record.scores)
    if boards:
        wanted = set(sorted(boards, key=lambda keys: (-boards[keys], -len(keys), keys))[0])
        scores = headline(score for score in record.scores if key(score) in wanted)
    usable = record if record.status == "complete" and scores else None
    return Comparison(record, usable, scores, scores if usable else {}, _board(record, scores))


def _board(record: Record, scores: dict[str, Score]) -> str:
    keys = sorted(key(score) for score in scores.values())
    return f"{record.model.content}:{hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:8] if keys else 'none'}"


def _reversed(created: str) -> tuple[int, ...]:
    """Return a sort key that puts the latest ISO 8601 time first."""
    return tuple(-ord(letter) for letter in created)


def _average(scores: Sequence[Score]) -> tuple[float | None, float | None]:
    if not scores:
        return (None, None)
    return mean_with_error([score.value for score in scores], [error_of(score) for score in scores])
