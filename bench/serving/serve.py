"""``moebench serve``: vLLM's own server on a checkpoint of ours, with the options that the checkpoint needs."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from bench.checkpoint.config_file import read_config
from bench.checkpoint.source import local_folder
from bench.serving.servable import needed_options, unservable
from methods.framework.errors import TimingError

REMEDY = "install moebench with the extra 'gpu', or 'cpu' on a machine without GPU"
_PLUGINS = "VLLM_PLUGINS"


def serve_command(path: Path, arguments: Sequence[str], cpu: bool, process: Sequence[str] = ()) -> list[str]:
    """Return the command line of vLLM's server for the checkpoint at ``path``.

    Args:
        path: checkpoint folder.
        arguments: further arguments of ``vllm serve``; they win over ours.
        cpu: whether vLLM runs on the CPU.
        process: options of ``bench.serving.processes.vllm_cli`` itself, which come before the command.
    """
    dtype = next((b for a, b in itertools.pairwise(arguments) if a == "--dtype"), "auto")
    flags: list[str] = []
    for name, value in needed_options(path, dtype, cpu).items():
        flag = "--" + name.replace("_", "-")
        if flag not in arguments:
            flags += [flag] if value is True else [flag, value if isinstance(value, str) else json.dumps(value)]
    return [sys.executable, "-m", "bench.serving.processes.vllm_cli", *process, "serve", str(path), *flags, *arguments]


def check_plugin() -> None:
    """Refuse an environment in which vLLM would not load our plug-in.

    Raises:
        TimingError: ``VLLM_PLUGINS`` names others only.
    """
    chosen = os.environ.get(_PLUGINS)
    if chosen is not None and "moebench" not in chosen.split(","):
        raise TimingError(f"{_PLUGINS}={chosen!r} keeps vLLM from loading the plug-in; add moebench to it or unset it")


def serve(model: str, arguments: Sequence[str]) -> NoReturn:
    """Become vLLM's server on checkpoint ``model``; does not return.

    Raises:
        TimingError: vLLM is missing, is told not to load our plug-in, or cannot serve this checkpoint.
        CheckpointError: there is no such checkpoint.
    """
    if importlib.util.find_spec("vllm") is None:
        raise TimingError(f"vLLM is not installed; {REMEDY}")
    path, _ = local_folder(model)
    read_config(path)
    if reason := unservable(path):
        raise TimingError(f"{model} cannot be served: {reason}")
    check_plugin()
    from vllm.platforms import current_platform

    command = serve_command(path, arguments, cpu=current_platform.is_cpu())
    os.execv(command[0], command)
