"""Evaluation of a model in memory through lm-eval's Python API, task by task, resumable.

lm-eval's own response cache is not used: its key does not hold the model.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.calibration.code_digest import EVALUATING, code_digest
from bench.evaluation.chat import Chat
from bench.evaluation.generation import Generation
from bench.evaluation.health import health_scores
from bench.evaluation.items import Items, items_from
from bench.evaluation.quiet import quiet_lm_eval
from bench.evaluation.scores import group_scores, task_scores
from bench.evaluation.tasks import LoadedTask, check_tasks, load_tasks
from bench.records.record import Score
from bench.store.store import checksum, digest_of, write_json
from bench.store.versions import versions
from methods.framework.errors import EvaluationError

__all__ = ["Evaluation", "check_tasks", "evaluate"]

_ENCODINGS: dict[str, dict[tuple[str, str], tuple[list[int], list[int]]]] = {}


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model, and what they were computed from."""

    scores: tuple[Score, ...]
    items: Mapping[tuple[str, str, str], Items]  # by task, metric, filter
    cached: tuple[str, ...]  # tasks whose result was there already
    seconds: float  # CPU seconds spent here


def evaluate(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    num_fewshot: int | None = None,
    seed: int = 0,
    model_digest: str,
    cache: Path | None = None,
    max_length: int | None = None,
    chat: Chat | None = None,
    generation: Generation | None = None,
    think_end_token: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Evaluate ``model`` on lm-eval tasks.

    All tasks are loaded before the model runs. Each task is finished, and cached, on its own, so that an interrupted
    evaluation continues with the next task.

    Args:
        model: causal language model of transformers, in evaluation mode, on its device.
        tokenizer: its tokenizer.
        tasks: names of tasks, groups or tags of lm-eval, or of local tasks in ``include_path``.
        include_path: folder of local task YAML files; lm-eval's own index is read only when a name is not there.
        limit: first items of each task, None for all.
        batch_size: sequences in a batch, None to fill batches by tokens.
        num_fewshot: examples in the prompt, None for each task's own number.
        seed: of the choice of examples, and of sampling where a task samples.
        model_digest: digest of weights, tokenizer and plan: everything about the model that can change an answer.
        cache: folder of finished tasks, None for no cache.
        max_length: longest input in tokens, None for the model's own limit.
        chat: how prompts become conversations; None asks them as they are.
        generation: how texts are generated; None: as each task says.
        think_end_token: what ends the model's thinking in a text, which is scored from there on; None: texts are scored whole.
        progress: called with task, requests done and requests in all.

    Returns:
        Scores of every task, metric and filter in the order of ``tasks``, then of groups, and their items.

    Raises:
        EvaluationError: a task is unknown or fails, or its data cannot be loaded.
    """
    started = time.process_time()
    leaves, groups = load_tasks(
        tasks, include_path, num_fewshot=num_fewshot, limit=limit, seed=seed, chat=chat, generation=generation
    )
    settings = {"dtype": str(model.dtype).removeprefix("torch."), "max_length": max_length}
    if generation is not None and generation.samples:
        settings["batch_size"] = batch_size  # draws of one batch follow each other
    if think_end_token is not None:
        settings["think_end_token"] = think_end_token
    tokens = _tokenizer_digest(tokenizer)
    computed_by = {"versions": versions(), "code": code_digest(EVALUATING)} if cache else {}
    scores: dict[str, list[Score]] = {}
    items: list[Items] = []
    cached: list[str] = []
    for name, leaf in leaves.items():
        digest = digest_of({"task": leaf.digest, **settings})
        key = {"model": model_digest, "tokenizer": tokens, "task": digest, "device": model.device.type, **computed_by}
        file = cache / f"{digest_of(key)[:32]}.json" if cache else None
        found = _recall(file, key) if file else None
        if found is not None:
            cached.append(name)
        else:
            reads = {"batch_size": batch_size, "max_length": max_length, "think_end_token": think_end_token}
            found = _run(model, tokenizer, tokens, leaf, digest, reads, seed, progress)
            if file:
                value = {"scores": [one.model_dump() for one in found[0]], "items": [asdict(one) for one in found[1]]}
                write_json(file, {"key": key, "value": value, "sha256": checksum(value)})
        scores[name] = found[0]
        items += found[1]
    flat = [score for part in scores.values() for score in part]
    flat_items = list(items)
    for group in groups.values():
        inside = {task.task_name: scores[task.task_name] for task in group.get_all_tasks()}
        if group.has_aggregation:
            own, joined = group_scores(group, inside, items)
            flat += own
            flat_items += joined
    by_key = {one.key: one for one in flat_items}
    return Evaluation(tuple(flat), by_key, tuple(cached), time.process_time() - started)


def _run(
    model: Any,
    tokenizer: Any,
    tokens: str,
    leaf: LoadedTask,
    digest: str,
    reads: Mapping[str, Any],
    seed: int,
    progress: Callable[[str, int, int], None] | None,
) -> tuple[list[Score], list[Items]]:
    import lm_eval

    from bench.evaluation.language_model import LiveModel

    task = leaf.fresh()
    total, finished = len(task.instances), 0

    def done(count: int) -> None:
        nonlocal finished
        finished = min(finished + count, total)  # one long document is several windows
        if progress is not None:
            progress(leaf.name, finished, total)

    try:
        with quiet_lm_eval(), _seeded(seed):
            memory = _ENCODINGS.setdefault(tokens, {})
            wrapped = LiveModel(model, tokenizer, **reads, encodings=memory, done=done)
            # simple_evaluate does the same after probing packages, git and the hub, which costs seconds for each task.
            answer = lm_eval.evaluate(wrapped, {"tasks": {leaf.name: task}}, limit=leaf.limit, bootstrap_iters=0)
    except EvaluationError:
        raise
    except Exception as error:  # tasks carry their own code, which raises anything
        told = " ".join(str(error).split())[:300]
        raise EvaluationError(
            f"task {leaf.name!r} failed: {type(error).__name__}: {told}. Finished tasks are kept; leave this one "
            "out or mend it, and run again."
        ) from error
    scores, items = task_scores(task, leaf.name, answer, digest)
    if task.OUTPUT_TYPE == "generate_until":
        version = str(answer["versions"][leaf.name])
        own, of_own = health_scores(leaf.name, answer["samples"][leaf.name], wrapped.written, version, digest)
        scores, items = scores + own, items + of_own
    return scores, items


def _recall(file: Path, key: Mapping[str, Any]) -> tuple[list[Score], list[Items]] | None:
    """Return a finished task, None where there is none or the file is damaged."""
    try:
        document = json.loads(file.read_text())
        if document["key"] != key:
            return None
        value = document["value"]
        if document["sha256"] != checksum(value):
            return None
        return [Score(**one) for one in value["scores"]], [items_from(one) for one in value["items"]]
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None


def _tokenizer_digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    special = sorted((key, str(value)) for key, value in tokenizer.special_tokens_map.items())
    return hashlib.sha256(f"{text}{special}{_own_code(type(tokenizer))}".encode()).hexdigest()


def _own_code(kind: type) -> str:
    """Return the text of the files that define a class and its ancestors outside of libraries, as models bring them along."""
    modules = [
        sys.modules[one.__module__] for one in kind.__mro__ if one.__module__.startswith("transformers_modules.")
    ]
    return "".join(inspect.getsource(module) for module in modules)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators that a task's code or sampling may use, and give them back as they were."""
    import numpy as np
    import torch

    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)
