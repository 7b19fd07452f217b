"""From lm-eval's answer for one task to scores with standard errors and per-item results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bench.evaluation.items import Items, Statistic, standard_error
from bench.records.record import Score
from bench.store.store import digest_of

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def _statistic(aggregation: Any) -> tuple[Statistic, bool] | None:
    """Return how lm-eval's ``aggregation`` is computed from items and whether each item is (value, weight)."""
    from lm_eval.api import metrics

    table: tuple[tuple[Any, Statistic, bool], ...] = (
        (metrics.mean, "mean", False),
        (metrics.perplexity, "perplexity", False),
        (metrics.weighted_perplexity, "perplexity", True),
        (metrics.bits_per_byte, "bits", True),
    )
    return next(((statistic, paired) for known, statistic, paired in table if aggregation is known), None)


def item_id(sample: Mapping[str, Any]) -> str:
    """Return what tells an item of a task: its place, and digests of document, prompt and target."""
    return f"{sample['doc_id']}:{sample['doc_hash'][:10]}{sample['prompt_hash'][:6]}{sample['target_hash'][:6]}"


def task_scores(task: Any, name: str, answer: Mapping[str, Any], digest: str) -> tuple[list[Score], list[Items]]:
    """Return the scores of one task, and the items of those scores that are a mean, a perplexity or bits.

    Other aggregations (F1, Matthews correlation, BLEU, ...) give a score without standard error and without items.

    Args:
        task: lm-eval's task.
        name: its name.
        answer: result of ``lm_eval.evaluate`` with samples.
        digest: digest of definition, items and settings.
    """
    scores: list[Score] = []
    kept: list[Items] = []
    dataset, subset = _hub_data(task)
    aggregations, directions = task.aggregation(), task.higher_is_better()
    for key, value in answer["results"][name].items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        samples = [one for one in answer["samples"][name] if one["filter"] == filter_name and metric in one]
        known = _statistic(aggregations.get(metric))
        items = _items(name, metric, filter_name, known, samples) if known else None
        if items is not None:
            kept.append(items)
        scores.append(
            Score(
                task=name,
                metric=metric,
                filter=filter_name,
                value=float(value),
                stderr=standard_error(items) if items else None,
                n=len(samples),
                higher_is_better=bool(directions.get(metric, True)),
                version=str(answer["versions"][name]),
                digest=digest,
                dataset=dataset,
                subset=subset,
            )
        )
    return scores, kept


def _hub_data(task: Any) -> tuple[str | None, str | None]:
    """Return the data set of the hub that a task reads, and which of its configurations; None for each that there is not."""
    path, name = task.get_config("dataset_path"), task.get_config("dataset_name")
    if not isinstance(path, str) or not _HUB_ID.fullmatch(path):
        return None, None  # a folder, a function, or one of the loaders of local files, such as json
    return path, name if isinstance(name, str) else None


def _items(
    task: str, metric: str, filter_name: str, known: tuple[Statistic, bool], samples: Sequence[Mapping[str, Any]]
) -> Items | None:
    statistic, weighted = known
    try:
        pairs = [(one[metric][0], one[metric][1]) if weighted else (one[metric], 1.0) for one in samples]
        values, weights = tuple(float(value) for value, _ in pairs), tuple(float(weight) for _, weight in pairs)
    except (TypeError, ValueError, IndexError):  # a task's own metric may hold anything in its items
        return None
    return Items(task, metric, filter_name, statistic, tuple(map(item_id, samples)), values, weights)


def group_scores(
    group: Any, leaves: Mapping[str, Sequence[Score]], items: Sequence[Items]
) -> tuple[list[Score], list[Items]]:
    """Return the aggregated scores of a group such as mmlu, with items whose weighted mean is the group's score.

    Args:
        group: lm-eval's group.
        leaves: scores of the tasks in the group by name.
        items: items of those tasks.
    """
    metrics: dict[str, dict[str, Any]] = {}
    for name, part in leaves.items():
        metrics[name] = {"sample_len": max(score.n for score in part)}
        for score in part:
            metrics[name][f"{score.metric},{score.filter}"] = score.value
            error = "N/A" if score.stderr is None else score.stderr
            metrics[name][f"{score.metric}_stderr,{score.filter}"] = error
    answer = group.aggregate(metrics)
    scores, kept = [], []
    for key, value in answer.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        parts = [one for part in leaves.values() for one in part if (one.metric, one.filter) == (metric, filter_name)]
        error = answer.get(f"{metric}_stderr,{filter_name}")
        own = [one for one in items if one.task in leaves and (one.metric, one.filter) == (metric, filter_name)]
        joined = _joined(group.name, own)
        if joined is not None and abs(_mean(joined) - value) < 1e-9:
            kept.append(joined)
        scores.append(
            Score(
                task=group.name,
                metric=metric,
                filter=filter_name,
                value=float(value),
                stderr=float(error) if isinstance(error, (int, float)) else None,
                n=sum(one.n for one in parts),
                higher_is_better=all(one.higher_is_better for one in parts),
                version=str(group.version),
                digest=digest_of([group.name, metric, filter_name, sorted(one.digest for one in parts)]),
                dataset=next(iter(sources)) if len(sources := {one.dataset for one in parts}) == 1 else None,
            )
        )
    return scores, kept


def _joined(name: str, parts: Sequence[Items]) -> Items | None:
    if not parts or any(part.statistic != "mean" for part in parts):
        return None
    ids = tuple(f"{part.task}/{one}" for part in parts for one in part.ids)
    values = tuple(value for part in parts for value in part.values)
    return Items(name, parts[0].metric, parts[0].filter, "mean", ids, values, (1.0,) * len(values))


def _mean(items: Items) -> float:
    return sum(items.values) / len(items.values)
