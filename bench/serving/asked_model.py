"""A checkpoint in vLLM as evaluation asks it: lm-eval's own class, with our plug-in and the options that the checkpoint needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import psutil
import torch

from bench.checkpoint.config_file import read_config
from bench.evaluation.backend import Backend
from bench.evaluation.health import Written
from bench.serving.cache_room import cache_bytes
from bench.serving.engine import engine_here
from bench.serving.processes.client import serving_environment
from methods.framework.errors import EvaluationError


class AskedVLLM(Backend):
    """vLLM on the device at hand, in this process; the model is loaded at the first request.

    Args:
        path: folder of the checkpoint.
        dtype: compute type.
        max_length: context window in tokens, None for the model's.
        batch_size: requests that are handed over at once, None for all of a task.
        tensor_parallel: devices that share one copy of the model.
        data_parallel: copies of the model.
        trust_remote_code: whether Python code in ``path`` may run.
    """

    name: ClassVar[str] = "vllm"

    def __init__(
        self,
        path: Path,
        dtype: str,
        *,
        max_length: int | None = None,
        batch_size: int | None = None,
        tensor_parallel: int = 1,
        data_parallel: int = 1,
        trust_remote_code: bool = False,
    ) -> None:
        """Check that the checkpoint can be served; nothing is loaded yet.

        Raises:
            EvaluationError: vLLM is not installed, or cannot serve the checkpoint.
        """
        engine = engine_here()
        if reason := engine.missing() or engine.refuses(path):
            raise EvaluationError(f"evaluation.backend=vllm cannot run {path}: {reason}; use backend=transformers")
        self.dtype = getattr(torch, dtype)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._options: dict[str, Any] = {
            "pretrained": str(path),
            "dtype": dtype,
            "max_model_len": max_length,
            "batch_size": "auto" if batch_size is None else batch_size,
            "tensor_parallel_size": tensor_parallel,
            "data_parallel_size": data_parallel,
            "trust_remote_code": trust_remote_code,
            "enable_prefix_caching": False,
            **engine.options(path, dtype),
        }
        if self.device.type == "cpu":
            self._options["distributed_executor_backend"] = "uni"
            asked = ["--dtype", dtype, *(() if max_length is None else ("--max-model-len", str(max_length)))]
            room = cache_bytes(read_config(path), asked, psutil.virtual_memory().available)
            if room is not None and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
                self._options["kv_cache_memory_bytes"] = room
        self._model: Any = None

    def language_model(self, done: Callable[[int], None]) -> Any:
        """Return lm-eval's model around the engine, which is started now if it was not."""
        if self._model is None:
            for name, value in serving_environment().items():
                if name.startswith(("VLLM_", "OMP_")):
                    os.environ.setdefault(name, value)
            try:
                self._model = _model_class()(self.device.type == "cpu", **self._options)
            except Exception as error:  # the engine raises anything
                told = " ".join(str(error).split())[:300]
                raise EvaluationError(
                    f"vLLM does not start on {self._options['pretrained']}: {type(error).__name__}: {told}"
                ) from error
        self._model.done = done
        return self._model

    def close(self) -> None:
        """Let go of the engine and its memory."""
        if self._model is None:
            return
        import gc

        from vllm.distributed import cleanup_dist_env_and_memory

        self._model = None
        gc.collect()
        cleanup_dist_env_and_memory()


@contextmanager
def _version_known() -> Iterator[None]:
    """Let lm-eval, which asks for the version of a distribution called vllm, know that of the build for processors too."""
    import vllm

    own = metadata.version
    metadata.version = lambda name: str(vllm.__version__) if name == "vllm" else own(name)
    try:
        yield
    finally:
        metadata.version = own


def _model_class() -> type:
    """Return lm-eval's class for vLLM that also keeps what was written; made late, since it imports vLLM."""
    with _version_known():
        from lm_eval.models.vllm_causallms import VLLM

    class Asked(VLLM):  # type: ignore[misc]  # lm_eval is untyped
        """lm-eval's class, with texts by their prompts and reports of how far it is."""

        def __init__(self, on_cpu: bool, **options: Any) -> None:
            super().__init__(**options)
            self._on_cpu = on_cpu
            self.done: Callable[[int], None] = lambda count: None
            self.written: dict[str, list[Written]] = {}
            self._just_written: list[Written] = []

        def _model_generate(self, requests: Any, generate: bool = False, sampling_params: Any = None) -> Any:
            # Ranks of tokens come from a kernel that is compiled anew in every process; on a CPU nothing else is compiled.
            with torch.compiler.set_stance("force_eager") if self._on_cpu else nullcontext():
                outputs = super()._model_generate(requests, generate, sampling_params)
            if generate:
                self._just_written = [self._read(output.outputs[0]) for output in outputs]
            self.done(len(outputs))
            return outputs

        def _read(self, output: Any) -> Written:
            """Return a text from what vLLM tells of it, without the token that ends it."""
            tokens = tuple(int(token) for token in output.token_ids)
            if tokens and tokens[-1] == self.eot_token_id:
                tokens = tokens[:-1]
            return Written(tokens, output.finish_reason == "stop")

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            """Return the generated text of each request."""
            self.cache_hook = self
            return super().generate_until(requests, disable_tqdm=True)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            """Return log-likelihood and greediness of each continuation."""
            return super().loglikelihood(requests, disable_tqdm=True)

        def add_partial(self, kind: str, request: tuple[Any, ...], answer: Any) -> None:
            """Take the next text of the batch that was written last, as lm-eval's cache would: one by one, with its prompt."""
            if kind == "generate_until":
                self.written.setdefault(request[0], []).append(self._just_written.pop(0))

    return Asked
