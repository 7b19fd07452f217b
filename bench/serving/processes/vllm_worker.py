"""What a worker does with vLLM: load a checkpoint, time it, decode greedily, report memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from bench.families.compressed_config import PREFIX
from bench.serving.engine import engine_named
from bench.serving.plugin import STOCK


def preload() -> None:
    """Import vLLM with everything that each model start needs."""
    import vllm.engine.arg_utils
    import vllm.entrypoints.llm
    import vllm.v1.engine.llm_engine
    import vllm.v1.executor.uniproc_executor  # imported for their side effect: being loaded before the fork
    from vllm.model_executor.models import ModelRegistry
    from vllm.platforms import current_platform

    from bench.serving.plugin import register

    if not current_platform.is_cpu():
        return  # model code may touch the device, which must not happen before the fork
    import vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors
    import vllm.v1.worker.cpu_worker  # noqa: F401  # as above

    # The registry looks at each architecture in a process of its own, 15 s the first time; a loaded class it just asks.
    register()
    for name in (*STOCK, *(PREFIX + stock for stock in STOCK)):
        if name in ModelRegistry.models:
            ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


def _memory(field: str) -> int:
    """Return ``VmHWM`` or ``VmRSS`` of this process in bytes, 0 where /proc does not tell."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(field + ":")), 0)


def parameter_bytes(model: Any) -> int:
    """Return the bytes of all parameters and buffers of a module, memory that several of them share counted once."""
    stored: dict[int, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
    return sum(stored.values())


def _loaded_bytes(engine: Any, before: list[int]) -> int:
    """Return what the weights take in memory.

    That is what vLLM's model runner measured, where it does. Else it is the sum over parameters and buffers, before or after
    the kernels repacked them, whichever is larger: the CPU's kernels keep packed copies that are no parameters.
    """
    measured = engine.collective_rpc(lambda worker: int(getattr(worker.model_runner, "model_memory_usage", 0) or 0))
    return sum(measured) or max(sum(engine.apply_model(parameter_bytes)), sum(before))


@contextmanager
def _watched() -> Iterator[list[int]]:
    """Yield a list that gets the bytes of each model loaded in this process, before its weights are repacked."""
    from vllm.model_executor.model_loader import base_loader

    original, before = base_loader.process_weights_after_loading, list[int]()

    def process(model: Any, *arguments: Any, **named: Any) -> Any:
        before.append(parameter_bytes(model))
        return original(model, *arguments, **named)

    base_loader.process_weights_after_loading = process
    try:
        yield before
    finally:
        base_loader.process_weights_after_loading = original


def load(state: dict[str, Any], path: str, options: dict[str, Any]) -> dict[str, Any]:
    """Start vLLM on the checkpoint at ``path`` and return what it runs on.

    Args:
        state: the worker's memory between requests.
        path: checkpoint folder.
        options: keyword arguments of ``vllm.LLM``.
    """
    import torch
    import vllm
    from vllm.platforms import current_platform

    from bench.serving.processes.hardware import allowed_cores, gpu_state

    idle = _memory("VmRSS")
    cpu = current_platform.is_cpu()
    started = time.perf_counter()
    forced: dict[str, Any] = {"distributed_executor_backend": "uni"} if cpu else {}
    forced |= engine_named("vllm-cpu" if cpu else "vllm-gpu").options(Path(path), str(options.get("dtype")))
    with _watched() as before:
        model = vllm.LLM(model=path, skip_tokenizer_init=True, enable_prefix_caching=False, **forced, **options)
    state["engine"], state["cpu"], state["requests"] = model.llm_engine, cpu, 0
    cache = model.llm_engine.vllm_config.cache_config
    return {
        "engine": f"vllm {vllm.__version__}",
        "platform": "cpu" if cpu else torch.cuda.get_device_name(0),
        "threads": torch.get_num_threads(),
        "dtype": str(model.llm_engine.model_config.dtype).removeprefix("torch."),
        "eager": bool(model.llm_engine.model_config.enforce_eager),
        "cores": list(allowed_cores()),
        "parameter_bytes": _loaded_bytes(model.llm_engine, before),
        "kv_blocks": cache.num_gpu_blocks,
        "kv_block_tokens": cache.block_size,
        "gpu": {} if cpu else gpu_state(str(torch.cuda.get_device_properties(0).uuid)),
        "idle_bytes": idle,
        "load_seconds": time.perf_counter() - started,
    }


def _add(state: dict[str, Any], prompts: list[list[int]], tokens: int) -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    for prompt in prompts:
        settings = SamplingParams(
            temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
        )
        state["engine"].add_request(str(state["requests"]), {"prompt_token_ids": prompt}, settings)
        state["requests"] += 1


def measure(state: dict[str, Any], prompts: list[list[int]], generate: int) -> dict[str, float]:
    """Time one batch, phase by phase.

    Prefill runs from the first engine step until every prompt has its first token; decode is the rest: ``generate``
    further tokens for each prompt. Both come from one run, so nothing has to be subtracted.

    Args:
        state: of the worker, with its engine and the number of the next request.
        prompts: token ids of each sequence of the batch.
        generate: tokens after the first one, for each prompt.

    Returns:
        Wall and process CPU seconds of the two phases.
    """
    engine = state["engine"]
    _add(state, prompts, 1 + generate)
    waiting = len(prompts)
    seen: set[str] = set()
    wall, cpu = time.perf_counter(), time.process_time()
    middle = (wall, cpu)
    while engine.has_unfinished_requests():
        outputs = engine.step()
        if waiting:
            seen.update(output.request_id for output in outputs if output.outputs[0].token_ids)
            waiting = len(prompts) - len(seen)
            middle = (time.perf_counter(), time.process_time())
    end = (time.perf_counter(), time.process_time())
    return {
        "prefill": middle[0] - wall,
        "decode": end[0] - middle[0],
        "prefill_cpu": middle[1] - cpu,
        "decode_cpu": end[1] - middle[1],
    }


def greedy(state: dict[str, Any], prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Return ``tokens`` greedy tokens after each prompt.

    Args:
        state: of the worker, with its engine and the number of the next request.
        prompts: token ids.
        tokens: how many tokens follow each prompt.
    """
    engine = state["engine"]
    first = state["requests"]
    _add(state, prompts, tokens)
    answers: list[list[int]] = [[] for _ in prompts]
    while engine.has_unfinished_requests():
        for output in engine.step():
            answers[int(output.request_id) - first] += [int(token) for token in output.outputs[0].token_ids]
    return answers


def log_probabilities(state: dict[str, Any], prompts: list[list[int]]) -> list[list[float]]:
    """Return the log-probability of every token of each prompt but its first, in nats."""
    import torch
    from vllm import SamplingParams

    engine = state["engine"]
    first = state["requests"]
    settings = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    for prompt in prompts:
        engine.add_request(str(state["requests"]), {"prompt_token_ids": prompt}, settings)
        state["requests"] += 1
    answers: list[list[float]] = [[] for _ in prompts]
    # vLLM ranks tokens by a kernel that is compiled anew in every process; on a CPU nothing else of a step is compiled.
    with torch.compiler.set_stance("force_eager") if state["cpu"] else nullcontext():
        while engine.has_unfinished_requests():
            for output in engine.step():
                index = int(output.request_id) - first
                if output.prompt_logprobs:
                    pairs = zip(prompts[index][1:], output.prompt_logprobs[1:], strict=True)
                    answers[index] = [float(logprobs[token].logprob) for token, logprobs in pairs]
    return answers


def peak(state: dict[str, Any]) -> int:
    """Return the peak memory in bytes: resident set of this process on a CPU, allocated device memory on a GPU."""
    if state["cpu"]:
        return _memory("VmHWM")
    import torch

    return int(torch.cuda.max_memory_allocated())


def gpu(state: dict[str, Any]) -> dict[str, Any]:
    """Return driver and clocks of the GPU at this moment, nothing on a CPU."""
    if state["cpu"]:
        return {}
    import torch

    from bench.serving.processes.hardware import gpu_state

    return gpu_state(str(torch.cuda.get_device_properties(0).uuid))


VERBS: dict[str, Callable[..., Any]] = {
    "load": load,
    "measure": measure,
    "greedy": greedy,
    "log_probabilities": log_probabilities,
    "peak": peak,
    "gpu": gpu,
}
