"""Two ways to run the same model, item by item: their scores, and on how many items they agree."""

from __future__ import annotations

from dataclasses import dataclass

from bench.evaluation.evaluate import Evaluation
from bench.evaluation.items import Items
from methods.framework.errors import EvaluationError


@dataclass(frozen=True)
class Parity:
    """What two backends make of one metric.

    Args:
        task: name of the task.
        metric: name of the metric.
        n: items.
        first: score of one.
        second: score of the other.
        agree: share of items with the same value; of values that are no 0 or 1, up to a relative 1e-3.
        widest: largest difference of an item's values.
    """

    task: str
    metric: str
    n: int
    first: float
    second: float
    agree: float
    widest: float


def parity(first: Evaluation, second: Evaluation) -> list[Parity]:
    """Return what two evaluations of the same model on the same items have in common, for each metric with items.

    Args:
        first: by one backend.
        second: by the other.

    Raises:
        EvaluationError: they do not hold the same items.
    """
    if set(first.items) != set(second.items):
        odd = sorted("/".join(key) for key in set(first.items) ^ set(second.items))
        raise EvaluationError(f"only one of the two evaluations has {odd[0]}; score both on the same tasks")
    values = {(one.task, one.metric, one.filter): one.value for one in second.scores}
    found = []
    for score in first.scores:
        key = (score.task, score.metric, score.filter)
        if key not in first.items:
            continue
        own, other = first.items[key], second.items[key]
        if own.ids != other.ids:
            raise EvaluationError(
                f"the two evaluations of {'/'.join(key)} hold other items; score both on the same ones"
            )
        near = [_near(a, b, own) for a, b in zip(own.values, other.values, strict=True)]
        widest = max(abs(a - b) for a, b in zip(own.values, other.values, strict=True))
        agree = sum(near) / len(near)
        found.append(Parity(score.task, score.metric, len(near), score.value, values[key], agree, widest))
    return found


def _near(first: float, second: float, items: Items) -> bool:
    if items.binary:
        return first == second
    return abs(first - second) <= 1e-3 * max(abs(first), abs(second), 1.0)
