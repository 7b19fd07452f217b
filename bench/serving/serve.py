"""``moebench serve``: vLLM's own server on a checkpoint of ours, with the options that the checkpoint needs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NoReturn

from bench.checkpoint.source import local_folder
from bench.checkpoint.tokenizer_files import own_code
from bench.serving.engine import engine_here
from methods.framework.errors import TimingError

_TRUST = "--trust-remote-code"


def serve(model: str, arguments: Sequence[str]) -> NoReturn:
    """Become the server of checkpoint ``model``; does not return.

    It answers this machine alone, unless ``arguments`` say where else it should listen.

    Raises:
        TimingError: vLLM is missing, is told not to load our plug-in, or cannot serve this checkpoint, or only with code
            of its own that is not trusted.
        CheckpointError: there is no such checkpoint.
    """
    engine = engine_here()
    if reason := engine.missing():
        raise TimingError(reason)
    path, _ = local_folder(model)
    if reason := engine.refuses(path):
        raise TimingError(f"{model} cannot be served: {reason}")
    told = {argument.partition("=")[0] for argument in arguments}
    if (code := own_code(path)) is not None and not told & {_TRUST, "--tokenizer", "--skip-tokenizer-init", "--config"}:
        raise TimingError(
            f"{model} cannot be served: its tokenizer is made by Python code of its own ({code}); read the code and give "
            f"{_TRUST}, or name another folder with --tokenizer"
        )
    command = engine.server_command(path, [*_here_only(arguments), *arguments])
    os.execv(command[0], command)


def _here_only(arguments: Sequence[str]) -> list[str]:
    """Return what keeps a server from the network: vLLM's own default listens on every interface, without a password."""
    told = {argument.partition("=")[0] for argument in arguments}
    return [] if told & {"--host", "--uds", "--config"} else ["--host", "127.0.0.1"]
