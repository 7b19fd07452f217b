"""Which metric speaks for a task, which tasks make an average, and which scores may be compared."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from analysis.inference import proportion_error
from bench.records.record import Score

ACCURACIES = ("acc_norm", "acc", "exact_match", "f1", "pass@1", "pass_at_1", "mc2", "mcc")
"""Metrics between 0 and 1 that enter averages, the preferred first: length-normalised accuracy where a task has it."""

PERPLEXITIES = ("word_perplexity", "perplexity", "byte_perplexity", "bits_per_byte")
"""Metrics of language modelling, the preferred first; shown beside the average, never in it."""

HEALTH = ("loops", "unended", "length", "distinct_3")
"""Metrics of written texts, which say nothing about answers: they speak for no task that has another metric."""

Key = tuple[str, str, str, str]


def key(score: Score) -> Key:
    """Return what two scores must share to be compared: task, metric, filter and digest of task, items and settings."""
    return (score.task, score.metric, score.filter, score.digest)


def is_accuracy(score: Score) -> bool:
    """Tell whether ``score`` enters averages."""
    return score.metric in ACCURACIES and score.higher_is_better


def error_of(score: Score) -> float | None:
    """Return the standard error of ``score`` over its items; of an accuracy at least that of ``proportion_error``, so never 0."""
    if score.stderr is None or not is_accuracy(score) or not 0 <= score.value <= 1:
        return score.stderr
    return max(score.stderr, proportion_error(score.value, score.n))


def is_perplexity(score: Score) -> bool:
    """Tell whether ``score`` is a perplexity."""
    return score.metric in PERPLEXITIES and not score.higher_is_better and score.value > 0


def headline(scores: Iterable[Score]) -> dict[str, Score]:
    """Return the score that speaks for each task, sorted by task: its most preferred metric, then filter by name.

    A group of tasks does not speak where its tasks do: they would count twice in an average.
    """
    best: dict[str, Score] = {}
    for score in sorted(without_groups(list(scores)), key=_preference):
        best.setdefault(score.task, score)
    return dict(sorted(best.items()))


def without_groups(scores: Sequence[Score]) -> list[Score]:
    """Return ``scores`` without the aggregates of tasks that are among them.

    An aggregate is known by its digest, which is made of its name and of the digests of its tasks; these stand next to
    each other in a record, and have as many items together as the aggregate.
    """
    told = tuple(_Told(score.task, score.metric, score.filter, score.n, score.digest) for score in scores)
    return [scores[place] for place in _single(told)]


class _Told(NamedTuple):
    """What of a score tells whether it is an aggregate; runs of one protocol agree in it."""

    task: str
    metric: str
    filter: str
    n: int
    digest: str


@functools.lru_cache(maxsize=1024)
def _single(scores: tuple[_Told, ...]) -> tuple[int, ...]:
    """Return the places of the scores that are no aggregates of others."""
    columns: dict[tuple[str, str], list[_Told]] = {}
    for score in scores:
        columns.setdefault((score.metric, score.filter), []).append(score)
    return tuple(
        place for place, score in enumerate(scores) if not _is_group(score, columns[score.metric, score.filter])
    )


def _is_group(score: _Told, column: Sequence[_Told]) -> bool:
    start, items = 0, 0
    for end, part in enumerate(column):
        items += part.n
        while items > score.n:
            items -= column[start].n
            start += 1
        run = column[start : end + 1]
        if items == score.n and score not in run and score.digest == _group_digest(score, run):
            return True
    return False


def _group_digest(group: _Told, parts: Sequence[_Told]) -> str:
    """Return the digest that evaluation gives to the aggregate of ``parts``."""
    content = [group.task, group.metric, group.filter, sorted(part.digest for part in parts)]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def _preference(score: Score) -> tuple[int, str, bool, str]:
    order = (*ACCURACIES, *PERPLEXITIES)
    place = order.index(score.metric) if score.metric in order else len(order) + (score.metric in HEALTH)
    return (place, score.metric, score.filter != "none", score.filter)


@dataclass(frozen=True)
class PublishedAverage:
    """An average that a paper reports.

    Args:
        tasks: lm-eval task names; a suffix ``_local`` (the same task with local data) counts as the task.
        metrics: admitted metrics, the preferred first.
    """

    tasks: tuple[str, ...]
    metrics: tuple[str, ...]
    source: str

    def of(self, scores: Iterable[Score]) -> tuple[Score, ...] | None:
        """Return one score for each task, or None where a task is absent."""
        chosen: dict[str, Score] = {}
        usable = [score for score in scores if score.metric in self.metrics]
        for score in sorted(usable, key=lambda s: (self.metrics.index(s.metric), s.filter != "none", s.filter, s.task)):
            chosen.setdefault(score.task.removesuffix("_local"), score)
        if not all(task in chosen for task in self.tasks):
            return None
        return tuple(chosen[task] for task in self.tasks)


_NORMALISED = ("acc_norm", "acc")
PUBLISHED_AVERAGES: Mapping[str, PublishedAverage] = {
    "avg_moei2": PublishedAverage(
        ("arc_challenge", "arc_easy", "boolq", "hellaswag", "openbookqa", "rte", "winogrande"),
        _NORMALISED,
        "MoE-I2, arXiv 2411.01016: seven tasks, zero-shot; its metric is not stated, acc_norm where available here",
    ),
    "avg_holistic": PublishedAverage(
        ("arc_challenge", "boolq", "hellaswag", "mmlu", "openbookqa", "piqa", "rte", "winogrande"),
        _NORMALISED,
        "holistic study, arXiv 2406.02500: eight tasks, zero-shot, acc_norm where available",
    ),
    "avg_paper3": PublishedAverage(
        ("mmlu", "boolq", "openbookqa", "rte"),
        _NORMALISED,
        "diversifying expert knowledge, arXiv 2407.09590: four tasks; its metric is not stated",
    ),
    "avg_d2": PublishedAverage(
        ("openbookqa", "arc_easy", "winogrande", "hellaswag", "arc_challenge", "piqa", "mathqa"),
        ("acc",),
        "D2-MoE, arXiv 2502.17298: seven tasks, zero-shot, plain accuracy",
    ),
}
