"""Scores in the two forms that the hub reads: ``model-index`` in a card, and one file a task in ``.eval_results``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import yaml

from bench.records.record import Record, Score
from bench.settings.stage_settings import EvaluationConfig

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

FOLDER = ".eval_results"
PREFERRED = ("acc_norm", "exact_match", "acc", "pass@1")
"""Metrics of which a benchmark gets the first that a task has; it shows one number for a task."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def evaluation_words(asked: EvaluationConfig | None) -> str:
    """Return how tasks were asked, as one phrase; empty where that is not known."""
    if asked is None:
        return ""
    shots = "each task's own examples" if asked.num_fewshot is None else f"{asked.num_fewshot}-shot"
    parts = [shots, asked.dtype, "all items" if asked.limit is None else f"the first {asked.limit} items of each task"]
    if asked.max_length is not None:
        parts.append(f"at most {asked.max_length} tokens")
    if asked.apply_chat_template:
        parts.append("prompts as conversations in the model's template")
    if asked.shipped_generation:
        parts.append("texts generated as the model's generation_config.json says")
    if asked.generation:
        parts.append(f"texts generated with {', '.join(asked.generation)}")
    return ", ".join(parts)


def model_index(record: Record) -> list[EvalResult]:
    """Return every score of a record as the ``model-index`` of cards has it."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=score.dataset or score.task,
            dataset_name=score.task,
            dataset_config=score.subset,
            metric_type=score.metric,
            metric_name=metric_name(score),
            metric_value=score.value,
            metric_args=None if score.stderr is None else {"stderr": score.stderr, "n": score.n},
        )
        for score in record.scores
    ]


def metric_name(score: Score) -> str:
    """Return the metric with its filter, where it has one."""
    return score.metric if score.filter == "none" else f"{score.metric} ({score.filter})"


def result_files(record: Record, asked: EvaluationConfig | None = None) -> dict[str, str]:
    """Return the files below the model's folder by name: one for each task whose items lie on the hub.

    Args:
        record: with the scores.
        asked: how they were taken, told in the notes of each.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    files = {}
    for score in _shown(record).values():
        error = "" if score.stderr is None else f" ± {score.stderr:.3g} (standard error)"
        asked_how = evaluation_words(asked)
        lm_eval = record.environment.versions.get("lm_eval", "") if record.environment else ""
        how = f"{metric_name(score)} of lm-eval {lm_eval}".rstrip() + f", task {score.task} version {score.version}"
        notes = f"{how}: {score.value:.4f}{error}, n = {score.n}" + (f"; {asked_how}" if asked_how else "")
        entry = EvalResultEntry(str(score.dataset), score.subset or "default", score.value, notes=notes)
        text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, width=1000, allow_unicode=True)
        files[f"{FOLDER}/{_UNSAFE.sub('-', score.task)}.yaml"] = text
    return files


def _shown(record: Record) -> Mapping[str, Score]:
    """Return, by task, the score that a benchmark shows, for tasks whose items come from a data set of the hub."""
    found: dict[str, Score] = {}
    for score in record.scores:
        if score.dataset is None or score.metric not in PREFERRED:
            continue
        before = found.get(score.task)
        if before is None or PREFERRED.index(score.metric) < PREFERRED.index(before.metric):
            found[score.task] = score
    return found
