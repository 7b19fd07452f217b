"""vLLM as an engine, whatever it runs on; what depends on the device is in ``engines/vllm_cpu.py`` and ``vllm_gpu.py``."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from bench.checkpoint.config_file import read_config
from bench.serving.engine import Engine
from bench.serving.plugin import STOCK
from bench.serving.servable import expert_forms, has_zeros, unservable
from bench.serving.target import Verdict, vllm_verdict
from bench.settings.timing_settings import OnlineProtocol
from methods.framework.errors import TimingError
from methods.framework.forms import has_own_form
from methods.framework.inventory import Inventory
from methods.framework.plan import Plan

DEQUANTISED = "served with de-quantised values on this device: quality can be checked, no speed is claimed"
"""Why nothing is timed where few bits are held as what they stand for."""
_MISSING = "vLLM is not installed; install moebench with the extra 'gpu', or 'cpu' on a machine without GPU"
_PLUGINS = "VLLM_PLUGINS"


class VLLM(Engine):
    """vLLM, with our plug-in for checkpoints whose layers differ."""

    worker: ClassVar[str] = "bench.serving.processes.vllm_worker"

    def missing(self) -> str | None:
        """Return what to do where vLLM is not installed, or None."""
        return None if importlib.util.find_spec("vllm") else _MISSING

    def refuses(self, path: Path) -> str | None:
        """Return why neither vLLM's own classes nor the plug-in can serve the checkpoint at ``path``, or None."""
        return unservable(path)

    def verdict(self, plan: Plan, inventory: Inventory) -> Verdict:
        """Return what the table of trials, else the rules, say about ``plan``."""
        return vllm_verdict(plan, inventory, self)

    def realisation(self, path: Path) -> Literal["compressed", "dense"]:
        """Return whether vLLM computes with what is stored, or with whole matrices of values in its place.

        Values stand for experts in few bits where there is no kernel for them, and everywhere for those that have unequal
        widths besides. Weights that a plan made zero are stored like others.
        """
        return "dense" if self.untimed(path) or has_zeros(path) else "compressed"

    def untimed(self, path: Path) -> str | None:
        """Return that experts in few bits are held as values, where they are."""
        packed = [form for form in expert_forms(read_config(path)) if form.bits is not None]
        return DEQUANTISED if packed and not (self.few_bits and not any(map(has_own_form, packed))) else None

    def options(self, path: Path, dtype: str) -> dict[str, Any]:
        """Return options of ``vllm.LLM`` without which the checkpoint is served wrongly, slowly or not at all."""
        config = read_config(path)
        # Experts in a form of their own are looped over on the host, which no CUDA graph can record.
        eager = {"enforce_eager": True} if any(map(has_own_form, expert_forms(config))) else {}
        rule = STOCK.get(str((config.get("architectures") or [""])[0]))
        renamed = (
            {}
            if rule is None or rule.architecture is None
            else {"hf_overrides": {"architectures": [rule.architecture]}}
        )
        return {**renamed, **eager, **self.device_options(config, dtype)}

    def device_options(self, config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
        """Return what the device needs besides.

        Args:
            config: content of ``config.json``.
            dtype: compute type as given to vLLM.
        """
        return {}

    def server_command(self, path: Path, arguments: Sequence[str], cores: tuple[int, ...] = ()) -> list[str]:
        """Return the command line of vLLM's server, with the options that the checkpoint needs.

        Raises:
            TimingError: ``VLLM_PLUGINS`` keeps vLLM from loading our plug-in.
        """
        chosen = os.environ.get(_PLUGINS)
        if chosen is not None and "moebench" not in chosen.split(","):
            told = f"{_PLUGINS}={chosen!r} keeps vLLM from loading the plug-in"
            raise TimingError(f"{told}; add moebench to it or unset it")
        dtype = next((b for a, b in itertools.pairwise(arguments) if a == "--dtype"), "auto")
        flags: list[str] = []
        for name, value in self.options(path, dtype).items():
            flag = "--" + name.replace("_", "-")
            if flag not in arguments:
                flags += [flag] if value is True else [flag, value if isinstance(value, str) else json.dumps(value)]
        bound = ["--cores", ",".join(map(str, cores))] if cores else []
        return [
            sys.executable,
            "-m",
            "bench.serving.processes.vllm_cli",
            *bound,
            "serve",
            str(path),
            *flags,
            *arguments,
        ]

    def server_arguments(self, protocol: OnlineProtocol, port: int) -> list[str]:
        """Return the arguments of ``vllm serve`` for a fair comparison."""
        options: dict[str, object] = {
            "--host": "127.0.0.1",
            "--port": port,
            "--dtype": protocol.dtype,
            "--seed": protocol.seed,
            "--max-model-len": protocol.prompt + protocol.generate,
            "--max-num-seqs": protocol.concurrent,
            "--kv-cache-memory-bytes": protocol.cache_bytes,
        }
        flags = [word for name, value in options.items() for word in (name, str(value))]
        # Prompts of a repeat are the same for both models and new in each repeat; the warm-up repeats the first one.
        return [*flags, "--no-enable-prefix-caching", "--disable-uvicorn-access-log"]
