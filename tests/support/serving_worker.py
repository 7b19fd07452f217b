"""What end-to-end tests ask of forks of one process that has vLLM and lm-eval imported: all that our own workers do, and more."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.serving.engine import engine_here
from bench.serving.processes import vllm_cli, vllm_worker


def preload() -> None:
    vllm_cli.preload()
    vllm_worker.preload()
    import lm_eval.models.vllm_causallms  # noqa: F401  # loaded before the fork


def accuracy(state: dict[str, Any], path: str, tasks: str, task: str, limit: int) -> dict[str, Any]:
    """Score a checkpoint by lm-eval's own vLLM backend, in bfloat16.

    That backend keeps its engine until the process ends, so each model has a fork of its own.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    options = {"dtype": "bfloat16", "max_model_len": 128, "kv_cache_memory_bytes": 1 << 26}
    found = lm_eval.simple_evaluate(
        model="vllm",
        model_args={"pretrained": path, **options, **engine_here().options(Path(path), "bfloat16")},
        tasks=[task],
        limit=limit,
        log_samples=True,
        batch_size="auto",
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=tasks, include_defaults=False),
    )
    hits = [float(sample["acc"]) for sample in found["samples"][task]]
    return {"value": found["results"][task]["acc,none"], "hits": hits}


def two_devices(state: dict[str, Any], path: str, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Return greedy tokens of a model each half of which has a process of its own, forked from this one."""
    import vllm
    import vllm.v1.executor.multiproc_executor as executor

    executor.get_mp_context = lambda: multiprocessing.get_context("fork")  # vLLM's own would import everything anew
    model = vllm.LLM(
        model=path,
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=64,
        max_num_seqs=4,
        tensor_parallel_size=2,
        distributed_executor_backend="mp",
        kv_cache_memory_bytes=1 << 24,
        **engine_here().options(Path(path), "float32"),
    )
    settings = vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    answers = model.generate([{"prompt_token_ids": prompt} for prompt in prompts], settings)
    return [list(answer.outputs[0].token_ids) for answer in answers]


VERBS: dict[str, Callable[..., Any]] = {
    **vllm_worker.VERBS,
    **vllm_cli.VERBS,
    "accuracy": accuracy,
    "two_devices": two_devices,
}
