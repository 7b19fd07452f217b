"""``moebench serve``: vLLM's own server on a checkpoint of ours, with the options that the checkpoint needs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NoReturn

from bench.checkpoint.source import local_folder
from bench.serving.engine import engine_here
from methods.framework.errors import TimingError


def serve(model: str, arguments: Sequence[str]) -> NoReturn:
    """Become the server of checkpoint ``model``; does not return.

    Raises:
        TimingError: vLLM is missing, is told not to load our plug-in, or cannot serve this checkpoint.
        CheckpointError: there is no such checkpoint.
    """
    engine = engine_here()
    if reason := engine.missing():
        raise TimingError(reason)
    path, _ = local_folder(model)
    if reason := engine.refuses(path):
        raise TimingError(f"{model} cannot be served: {reason}")
    command = engine.server_command(path, arguments)
    os.execv(command[0], command)
