"""The lm-eval tasks of the language: YAML files and the JSONL data that they read."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.pocket.language import DOMAIN_WEIGHTS, DOMAINS, items, windows
from bench.pocket.language.lexicon import vocabulary

GENERATIVE = ("arithmetic", "stories")
PERPLEXITY_WINDOW = 128
VERSION = 1

Row = Mapping[str, Any]

TASKS: tuple[str, ...] = (
    *(f"pocket_{name}" for name in DOMAINS),
    *(f"pocket_{name}_gen" for name in GENERATIVE),
    "pocket_ppl",
)


def _choice_rows(name: str, seed: int, count: int) -> list[Row]:
    return [
        {"context": item.context, "choices": list(item.choices), "answer": item.answer}
        for item in items(name, seed, count)
    ]


def _generation_rows(name: str, seed: int, count: int) -> list[Row]:
    return [{"context": item.context, "target": item.choices[item.answer]} for item in items(name, seed, count)]


def _text_rows(seed: int, count: int) -> list[Row]:
    words = list(vocabulary())
    stream = windows(random.Random(f"perplexity {seed}"), "test", DOMAIN_WEIGHTS, PERPLEXITY_WINDOW)
    return [{"text": " ".join(words[token] for token in next(stream))} for _ in range(count)]


def _metric(name: str, *, higher: bool, aggregation: str = "mean", **more: Any) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": higher, **more}


_CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{context}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [_metric("acc", higher=True), _metric("acc_norm", higher=True)],
}
_GENERATION: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "{{context}}",
    "doc_to_target": "{{target}}",
    "generation_kwargs": {"until": [" .", "\n"], "do_sample": False, "max_gen_toks": 4},
    "filter_list": [
        {
            "name": "answer",
            "filter": [
                {"function": "regex", "regex_pattern": r"^\s*([^.]*?)\s*(?:\.|$)", "fallback": ""},
                {"function": "take_first"},
            ],
        }
    ],
    "metric_list": [_metric("exact_match", higher=True)],
}
_PERPLEXITY: dict[str, Any] = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [
        _metric("word_perplexity", higher=False, aggregation="weighted_perplexity"),
        _metric("byte_perplexity", higher=False, aggregation="weighted_perplexity"),
        _metric("bits_per_byte", higher=False, aggregation="bits_per_byte"),
    ],
}


def _definitions(seed: int, count: int) -> dict[str, tuple[dict[str, Any], Sequence[Row]]]:
    tasks: dict[str, tuple[dict[str, Any], Sequence[Row]]] = {}
    for name in DOMAINS:
        tasks[f"pocket_{name}"] = (_CHOICE, _choice_rows(name, seed, count))
    for name in GENERATIVE:
        tasks[f"pocket_{name}_gen"] = (_GENERATION, _generation_rows(name, seed, count))
    tasks["pocket_ppl"] = (_PERPLEXITY, _text_rows(seed, max(1, count // 4)))
    return tasks


def write_tasks(cache_dir: Path, *, seed: int = 1, items: int = 200) -> Path:
    """Write all tasks and return the folder to give lm-eval as ``include_path``.

    The folder is named by a hash of what is in it, so that a second call finds it complete and does nothing.

    Args:
        cache_dir: where the folder is made.
        seed: chooses the items; another seed gives other unseen items.
        items: items a domain; held-out text gets a quarter as many windows of 128 tokens.

    Raises:
        ValueError: if ``items`` is not positive.
    """
    if items < 1:
        raise ValueError(f"a task needs at least one item, got {items}")
    tasks = _definitions(seed, items)
    content = json.dumps([VERSION, seed, items, tasks], sort_keys=True)
    folder = cache_dir.resolve() / f"pocket-tasks-{hashlib.blake2b(content.encode(), digest_size=8).hexdigest()}"
    if folder.is_dir():
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".pocket-tasks-", dir=cache_dir))
    for task, (settings, rows) in tasks.items():
        (draft / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        definition = {
            "task": task,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{task}.jsonl")}},
            "test_split": "test",
            "num_fewshot": 0,
            "target_delimiter": " ",
            "metadata": {"version": VERSION},
            **settings,
        }
        # JSON is YAML, and needs no library here.
        (draft / f"{task}.yaml").write_text(json.dumps(definition, indent=1) + "\n", encoding="utf-8")
    draft.chmod(0o755)
    try:
        os.rename(draft, folder)
    except OSError:  # another process was first
        shutil.rmtree(draft)
        if not folder.is_dir():
            raise
    return folder
