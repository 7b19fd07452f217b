"""One row for runs that differ only in their seeds.

Runs of one model, method, setting, corpus and protocol are averaged when all that differs is the seed of the calibration
text or the method's own ``seed``. The row keeps two errors apart: that of the items, which no number of seeds makes
smaller, and that of the seeds, a Student t interval of the mean.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from analysis.comparison import Comparison, seeds_of
from analysis.inference import Difference, SeedMean, difference_over_seeds, mean, over_seeds
from analysis.protocol import key
from bench.records.record import CostInfo, Interval, RatioInfo, Record, RecoveryInfo, Score, Timing


@dataclass(frozen=True)
class SeedAverage(Comparison):
    """The mean of several runs; ``record`` and ``scores`` hold means, with the mean of the item-level errors.

    Args:
        members: the runs, at least two.
    """

    members: tuple[Comparison, ...] = ()

    @cached_property
    def difference(self) -> Difference | None:
        """Mean difference of the averages to the base, with an interval over items and seeds."""
        parts = [member.difference for member in self.members]
        known = [part for part in parts if part is not None]
        return difference_over_seeds(known) if len(known) == len(parts) else None

    @property
    def old_intervals(self) -> bool:
        """Whether an interval of a run is one of earlier versions."""
        return any(member.old_intervals for member in self.members)

    @cached_property
    def perplexity_retention(self) -> tuple[float | None, float | None]:
        """Geometric mean over seeds of that of the runs, and its standard error over items and seeds."""
        parts = [member.perplexity_retention for member in self.members]
        logs = [math.log(value) for value, _ in parts if value]
        if len(logs) < len(parts):
            return (None, None)
        value = math.exp(mean(logs))
        errors = [error / own for own, error in parts if own and error is not None]
        if len(errors) < len(parts):
            return (value, None)
        known = [Difference(log, log - 1.96 * e, log + 1.96 * e, 1.0) for log, e in zip(logs, errors, strict=True)]
        return (value, value * difference_over_seeds(known).error)

    def pair(self, score: Score) -> Difference | None:
        """Return the mean of the runs' comparisons with the base, with an interval over items and seeds."""
        parts = [member.pair(_own(member, score)) for member in self.members]
        known = [part for part in parts if part is not None]
        return difference_over_seeds(known) if len(known) == len(parts) else None

    @cached_property
    def average_over_seeds(self) -> SeedMean | None:
        """Average over ``accuracies`` with its interval over seeds."""
        averages = [member.average[0] for member in self.members]
        known = [average for average in averages if average is not None]
        return over_seeds(known) if len(known) == len(averages) else None

    def over_seeds(self, score: Score) -> SeedMean | None:
        """Return one of the scores with its interval over seeds."""
        return over_seeds([_own(member, score).value for member in self.members])

    @property
    def runs(self) -> int:
        """Number of runs that this row speaks for."""
        return len(self.members)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of all runs, sorted."""
        return tuple(sorted({seed for member in self.members for seed in member.seeds}))


def average_seeds(rows: Iterable[Comparison]) -> list[Comparison]:
    """Return ``rows`` with those that differ only in seeds as one, in the place of the first.

    Runs that agree in their seeds too (another text of the same name, say) are no repeats of each other; such a set is
    left as it is.
    """
    sets: dict[Hashable, list[Comparison]] = defaultdict(list)
    for row in rows:
        sets[_what(row)].append(row)
    found: list[Comparison] = []
    for members in sets.values():
        distinct = {seeds_of(row.record) for row in members}
        found += [_mean(members)] if 1 < len(members) == len(distinct) else members
    return found


def _what(row: Comparison) -> Hashable:
    """Return everything about a run but its seeds; a base is always by itself."""
    record, corpus = row.record, row.record.corpus
    if record.method is None:
        return record.id
    text = None
    if corpus:
        text = (corpus.name, corpus.tokens, corpus.sequences, corpus.propagation, corpus.counted is None)
    knobs = repr(sorted((name, value) for name, value in record.knobs.items() if name != "seed"))
    protocol = tuple(key(score) for score in record.scores)
    base = row.base.id if row.base else None
    return (
        record.group,
        record.model.content,
        record.method,
        knobs,
        text,
        base,
        protocol,
        repr(_training(record)),
        record.plan if record.method == "plan" else None,
        record.status,
        record.reason,
    )


def _training(record: Record) -> dict[str, object] | None:
    """Return what a training was, without what it took."""
    return record.recovery.model_dump(include={"kind", "settings", "corpus", "tokens"}) if record.recovery else None


def _own(member: Comparison, score: Score) -> Score:
    return next(one for one in member.record.scores if key(one) == key(score))


def _mean(members: Sequence[Comparison]) -> SeedAverage:
    first = members[0]
    record = _mean_record([member.record for member in members])
    scores = {key(score): score for score in record.scores}
    return SeedAverage(
        record=record,
        base=first.base,
        scores={task: scores[key(score)] for task, score in first.scores.items()},
        base_scores=first.base_scores,
        board=first.board,
        members=tuple(members),
    )


def _mean_record(records: Sequence[Record]) -> Record:
    """Return a record that stands for all: means of what is measured, and no plan unless all have the same."""
    first = records[0]
    name = ",".join(sorted(record.id for record in records))
    plans = {record.plan for record in records}
    stages = sorted({stage for record in records for stage in record.seconds})
    costs = [record.cost for record in records if record.cost]
    ratios = [record.ratios for record in records if record.ratios]
    return first.model_copy(
        update={
            "id": hashlib.sha256(name.encode()).hexdigest()[:16],
            "created": max(record.created for record in records),
            "knobs": {name: value for name, value in first.knobs.items() if name != "seed"},
            "plan": first.plan if len(plans) == 1 else None,
            "groups": first.groups if len(plans) == 1 else {},
            "similarity": (),
            "cost": _mean_cost(costs) if len(costs) == len(records) else None,
            "ratios": _mean_ratios(ratios) if len(ratios) == len(records) else None,
            "scores": tuple(
                _mean_score([record.scores[place] for record in records]) for place in range(len(first.scores))
            ),
            "timing": _joint_timing([record.timing for record in records]),
            "recovery": _mean_recovery([record.recovery for record in records]),
            "seconds": {stage: mean([record.seconds.get(stage, 0.0) for record in records]) for stage in stages},
            "seeds": {},
        }
    )


def _mean_score(scores: Sequence[Score]) -> Score:
    errors = [score.stderr for score in scores if score.stderr is not None]
    return scores[0].model_copy(
        update={
            "value": mean([score.value for score in scores]),
            "stderr": mean(errors) if len(errors) == len(scores) else None,
            "paired": None,
        }
    )


def _mean_cost(costs: Sequence[CostInfo]) -> CostInfo:
    return CostInfo(**{name: round(mean([getattr(cost, name) for cost in costs])) for name in CostInfo.model_fields})


def _mean_ratios(ratios: Sequence[RatioInfo]) -> RatioInfo:
    return RatioInfo(**{name: mean([getattr(one, name) for one in ratios]) for name in RatioInfo.model_fields})


def _mean_recovery(recoveries: Sequence[RecoveryInfo | None]) -> RecoveryInfo | None:
    known = [one for one in recoveries if one is not None]
    if len(known) < len(recoveries):
        return None
    losses = (mean([one.losses[0] for one in known]), mean([one.losses[1] for one in known]))
    costs = {name: mean([getattr(one, name) for one in known]) for name in ("seconds", "wall")}
    return known[0].model_copy(update={**costs, "losses": losses})


def _joint_timing(timings: Sequence[Timing | None]) -> Timing | None:
    """Return the mean of the medians between the lowest and the highest end; the first one where not all have speeds."""
    known = [timing for timing in timings if timing is not None]
    if len(known) < len(timings) or any(timing.reason for timing in known):
        return next((timing for timing in known if timing.reason), None)

    def joint(name: str) -> Interval | None:
        ends = [getattr(timing, name) for timing in known]
        if any(end is None for end in ends):
            return None
        return Interval(
            median=mean([end.median for end in ends]),
            low=min(end.low for end in ends),
            high=max(end.high for end in ends),
            n=sum(end.n for end in ends),
        )

    speeds = {name: joint(name) for name in ("prefill", "decode", "prefill_ratio", "decode_ratio")}
    marks = tuple(dict.fromkeys(mark for timing in known for mark in timing.marks))
    return known[0].model_copy(update={**speeds, "marks": marks, "batches": (), "online": ()})
